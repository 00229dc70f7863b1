"""The Program: an immutable list of typed operations, in Keras's own axis order.

Every value has a name, a shape that begins with the batch axis (``None``), and exactly one op that writes it.
Axis order is the Keras model's; how a value lies in memory is decided later, per op (``KernelChoice``).
Weights and state are named by the path of their Keras variable and never stored in the program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from convscope.arithmetic.activations import ACTIVATIONS
from convscope.errors import LoweringError

Shape = tuple[int | None, ...]
Pair = tuple[int, int]
Precision = Literal["float32", "bfloat16"]
DataFormat = Literal["channels_last", "channels_first"]
Padding = Literal["valid", "same"]


class ShapeError(ValueError):
    """An op's settings do not fit the shapes it reads; the message says what does not fit."""


@dataclass(frozen=True)
class Value:
    """A tensor that flows through the program."""

    name: str
    shape: Shape
    dtype: str = "float32"

    @property
    def rank(self) -> int:
        """Return the number of axes, the batch axis included."""
        return len(self.shape)


@dataclass(frozen=True)
class Activation:
    """An element-wise function (or a softmax) by its Keras name, with its settings."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the settings as keyword arguments."""
        return dict(self.settings)

    @property
    def is_monotone(self) -> bool:
        """Say whether a larger input never gives a smaller output, so that the function commutes with max."""
        return ACTIVATIONS[self.name].is_increasing(self.arguments)

    @property
    def is_plain_relu(self) -> bool:
        """Say whether this is max(x, 0), whose derivative can be read off its output."""
        given = self.arguments
        return self.name == "relu" and not (
            given.get("negative_slope") or given.get("threshold") or given.get("max_value") is not None
        )

    @property
    def ceiling(self) -> float | None:
        """Return the largest value of a ReLU that has one and no other setting: 6 of ReLU6."""
        given = self.arguments
        largest = 6.0 if self.name == "relu6" else given.get("max_value") if self.name == "relu" else None
        return largest if largest and not (given.get("negative_slope") or given.get("threshold")) else None

    def __str__(self) -> str:
        """Show the name, with the settings that were given."""
        if not self.settings:
            return self.name
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in self.settings)})"


@dataclass(frozen=True)
class KernelChoice:
    """How a convolution or matrix product is computed: an entry of the plan.

    ``precision`` is the type it computes in and writes; ``layout`` the order in which its images lie in
    memory; ``algorithm`` one of the ways that this op can be computed.
    """

    precision: Precision = "float32"
    layout: DataFormat = "channels_last"
    algorithm: str = "direct"


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation: reads ``inputs``, writes ``output``; ``layer`` is the path of its Keras layer."""

    name: str
    layer: str
    inputs: tuple[str, ...]
    output: str

    @property
    def kind(self) -> str:
        """Return the name of the operation's type."""
        return type(self).__name__

    @property
    def weights(self) -> tuple[str, ...]:
        """Return the paths of the weights that the op reads."""
        return ()

    @property
    def state(self) -> tuple[str, ...]:
        """Return the paths of the non-trainable variables that the op reads or updates."""
        return ()

    @property
    def written(self) -> tuple[str, ...]:
        """Return the names of the values that the op writes."""
        return (self.output,)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape | None:
        """Compute the shape that it gives from its settings and the shapes of its inputs.

        None where the settings do not say: Keras says it for a layer that runs as it is. Raises ShapeError.
        """
        return self._output_shape(shapes)

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape | None:
        del shapes
        raise ShapeError(f"no shape rule for {self.kind}")

    def settings(self) -> dict[str, Any]:
        """Return the fields that make this op differ from others of its type."""
        common = {"name", "layer", "inputs", "output"}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in common}


@dataclass(frozen=True, kw_only=True)
class Elementwise(Op):
    """An op whose result has the shape of its only input."""

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        return shape


@dataclass(frozen=True)
class Output:
    """One output of the network: a value, and the activation behind it that was folded out of the program."""

    value: str
    activation: Activation | None = None


