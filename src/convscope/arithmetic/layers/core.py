"""Dense layers, layers that change each element alone, and layers that bring branches together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np

from convscope.arithmetic.activations import Array
from convscope.arithmetic.formulas import Length, Shape, dense_parameters, product_of, show, show_shape
from convscope.arithmetic.kind import (
    ActivationContext,
    Fields,
    LayerArithmetic,
    LayerContext,
    LayerKind,
    Recomputed,
    show_value,
    sum_lines,
)


def dense(context: LayerContext) -> LayerArithmetic:
    """Analyse Dense: every unit meets every number along the last axis."""
    inputs = _last_length(context)
    units, use_bias = int(context.settings["units"]), context.use_bias
    parameters = dense_parameters(inputs, units, use_bias)
    macs = product_of([*context.shape[:-1], inputs, units])
    kernel = ("kernel", (inputs, units))
    # With channels first the last axis is the width, and what is seen is no longer a window.
    fields = None if context.channels_first and len(context.shape) > 1 else context.fields[0]
    where = "" if len(context.shape) == 1 else f", at each of {show_shape(context.shape[:-1])} positions"
    return LayerArithmetic(
        output_shape=(*context.shape[:-1], units),
        weight_shapes=(kernel, ("bias", (units,))) if use_bias else (kernel,),
        parameters=parameters.value or 0,
        macs=macs.value,
        fields=fields,
        lines=(
            f"output: one number for each of the {show(units)} units{where}",
            f"parameters: {parameters}",
            f"multiply-accumulates: {macs}",
        ),
    )


def _last_length(context: LayerContext) -> int:
    length = context.shape[-1] if context.shape else None
    if length is None:
        raise context.failure(
            f"an input of known length for {context.label}",
            show_shape(context.shape) or "none",
            "Give the network an input of fixed size, or pool globally instead of flattening.",
        )
    return length


def _recompute_dense(context: ActivationContext) -> Recomputed:
    row = context.row()
    kernel = context.weight("kernel")
    biases = context.optional_weight("bias")
    if context.activation.name != "softmax":
        bias = None if biases is None else float(biases[context.channel])
        return context.product_result(row, kernel[:, context.channel], bias)
    sums = row @ kernel + (0.0 if biases is None else biases)
    return recompute_softmax(context, row, sums, kernel[:, context.channel], biases)


def recompute_softmax(
    context: ActivationContext, row: Array, sums: Array, weights: Array | None, biases: Array | None
) -> Recomputed:
    """Recompute a probability from the sums of all units, and the weights and biases that gave them."""
    probabilities = context.activation(sums)
    total, value = float(sums[context.channel]), float(probabilities[context.channel])
    largest = float(sums.max())
    powers = np.exp(sums - largest)
    bias = 0.0 if biases is None else float(biases[context.channel])
    lines = [
        *([] if weights is None else sum_lines(row, weights, total - bias, None if biases is None else bias)),
        f"softmax over {sums.size} units, the largest sum {show_value(largest)} taken off each: "
        f"e^({total - largest:.6g}) / Σ = {powers[context.channel]:.6g} / {powers.sum():.6g} "
        f"= {value:.6g}".replace("-", "−"),
    ]
    answer = context.result(
        row, value=value, lines=lines, weights=weights, bias=bias, total=total, activation="softmax"
    )
    return replace(answer, sums=sums)


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


def elementwise_merge(context: LayerContext) -> LayerArithmetic:
    """Analyse Add, Subtract, Multiply, Average, Maximum and Minimum."""
    shape = context.inputs[0]
    for other in context.inputs[1:]:
        shape = _broadcast(context, shape, other)
    return LayerArithmetic(
        output_shape=shape,
        fields=_joined(context.fields),
        lines=(f"output: number by number over {len(context.inputs)} inputs, {show_shape(shape)}",),
    )


def concatenate(context: LayerContext) -> LayerArithmetic:
    """Analyse Concatenate."""
    axis = int(context.settings.get("axis", -1))
    axis = axis - 1 if axis > 0 else len(context.shape) + axis
    for other in context.inputs[1:]:
        if len(other) != len(context.shape) or any(
            a != b for i, (a, b) in enumerate(zip(context.shape, other, strict=True)) if i != axis
        ):
            raise context.failure(
                f"inputs of {context.label} that differ only along the axis they are joined on",
                " and ".join(map(show_shape, context.inputs)),
                "Pad, crop or pool one of them first.",
            )
    lengths = [shape[axis] for shape in context.inputs]
    total = None if None in lengths else sum(length for length in lengths if length is not None)
    # Joined along height or width, outputs no longer stand where their number says.
    channel_axis = 0 if context.channels_first else len(context.shape) - 1
    return LayerArithmetic(
        output_shape=(*context.shape[:axis], total, *context.shape[axis + 1 :]),
        fields=_joined(context.fields) if axis == channel_axis or len(context.shape) == 1 else None,
        lines=(f"length along the axis: {' + '.join(map(show, lengths))} = {show(total)}",),
    )


def _broadcast(context: LayerContext, first: Shape, second: Shape) -> Shape:
    """Stretch lengths of 1, aligned at the last axis, as NumPy does."""
    lengths: list[Length] = []
    for a, b in zip_longest(reversed(first), reversed(second), fillvalue=1):
        if a is not None and b is not None and a != b and 1 not in (a, b):
            raise context.failure(
                f"inputs of one shape for {context.label}",
                " and ".join(map(show_shape, context.inputs)),
                "Bring both branches to the same height, width and channels first.",
            )
        lengths.append(b if a == 1 else a)
    return tuple(reversed(lengths))


def _joined(branches: tuple[Fields, ...]) -> Fields:
    joined = branches[0]
    for branch in branches[1:]:
        if joined is None or branch is None:
            return None
        height, width = joined[0].joined(branch[0]), joined[1].joined(branch[1])
        if height is None or width is None:
            return None
        joined = height, width
    return joined


# How each combines the elements at a place, and how that is written.
_MERGES: dict[str, tuple[Callable[[Array], Any], str]] = {
    "Add": (np.sum, "sum"),
    "Subtract": (lambda numbers: numbers[0] - numbers[1], "first − second of "),
    "Multiply": (np.prod, "product"),
    "Average": (np.mean, "mean"),
    "Maximum": (np.max, "max"),
    "Minimum": (np.min, "min"),
}


def _recompute_merge(context: ActivationContext) -> Recomputed:
    combine, sign = _MERGES[context.layer.layer_type]
    arrays = np.broadcast_arrays(*map(context.channels_last, context.inputs))
    numbers = np.array([context.at(array) for array in arrays])
    value = float(combine(numbers))
    line = f"{sign}({', '.join(show_value(number) for number in numbers)}) = {show_value(value)}"
    return context.result(numbers, value=value, lines=[line])


def _recompute_concatenate(context: ActivationContext) -> Recomputed:
    axis = int(context.layer.settings["axis"])
    joined = np.concatenate(context.inputs, axis=axis - 1 if axis > 0 else axis)
    value = context.at(context.channels_last(joined))
    return context.result(
        np.array([value]), value=value, lines=[f"taken over from an input: {show_value(value)}"]
    )


KINDS = (
    LayerKind("Dense", dense, _recompute_dense, page="dense"),
    LayerKind("Activation", elementwise, _recompute_activation, page="activation"),
    LayerKind("ReLU", elementwise, _recompute_activation, page="activation"),
    LayerKind("LeakyReLU", elementwise, _recompute_activation, page="activation"),
    LayerKind("ELU", elementwise, page="activation"),
    LayerKind("PReLU", page="prelu"),
    LayerKind("Softmax", elementwise, _recompute_softmax, page="activation"),
    LayerKind("Rescaling", elementwise, _recompute_rescaling, page="scale"),
    LayerKind("ActivityRegularization", elementwise, page="same"),
    *(LayerKind(name, elementwise, _recompute_unchanged, page="same") for name in _UNCHANGED),
    LayerKind("Add", elementwise_merge, _recompute_merge, page="add"),
    LayerKind("Subtract", elementwise_merge, _recompute_merge, page="subtract"),
    LayerKind("Multiply", elementwise_merge, _recompute_merge, page="multiply"),
    LayerKind("Average", elementwise_merge, _recompute_merge, page="mean"),
    LayerKind("Maximum", elementwise_merge, _recompute_merge, page="maximum"),
    LayerKind("Minimum", elementwise_merge, _recompute_merge, page="minimum"),
    LayerKind("Concatenate", concatenate, _recompute_concatenate, page="concatenate"),
)
