"""Layers without a window: dense layers, changes of shape, normalisation, merging, number by number."""

from __future__ import annotations

import math
from itertools import zip_longest

from convscope.arithmetic.formulas import (
    Length,
    Shape,
    dense_parameters,
    product_of,
    show,
    show_shape,
)
from convscope.arithmetic.site import Fields, LayerArithmetic, Site, by_axis, field_lines, whole_image
from convscope.errors import ArchitectureError


def dense(site: Site) -> LayerArithmetic:
    """Work out Dense: every unit meets every number along the last axis."""
    inputs = _last_length(site)
    units, use_bias = int(site.settings["units"]), bool(site.settings.get("use_bias", True))
    parameters = dense_parameters(inputs, units, use_bias)
    macs = product_of([*site.shape[:-1], inputs, units])
    kernel = ("kernel", (inputs, units))
    # With channels first the last axis is the width, and what is seen is no longer a window.
    fields = None if site.channels_first and len(site.shape) > 1 else site.fields[0]
    where = "" if len(site.shape) == 1 else f", at each of {show_shape(site.shape[:-1])} positions"
    return LayerArithmetic(
        output_shape=(*site.shape[:-1], units),
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


def flatten(site: Site) -> LayerArithmetic:
    """Work out Flatten: all numbers in one row."""
    length = product_of(list(site.shape) or [1])
    fields = _all_positions(site)
    return LayerArithmetic(
        output_shape=(length.value,), fields=fields, lines=(f"length: {length}", *field_lines(fields))
    )


def reshape(site: Site) -> LayerArithmetic:
    """Work out Reshape: the same numbers in other rows; one length may be -1, for what is left."""
    target = tuple(site.settings["target_shape"])
    total = product_of(list(site.shape) or [1])
    known = math.prod(length for length in target if length not in (-1, None))
    shape: Shape = target
    line = f"numbers: {total}"
    if total.value is not None and -1 in target and known:
        left = total.value // known
        shape = tuple(left if length == -1 else length for length in target)
        line += f", and {show(total.value)}/{show(known)} = {show(left)} for −1"
    elif -1 in target:
        shape = tuple(None if length == -1 else length for length in target)
    if total.value is not None and None not in shape and math.prod(_known(shape)) != total.value:
        raise site.failure(
            f"a target_shape of {show(total.value)} numbers for {site.label}",
            f"{show_shape(target)} = {show(math.prod(_known(shape)))}",
            "Let one length be -1 to have it worked out.",
        )
    fields = site.fields[0]
    seen = fields if fields is not None and all(field.jump == 0 for field in fields) else None
    return LayerArithmetic(
        output_shape=shape, fields=_all_positions(site) if len(shape) == 1 else seen, lines=(line,)
    )


def batch_normalization(site: Site) -> LayerArithmetic:
    """Work out BatchNormalization: up to four numbers for each channel."""
    axis = site.settings.get("axis", -1)
    axis = int(axis[0] if isinstance(axis, list | tuple) else axis)
    channels = site.shape[axis - 1 if axis > 0 else axis]
    if channels is None:
        raise site.failure(f"a known number of channels for {site.label}", show_shape(site.shape), "")
    names = [
        *(["gamma"] if site.settings.get("scale", True) else []),
        *(["beta"] if site.settings.get("center", True) else []),
        "moving_mean",
        "moving_variance",
    ]
    total = len(names) * channels
    listed = ", ".join(names).replace("_", " ")
    return LayerArithmetic(
        output_shape=site.shape,
        weight_shapes=tuple((name, (channels,)) for name in names),
        parameters=total,
        fields=site.fields[0],
        lines=(
            f"parameters ({listed}; the moving ones are not trained): "
            f"{len(names)}·{show(channels)} = {show(total)}",
        ),
    )


def layer_normalization(site: Site) -> LayerArithmetic:
    """Work out LayerNormalization: a gamma and a beta for each number along its axes."""
    axis = site.settings.get("axis", -1)
    axes = [int(a) for a in axis] if isinstance(axis, list | tuple) else [int(axis)]
    lengths = _known(tuple(site.shape[a - 1 if a > 0 else a] for a in axes))
    names = [
        *(["gamma"] if site.settings.get("scale", True) else []),
        *(["beta"] if site.settings.get("center", True) else []),
    ]
    total = len(names) * math.prod(lengths)
    only_channels = len(lengths) == 1 and axes[0] in (-1, len(site.shape)) and not site.channels_first
    factors = "·".join(map(show, lengths))
    return LayerArithmetic(
        output_shape=site.shape,
        weight_shapes=tuple((name, lengths) for name in names),
        parameters=total,
        fields=site.fields[0] if only_channels else None,
        lines=(f"parameters ({', '.join(names) or 'none'}): {len(names)}·{factors} = {show(total)}",),
    )


def normalization(site: Site) -> LayerArithmetic:
    """Work out Normalization: the mean and variance that it has measured, unless they were given."""
    if site.settings.get("mean") is not None:
        return number_by_number(site)
    axis = site.settings.get("axis", -1)
    axes = [] if axis is None else [int(a) for a in axis] if isinstance(axis, list | tuple) else [int(axis)]
    lengths = _known(tuple(site.shape[a - 1 if a > 0 else a] for a in axes))
    each = math.prod(lengths)
    factors = "·".join(map(show, lengths)) or "1"
    return LayerArithmetic(
        output_shape=site.shape,
        weight_shapes=(("mean", lengths), ("variance", lengths), ("count", ())),
        parameters=2 * each + 1,
        fields=site.fields[0],
        lines=(
            f"parameters (mean, variance and a count; not trained): 2·{factors} + 1 = {show(2 * each + 1)}",
        ),
    )


def number_by_number(site: Site) -> LayerArithmetic:
    """Work out a layer that changes each number alone (activations, dropout, rescaling)."""
    return LayerArithmetic(
        output_shape=site.shape,
        fields=site.fields[0],
        lines=("output: each number alone, so the shape of the input; no parameters",),
    )


def zero_padding(site: Site) -> LayerArithmetic:
    """Work out ZeroPadding2D."""
    return _margins(site, "padding", "+")


def cropping(site: Site) -> LayerArithmetic:
    """Work out Cropping2D."""
    return _margins(site, "cropping", "−")


def upsampling(site: Site) -> LayerArithmetic:
    """Work out UpSampling2D."""
    lengths, channels = site.image_parts()
    factors = site.pair("size", 2)
    results = [product_of([length, factor]) for length, factor in zip(lengths, factors, strict=True)]
    same = factors == (1, 1)
    return LayerArithmetic(
        output_shape=site.image_shape([result.value for result in results], channels),
        fields=site.fields[0] if same else None,
        lines=(
            *by_axis("", results[0].text, results[1].text),
            *(
                ()
                if same
                else ("receptive field: not followed further, since neighbours see the same pixels",)
            ),
        ),
    )


def elementwise_merge(site: Site) -> LayerArithmetic:
    """Work out Add, Subtract, Multiply, Average, Maximum and Minimum."""
    shape = site.inputs[0]
    for other in site.inputs[1:]:
        shape = _broadcast(site, shape, other)
    return LayerArithmetic(
        output_shape=shape,
        fields=_joined(site.fields),
        lines=(f"output: number by number over {len(site.inputs)} inputs, {show_shape(shape)}",),
    )


def concatenate(site: Site) -> LayerArithmetic:
    """Work out Concatenate."""
    axis = int(site.settings.get("axis", -1))
    axis = axis - 1 if axis > 0 else len(site.shape) + axis
    for other in site.inputs[1:]:
        if len(other) != len(site.shape) or any(
            a != b for i, (a, b) in enumerate(zip(site.shape, other, strict=True)) if i != axis
        ):
            raise site.failure(
                f"inputs of {site.label} that differ only along the axis they are joined on",
                " and ".join(map(show_shape, site.inputs)),
                "Pad, crop or pool one of them first.",
            )
    lengths = [shape[axis] for shape in site.inputs]
    total = None if None in lengths else sum(length for length in lengths if length is not None)
    # Joined along height or width, outputs no longer stand where their number says.
    channel_axis = 0 if site.channels_first else len(site.shape) - 1
    return LayerArithmetic(
        output_shape=(*site.shape[:axis], total, *site.shape[axis + 1 :]),
        fields=_joined(site.fields) if axis == channel_axis or len(site.shape) == 1 else None,
        lines=(f"length along the axis: {' + '.join(map(show, lengths))} = {show(total)}",),
    )


def _last_length(site: Site) -> int:
    length = site.shape[-1] if site.shape else None
    if length is None:
        raise site.failure(
            f"an input of known length for {site.label}",
            show_shape(site.shape) or "none",
            "Give the network an input of fixed size, or pool globally instead of flattening.",
        )
    return length


def _all_positions(site: Site) -> Fields:
    lengths = site.shape[1:] if site.channels_first else site.shape[:-1]
    return whole_image(site, lengths)


def _margins(site: Site, key: str, sign: str) -> LayerArithmetic:
    lengths, channels = site.image_parts()
    margins = site.margins(key)
    direction = 1 if sign == "+" else -1
    results: list[Length] = []
    texts = []
    for length, (before, after) in zip(lengths, margins, strict=True):
        result = None if length is None else length + direction * (before + after)
        text = f"{show(length)} {sign} {before} {sign} {after} = {show(result).replace('-', '−')}"
        if result is not None and result < 1:
            raise site.failure(
                f"an input of more than {before + after} for {site.label}",
                f"{show_shape(lengths)}: {text}",
                "Crop less, or use a larger image.",
            )
        results.append(result)
        texts.append(text)
    fields: Fields = None
    if site.fields[0] is not None:
        height, width = (
            field.through(1, 1, direction * before)
            for field, (before, _) in zip(site.fields[0], margins, strict=True)
        )
        fields = height, width
    return LayerArithmetic(
        output_shape=site.image_shape(results, channels),
        fields=fields,
        lines=by_axis("", texts[0], texts[1]),
    )


def _broadcast(site: Site, first: Shape, second: Shape) -> Shape:
    """Stretch lengths of 1, aligned at the last axis, as NumPy does."""
    lengths: list[Length] = []
    for a, b in zip_longest(reversed(first), reversed(second), fillvalue=1):
        if a is not None and b is not None and a != b and 1 not in (a, b):
            raise site.failure(
                f"inputs of one shape for {site.label}",
                " and ".join(map(show_shape, site.inputs)),
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


def _known(shape: Shape) -> tuple[int, ...]:
    """Refuse lengths left open."""
    if None in shape:
        raise ArchitectureError(f"Expected known lengths, got {show_shape(shape)}.")
    return tuple(length for length in shape if length is not None)
