"""Keras's activation functions on torch tensors, by their Keras names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses

from convscope.lowering import kernels
from convscope.lowering.cpu import compiled
from convscope.lowering.ir import Activation

Function = Callable[[torch.Tensor], torch.Tensor]


def activation_function(activation: Activation) -> Function:
    """Return the torch function of an activation: tensor → tensor of the same shape and dtype."""
    make = _MAKERS.get(activation.name)
    if make is not None:
        function: Function = make(**activation.arguments)
        return function
    plain: Function = _PLAIN[activation.name]
    return plain


def smooth_name(activation: Activation) -> str | None:
    """Name the compiled loop of an activation function; None where there is none."""
    if activation.name == "gelu":
        return "gelu_tanh" if activation.arguments.get("approximate") else "gelu"
    return "silu" if activation.name == "silu" else None


def _relu(negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0) -> Function:
    """Return Keras's ReLU: max_value above, slope · (x − threshold) below the threshold, x between."""
    if negative_slope == 0.0 and threshold == 0.0 and max_value in (None, 6.0):
        return torch.relu if max_value is None else F.relu6

    def function(x: torch.Tensor) -> torch.Tensor:
        passed = torch.where(x > threshold, x, 0.0) if threshold else torch.relu(x)
        if max_value is not None:
            passed = torch.clamp(passed, 0.0, max_value)
        return passed - negative_slope * torch.relu(threshold - x) if negative_slope else passed

    return function


def _leaky_relu(negative_slope: float = 0.2) -> Function:
    return lambda x: F.leaky_relu(x, negative_slope)


def _elu(alpha: float = 1.0) -> Function:
    return lambda x: F.elu(x, alpha)


def _celu(alpha: float = 1.0) -> Function:
    return lambda x: F.celu(x, alpha)


def _gelu(approximate: bool = False) -> Function:
    name, form = ("gelu_tanh", "tanh") if approximate else ("gelu", "none")
    return lambda x: _smooth(name, x) if compiled.suits_vectors(x) else F.gelu(x, approximate=form)


def _silu(x: torch.Tensor) -> torch.Tensor:
    return _smooth("silu", x) if compiled.suits_vectors(x) else F.silu(x)


def _smooth(name: str, x: torch.Tensor) -> torch.Tensor:
    return kernels.apply(kernels.Smooth, x, name)


def _softmax(axis: int = -1) -> Function:
    return lambda x: torch.softmax(x, dim=axis)


def _log_softmax(axis: int = -1) -> Function:
    return lambda x: torch.log_softmax(x, dim=axis)


def _squareplus(x: torch.Tensor) -> torch.Tensor:
    return (x + torch.sqrt(x * x + 4.0)) / 2


def _sparse_plus(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x <= -1, 0.0, torch.where(x < 1, (x + 1) ** 2 / 4, x))


def _sparse_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x <= -1, 0.0, torch.where(x >= 1, 1.0, 0.5 * (x + 1)))


_MAKERS: dict[str, Callable[..., Function]] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "celu": _celu,
    "gelu": _gelu,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
}

_PLAIN: dict[str, Any] = {
    "relu6": F.relu6,
    "selu": F.selu,
    "silu": _silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "soft_shrink": F.softshrink,
    "sparse_plus": _sparse_plus,
    "squareplus": _squareplus,
    "tanh": torch.tanh,
    "tanh_shrink": F.tanhshrink,
    "hard_tanh": F.hardtanh,
    "hard_shrink": F.hardshrink,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
    "log_sigmoid": F.logsigmoid,
    "sparse_sigmoid": _sparse_sigmoid,
    "hard_silu": F.hardswish,
    "exponential": torch.exp,
}

# What lowering computes itself; a layer with another function runs as it is.
TORCH_FUNCTIONS = ("linear", *_MAKERS, *_PLAIN)
WITH_SETTINGS = tuple(_MAKERS)
