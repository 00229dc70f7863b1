"""Layers that change each element alone: activations, dropout, rescaling."""

from __future__ import annotations

from typing import Any

import numpy as np

from convscope.arithmetic.kind import (
    ActivationContext,
    LayerArithmetic,
    LayerContext,
    LayerKind,
    Recomputed,
    show_value,
)
from convscope.arithmetic.layers.dense import recompute_softmax


def elementwise(context: LayerContext) -> LayerArithmetic:
    """Analyse a layer that changes each number alone (activations, dropout, rescaling)."""
    return LayerArithmetic(
        output_shape=context.shape,
        fields=context.fields[0],
        lines=("output: each number alone, so the shape of the input; no parameters",),
    )


def _recompute_softmax(context: ActivationContext) -> Recomputed:
    row = context.row()
    return recompute_softmax(context, row, row, None, None)


def _recompute_activation(context: ActivationContext) -> Recomputed:
    if context.activation.name == "softmax":
        return _recompute_softmax(context)
    x = context.element()
    value = float(context.activation(np.array([x]))[0])
    lines = context.activation.lines(x, value)
    return context.result(
        np.array([x]), value=value, lines=lines, total=x, activation=context.activation.name
    )


def _recompute_unchanged(context: ActivationContext) -> Recomputed:
    x = context.element()
    line = f"{context.layer.layer_type} changes nothing at inference: {show_value(x)}"
    return context.result(np.array([x]), value=x, lines=[line])


def _recompute_rescaling(context: ActivationContext) -> Recomputed:
    x = context.element()
    scale, offset = (_of_channel(context, context.layer.settings[key]) for key in ("scale", "offset"))
    value = x * scale + offset
    line = f"{show_value(x)}·{show_value(scale)} + {show_value(offset)} = {show_value(value)}"
    return context.result(np.array([x]), value=value, lines=[line], bias=offset)


def _of_channel(context: ActivationContext, setting: Any) -> float:
    """Read a setting that is one number, or one for each channel; Keras writes an array as an object."""
    values = np.ravel(setting["config"]["value"] if isinstance(setting, dict) else setting)
    return float(values[context.channel if values.size > 1 else 0])


_UNCHANGED = ("Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "AlphaDropout", "Identity")
KINDS = (
    LayerKind("Activation", elementwise, _recompute_activation, page="activation"),
    LayerKind("ReLU", elementwise, _recompute_activation, page="activation"),
    LayerKind("LeakyReLU", elementwise, _recompute_activation, page="activation"),
    LayerKind("ELU", elementwise, page="activation"),
    LayerKind("PReLU", page="prelu"),
    LayerKind("Softmax", elementwise, _recompute_softmax, page="activation"),
    LayerKind("Rescaling", elementwise, _recompute_rescaling, page="scale"),
    LayerKind("ActivityRegularization", elementwise, page="same"),
    *(LayerKind(name, elementwise, _recompute_unchanged, page="same") for name in _UNCHANGED),
)
