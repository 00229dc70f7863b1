"""What a kind of layer is: one record, what its two functions are given, and what they give back.

One analyses a layer (`LayerContext` → `LayerArithmetic`), the other recomputes one of its activations by
hand, in float64, from what enters the layer and its weights (`ActivationContext` → `Recomputed`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from convscope.arithmetic.activations import ActivationFunction, Array
from convscope.arithmetic.formulas import Length, ReceptiveField, Shape, show_shape
from convscope.errors import ArchitectureError, UsageError, expected_got

# Height and width, in this order; None where it is not known what an output sees.
Fields = tuple[ReceptiveField, ReceptiveField] | None


@dataclass(frozen=True)
class LayerArithmetic:
    """The arithmetic of one layer. Shapes have no batch axis; None is a length that the network leaves open.

    Weights have Keras's names and order; ``parameters`` counts those that are not trained too. ``macs`` are
    the multiply-accumulates for one image, of convolutions and dense layers only. ``fields`` say what one
    output sees of the image, along height and width; ``lines`` are the formulas with their numbers.
    """

    output_shape: Shape
    weight_shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    parameters: int = 0
    macs: int | None = 0
    fields: Fields = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerContext:
    """A layer where it stands: its settings, what comes in, and the image that the network began with."""

    layer_type: str
    settings: Mapping[str, Any]
    inputs: tuple[Shape, ...]
    fields: tuple[Fields, ...]
    image: tuple[Length, Length] | None
    channels_first: bool = False

    @property
    def shape(self) -> Shape:
        """The shape of the only input."""
        return self.inputs[0]

    @property
    def use_bias(self) -> bool:
        """Whether a layer that may have a bias has one."""
        return bool(self.settings.get("use_bias", True))

    @property
    def label(self) -> str:
        """What to call the layer in a message."""
        name = self.settings.get("name")
        article = "an" if self.layer_type[0] in "AEIOU" else "a"
        return f"layer {name!r} ({self.layer_type})" if name else f"{article} {self.layer_type} layer"

    def pair(self, key: str, default: Any = 1) -> tuple[int, int]:
        """Read a setting that is one number for both axes, or one for each."""
        value = self.settings.get(key)
        value = default if value is None else value
        return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))

    def margins(self, key: str) -> tuple[tuple[int, int], tuple[int, int]]:
        """Read a padding or cropping: one number, one for each axis, or one for each side."""
        value = self.settings.get(key, 1 if key == "padding" else 0)
        if isinstance(value, int):
            return (value, value), (value, value)
        return _sides(value[0]), _sides(value[1])

    def image_parts(self) -> tuple[tuple[Length, Length], int]:
        """Split the input into height and width, and channels; raise ArchitectureError if it is no image."""
        if len(self.shape) != 3:
            order = "channels×height×width" if self.channels_first else "height×width×channels"
            raise self.failure(
                f"an input of {order} for {self.label}", show_shape(self.shape), "Put it before Flatten."
            )
        channels = self.shape[0] if self.channels_first else self.shape[-1]
        if channels is None:
            raise self.failure(f"a known number of channels for {self.label}", show_shape(self.shape), "")
        height, width = self.shape[1:] if self.channels_first else self.shape[:2]
        return (height, width), channels

    def image_shape(self, lengths: Sequence[Length], channels: int) -> Shape:
        """Put height, width and channels in the layer's own order."""
        return (channels, *lengths) if self.channels_first else (*lengths, channels)

    def failure(self, expected: str, got: object, hint: str) -> ArchitectureError:
        """Make the error for a layer that cannot stand here."""
        return ArchitectureError(expected_got(expected, got, hint))


def by_axis(title: str, height: str, width: str) -> tuple[str, ...]:
    """Show a formula for both axes, once where they agree."""
    before = f"{title}, " if title else ""
    if height == width:
        return (f"{before}height and width: {height}",)
    return f"{before}height: {height}", f"{before}width: {width}"


