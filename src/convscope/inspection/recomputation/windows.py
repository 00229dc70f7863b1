"""Numbers of layers that slide a window: convolutions and poolings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from convscope.arithmetic import same_padding
from convscope.inspection.recomputation.site import Array, Recomputed, Site, show, weight_array


def convolution(site: Site) -> Recomputed:
    """Recompute a number of Conv2D."""
    layer, image = site.layer, site.image()
    kernel = weight_array(layer.kernel)  # (h, w, channels/groups, filters)
    seen, filters = kernel.shape[2], kernel.shape[3]
    first = site.channel // (filters // layer.groups) * seen
    window = _Window(site, kernel.shape[:2], layer.strides, layer.dilation_rate)
    patch = window.zero_filled(image[..., first : first + seen])
    return window.mark(site.product_result(patch, kernel[..., site.channel], _bias(site)))


def depthwise_convolution(site: Site) -> Recomputed:
    """Recompute a number of DepthwiseConv2D."""
    layer, image = site.layer, site.image()
    kernel = weight_array(layer.kernel)  # (h, w, channels, multiplier)
    channel, copy = divmod(site.channel, kernel.shape[3])
    window = _Window(site, kernel.shape[:2], layer.strides, layer.dilation_rate)
    patch = window.zero_filled(image[..., channel : channel + 1])
    return window.mark(
        site.product_result(patch, kernel[..., channel : channel + 1, copy], _bias(site)),
    )


def separable_convolution(site: Site) -> Recomputed:
    """Recompute a number of SeparableConv2D: the depthwise sums first, then their weighted sum."""
    layer, image = site.layer, site.image()
    kernel = weight_array(layer.depthwise_kernel)  # (h, w, channels, multiplier)
    window = _Window(site, kernel.shape[:2], layer.strides, layer.dilation_rate)
    patch = window.zero_filled(image)  # (h, w, channels)
    middle = np.einsum("hwc,hwcm->cm", patch, kernel).ravel()  # (channels · multiplier,)
    pointwise = weight_array(layer.pointwise_kernel)[0, 0, :, site.channel]
    answer = site.product_result(middle, pointwise, _bias(site))
    height, width, channels, multiplier = kernel.shape
    step = (
        f"first, for each of {channels}·{multiplier} = {middle.size} channels, "
        f"a sum of {height}·{width} = {height * width} products; then"
    )
    return window.mark(replace(answer, lines=(step, *answer.lines)))


def max_pooling(site: Site) -> Recomputed:
    """Recompute a number of MaxPooling2D; padding never wins."""
    window = _Window(site, site.layer.pool_size, site.layer.strides, (1, 1))
    image = site.image()[..., site.channel]
    found = window.only_inside(image)
    value = float(found.max())
    answer = site.result(
        window.zero_filled(image[..., None]), value=value, lines=[f"max({_listed(found)}) = {show(value)}"]
    )
    return window.mark(answer)


def average_pooling(site: Site) -> Recomputed:
    """Recompute a number of AveragePooling2D; zeros of the padding are not counted."""
    window = _Window(site, site.layer.pool_size, site.layer.strides, (1, 1))
    image = site.image()[..., site.channel]
    uneven = window.uneven
    # Keras on torch repeats the edge, and counts what it repeats, where "same" pads one side more.
    found = window.repeated(image) if uneven else window.only_inside(image)
    value = float(found.mean())
    note = ["the padding is uneven, for which Keras on torch repeats the edge pixels"] if uneven else []
    answer = site.result(
        window.repeated(image)[..., None] if uneven else window.zero_filled(image[..., None]),
        value=value,
        lines=[*note, f"({_listed(found, ' + ')})/{found.size} = {show(value)}"],
    )
    return window.mark(answer)


def global_average_pooling(site: Site) -> Recomputed:
    """Recompute a number of GlobalAveragePooling2D."""
    channel = site.image()[..., site.channel]
    value = float(channel.mean())
    line = f"the mean of {channel.shape[0]}·{channel.shape[1]} = {channel.size} numbers: {show(value)}"
    return site.result(channel[..., None], value=value, lines=[line])


def global_max_pooling(site: Site) -> Recomputed:
    """Recompute a number of GlobalMaxPooling2D."""
    channel = site.image()[..., site.channel]
    value = float(channel.max())
    line = f"the largest of {channel.shape[0]}·{channel.shape[1]} = {channel.size} numbers: {show(value)}"
    return site.result(channel[..., None], value=value, lines=[line])


class _Window:
    """Where a layer's window lies for one output."""

    def __init__(self, site: Site, size: Any, strides: Any, dilation: Any) -> None:
        lengths = site.image().shape[:2]
        same = site.layer.padding == "same"
        self.padding = [
            same_padding(*axis)[:2] if same else (0, 0)
            for axis in zip(lengths, size, strides, dilation, strict=True)
        ]
        place = site.place()
        self.rows, self.columns = (
            place[axis] * strides[axis] - self.padding[axis][0] + dilation[axis] * np.arange(size[axis])
            for axis in (0, 1)
        )
        row_inside = (self.rows >= 0) & (self.rows < lengths[0])
        column_inside = (self.columns >= 0) & (self.columns < lengths[1])
        self.inside = row_inside[:, None] & column_inside[None]  # (h, w)

    @property
    def uneven(self) -> bool:
        """Whether one side has more padding than the other."""
        return any(before != after for before, after in self.padding)

    def repeated(self, image: Array) -> Array:
        """Read the window; outside the image stands its nearest pixel."""
        rows = self.rows.clip(0, image.shape[0] - 1)
        columns = self.columns.clip(0, image.shape[1] - 1)
        window: Array = image[np.ix_(rows, columns)]
        return window

    def zero_filled(self, image: Array) -> Array:
        """Read the window; outside the image stand zeros."""
        return np.where(self.inside[..., None], self.repeated(image), 0.0)

    def only_inside(self, image: Array) -> Array:
        """Read the part of the window that lies inside the image, in reading order."""
        inside: Array = self.repeated(image)[self.inside]
        return inside

    def mark(self, answer: Recomputed) -> Recomputed:
        """Note on the answer where the window lies."""
        return replace(
            answer,
            rows=tuple(self.rows.tolist()),
            columns=tuple(self.columns.tolist()),
            inside=self.inside,
        )


def _bias(site: Site) -> float | None:
    return None if site.layer.bias is None else float(weight_array(site.layer.bias)[site.channel])


def _listed(numbers: Array, separator: str = ", ") -> str:
    shown = [show(number) for number in numbers.ravel()[:9]]
    return separator.join(shown) + (separator + "…" if numbers.size > 9 else "")
