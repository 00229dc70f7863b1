"""Activation functions in float64, each with its formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import torch
from scipy import special

from convscope.lowering.devices import computing_on

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ActivationFunction:
    """A function of a number, or, for softmax, of a row of numbers.

    Parameters
    ----------
    name : str
        Keras's name.
    apply : callable
        Array → array of the same shape, float64, along the last axis.
    formula : str
        With x for the number; empty for a function that changes nothing.
    """

    name: str
    apply: Callable[[Array], Array]
    formula: str

    @property
    def over_row(self) -> bool:
        """Whether it looks at a whole row of numbers at once."""
        return self.name in ("softmax", "log_softmax", "sparsemax", "glu")

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


_FUNCTIONS: dict[str, tuple[Callable[[Array], Array], str]] = {
    "linear": (lambda x: x, ""),
    "relu": (lambda x: np.maximum(x, 0.0), "max(0, x)"),
    "relu6": (lambda x: np.clip(x, 0.0, 6.0), "min(max(0, x), 6)"),
    "sigmoid": (special.expit, "1/(1 + e^−x)"),
    "tanh": (np.tanh, "tanh(x)"),
    "softmax": (softmax, "e^x / Σ e^x over all units"),
    "elu": (lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), "x, or e^x − 1 below 0"),
    "silu": (lambda x: x * special.expit(x), "x/(1 + e^−x)"),
    "softplus": (lambda x: np.logaddexp(0.0, x), "ln(1 + e^x)"),
    "exponential": (np.exp, "e^x"),
    "hard_sigmoid": (lambda x: np.clip(x / 6 + 0.5, 0.0, 1.0), "min(max(0, x/6 + 1/2), 1)"),
    "hard_silu": (lambda x: x * np.clip(x / 6 + 0.5, 0.0, 1.0), "x·min(max(0, x/6 + 1/2), 1)"),
}


def find_activation(layer: Any) -> ActivationFunction:
    """Find a layer's activation function.

    Parameters
    ----------
    layer : keras.layers.Layer
        A layer with an activation, or an activation layer.

    Returns
    -------
    ActivationFunction
        Written out here where it is a common one; otherwise Keras's own, applied to a float64 number.
    """
    if isinstance(layer, keras.layers.Softmax):
        return _known("softmax")
    if isinstance(layer, keras.layers.ReLU):
        return _rectifier(layer)
    if isinstance(layer, keras.layers.LeakyReLU):
        slope = float(layer.negative_slope)
        return ActivationFunction(
            "leaky_relu", lambda x: np.where(x > 0, x, slope * x), f"max(x, {slope:g}·x)"
        )
    function = getattr(layer, "activation", None)
    name = "linear" if function is None else str(getattr(function, "__name__", type(function).__name__))
    if name in _FUNCTIONS and (function is None or function is keras.activations.get(name)):
        return _known(name)
    return ActivationFunction(name, lambda x: _by_keras(function, x), f"{name}(x) as Keras computes it")


def _known(name: str) -> ActivationFunction:
    apply, formula = _FUNCTIONS[name]
    return ActivationFunction(name, apply, formula)


def _rectifier(layer: keras.layers.ReLU) -> ActivationFunction:
    """Write out ReLU with its options: slope below a threshold, and a largest value."""
    slope, threshold = float(layer.negative_slope), float(layer.threshold)
    largest = np.inf if layer.max_value is None else float(layer.max_value)
    if (slope, threshold, largest) == (0.0, 0.0, np.inf):
        return _known("relu")

    def apply(x: Array) -> Array:
        return np.where(x >= threshold, np.minimum(x, largest), slope * (x - threshold))

    return ActivationFunction(
        "relu", apply, f"min(x, {largest:g}) from {threshold:g} on, {slope:g}·(x − {threshold:g}) below"
    )


def _by_keras(function: Any, x: Array) -> Array:
    with computing_on(torch.device("cpu")):  # not every device has float64
        result = function(keras.ops.convert_to_tensor(x, dtype="float64"))
    return np.asarray(keras.ops.convert_to_numpy(result), dtype=np.float64)
