"""Layers that slide a window over the image: convolutions and poolings."""

from __future__ import annotations

from dataclasses import dataclass

from convscope.arithmetic.formulas import (
    Calculation,
    Length,
    ReceptiveField,
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
from convscope.arithmetic.site import Fields, LayerArithmetic, Site, by_axis, field_lines, whole_image


@dataclass(frozen=True)
class _Window:
    """A window as a layer slides it."""

    size: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    padding: str


@dataclass(frozen=True)
class _Slid:
    """What comes of sliding it."""

    lengths: tuple[Length, Length]
    fields: Fields
    lines: tuple[str, ...]
    field_lines: tuple[str, ...]


def convolution(site: Site) -> LayerArithmetic:
    """Work out Conv2D."""
    lengths, channels = site.image_parts()
    window = _kernel_window(site)
    check_strides_and_dilation(window.strides, window.dilation, site.label)
    filters, groups = int(site.settings["filters"]), int(site.settings.get("groups") or 1)
    _check_groups(site, channels, filters, groups)
    use_bias = bool(site.settings.get("use_bias", True))
    slid = _slide(site, lengths, window)
    parameters = conv_parameters(window.size, channels, filters, groups, use_bias)
    macs = conv_macs(slid.lengths, window.size, channels, filters, groups)
    kernel = ("kernel", (*window.size, channels // groups, filters))
    return LayerArithmetic(
        output_shape=site.image_shape(slid.lengths, filters),
        weight_shapes=(kernel, ("bias", (filters,))) if use_bias else (kernel,),
        parameters=parameters.value or 0,
        macs=macs.value,
        fields=slid.fields,
        lines=(
            *slid.lines,
            f"channels: one for each of the {show(filters)} filters",
            f"parameters: {parameters}",
            f"multiply-accumulates: {macs}",
            *slid.field_lines,
        ),
    )


def depthwise_convolution(site: Site) -> LayerArithmetic:
    """Work out DepthwiseConv2D: `depth_multiplier` kernels for each channel, each over that channel alone."""
    lengths, channels = site.image_parts()
    window = _kernel_window(site)
    multiplier = int(site.settings.get("depth_multiplier") or 1)
    use_bias = bool(site.settings.get("use_bias", True))
    slid = _slide(site, lengths, window)
    filters = channels * multiplier
    weights = window.size[0] * window.size[1] * filters
    total = weights + (filters if use_bias else 0)
    terms = f"{window.size[0]}·{window.size[1]}·{show(channels)}·{multiplier}"
    bias = f" + {show(filters)}" if use_bias else ""
    macs = product_of([*slid.lengths, filters, *window.size])
    kernel = ("kernel", (*window.size, channels, multiplier))
    return LayerArithmetic(
        output_shape=site.image_shape(slid.lengths, filters),
        weight_shapes=(kernel, ("bias", (filters,))) if use_bias else (kernel,),
        parameters=total,
        macs=macs.value,
        fields=slid.fields,
        lines=(
            *slid.lines,
            f"channels: {show(channels)}·{multiplier} = {show(filters)}",
            f"parameters: {terms}{bias} = {show(total)}",
            f"multiply-accumulates: {macs}",
            *slid.field_lines,
        ),
    )


def separable_convolution(site: Site) -> LayerArithmetic:
    """Work out SeparableConv2D: a depthwise convolution, then a 1×1 convolution over its channels."""
    lengths, channels = site.image_parts()
    window = _kernel_window(site)
    multiplier = int(site.settings.get("depth_multiplier") or 1)
    filters, use_bias = int(site.settings["filters"]), bool(site.settings.get("use_bias", True))
    slid = _slide(site, lengths, window)
    middle = channels * multiplier
    area = window.size[0] * window.size[1]
    total = area * middle + middle * filters + (filters if use_bias else 0)
    positions = product_of(list(slid.lengths)).value
    macs = None if positions is None else positions * (middle * area + filters * middle)
    kernel = f"{window.size[0]}·{window.size[1]}"
    places = "·".join(map(show, slid.lengths))
    bias = f" + {show(filters)}" if use_bias else ""
    weights = (
        ("depthwise_kernel", (*window.size, channels, multiplier)),
        ("pointwise_kernel", (1, 1, middle, filters)),
    )
    return LayerArithmetic(
        output_shape=site.image_shape(slid.lengths, filters),
        weight_shapes=(*weights, ("bias", (filters,))) if use_bias else weights,
        parameters=total,
        macs=macs,
        fields=slid.fields,
        lines=(
            *slid.lines,
            f"channels: {show(channels)}·{multiplier} = {show(middle)} between the two steps, "
            f"then one for each of the {show(filters)} filters",
            f"parameters: {kernel}·{show(channels)}·{multiplier} + 1·1·{show(middle)}·{show(filters)}{bias} "
            f"= {show(total)}",
            f"multiply-accumulates: {places}·({show(middle)}·{kernel} + {show(filters)}·{show(middle)}) "
            f"= {show(macs)}",
            *slid.field_lines,
        ),
    )


def pooling(site: Site) -> LayerArithmetic:
    """Work out MaxPooling2D and AveragePooling2D."""
    lengths, channels = site.image_parts()
    size = site.pair("pool_size", 2)
    window = _Window(size, site.pair("strides", size), (1, 1), str(site.settings.get("padding") or "valid"))
    slid = _slide(site, lengths, window)
    return LayerArithmetic(
        output_shape=site.image_shape(slid.lengths, channels),
        fields=slid.fields,
        lines=(*slid.lines, f"channels: each pooled alone, {show(channels)}", *slid.field_lines),
    )


def global_pooling(site: Site) -> LayerArithmetic:
    """Work out GlobalAveragePooling2D and GlobalMaxPooling2D."""
    lengths, channels = site.image_parts()
    fields = whole_image(site, lengths)
    keep = bool(site.settings.get("keepdims", False))
    return LayerArithmetic(
        output_shape=site.image_shape((1, 1), channels) if keep else (channels,),
        fields=fields,
        lines=(
            f"{show_shape(lengths)} positions become one number for each of {show(channels)} channels",
            *field_lines(fields),
        ),
    )


def _kernel_window(site: Site) -> _Window:
    return _Window(
        size=site.pair("kernel_size"),
        strides=site.pair("strides"),
        dilation=site.pair("dilation_rate"),
        padding=str(site.settings.get("padding") or "valid"),
    )


def _check_groups(site: Site, channels: int, filters: int, groups: int) -> None:
    """Keras gives every group as many channels and as many filters as the next."""
    for kind, count in (("input channels", channels), ("filters", filters)):
        if count % groups:
            raise site.failure(
                f"{kind} that {groups} groups share evenly in {site.label}",
                f"{count}/{groups} = {count / groups:g}",
                f"Choose groups that divide {count}.",
            )


def _slide(site: Site, lengths: tuple[Length, Length], window: _Window) -> _Slid:
    height, width = (
        output_length(length, size, stride, window.padding, dilation)
        for length, size, stride, dilation in zip(
            lengths, window.size, window.strides, window.dilation, strict=True
        )
    )
    for result in (height, width):
        if result.value is not None and result.value < 1:
            raise _does_not_fit(site, lengths, window, result)
    padding, padding_lines = _padding(lengths, window)
    fields, seen = _fields(site, window, padding)
    return _Slid(
        lengths=(height.value, width.value),
        fields=fields,
        lines=(*by_axis("", height.text, width.text), *padding_lines),
        field_lines=seen,
    )


def _does_not_fit(
    site: Site, lengths: tuple[Length, Length], window: _Window, result: Calculation
) -> Exception:
    needed = tuple(map(effective_window, window.size, window.dilation))
    kind = "pooling window" if "Pooling" in site.layer_type else "kernel"
    dilated = "" if window.dilation == (1, 1) else f" with dilation {show_shape(window.dilation)}"
    return site.failure(
        f"an input of at least {show_shape(needed)} for {site.label}, "
        f"whose {kind} is {show_shape(window.size)}{dilated}",
        f"{show_shape(lengths)}: {result}",
        f"Use padding='same', a smaller {kind}, fewer layers before it, or a larger image.",
    )


def _padding(
    lengths: tuple[Length, Length], window: _Window
) -> tuple[tuple[int | None, int | None], tuple[str, ...]]:
    """Find the padding before each axis (None where a length is open), and its formulas."""
    if window.padding == "valid":
        return (0, 0), ()
    before: list[int | None] = []
    texts = []
    for length, size, stride, dilation in zip(
        lengths, window.size, window.strides, window.dilation, strict=True
    ):
        if length is None:
            before.append(None)
            texts.append("depends on the length")
            continue
        first, last, text = same_padding(length, size, stride, dilation)
        before.append(first)
        texts.append(f"{text}: {first} before, {last} after")
    return (before[0], before[1]), by_axis("padding", texts[0], texts[1])


def _fields(
    site: Site, window: _Window, padding: tuple[int | None, int | None]
) -> tuple[Fields, tuple[str, ...]]:
    fields = site.fields[0]
    if fields is None:
        return None, ()
    grown: list[ReceptiveField] = []
    texts = []
    for field, size, stride, dilation, before in zip(
        fields, window.size, window.strides, window.dilation, padding, strict=True
    ):
        span = effective_window(size, dilation)
        # Where the image's size is open, so is its padding; the size of the field does not depend on it.
        after = field.through(span, stride, before or 0)
        grown.append(after)
        texts.append(f"{field.size} + ({span} − 1)·{field.jump} = {after.size}")
    return (grown[0], grown[1]), by_axis("receptive field", texts[0], texts[1])
