"""Layers that slide a window over the image: convolutions and poolings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from convscope.arithmetic.activations import Array
from convscope.arithmetic.formulas import (
    Calculation,
    Length,
    check_strides_and_dilation,
    conv_macs,
    conv_parameters,
    effective_window,
    output_length,
    product_of,
    same_padding,
    show,
    show_shape,
)
from convscope.arithmetic.kind import (
    ActivationContext,
    Fields,
    LayerArithmetic,
    LayerContext,
    LayerKind,
    Recomputed,
    by_axis,
    field_lines,
    show_value,
    whole_image,
)


class _Window(NamedTuple):
    """A window as a layer slides it."""

    size: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    padding: str


class _Slid(NamedTuple):
    """What comes of sliding it."""

    lengths: tuple[Length, Length]
    fields: Fields
    lines: tuple[str, ...]
    field_lines: tuple[str, ...]


def convolution(context: LayerContext) -> LayerArithmetic:
    """Analyse Conv2D."""
    lengths, channels = context.image_parts()
    window = _kernel_window(context)
    check_strides_and_dilation(window.strides, window.dilation, context.label)
    filters, groups = int(context.settings["filters"]), int(context.settings.get("groups") or 1)
    _check_groups(context, channels, filters, groups)
    slid = _slide(context, lengths, window)
    parameters = conv_parameters(window.size, channels, filters, groups, context.use_bias)
    macs = conv_macs(slid.lengths, window.size, channels, filters, groups)
    kernel = {"kernel": (*window.size, channels // groups, filters)}
    made = f"one for each of the {show(filters)} filters"
    return _convolved(context, slid, filters, kernel, made, parameters, macs)


def depthwise_convolution(context: LayerContext) -> LayerArithmetic:
    """Analyse DepthwiseConv2D: `depth_multiplier` kernels for each channel, each over that channel alone."""
    lengths, channels = context.image_parts()
    window = _kernel_window(context)
    multiplier = int(context.settings.get("depth_multiplier") or 1)
    slid = _slide(context, lengths, window)
    filters = channels * multiplier
    area = f"{window.size[0]}·{window.size[1]}"
    weights = window.size[0] * window.size[1] * filters
    parameters = _with_bias(context, weights, f"{area}·{show(channels)}·{multiplier}", filters)
    macs = product_of([*slid.lengths, filters, *window.size])
    kernel = {"kernel": (*window.size, channels, multiplier)}
    made = f"{show(channels)}·{multiplier} = {show(filters)}"
    return _convolved(context, slid, filters, kernel, made, parameters, macs)


def separable_convolution(context: LayerContext) -> LayerArithmetic:
    """Analyse SeparableConv2D: a depthwise convolution, then a 1×1 convolution over its channels."""
    lengths, channels = context.image_parts()
    window = _kernel_window(context)
    multiplier, filters = int(context.settings.get("depth_multiplier") or 1), int(context.settings["filters"])
    slid = _slide(context, lengths, window)
    middle, size = channels * multiplier, window.size[0] * window.size[1]
    area, places = f"{window.size[0]}·{window.size[1]}", "·".join(map(show, slid.lengths))
    terms = f"{area}·{show(channels)}·{multiplier} + 1·1·{show(middle)}·{show(filters)}"
    parameters = _with_bias(context, size * middle + middle * filters, terms, filters)
    positions = product_of(list(slid.lengths)).value
    total = None if positions is None else positions * (middle * size + filters * middle)
    each = f"{show(middle)}·{area} + {show(filters)}·{show(middle)}"
    macs = Calculation(total, f"{places}·({each}) = {show(total)}")
    kernels = {
        "depthwise_kernel": (*window.size, channels, multiplier),
        "pointwise_kernel": (1, 1, middle, filters),
    }
    made = (
        f"{show(channels)}·{multiplier} = {show(middle)} between the two steps, "
        f"then one for each of the {show(filters)} filters"
    )
    return _convolved(context, slid, filters, kernels, made, parameters, macs)


def _with_bias(context: LayerContext, weights: int, terms: str, filters: int) -> Calculation:
    """Add a bias for each filter, if the layer has one."""
    total = weights + (filters if context.use_bias else 0)
    return Calculation(total, f"{terms}{f' + {show(filters)}' if context.use_bias else ''} = {show(total)}")


def _convolved(
    context: LayerContext,
    slid: _Slid,
    filters: int,
    kernels: Mapping[str, tuple[int, ...]],
    made: str,
    parameters: Calculation,
    macs: Calculation,
) -> LayerArithmetic:
    """Put together what is known of a convolution; ``made`` says how many channels it makes."""
    bias = (("bias", (filters,)),) if context.use_bias else ()
    return LayerArithmetic(
        output_shape=context.image_shape(slid.lengths, filters),
        weight_shapes=(*kernels.items(), *bias),
        parameters=parameters.value or 0,
        macs=macs.value,
        fields=slid.fields,
        lines=(
            *slid.lines,
            f"channels: {made}",
            f"parameters: {parameters}",
            f"multiply-accumulates: {macs}",
            *slid.field_lines,
        ),
    )


def pooling(context: LayerContext) -> LayerArithmetic:
    """Analyse MaxPooling2D and AveragePooling2D."""
    lengths, channels = context.image_parts()
    size = context.pair("pool_size", 2)
    window = _Window(
        size, context.pair("strides", size), (1, 1), str(context.settings.get("padding") or "valid")
    )
    slid = _slide(context, lengths, window)
    return LayerArithmetic(
        output_shape=context.image_shape(slid.lengths, channels),
        fields=slid.fields,
        lines=(*slid.lines, f"channels: each pooled alone, {show(channels)}", *slid.field_lines),
    )


def global_pooling(context: LayerContext) -> LayerArithmetic:
    """Analyse GlobalAveragePooling2D and GlobalMaxPooling2D."""
    lengths, channels = context.image_parts()
    fields = whole_image(context, lengths)
    keep = bool(context.settings.get("keepdims", False))
    return LayerArithmetic(
        output_shape=context.image_shape((1, 1), channels) if keep else (channels,),
        fields=fields,
        lines=(
            f"{show_shape(lengths)} positions become one number for each of {show(channels)} channels",
            *field_lines(fields),
        ),
    )


def _kernel_window(context: LayerContext) -> _Window:
    return _Window(
        size=context.pair("kernel_size"),
        strides=context.pair("strides"),
        dilation=context.pair("dilation_rate"),
        padding=str(context.settings.get("padding") or "valid"),
    )


def _check_groups(context: LayerContext, channels: int, filters: int, groups: int) -> None:
    """Keras gives every group as many channels and as many filters as the next."""
    for kind, count in (("input channels", channels), ("filters", filters)):
        if count % groups:
            raise context.failure(
                f"{kind} that {groups} groups share evenly in {context.label}",
                f"{count}/{groups} = {count / groups:g}",
                f"Choose groups that divide {count}.",
            )


def _slide(context: LayerContext, lengths: tuple[Length, Length], window: _Window) -> _Slid:
    """Slide a window along both axes: output lengths, what one output sees, and the formulas of each."""
    axes = list(zip(lengths, window.size, window.strides, window.dilation, strict=True))
    results = [
        output_length(length, size, stride, window.padding, dilation)
        for length, size, stride, dilation in axes
    ]
    for result in results:
        if result.value is not None and result.value < 1:
            raise _does_not_fit(context, lengths, window, result)
    lines = by_axis("", *map(str, results))
    before = [0, 0]
    if window.padding == "same":
        # Where the image's size is open, so is its padding; the size of the field does not depend on it.
        padded = [
            None if length is None else same_padding(length, *window_along) for length, *window_along in axes
        ]
        before = [one[0] if one else 0 for one in padded]
        texts = [
            f"{one[2]}: {one[0]} before, {one[1]} after" if one else "depends on the length" for one in padded
        ]
        lines += by_axis("padding", *texts)
    fields = context.fields[0]
    seen: tuple[str, ...] = ()
    if fields is not None:
        spans = [effective_window(size, dilation) for _, size, _, dilation in axes]
        height, width = (
            field.through(span, stride, margin)
            for field, span, stride, margin in zip(fields, spans, window.strides, before, strict=True)
        )
        seen = by_axis(
            "receptive field",
            *(
                f"{field.size} + ({span} − 1)·{field.jump} = {grown.size}"
                for field, span, grown in zip(fields, spans, (height, width), strict=True)
            ),
        )
        fields = height, width
    return _Slid((results[0].value, results[1].value), fields, lines, seen)


def _does_not_fit(
    context: LayerContext, lengths: tuple[Length, Length], window: _Window, result: Calculation
) -> Exception:
    needed = tuple(map(effective_window, window.size, window.dilation))
    kind = "pooling window" if "Pooling" in context.layer_type else "kernel"
    dilated = "" if window.dilation == (1, 1) else f" with dilation {show_shape(window.dilation)}"
    return context.failure(
        f"an input of at least {show_shape(needed)} for {context.label}, "
        f"whose {kind} is {show_shape(window.size)}{dilated}",
        f"{show_shape(lengths)}: {result}",
        f"Use padding='same', a smaller {kind}, fewer layers before it, or a larger image.",
    )


def _recompute_convolution(context: ActivationContext) -> Recomputed:
    image = context.image()
    kernel = context.weight("kernel")  # (h, w, channels/groups, filters)
    seen, filters = kernel.shape[2], kernel.shape[3]
    first = context.channel // (filters // int(context.layer.settings.get("groups") or 1)) * seen
    window = _Patch(context, kernel.shape[:2])
    patch = window.zero_filled(image[..., first : first + seen])
    return window.mark(context.product_result(patch, kernel[..., context.channel], context.bias()))


def _recompute_depthwise_convolution(context: ActivationContext) -> Recomputed:
    image = context.image()
    kernel = context.weight("kernel")  # (h, w, channels, multiplier)
    channel, copy = divmod(context.channel, kernel.shape[3])
    window = _Patch(context, kernel.shape[:2])
    patch = window.zero_filled(image[..., channel : channel + 1])
    products = context.product_result(patch, kernel[..., channel : channel + 1, copy], context.bias())
    return window.mark(products)


def _recompute_separable_convolution(context: ActivationContext) -> Recomputed:
    image = context.image()
    kernel = context.weight("depthwise_kernel")  # (h, w, channels, multiplier)
    window = _Patch(context, kernel.shape[:2])
    patch = window.zero_filled(image)  # (h, w, channels)
    middle = np.einsum("hwc,hwcm->cm", patch, kernel).ravel()  # (channels · multiplier,)
    pointwise = context.weight("pointwise_kernel")[0, 0, :, context.channel]
    answer = context.product_result(middle, pointwise, context.bias())
    height, width, channels, multiplier = kernel.shape
    step = (
        f"first, for each of {channels}·{multiplier} = {middle.size} channels, "
        f"a sum of {height}·{width} = {height * width} products; then"
    )
    return window.mark(replace(answer, lines=(step, *answer.lines)))


def _recompute_max_pooling(context: ActivationContext) -> Recomputed:
    window = _Patch(context, context.layer.pair("pool_size", 2), pooled=True)
    image = context.image()[..., context.channel]
    found = window.only_inside(image)  # padding never wins
    value = float(found.max())
    line = f"max({_listed(found)}) = {show_value(value)}"
    return window.mark(context.result(window.zero_filled(image[..., None]), value=value, lines=[line]))


def _recompute_average_pooling(context: ActivationContext) -> Recomputed:
    window = _Patch(context, context.layer.pair("pool_size", 2), pooled=True)
    image = context.image()[..., context.channel]
    uneven = window.uneven
    # Zeros of the padding are not counted; but Keras on torch repeats the edge, and counts what it repeats,
    # where "same" pads one side more.
    found = window.repeated(image) if uneven else window.only_inside(image)
    value = float(found.mean())
    note = ["the padding is uneven, for which Keras on torch repeats the edge pixels"] if uneven else []
    answer = context.result(
        window.repeated(image)[..., None] if uneven else window.zero_filled(image[..., None]),
        value=value,
        lines=[*note, f"({_listed(found, ' + ')})/{found.size} = {show_value(value)}"],
    )
    return window.mark(answer)


def _recompute_global_pooling(context: ActivationContext) -> Recomputed:
    channel = context.image()[..., context.channel]
    largest = context.layer.layer_type == "GlobalMaxPooling2D"
    value = float(channel.max() if largest else channel.mean())
    counted = f"{channel.shape[0]}·{channel.shape[1]} = {channel.size} numbers"
    line = f"the {'largest' if largest else 'mean'} of {counted}: {show_value(value)}"
    return context.result(channel[..., None], value=value, lines=[line])


class _Patch:
    """Where a layer's window lies for one output."""

    def __init__(self, context: ActivationContext, size: Sequence[int], pooled: bool = False) -> None:
        lengths, layer = context.image().shape[:2], context.layer
        strides, dilation = layer.pair("strides", size if pooled else 1), layer.pair("dilation_rate")
        same = layer.settings.get("padding") == "same"
        self.padding = [
            same_padding(*axis)[:2] if same else (0, 0)
            for axis in zip(lengths, size, strides, dilation, strict=True)
        ]
        place = context.place()
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
            answer, rows=tuple(self.rows.tolist()), columns=tuple(self.columns.tolist()), inside=self.inside
        )


def _listed(numbers: Array, separator: str = ", ") -> str:
    shown = [show_value(number) for number in numbers.ravel()[:9]]
    return separator.join(shown) + (separator + "…" if numbers.size > 9 else "")


KINDS = (
    LayerKind("Conv2D", convolution, _recompute_convolution, page="convolution"),
    LayerKind("DepthwiseConv2D", depthwise_convolution, _recompute_depthwise_convolution, page="depthwise"),
    LayerKind("SeparableConv2D", separable_convolution, _recompute_separable_convolution, page="separable"),
    LayerKind("MaxPooling2D", pooling, _recompute_max_pooling, page="max"),
    LayerKind("AveragePooling2D", pooling, _recompute_average_pooling, page="average"),
    LayerKind("GlobalMaxPooling2D", global_pooling, _recompute_global_pooling, page="max"),
    LayerKind("GlobalAveragePooling2D", global_pooling, _recompute_global_pooling, page="average"),
)
