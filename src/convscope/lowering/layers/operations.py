"""Functions of ``keras.ops`` between layers, and weights that enter them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import keras
import torch

from convscope import _keras_internals as internals
from convscope.arithmetic.formulas import known_lengths
from convscope.errors import LoweringError, expected_got
from convscope.lowering.ir import Elementwise, Op, Shape, Value, require
from convscope.lowering.layers.base import ProgramBuilder, Runner, Step, Tensor, WeightSource, runs
from convscope.lowering.layers.keras_call import KerasOp
from convscope.lowering.masks import hashed_fields

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
# Functions of each element, or of several that stand at the same place.
_COMBINE = ("Add", "Divide", "Floor", "Multiply", "Power", "Sqrt", "Subtract", "TrueDivide")


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
class Given(Elementwise):
    """What enters a subclassed model, as float32: of the shape that its ``call`` was read with.

    ``whole_numbers`` says whether all that read them are layers, which make float32 of them first.
    """

    shape: Shape
    whole_numbers: bool


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


@dataclass(frozen=True, kw_only=True)
class Random(Op):
    """An op that draws numbers in each pass, of a ``stream`` that is numbered with those of dropouts."""

    stream: int


@dataclass(frozen=True, kw_only=True)
class Draw(Random):
    """Numbers drawn evenly between two others, for the batch of its input; ``-k`` is k times the batch."""

    lengths: tuple[int, ...]
    low: float
    high: float

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        del shapes
        return tuple(None if length < 0 else length for length in self.lengths)


@dataclass(frozen=True, kw_only=True)
class ByMode(Op):
    """The first of two values in training, else the second; what only the other needs is not computed."""

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        first, second = shapes
        require(len(first) == len(second), f"{first} in training and {second} otherwise have other ranks")
        return second


def is_plain(operation: Any) -> bool:
    """Say whether this is a function of ``keras.ops`` that depends on its arguments and settings alone."""
    kind = type(operation)
    own = kind.__module__.startswith(("keras.src.ops.", "keras.src.activations."))
    return own and kind.__name__ not in _TAKE_FUNCTIONS


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
    kind = type(operation).__name__
    read = [leaf for leaf in leaves if isinstance(leaf, Value)]
    if kind in _COMBINE:
        builder.note_broadcast(outputs[0], read)
    elif builder.batches.issuperset(inputs) and _keeps_batch(kind, operation, args, outputs[0]):
        builder.batches.update(value.name for value in outputs)
    return outputs


def _keeps_batch(kind: str, operation: Any, args: Any, result: Value) -> bool:
    """Say whether what it gives is surely as long as what it reads: parts of examples, or side by side."""
    if kind == "GetItem":
        key = args[1] if isinstance(args[1], tuple) else (args[1],)
        return bool(key) and isinstance(key[0], slice) and key[0] == slice(None)
    if kind == "Concatenate":
        return operation.axis not in (0, None) and operation.axis > -len(args[0][0].shape)
    if kind == "Transpose":
        return bool(operation.axes) and operation.axes[0] == 0
    if kind == "Reshape":  # as many elements of each example: as many examples
        sizes = args[0].shape[1:], result.shape[1:]
        known = [known_lengths(shape) for shape in sizes if None not in shape]
        return len(known) == 2 and math.prod(known[0]) == math.prod(known[1])
    return kind == "ExtractPatches"


def read_constant(builder: ProgramBuilder, constant: Any) -> Value:
    """Return the value of a weight of the model, or of a tensor that is always the same."""
    if not builder.knows(constant):
        name = type(constant).__name__.lower()
        return builder.add(Constant, SimpleNamespace(name=name), [], numbers=constant)
    path = builder.path(constant)
    if path not in builder.weights:
        builder.weights[path] = builder.add(Weight, constant, [], path=path, shape=tuple(constant.shape))
    return builder.weights[path]


# Torch widens bfloat16 beside float32 while it computes.
_DIRECT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Subtract": torch.sub,
    "Multiply": torch.mul,
}


def _all_values(arguments: Sequence[Any]) -> bool:
    return all(isinstance(one, Value) and one.dtype == "float32" for one in arguments)


@runs(Operation)
def _run_operation(op: Operation, network: WeightSource) -> Runner:
    direct = _DIRECT.get(type(op.function).__name__)
    if direct is not None and not op.arguments[1] and _all_values(op.arguments[0]):
        first, second = (op.inputs.index(value.name) for value in op.arguments[0])
        return lambda _step, *tensors: direct(tensors[first], tensors[second])
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


@runs(Given)
def _run_given(op: Given, _network: WeightSource) -> Runner:
    def run(_step: Step, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != op.shape[1:]:
            found = f"inputs of shape {tuple(x.shape[1:])}"
            raise LoweringError(expected_got(f"inputs of shape {op.shape[1:]}, on which it was built", found))
        if not (op.whole_numbers or x.is_floating_point()):
            raise LoweringError(expected_got("floating-point inputs of a subclassed model", x.dtype))
        return x.float()

    return run


@runs(Broadcast)
def _run_broadcast(op: Broadcast, _network: WeightSource) -> Runner:
    def run(_step: Step, x: Tensor, batch: Tensor) -> Tensor:
        return x.expand([-length * len(batch) if length < 0 else length for length in op.lengths])

    return run


@runs(Draw)
def _run_draw(op: Draw, _network: WeightSource) -> Runner:
    def run(step: Step, batch: Tensor) -> Tensor:
        shape = [-length * len(batch) if length < 0 else length for length in op.lengths]
        drawn = draw_evenly(step, op.stream, shape, batch.device, by_row=op.lengths[0] < 0)
        return drawn * (op.high - op.low) + op.low

    return run


def draw_evenly(
    step: Step, stream: int, shape: Sequence[int], device: torch.device, by_row: bool = True
) -> Tensor:
    """Draw numbers from 0 to 1; ``by_row``: a row's are those that it has in the whole batch."""
    count = math.prod(shape)
    begin, end, total = 0, count, count
    if by_row and step.shard is not None:
        (begin, end), total = step.shard.elements(count), count // step.shard.rows * step.shard.total
    words = torch.empty(total, dtype=torch.int64, device=device)
    words = hashed_fields(words, step.key(stream), 0, 0)[begin:end]
    shares = (words >> 40).bitwise_and_((1 << 24) - 1).to(torch.float32) * 2.0**-24
    return shares.view(*shape)


@runs(ByMode)
def _run_by_mode(_op: ByMode, _network: WeightSource) -> Runner:
    return lambda _step, chosen: chosen
