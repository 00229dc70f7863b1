"""One activation recomputed by hand, in float64, from what enters its layer and the layer's weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from convscope.arithmetic.activations import ActivationFunction
from convscope.arithmetic.context import LayerContext
from convscope.arithmetic.formulas import Shape
from convscope.errors import UsageError, expected_got

Array = npt.NDArray[np.float64]

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
        return {
            "layer": self.layer,
            "type": self.type,
            "position": None if self.position is None else list(self.position),
            "channel": self.channel,
            "inputs": self.inputs.tolist(),
            "weights": None if self.weights is None else self.weights.tolist(),
            "bias": self.bias,
            "total": self.total,
            "activation": self.activation,
            "value": self.value,
            "network_value": self.network_value,
            "rows": None if self.rows is None else list(self.rows),
            "columns": None if self.columns is None else list(self.columns),
            "inside": None if self.inside is None else self.inside.tolist(),
            "sums": None if self.sums is None else self.sums.tolist(),
            "lines": list(self.lines),
        }


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
    channels_first: bool
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
        if self.channels_first:
            raise UsageError(
                expected_got(
                    "channels last for a layer that works along the last axis of an image", self.name
                )
            )
        row: Array = self.inputs[0][self.position]
        return row

    def place_in_own_order(self) -> tuple[int, ...]:
        """Give the place asked about as an index into the output in the network's order of axes."""
        if self.position is None:
            return (self.channel,)
        row, column = self.position
        return (self.channel, row, column) if self.channels_first else (row, column, self.channel)

    def in_named_order(self, array: Array) -> Array:
        """Bring an array of the network into the order in which places are named: channels last."""
        return array.transpose(1, 2, 0) if self.channels_first and array.ndim == 3 else array

    def image(self, number: int = 0) -> Array:
        """Take an input as ``(height, width, channels)``."""
        array = self.inputs[number]
        return array.transpose(1, 2, 0) if self.layer.channels_first and array.ndim == 3 else array

    def place(self) -> tuple[int, int]:
        """Take row and column of an output that is an image."""
        if self.position is None:
            raise UsageError(expected_got(f"a row and a column for {self.name}", "none"))
        return self.position

    def at(self, array: Array) -> float:
        """Look up the place asked about in an array of the output's shape, in channels-last order."""
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
        compared = (
            f"the network gives {show_value(self.network_value)}, a difference of {answer.difference:.1e}"
        )
        return replace(answer, lines=(*lines, compared))

    def product_result(self, inputs: Array, weights: Array, bias: float | None) -> Recomputed:
        """Put together a sum of products, a bias and an activation that looks at this number alone."""
        if self.activation.over_row:
            raise UsageError(
                expected_got(
                    f"an activation of {self.name} that looks at one number",
                    self.activation.name,
                    "Put it into a layer of its own, and recompute that.",
                )
            )
        products = float((inputs * weights).sum())
        total = products + (bias or 0.0)
        value = self.activation(np.array([total]))[0]
        lines = [
            product_line(inputs, weights, products),
            *(
                []
                if bias is None
                else [f"sum + bias: {show_value(products)} + {show_value(bias)} = {show_value(total)}"]
            ),
            *self.activation.lines(total, float(value)),
        ]
        return self.result(
            inputs,
            value=float(value),
            lines=lines,
            weights=weights,
            bias=bias or 0.0,
            total=total,
            activation=self.activation.name,
        )


def product_line(inputs: Array, weights: Array, total: float) -> str:
    """Write a sum of products, all of them where they are few."""
    if inputs.size <= WRITTEN_OUT:
        terms = " + ".join(
            f"{show_value(a)}·{show_value(b)}" for a, b in zip(inputs.ravel(), weights.ravel(), strict=True)
        )
        return f"sum of products: {terms} = {show_value(total)}"
    factors = "·".join(str(length) for length in inputs.shape)
    counted = f"{factors} = {inputs.size:,}" if inputs.ndim > 1 else f"{inputs.size:,}"
    return f"sum of {counted} products of input and weight: {show_value(total)}"


def sum_line(products: float, bias: float, total: float) -> str:
    """Write the addition of a bias."""
    return f"sum + bias: {show_value(products)} + {show_value(bias)} = {show_value(total)}"


def show_value(number: float) -> str:
    """Write a number with six digits and a true minus sign, in brackets where it is negative."""
    text = f"{abs(number):.6g}"
    return f"(−{text})" if number < 0 and text != "0" else text
