"""Bring trained weights and statistics back into the Keras model."""

from __future__ import annotations

from typing import Any

import torch

from convscope.lowering.network import LoweredNetwork
from convscope.lowering.variables import named_variables


def restore(network: LoweredNetwork, model: Any) -> None:
    """Write a network's weights and state into the variables of the model it was lowered from.

    Parameters
    ----------
    network : LoweredNetwork
        Emitted for ``model``.
    model : keras.Model
        Its variables are changed in place. Nothing is copied where the two share their storage.

    Examples
    --------
    >>> import keras
    >>> from convscope.lowering import emit, lower
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="d")], name="m")
    >>> network = emit(lower(model), model)
    >>> with torch.no_grad():
    ...     _ = network.weights["m/d/bias"].fill_(2.0)
    >>> restore(network, model)
    >>> model.get_layer("d").bias.value.detach().tolist()
    [2.0]
    """
    variables = named_variables(model)
    for path, tensor in {**network.weights, **network.state}.items():
        variable = variables[path]
        value = variable.value
        if isinstance(value, torch.Tensor):
            if value.data_ptr() != tensor.data_ptr():
                variable.assign(tensor.detach())
        else:
            variable.assign(tensor.detach().cpu().numpy())