def whole_image(context: LayerContext, lengths: Sequence[Length]) -> Fields:
    """Find what an output sees that all positions enter."""
    fields = context.fields[0]
    if fields is None or context.image is None:
        return None
    if all(field.jump == 0 for field in fields):
        return fields
    if None in context.image or None in lengths or len(lengths) != 2:
        return None
    height, width = (
        field.over(length or 0, image or 0)
        for field, length, image in zip(fields, lengths, context.image, strict=True)
    )
    return height, width


def field_lines(fields: Fields) -> tuple[str, ...]:
    """Say what an output behind a layer sees that all positions enter."""
    if fields is None:
        return ()
    return by_axis("receptive field", *(f"all positions together see {field.size}" for field in fields))


def _sides(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


# How far a float32 network may be from the float64 arithmetic, absolute and relative.
TOLERANCE = 1e-5
# Up to so many products are written out.
WRITTEN_OUT = 9


@dataclass(frozen=True, eq=False)
class Recomputed:
    """One output of one layer, recomputed from the numbers that enter it, in float64.

    ``inputs`` are a window (h, w, channels) with zeros in the padding, or a row; ``weights``, of their shape,
    are None for a layer without a sum of products. ``total`` is that sum and the ``bias``, before the
    activation; ``network_value`` is what the network itself gives. A window lies at ``rows`` and ``columns``
    of the layer's input, of which those ``inside`` (h, w) are no padding; a softmax takes the ``sums`` of all
    units together. ``position`` is the output's row and column, None in a row of numbers; ``lines`` are the
    arithmetic in words.
    """

    layer: str
    type: str
    position: tuple[int, int] | None
    channel: int
    inputs: Array
    weights: Array | None
    bias: float
    total: float
    activation: str
    value: float
    network_value: float
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None
    inside: npt.NDArray[np.bool_] | None = None
    sums: Array | None = None
    lines: tuple[str, ...] = ()

    @property
    def difference(self) -> float:
        """The distance between the recomputed and the network's number."""
        return abs(self.value - self.network_value)

    @property
    def agrees(self) -> bool:
        """Whether the two are within 1e-5 of each other, relative to numbers above 1."""
        return self.difference <= TOLERANCE * max(1.0, abs(self.network_value))

    def to_json(self) -> dict[str, Any]:
        """Give everything as plain lists, numbers and strings."""
        fields = asdict(self).items()
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields}


