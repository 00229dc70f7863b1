"""Numbers of layers without a window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from convscope.errors import UsageError, sentence
from convscope.inspection.recomputation.site import (
    Array,
    Recomputed,
    Site,
    product_line,
    show,
    weight_array,
)


def dense(site: Site) -> Recomputed:
    """Recompute a number of Dense; under a softmax all its units enter."""
    row = _row(site)
    kernel = weight_array(site.layer.kernel)
    biases = None if site.layer.bias is None else weight_array(site.layer.bias)
    if site.activation.name != "softmax":
        bias = None if biases is None else float(biases[site.channel])
        return site.product_result(row, kernel[:, site.channel], bias)
    sums = row @ kernel + (0.0 if biases is None else biases)
    return _softmax(site, row, sums, kernel[:, site.channel], biases)


def softmax(site: Site) -> Recomputed:
    """Recompute a number of a softmax layer, along the last axis."""
    row = _row(site)
    return _softmax(site, row, row, None, None)


def activation(site: Site) -> Recomputed:
    """Recompute a number of an activation layer."""
    if site.activation.name == "softmax":
        return softmax(site)
    x = site.at(_channels_last(site))
    value = float(site.activation.apply(np.array([x]))[0])
    lines = site.activation.lines(x, value)
    return site.result(np.array([x]), value=value, lines=lines, total=x, activation=site.activation.name)


def unchanged(site: Site) -> Recomputed:
    """Recompute a number of a layer that changes nothing at inference."""
    x = site.at(_channels_last(site))
    line = f"{site.call.type} changes nothing at inference: {show(x)}"
    return site.result(np.array([x]), value=x, lines=[line])


def flatten(site: Site) -> Recomputed:
    """Recompute a number of Flatten: find where it came from."""
    image = site.image()
    place = np.unravel_index(site.channel, image.shape)
    value = float(image[place])
    where = ", ".join(str(int(index)) for index in place)
    names = "row, column, channel" if image.ndim == 3 else "place"
    line = f"number {site.channel} of the row is the one at ({names}) = ({where}): {show(value)}"
    return site.result(np.array([value]), value=value, lines=[line])


def reshape(site: Site) -> Recomputed:
    """Recompute a number of Reshape: the same numbers in the same order."""
    target = site.inputs[0].reshape([length or -1 for length in site.call.output_shapes[0]])
    ordered = target.transpose(1, 2, 0) if site.channels_first and target.ndim == 3 else target
    value = site.at(ordered)
    return site.result(np.array([value]), value=value, lines=[f"the same number elsewhere: {show(value)}"])


def batch_normalization(site: Site) -> Recomputed:
    """Recompute a number of BatchNormalization with its moving statistics."""
    layer = site.layer
    axis = int(layer.axis[0] if isinstance(layer.axis, list | tuple) else layer.axis)
    array = site.inputs[0]
    index: tuple[int, ...] = (site.channel,)
    if site.position is not None:
        row, column = site.position
        index = (site.channel, row, column) if site.channels_first else (row, column, site.channel)
    x = float(array[index])
    feature = index[axis - 1 if axis > 0 else axis]
    mean, variance = (
        float(weight_array(weight)[feature]) for weight in (layer.moving_mean, layer.moving_variance)
    )
    gamma = 1.0 if layer.gamma is None else float(weight_array(layer.gamma)[feature])
    beta = 0.0 if layer.beta is None else float(weight_array(layer.beta)[feature])
    value = gamma * (x - mean) / float(np.sqrt(variance + layer.epsilon)) + beta
    line = (
        f"γ·(x − mean)/√(variance + ε) + β: {show(gamma)}·({show(x)} − {show(mean)})/"
        f"√({show(variance)} + {layer.epsilon:g}) + {show(beta)} = {show(value)}"
    )
    return site.result(np.array([x]), value=value, lines=[line], bias=beta)


def rescaling(site: Site) -> Recomputed:
    """Recompute a number of Rescaling."""
    x = site.at(_channels_last(site))
    scale, offset = float(np.ravel(site.layer.scale)[0]), float(np.ravel(site.layer.offset)[0])
    value = x * scale + offset
    line = f"{show(x)}·{show(scale)} + {show(offset)} = {show(value)}"
    return site.result(np.array([x]), value=value, lines=[line], bias=offset)


def zero_padding(site: Site) -> Recomputed:
    """Recompute a number of ZeroPadding2D."""
    (top, _), (left, _) = site.layer.padding
    return _shifted(site, top, left)


def cropping(site: Site) -> Recomputed:
    """Recompute a number of Cropping2D."""
    (top, _), (left, _) = site.layer.cropping
    return _shifted(site, -top, -left)


def merge(site: Site) -> Recomputed:
    """Recompute a number of Add, Subtract, Multiply, Average, Maximum or Minimum."""
    combine, sign = _MERGES[site.call.type]
    arrays = np.broadcast_arrays(*[_channels_last(site, number) for number in range(len(site.inputs))])
    numbers = np.array([site.at(array) for array in arrays])
    value = float(combine(numbers))
    line = f"{sign}({', '.join(show(number) for number in numbers)}) = {show(value)}"
    return site.result(numbers, value=value, lines=[line])


def concatenate(site: Site) -> Recomputed:
    """Recompute a number of Concatenate: find which input it came from."""
    joined = np.concatenate(site.inputs, axis=_own_axis(site))
    ordered = joined.transpose(1, 2, 0) if site.channels_first and joined.ndim == 3 else joined
    value = site.at(ordered)
    return site.result(np.array([value]), value=value, lines=[f"taken over from an input: {show(value)}"])


_MERGES: dict[str, tuple[Callable[[Array], Any], str]] = {
    "Add": (np.sum, "sum"),
    "Subtract": (lambda numbers: numbers[0] - numbers[1], "first − second of "),
    "Multiply": (np.prod, "product"),
    "Average": (np.mean, "mean"),
    "Maximum": (np.max, "max"),
    "Minimum": (np.min, "min"),
}


def _softmax(site: Site, row: Array, sums: Array, weights: Array | None, biases: Array | None) -> Recomputed:
    probabilities = site.activation.apply(sums)
    total, value = float(sums[site.channel]), float(probabilities[site.channel])
    largest = float(sums.max())
    powers = np.exp(sums - largest)
    bias = 0.0 if biases is None else float(biases[site.channel])
    lines = [
        *([] if weights is None else [product_line(row, weights, total - bias)]),
        *([] if biases is None else [f"sum + bias: {show(total - bias)} + {show(bias)} = {show(total)}"]),
        f"softmax over {sums.size} units, the largest sum {show(largest)} taken off each: "
        f"e^({total - largest:.6g}) / Σ = {powers[site.channel]:.6g} / {powers.sum():.6g} "
        f"= {value:.6g}".replace("-", "−"),
    ]
    answer = site.result(
        row, value=value, lines=lines, weights=weights, bias=bias, total=total, activation="softmax"
    )
    return replace(answer, sums=sums)


def _row(site: Site) -> Array:
    """Take the row of numbers along the last axis that the place belongs to."""
    if site.position is None:
        return site.inputs[0]
    if site.channels_first:
        raise UsageError(
            sentence("channels last for a layer that works along the last axis of an image", site.call.name)
        )
    row: Array = site.inputs[0][site.position]
    return row


def _shifted(site: Site, down: int, right: int) -> Recomputed:
    image = site.image()
    row, column = site.place()[0] - down, site.place()[1] - right
    inside = 0 <= row < image.shape[0] and 0 <= column < image.shape[1]
    value = float(image[row, column, site.channel]) if inside else 0.0
    where = f"the input at row {row}, column {column}" if inside else "padding"
    return site.result(np.array([value]), value=value, lines=[f"{where}: {show(value)}"])


def _channels_last(site: Site, number: int = 0) -> Array:
    """Bring an input into the order in which places are named."""
    array = site.inputs[number]
    return array.transpose(1, 2, 0) if site.channels_first and array.ndim == 3 else array


def _own_axis(site: Site) -> int:
    axis = int(site.layer.axis)
    return axis - 1 if axis > 0 else axis
