"""Layers that bring branches together, and arithmetic that is written with operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from convscope.lowering.ir import Op, Shape, Value, broadcast, require
from convscope.lowering.layers.base import ProgramBuilder, Runner, Step, Tensor, WeightSource, reads, runs
from convscope.lowering.layers.elementwise import Affine


@dataclass(frozen=True, kw_only=True)
class Merge(Op):
    """An element-wise combination of several values."""

    mode: Literal["add", "subtract", "multiply", "divide", "average", "maximum", "minimum"]

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        ordered = self.mode in ("subtract", "divide")
        require(not ordered or len(shapes) == 2, f"{self.mode} needs two inputs, got {len(shapes)}")
        return broadcast(shapes)


@dataclass(frozen=True, kw_only=True)
class Concatenate(Op):
    """Values side by side along one axis."""

    axis: int

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        first = shapes[0]
        for shape in shapes[1:]:
            fits = len(shape) == len(first) and all(
                axis == self.axis or None in (one, other) or one == other
                for axis, (one, other) in enumerate(zip(first, shape, strict=False))
            )
            require(fits, f"the shapes {first} and {shape} differ outside axis {self.axis}")
        along = [shape[self.axis] for shape in shapes]
        total = None if None in along else sum(size for size in along if size is not None)
        return (*first[: self.axis], total, *first[self.axis + 1 :])


@reads("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
def _read_merge(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    return _merged(builder, layer, inputs, type(layer).__name__.lower())


def _merged(builder: ProgramBuilder, operation: Any, inputs: Sequence[Value], mode: str | None) -> Value:
    result = builder.add(Merge, operation, inputs, mode=mode)
    builder.note_broadcast(result, inputs)
    return result


def read_arithmetic(builder: ProgramBuilder, operation: Any, arguments: Sequence[Any]) -> Value:
    """Convert the arithmetic of two values, or of a value and a number, written with operators."""
    mode = arithmetic_of(operation)
    left, right = arguments
    if isinstance(left, Value) and isinstance(right, Value):
        return _merged(builder, operation, [left, right], mode)
    value, number = (left, right) if isinstance(left, Value) else (right, left)
    if mode == "multiply":
        scale, offset = float(number), 0.0
    elif mode == "divide":
        return builder.add(Affine, operation, [value], scale=(float(number),), offset=(0.0,), divide=True)
    elif mode == "add":
        scale, offset = 1.0, float(number)
    else:
        scale, offset = (1.0, -float(number)) if value is left else (-1.0, float(number))
    return builder.add(Affine, operation, [value], scale=(scale,), offset=(offset,))


def arithmetic_of(operation: Any) -> str | None:
    """Name what an operator between two values does; None for any other operation."""
    kind = type(operation)
    known = {"Add": "add", "Subtract": "subtract", "Multiply": "multiply"}
    known |= {"Divide": "divide", "TrueDivide": "divide"}
    return known.get(kind.__name__) if kind.__module__.endswith("ops.numpy") else None


@reads("Concatenate")
def _read_concatenate(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    return builder.add(Concatenate, layer, inputs, axis=layer.axis % inputs[0].rank)


_MERGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "average": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


@runs(Merge)
def _run_merge(op: Merge, _network: WeightSource) -> Runner:
    combine = _MERGES[op.mode]

    def run(_step: Step, *tensors: Tensor) -> Tensor:
        aligned = _same_rank(tensors)
        result = aligned[0]
        for tensor in aligned[1:]:
            result = combine(result, tensor)
        return result / len(tensors) if op.mode == "average" else result

    return run


def _same_rank(tensors: Sequence[Tensor]) -> list[Tensor]:
    rank = max(tensor.dim() for tensor in tensors)
    return [
        tensor.reshape(tensor.shape[0], *(1,) * (rank - tensor.dim()), *tensor.shape[1:])
        if tensor.dim() < rank
        else tensor
        for tensor in tensors
    ]


@runs(Concatenate)
def _run_concatenate(op: Concatenate, _network: WeightSource) -> Runner:
    return lambda _step, *tensors: torch.cat(tensors, dim=op.axis)
