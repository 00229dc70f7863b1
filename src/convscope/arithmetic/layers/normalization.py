"""Normalizations."""

from __future__ import annotations

import math

import numpy as np

from convscope.arithmetic.activations import Array
from convscope.arithmetic.formulas import known_lengths, show, show_shape
from convscope.arithmetic.kind import (
    ActivationContext,
    LayerArithmetic,
    LayerContext,
    LayerKind,
    Recomputed,
    show_value,
)


def batch_normalization(context: LayerContext) -> LayerArithmetic:
    """Analyse BatchNormalization: up to four numbers for each channel."""
    channels = _channels(context)
    names = (*_scale_and_offset(context), "moving_mean", "moving_variance")
    total = len(names) * channels
    listed = ", ".join(names).replace("_", " ")
    return LayerArithmetic(
        output_shape=context.shape,
        weight_shapes=tuple((name, (channels,)) for name in names),
        parameters=total,
        fields=context.fields[0],
        lines=(
            f"parameters ({listed}; the moving ones are not trained): "
            f"{len(names)}·{show(channels)} = {show(total)}",
        ),
    )


def layer_normalization(context: LayerContext) -> LayerArithmetic:
    """Analyse LayerNormalization: a gamma and a beta for each element along its axes."""
    axes = _axes(context)
    lengths = known_lengths(tuple(context.shape[axis] for axis in axes))
    only_channels = axes == (len(context.shape) - 1,) and not context.channels_first
    return _learned(context, lengths, keeps_field=only_channels)


def group_normalization(context: LayerContext) -> LayerArithmetic:
    """Analyse GroupNormalization: groups of channels, normalized over all positions."""
    channels = _channels(context)
    groups = _groups(context, channels)
    if channels % groups:
        raise context.failure(
            f"channels that {groups} groups share evenly in {context.label}",
            f"{channels}/{groups} = {channels / groups:g}",
            f"Choose groups that divide {channels}.",
        )
    return _learned(
        context,
        (channels,),
        f"{show(groups)} groups of {show(channels)}/{show(groups)} = {show(channels // groups)} channels, "
        "each normalized over all positions",
    )


def normalization(context: LayerContext) -> LayerArithmetic:
    """Analyse Normalization: the mean and variance that it has measured, unless they were given."""
    if context.settings.get("mean") is not None:
        line = "output: each number alone, so the shape of the input; no parameters"
        return LayerArithmetic(context.shape, fields=context.fields[0], lines=(line,))
    axes = () if context.settings.get("axis", -1) is None else _axes(context)
    lengths = known_lengths(tuple(context.shape[axis] for axis in axes))
    each = math.prod(lengths)
    factors = "·".join(map(show, lengths)) or "1"
    return LayerArithmetic(
        output_shape=context.shape,
        weight_shapes=(("mean", lengths), ("variance", lengths), ("count", ())),
        parameters=2 * each + 1,
        fields=context.fields[0],
        lines=(
            f"parameters (mean, variance and a count; not trained): 2·{factors} + 1 = {show(2 * each + 1)}",
        ),
    )


def _axes(context: LayerContext) -> tuple[int, ...]:
    """Read the axes in a layer's settings, counted without the batch."""
    axis = context.settings.get("axis", -1)
    axes = [int(one) for one in axis] if isinstance(axis, list | tuple) else [int(axis)]
    return tuple(one - 1 if one > 0 else len(context.shape) + one for one in axes)


def _channels(context: LayerContext) -> int:
    channels = context.shape[_axes(context)[0]]
    if channels is None:
        expected = f"a known number of channels for {context.label}"
        raise context.failure(expected, show_shape(context.shape), "")
    return channels


def _groups(context: LayerContext, channels: int) -> int:
    """Read the number of groups; −1 stands for one for each channel."""
    groups = int(context.settings.get("groups", 32))
    return channels if groups == -1 else groups


def _scale_and_offset(context: LayerContext) -> tuple[str, ...]:
    wanted = {"gamma": context.settings.get("scale", True), "beta": context.settings.get("center", True)}
    return tuple(name for name, is_there in wanted.items() if is_there)


def _learned(
    context: LayerContext, lengths: tuple[int, ...], *lines: str, keeps_field: bool = False
) -> LayerArithmetic:
    """Describe a normalization of each image alone, with a gamma and a beta of some shape."""
    names = _scale_and_offset(context)
    total = len(names) * math.prod(lengths)
    factors = "·".join(map(show, lengths))
    return LayerArithmetic(
        output_shape=context.shape,
        weight_shapes=tuple((name, lengths) for name in names),
        parameters=total,
        fields=context.fields[0] if keeps_field else None,
        lines=(*lines, f"parameters ({', '.join(names) or 'none'}): {len(names)}·{factors} = {show(total)}"),
    )


def _recompute_batch_normalization(context: ActivationContext) -> Recomputed:
    feature = (context.place_in_own_order()[_axes(context.layer)[0]],)
    mean, variance = (float(context.weight(name)[feature]) for name in ("moving_mean", "moving_variance"))
    return _recompute_normalized(context, mean, variance, feature)


def _recompute_layer_normalization(context: ActivationContext) -> Recomputed:
    axes, place = _axes(context.layer), context.place_in_own_order()
    entering = context.inputs[0][tuple(slice(None) if i in axes else at for i, at in enumerate(place))]
    feature = tuple(place[axis] for axis in sorted(axes))
    return _recompute_normalized(context, float(entering.mean()), float(entering.var()), feature, entering)


def _recompute_group_normalization(context: ActivationContext) -> Recomputed:
    axis = _axes(context.layer)[0]
    by_channel = np.moveaxis(context.inputs[0], axis, 0)  # (c, ...)
    channel = context.place_in_own_order()[axis]
    size = len(by_channel) // _groups(context.layer, len(by_channel))
    entering = by_channel[channel // size * size :][:size]
    mean, variance = float(entering.mean()), float(entering.var())
    return _recompute_normalized(context, mean, variance, (channel,), entering)


def _recompute_normalized(
    context: ActivationContext,
    mean: float,
    variance: float,
    feature: tuple[int, ...],
    entering: Array | None = None,
) -> Recomputed:
    """Normalize one element, by statistics that are given or those of the elements that enter them."""
    epsilon = float(context.layer.settings["epsilon"])
    x = float(context.inputs[0][context.place_in_own_order()])
    gammas, betas = context.optional_weight("gamma"), context.optional_weight("beta")
    gamma = 1.0 if gammas is None else float(gammas[feature])
    beta = 0.0 if betas is None else float(betas[feature])
    value = gamma * (x - mean) / math.sqrt(variance + epsilon) + beta
    counted = [] if entering is None else [f"mean and variance of {entering.size:,} elements of this image"]
    line = (
        f"γ·(x − mean)/√(variance + ε) + β: {show_value(gamma)}·({show_value(x)} − {show_value(mean)})/"
        f"√({show_value(variance)} + {epsilon:g}) + {show_value(beta)} = {show_value(value)}"
    )
    return context.result(np.array([x]), value=value, lines=[*counted, line], bias=beta)


KINDS = (
    LayerKind(
        "BatchNormalization", batch_normalization, _recompute_batch_normalization, page="normalization"
    ),
    LayerKind(
        "LayerNormalization", layer_normalization, _recompute_layer_normalization, page="layer_normalization"
    ),
    LayerKind(
        "GroupNormalization", group_normalization, _recompute_group_normalization, page="group_normalization"
    ),
    LayerKind("Normalization", normalization, page="scale"),
)
