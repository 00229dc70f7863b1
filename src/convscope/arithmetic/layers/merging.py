"""Layers that bring branches together."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import numpy as np

from convscope.arithmetic.activations import Array
from convscope.arithmetic.formulas import Length, Shape, show, show_shape
from convscope.arithmetic.kind import (
    ActivationContext,
    Fields,
    LayerArithmetic,
    LayerContext,
    LayerKind,
    Recomputed,
    show_value,
)


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
    LayerKind("Add", elementwise_merge, _recompute_merge, page="add"),
    LayerKind("Subtract", elementwise_merge, _recompute_merge, page="subtract"),
    LayerKind("Multiply", elementwise_merge, _recompute_merge, page="multiply"),
    LayerKind("Average", elementwise_merge, _recompute_merge, page="mean"),
    LayerKind("Maximum", elementwise_merge, _recompute_merge, page="maximum"),
    LayerKind("Minimum", elementwise_merge, _recompute_merge, page="minimum"),
    LayerKind("Concatenate", concatenate, _recompute_concatenate, page="concatenate"),
)