@dataclass(frozen=True, eq=False)
class ActivationContext:
    """Where an activation is recomputed: its layer, what enters it (one image), and the place asked about.

    ``optional_weight`` reads a weight by the name it has in Keras's layer; None where there is none.
    """

    name: str
    layer: LayerContext
    inputs: tuple[Array, ...]
    output_shape: Shape
    position: tuple[int, int] | None
    channel: int
    network_value: float
    activation: ActivationFunction
    optional_weight: Callable[[str], Array | None]

    def weight(self, name: str) -> Array:
        """Read a weight that the layer has."""
        value = self.optional_weight(name)
        if value is None:
            raise LookupError(f"{self.name} has no {name}")
        return value

    def bias(self) -> float | None:
        """Read the bias of the channel asked about."""
        biases = self.optional_weight("bias")
        return None if biases is None else float(biases[self.channel])

    def row(self) -> Array:
        """Take the row of elements along the last axis that the place belongs to."""
        if self.position is None:
            return self.inputs[0]
        if self.layer.channels_first:
            expected = "channels last for a layer that works along the last axis of an image"
            raise UsageError(expected_got(expected, self.name))
        row: Array = self.inputs[0][self.position]
        return row

    def place_in_own_order(self) -> tuple[int, ...]:
        """Give the place asked about as an index into the output in the network's order of axes."""
        if self.position is None:
            return (self.channel,)
        row, column = self.position
        return (self.channel, row, column) if self.layer.channels_first else (row, column, self.channel)

    def channels_last(self, array: Array) -> Array:
        """Bring an array of the network into the order in which places are named."""
        return array.transpose(1, 2, 0) if self.layer.channels_first and array.ndim == 3 else array

    def image(self) -> Array:
        """Take the only input, with its channels last: an image (h, w, c), or a row."""
        return self.channels_last(self.inputs[0])

    def place(self) -> tuple[int, int]:
        """Take row and column of an output that is an image."""
        if self.position is None:
            raise UsageError(expected_got(f"a row and a column for {self.name}", "none"))
        return self.position

    def element(self) -> float:
        """Take the element of the only input, of the output's shape, at the place asked about."""
        return self.at(self.image())

    def at(self, array: Array) -> float:
        """Look up the place asked about in an array of the output's shape, channels last."""
        if array.ndim == 3:
            row, column = self.place()
            return float(array[row, column, self.channel])
        return float(array[self.channel])

    def result(
        self,
        inputs: Array,
        *,
        value: float,
        lines: Sequence[str],
        weights: Array | None = None,
        bias: float = 0.0,
        total: float | None = None,
        activation: str = "linear",
    ) -> Recomputed:
        """Put the answer together; the last line compares it with the network."""
        answer = Recomputed(
            layer=self.name,
            type=self.layer.layer_type,
            position=self.position,
            channel=self.channel,
            inputs=inputs,
            weights=weights,
            bias=bias,
            total=value if total is None else total,
            activation=activation,
            value=value,
            network_value=self.network_value,
        )
        given = show_value(self.network_value)
        compared = f"the network gives {given}, a difference of {answer.difference:.1e}"
        return replace(answer, lines=(*lines, compared))

    def product_result(self, inputs: Array, weights: Array, bias: float | None) -> Recomputed:
        """Put together a sum of products, a bias and an activation that looks at this number alone."""
        if self.activation.over_row:
            expected = f"an activation of {self.name} that looks at one number"
            hint = "Put it into a layer of its own, and recompute that."
            raise UsageError(expected_got(expected, self.activation.name, hint))
        products = float((inputs * weights).sum())
        total = products + (bias or 0.0)
        value = float(self.activation(np.array([total]))[0])
        return self.result(
            inputs,
            value=value,
            lines=[*sum_lines(inputs, weights, products, bias), *self.activation.lines(total, value)],
            weights=weights,
            bias=bias or 0.0,
            total=total,
            activation=self.activation.name,
        )


def sum_lines(inputs: Array, weights: Array, products: float, bias: float | None) -> list[str]:
    """Write a sum of products, all of them where they are few, and the addition of a bias."""
    if not inputs.any():
        line = f"sum of products: 0, for each of the {inputs.size:,} inputs is 0 here"
    elif inputs.size <= WRITTEN_OUT:
        pairs = zip(inputs.ravel(), weights.ravel(), strict=True)
        terms = " + ".join(f"{show_value(a)}·{show_value(b)}" for a, b in pairs)
        line = f"sum of products: {terms} = {show_value(products)}"
    else:
        factors = "·".join(str(length) for length in inputs.shape)
        counted = f"{factors} = {inputs.size:,}" if inputs.ndim > 1 else f"{inputs.size:,}"
        line = f"sum of {counted} products of input and weight: {show_value(products)}"
    if bias is None:
        return [line]
    return [line, f"sum + bias: {show_value(products)} + {show_value(bias)} = {show_value(products + bias)}"]


def show_value(number: float) -> str:
    """Write a number with six digits and a true minus sign, in brackets where it is negative."""
    text = f"{abs(number):.6g}"
    return f"(−{text})" if number < 0 and text != "0" else text


# Which arithmetic a page does for a layer: a function of ``explorer/page/kinds.js``.
PageArithmetic = Literal[
    "convolution", "transposed", "depthwise", "separable", "dense", "attention", "max", "average", "reduce",
    "normalization", "layer_normalization", "group_normalization", "activation", "prelu", "scale",
    "same", "strided", "zero_padding", "cropping", "upsampling", "resize", "concatenate",
    "add", "subtract", "multiply", "divide", "mean", "maximum", "minimum",
]  # fmt: skip


@dataclass(frozen=True)
class LayerKind:
    """A kind of Keras layer: the name of its class, its arithmetic, how an activation is recomputed.

    ``page`` names what a page's script computes for it. Foreign files may name every kind that has a
    record.
    """

    name: str
    analyse: Callable[[LayerContext], LayerArithmetic] | None = None
    recompute: Callable[[ActivationContext], Recomputed] | None = None
    page: PageArithmetic | None = None
