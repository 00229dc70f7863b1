"""Functions of ``keras.ops`` between layers, and weights that enter them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import keras
import torch

from convscope import _keras_internals as internals
from convscope.lowering.ir import Op, Shape, Value, require
from convscope.lowering.layers.base import ProgramBuilder, Runner, Step, Tensor, WeightSource, runs
from convscope.lowering.layers.keras_call import KerasOp

# fmt: off
# Functions that take functions: what those compute, and on which variables, is not known.
_TAKE_FUNCTIONS = (
    "AssociativeScan", "Cond", "CustomGradient", "ForiLoop", "Function", "Map", "Scan", "Switch",
    "VectorizedMap", "WhileLoop",
)
# Functions that only move elements, of whatever type; the others compute in float32.
_MOVE = (
    "BroadcastTo", "Concatenate", "ExpandDims", "ExtractPatches", "Flip", "GetItem", "Moveaxis", "Pad",
    "Ravel", "Repeat", "Reshape", "Roll", "Split", "Squeeze", "Stack", "Swapaxes", "Tile", "Transpose",
    "Unstack",
)
# fmt: on


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation(KerasOp):
    """A function of ``keras.ops`` on its own; a ``Value`` stands in its arguments for a tensor."""

    function: Any
    arguments: tuple[Any, Any]

    def settings(self) -> dict[str, Any]:
        """Return the name of the function's class."""
        return {"keras": type(self.function).__name__}


@dataclass(frozen=True, kw_only=True)
class Weight(Op):
    """A weight as a value, for functions that compute with it."""

    path: str
    shape: Shape

    @property
    def weights(self) -> tuple[str, ...]:
        """Return the weight."""
        return (self.path,)

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        del shapes
        return self.shape


@dataclass(frozen=True, kw_only=True, eq=False)
class Constant(Op):
    """Numbers that are always the same, such as positions."""

    numbers: Tensor

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        del shapes
        return tuple(self.numbers.shape)

    def settings(self) -> dict[str, Any]:
        """Return nothing: they may be many."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Broadcast(Op):
    """A value as often as the batch of the second is long: ``-k`` in ``lengths`` is k times that."""

    lengths: tuple[int, ...]

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        shape, _ = shapes
        fits = len(shape) == len(self.lengths) and all(
            length < 0 or size in (1, None, length) for size, length in zip(shape, self.lengths, strict=True)
        )
        require(fits, f"{shape} cannot become {self.lengths}")
        return tuple(None if length < 0 else length for length in self.lengths)


def is_plain(operation: Any) -> bool:
    """Say whether this is a function of ``keras.ops`` that depends on its arguments and settings alone."""
    kind = type(operation)
    return kind.__module__.startswith("keras.src.ops.") and kind.__name__ not in _TAKE_FUNCTIONS


def function_of(operation: Any) -> Callable[..., Any]:
    """Return what a function of ``keras.ops`` computes, without what Keras does around a call."""
    if type(operation).__name__ == "ConvTranspose":  # its own `call` mixes two arguments up
        return partial(keras.ops.conv_transpose, **internals.settings_of_operation(operation))
    function: Callable[..., Any] = operation.call
    return function


def add_operation(
    builder: ProgramBuilder, operation: Any, args: Any, kwargs: Any, specs: Sequence[tuple[Shape, str]]
) -> list[Value]:
    """Append a function of ``keras.ops``, with the shapes and types of what it gives."""
    arguments = keras.tree.map_structure(
        lambda leaf: read_constant(builder, leaf) if builder.knows(leaf) else leaf, (args, kwargs)
    )
    leaves = keras.tree.flatten(arguments)
    inputs = tuple(dict.fromkeys(leaf.name for leaf in leaves if isinstance(leaf, Value)))
    outputs = builder.add_keras(Operation, operation, inputs, specs, function=operation, arguments=arguments)
    if _keeps_batch(operation, args) and builder.batches.issuperset(inputs):
        builder.batches.update(value.name for value in outputs)
    return outputs


def _keeps_batch(operation: Any, args: Any) -> bool:
    """Say whether what it gives is surely as long as what it reads: parts of examples, or side by side."""
    kind = type(operation).__name__
    if kind == "GetItem":
        key = args[1] if isinstance(args[1], tuple) else (args[1],)
        return bool(key) and isinstance(key[0], slice) and key[0] == slice(None)
    return (
        kind == "Concatenate" and operation.axis not in (0, None) and operation.axis > -len(args[0][0].shape)
    )


def read_constant(builder: ProgramBuilder, constant: Any) -> Value:
    """Return the value of a weight of the model, or of a tensor that is always the same."""
    if not builder.knows(constant):
        name = type(constant).__name__.lower()
        return builder.add(Constant, SimpleNamespace(name=name), [], numbers=constant)
    path = builder.path(constant)
    if path not in builder.weights:
        builder.weights[path] = builder.add(Weight, constant, [], path=path, shape=tuple(constant.shape))
    return builder.weights[path]


@runs(Operation)
def _run_operation(op: Operation, network: WeightSource) -> Runner:
    places = {name: number for number, name in enumerate(op.inputs)}
    function = function_of(op.function)
    keeps_type = type(op.function).__name__ in _MOVE
    is_flat = not op.arguments[1] and not any(isinstance(arg, list | tuple | dict) for arg in op.arguments[0])
    several = len(op.outputs) > 1

    def run(_step: Step, *tensors: Tensor) -> Any:
        def fill(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                return tensors[places[leaf.name]]
            return network.on_device(leaf) if isinstance(leaf, torch.Tensor) else leaf

        if not keeps_type:
            tensors = tuple(
                tensor.float() if tensor.dtype is torch.bfloat16 else tensor for tensor in tensors
            )
        if is_flat:
            result = function(*map(fill, op.arguments[0]))
        else:
            args, kwargs = keras.tree.map_structure(fill, op.arguments)
            result = function(*args, **kwargs)
        return keras.tree.flatten(result) if several else keras.tree.flatten(result)[0]

    return run


@runs(Weight)
def _run_weight(op: Weight, network: WeightSource) -> Runner:
    return lambda _step: network.tensor(op.path)


@runs(Constant)
def _run_constant(op: Constant, network: WeightSource) -> Runner:
    return lambda _step: network.on_device(op.numbers)


@runs(Broadcast)
def _run_broadcast(op: Broadcast, _network: WeightSource) -> Runner:
    def run(_step: Step, x: Tensor, batch: Tensor) -> Tensor:
        return x.expand([-length * len(batch) if length < 0 else length for length in op.lengths])

    return run
