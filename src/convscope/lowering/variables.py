"""The variables of a Keras model by path, and their storage as torch tensors."""

from __future__ import annotations

from typing import Any

import torch

from convscope._keras_internals import all_layers, own_variables, value_of
from convscope._torch_internals import has_gradient_hooks
from convscope.errors import LoweringError, expected_got


def named_variables(model: Any) -> dict[str, Any]:
    """Return the variables of a model by their path, in Keras's order.

    Where two share a path (nested models that were built apart), the later ones get a number behind it.
    """
    named: dict[str, Any] = {}
    for variable in model.variables:
        path, count = variable.path, 1
        while path in named:
            count += 1
            path = f"{variable.path}#{count}"
        named[path] = variable
    return named


def is_seed(path: str) -> bool:
    """Say whether a variable is the state of a random generator."""
    return "seed_generator_state" in path.rsplit("/", 1)[-1]


def tensor_of(variable: Any, layer: Any = None) -> torch.Tensor:
    """Return a variable's values as a tensor, which share their storage on Keras's torch back end.

    Raises LoweringError with the name of the layer when a floating-point variable is not float32.
    """
    value = variable.value
    tensor = value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(variable.numpy().copy())
    _require_float32(tensor, variable, layer)
    return tensor


def parameter_of(variable: Any, layer: Any = None) -> torch.Tensor:
    """Return the parameter that a variable on Keras's torch back end computes with; see :func:`tensor_of`."""
    _require_float32(variable.value, variable, layer)
    parameter: torch.Tensor = variable.value
    return parameter


def is_gradient_hooked(variable: Any) -> bool:
    """Say whether somebody put a hook on the gradient of a variable's parameter."""
    value = value_of(variable)
    return isinstance(value, torch.Tensor) and has_gradient_hooks(value)


def owners(model: Any) -> dict[int, Any]:
    """Return the layer of each variable of a model, by the variable's id."""
    return {id(variable): layer for layer in all_layers(model) for variable in own_variables(layer)}


def _require_float32(tensor: torch.Tensor, variable: Any, layer: Any) -> None:
    if not tensor.is_floating_point() or tensor.dtype is torch.float32:
        return
    found = repr(variable.path)
    if layer is not None:
        found = f"the {variable.name} of layer {layer.name!r} ({type(layer).__name__})"
    dtype = str(tensor.dtype).removeprefix("torch.")
    hint = "Give the layer dtype='float32'."
    raise LoweringError(expected_got("float32 variables", f"{found} of type {dtype}", hint))
