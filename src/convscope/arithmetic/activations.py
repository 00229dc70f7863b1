"""Every activation function that a network may name: what is known of it without Keras or torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ActivationFunction:
    """A function of an element, or of a row of elements, by Keras's name.

    ``apply`` computes it in float64 along the last axis (None where it is not written out), ``formula`` shows
    it with x for the element. ``over_row``: whether it looks at a whole row at once. ``increasing``: whether
    a larger input never gives a smaller output; a function of its settings where they decide.
    """

    name: str
    apply: Callable[[Array], Array] | None = None
    formula: str = ""
    over_row: bool = False
    increasing: bool | Callable[..., bool] = False

    def is_increasing(self, settings: Mapping[str, Any]) -> bool:
        """Say whether the function commutes with the maximum."""
        return self.increasing if isinstance(self.increasing, bool) else self.increasing(**settings)

    def __call__(self, x: Array) -> Array:
        """Compute it in float64."""
        if self.apply is None:
            raise LookupError(f"{self.name} is not written out")
        return self.apply(x)

    def lines(self, total: float, value: float) -> list[str]:
        """Write the step from the sum to the output."""
        if not self.formula:
            return []
        return [f"{self.name}: {self.formula} = {value:.6g} for x = {total:.6g}".replace("-", "−")]


def softmax(x: Array) -> Array:
    """Turn a row of scores into probabilities, with the largest taken off first so that none overflows."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def rectifier(negative_slope: float, max_value: float | None, threshold: float) -> ActivationFunction:
    """Make ReLU with its options: slope below a threshold, and a largest value."""
    largest = np.inf if max_value is None else float(max_value)
    if (negative_slope, threshold, largest) == (0.0, 0.0, np.inf):
        return ACTIVATIONS["relu"]
    return ActivationFunction(
        "relu",
        lambda x: np.where(x >= threshold, np.minimum(x, largest), negative_slope * (x - threshold)),
        f"min(x, {largest:g}) from {threshold:g} on, {negative_slope:g}·(x − {threshold:g}) below",
    )


def leaky_rectifier(slope: float) -> ActivationFunction:
    """Make leaky ReLU of a slope."""
    return ActivationFunction("leaky_relu", lambda x: np.where(x > 0, x, slope * x), f"max(x, {slope:g}·x)")


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -x))


def _relu_increases(
    negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0
) -> bool:
    return negative_slope >= 0 and threshold >= 0 and (max_value is None or max_value >= threshold)


_Function = ActivationFunction
ACTIVATIONS: Mapping[str, ActivationFunction] = {
    function.name: function
    for function in (
        _Function("linear", lambda x: x, increasing=True),
        _Function("relu", lambda x: np.maximum(x, 0.0), "max(0, x)", increasing=_relu_increases),
        _Function("relu6", lambda x: np.clip(x, 0.0, 6.0), "min(max(0, x), 6)", increasing=True),
        _Function("leaky_relu", increasing=lambda negative_slope=0.2: negative_slope >= 0),
        _Function(
            "elu",
            lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
            "x, or e^x − 1 below 0",
            increasing=lambda alpha=1.0: alpha > 0,
        ),
        _Function("selu", increasing=True),
        _Function("celu", increasing=lambda alpha=1.0: alpha > 0),
        _Function("gelu"),
        _Function("silu", lambda x: x * _sigmoid(x), "x/(1 + e^−x)"),
        _Function("swish"),
        _Function("mish"),
        _Function("softplus", lambda x: np.logaddexp(0.0, x), "ln(1 + e^x)", increasing=True),
        _Function("softsign", increasing=True),
        _Function("soft_shrink", increasing=True),
        _Function("sparse_plus", increasing=True),
        _Function("squareplus", increasing=True),
        _Function("tanh", np.tanh, "tanh(x)", increasing=True),
        _Function("tanh_shrink", increasing=True),
        _Function("hard_tanh", increasing=True),
        _Function("hard_shrink", increasing=True),
        _Function("sigmoid", _sigmoid, "1/(1 + e^−x)", increasing=True),
        _Function(
            "hard_sigmoid",
            lambda x: np.clip(x / 6 + 0.5, 0.0, 1.0),
            "min(max(0, x/6 + 1/2), 1)",
            increasing=True,
        ),
        _Function("log_sigmoid", increasing=True),
        _Function("sparse_sigmoid", increasing=True),
        _Function("hard_silu", lambda x: x * np.clip(x / 6 + 0.5, 0.0, 1.0), "x·min(max(0, x/6 + 1/2), 1)"),
        _Function("hard_swish"),
        _Function("threshold"),
        _Function("exponential", np.exp, "e^x", increasing=True),
        _Function("softmax", softmax, "e^x / Σ e^x over all units", over_row=True),
        _Function("log_softmax", over_row=True),
        _Function("sparsemax", over_row=True),
        _Function("glu", over_row=True),
    )
}
