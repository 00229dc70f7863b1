"""What one recomputed number is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from convscope.errors import UsageError, sentence
from convscope.inspection.graph import Call
from convscope.inspection.recomputation.functions import ActivationFunction, find_activation
from convscope.inspection.running import to_numpy

Array = npt.NDArray[np.float64]

# How far a float32 network may be from the float64 arithmetic, absolute and relative.
TOLERANCE = 1e-5
# Up to so many products are written out.
WRITTEN_OUT = 9


@dataclass(frozen=True, eq=False)
class Recomputed:
    """One output of one layer, recomputed from the numbers that enter it.

    Parameters
    ----------
    layer, type : str
        The layer's name, and the name of its class.
    position : pair of int or None
        Row and column of the output; None for a layer that gives a row of numbers.
    channel : int
        Channel or unit of the output.
    inputs : numpy.ndarray, float64
        What enters the number: for a window ``(height, width, channels)``, zeros in the padding; otherwise
        a row of numbers.
    weights : numpy.ndarray, float64, or None
        What the inputs are multiplied with, of their shape; None for a layer without a sum of products.
    bias : float
        What is added; 0 without a bias.
    total : float
        The sum of the products and the bias: the number before the activation.
    activation : str
        Name of the activation function.
    value : float
        The recomputed output.
    network_value : float
        What the network itself gives there.
    rows, columns : tuple of int or None
        For a window, where it lies in the layer's input; outside the input in the padding.
    inside : numpy.ndarray of shape (height, width), bool, or None
        For a window, which of its places lie in the input and not in the padding.
    sums : numpy.ndarray, float64, or None
        For a softmax, the sums of all units, which enter it together.
    lines : tuple of str
        The arithmetic with its numbers.
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


@dataclass(frozen=True)
class Site:
    """Where a number is recomputed: a call, what enters it (one image), and the place asked about."""

    call: Call
    inputs: tuple[Array, ...]
    position: tuple[int, int] | None
    channel: int
    network_value: float
    channels_first: bool

    @property
    def layer(self) -> Any:
        """The Keras layer."""
        return self.call.operation

    @property
    def activation(self) -> ActivationFunction:
        """The layer's activation function."""
        return find_activation(self.layer)

    def own_order(self) -> bool:
        """Tell whether the layer takes channels first: its own setting, or else the network's."""
        own = getattr(self.layer, "data_format", None)
        return own == "channels_first" if own else self.channels_first

    def image(self, number: int = 0) -> Array:
        """Take an input as ``(height, width, channels)``."""
        array = self.inputs[number]
        return array.transpose(1, 2, 0) if self.own_order() and array.ndim == 3 else array

    def place(self) -> tuple[int, int]:
        """Take row and column of an output that is an image."""
        if self.position is None:
            raise UsageError(sentence(f"a row and a column for {self.call.name}", "none"))
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
            layer=self.call.name,
            type=self.call.type,
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
        compared = f"the network gives {show(self.network_value)}, a difference of {answer.difference:.1e}"
        return replace(answer, lines=(*lines, compared))

    def product_result(self, inputs: Array, weights: Array, bias: float | None) -> Recomputed:
        """Put together a sum of products, a bias and an activation that looks at this number alone."""
        if self.activation.over_row:
            raise UsageError(
                sentence(
                    f"an activation of {self.call.name} that looks at one number",
                    self.activation.name,
                    "Put it into a layer of its own, and recompute that.",
                )
            )
        products = float((inputs * weights).sum())
        total = products + (bias or 0.0)
        value = self.activation.apply(np.array([total]))[0]
        lines = [
            product_line(inputs, weights, products),
            *([] if bias is None else [f"sum + bias: {show(products)} + {show(bias)} = {show(total)}"]),
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


def weight_array(variable: Any) -> Array:
    """Take a weight out of Keras, as float64."""
    return to_numpy(variable.value if hasattr(variable, "value") else variable).astype(np.float64)


Rule = Callable[[Site], Recomputed]


def product_line(inputs: Array, weights: Array, total: float) -> str:
    """Write a sum of products, all of them where they are few."""
    if inputs.size <= WRITTEN_OUT:
        terms = " + ".join(
            f"{show(a)}·{show(b)}" for a, b in zip(inputs.ravel(), weights.ravel(), strict=True)
        )
        return f"sum of products: {terms} = {show(total)}"
    factors = "·".join(str(length) for length in inputs.shape)
    counted = f"{factors} = {inputs.size:,}" if inputs.ndim > 1 else f"{inputs.size:,}"
    return f"sum of {counted} products of input and weight: {show(total)}"


def show(number: float) -> str:
    """Write a number with six digits and a true minus sign, in brackets where it is negative.

    Examples
    --------
    >>> show(0.5), show(-0.25)
    ('0.5', '(−0.25)')
    """
    text = f"{abs(number):.6g}"
    return f"(−{text})" if number < 0 and text != "0" else text
