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


def _gelu(approximate: bool = False) -> Function:
    name, form = ("gelu_tanh", "tanh") if approximate else ("gelu", "none")
    # In bfloat16 torch's exact one is faster forward (1.2 to 1.7 times), and as fast with its gradient.
    only = torch.float32 if name == "gelu" else None

    def function(x: torch.Tensor) -> torch.Tensor:
        own = compiled.suits_vectors(x) and only in (None, x.dtype)
        return kernels.apply(kernels.Smooth, x, name) if own else F.gelu(x, approximate=form)

    return function


def _silu(x: torch.Tensor) -> torch.Tensor:
    return kernels.apply(kernels.Smooth, x, "silu") if compiled.suits_vectors(x) else F.silu(x)


_MAKERS: dict[str, Callable[..., Function]] = {
    "relu": _relu,
    "leaky_relu": lambda negative_slope=0.2: lambda x: F.leaky_relu(x, negative_slope),
    "elu": lambda alpha=1.0: lambda x: F.elu(x, alpha),
    "celu": lambda alpha=1.0: lambda x: F.celu(x, alpha),
    "gelu": _gelu,
    "softmax": lambda axis=-1: lambda x: torch.softmax(x, dim=axis),
    "log_softmax": lambda axis=-1: lambda x: torch.log_softmax(x, dim=axis),
}

_PLAIN: dict[str, Any] = {
    "relu6": F.relu6,
    "selu": F.selu,
    "silu": _silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "soft_shrink": F.softshrink,
    "sparse_plus": lambda x: torch.where(x <= -1, 0.0, torch.where(x < 1, (x + 1) ** 2 / 4, x)),
    "squareplus": lambda x: (x + torch.sqrt(x * x + 4.0)) / 2,
    "tanh": torch.tanh,
    "tanh_shrink": F.tanhshrink,
    "hard_tanh": F.hardtanh,
    "hard_shrink": F.hardshrink,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
    "log_sigmoid": F.logsigmoid,
    "sparse_sigmoid": lambda x: torch.where(x <= -1, 0.0, torch.where(x >= 1, 1.0, 0.5 * (x + 1))),
    "hard_silu": F.hardswish,
    "exponential": torch.exp,
}

# What lowering computes itself; a layer with another function runs as it is.
TORCH_FUNCTIONS = ("linear", *_MAKERS, *_PLAIN)
WITH_SETTINGS = tuple(_MAKERS)