@dataclass(frozen=True)
class Program:
    """What a Keras model computes: inputs, ops in an order in which they can run, outputs."""

    name: str
    inputs: tuple[Value, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Output, ...]
    values: Mapping[str, Value]
    input_structure: Any = None
    output_structure: Any = None

    def __iter__(self) -> Iterator[Op]:
        """Iterate over the ops in order."""
        return iter(self.ops)

    def value(self, name: str) -> Value:
        """Return the value of that name, an input or an op's output."""
        return self.values[name]

    def producer(self, name: str) -> Op | None:
        """Return the op that writes a value; None for an input."""
        return next((op for op in self.ops if name in op.written), None)

    def readers(self, name: str) -> tuple[Op, ...]:
        """Return the ops that read a value."""
        return tuple(op for op in self.ops if name in op.inputs)

    def is_output(self, name: str) -> bool:
        """Say whether a value leaves the program."""
        return any(output.value == name for output in self.outputs)

    def replace(self, **changes: Any) -> Program:
        """Return a copy with some fields changed; values that nothing writes any more are dropped."""
        changed = dataclasses.replace(self, **changes)
        live = {value.name for value in changed.inputs}.union(*(op.written for op in changed.ops))
        kept = {name: value for name, value in changed.values.items() if name in live}
        return dataclasses.replace(changed, values=kept)


def check(program: Program, after: str = "reading") -> Program:
    """Verify a program and return it: every value written once before it is read, every shape as specified.

    Raises LoweringError after what was done to it last; names the op, its Keras layer and the shapes.
    """
    known = {value.name for value in program.inputs}
    names: set[str] = set()
    for op in program:
        _check_order(op, known, names, after)
        _check_shapes(op, program, after)
        names.add(op.name)
        known.update(op.written)
    for output in program.outputs:
        if output.value not in known:
            raise LoweringError(
                f"After {after}, output {output.value!r} of {program.name!r} is written by no op."
            )
    return program


def _check_order(op: Op, known: set[str], names: set[str], after: str) -> None:
    if op.name in names:
        raise _wrong(op, after, "its name is used twice")
    for name in op.inputs:
        if name not in known:
            raise _wrong(op, after, f"it reads {name!r}, which nothing has written before")
    for name in op.written:
        if name in known:
            raise _wrong(op, after, f"it writes {name!r}, which was written before")


def _check_shapes(op: Op, program: Program, after: str) -> None:
    missing = [name for name in (*op.inputs, *op.written) if name not in program.values]
    if missing:
        raise _wrong(op, after, f"the shape of {missing[0]!r} is unknown")
    shapes = [program.value(name).shape for name in op.inputs]
    try:
        computed = op.output_shape(shapes)
    except ShapeError as error:
        raise _wrong(op, after, str(error)) from None
    if computed is None:
        return
    recorded = program.value(op.output).shape
    if len(computed) != len(recorded) or not all(
        None in (a, b) or a == b for a, b in zip(computed, recorded, strict=True)
    ):
        given = " and ".join(map(str, shapes))
        raise _wrong(op, after, f"from {given} it gives {computed}, but {recorded} is recorded")


def _wrong(op: Op, after: str, what: str) -> LoweringError:
    return LoweringError(f"After {after}, op {op.name!r} ({op.kind}, layer {op.layer!r}) is wrong: {what}.")


# What the shape rules of the ops are made of


def spatial_axes(data_format: DataFormat) -> tuple[int, int]:
    """Return the axes of height and width in a batch of images."""
    return (1, 2) if data_format == "channels_last" else (2, 3)


def channel_axis(data_format: DataFormat) -> int:
    """Return the axis of the channels in a batch of images."""
    return 3 if data_format == "channels_last" else 1


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Compute the shape of an element-wise combination; ranks are made equal behind the batch axis."""
    rank = max(len(shape) for shape in shapes)
    aligned = [(shape[0], *(1,) * (rank - len(shape)), *shape[1:]) for shape in shapes]
    merged: list[int | None] = []
    for sizes in zip(*aligned, strict=True):
        distinct = {size for size in sizes if size not in (1, None)}
        if len(distinct) > 1:
            raise ShapeError(f"the shapes {', '.join(map(str, shapes))} cannot be combined")
        merged.append(distinct.pop() if distinct else (None if None in sizes else 1))
    return tuple(merged)


def require(condition: bool, message: str) -> None:
    """Raise a ShapeError unless a condition holds."""
    if not condition:
        raise ShapeError(message)


def require_image(op: Op, shape: Shape) -> None:
    """Raise a ShapeError unless a shape is that of a batch of images."""
    require(len(shape) == 4, f"{op.kind} needs images of rank 4, got the shape {shape}")


def with_axes(shape: Shape, data_format: DataFormat, sizes: Sequence[int | None]) -> Shape:
    """Replace height and width in the shape of a batch of images."""
    changed = list(shape)
    for axis, size in zip(spatial_axes(data_format), sizes, strict=True):
        changed[axis] = size
    return tuple(changed)
