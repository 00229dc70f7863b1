"""Layers that move elements: flattening, margins, enlarging."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from convscope.arithmetic.formulas import Length, Shape, known_lengths, product_of, show, show_shape
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


def flatten(context: LayerContext) -> LayerArithmetic:
    """Analyse Flatten: all numbers in one row."""
    length = product_of(list(context.shape) or [1])
    fields = _all_positions(context)
    return LayerArithmetic(
        output_shape=(length.value,), fields=fields, lines=(f"length: {length}", *field_lines(fields))
    )


def reshape(context: LayerContext) -> LayerArithmetic:
    """Analyse Reshape: the same numbers in other rows; one length may be -1, for what is left."""
    target = tuple(context.settings["target_shape"])
    total = product_of(list(context.shape) or [1])
    known = math.prod(length for length in target if length not in (-1, None))
    shape: Shape = target
    line = f"numbers: {total}"
    if total.value is not None and -1 in target and known:
        left = total.value // known
        shape = tuple(left if length == -1 else length for length in target)
        line += f", and {show(total.value)}/{show(known)} = {show(left)} for −1"
    elif -1 in target:
        shape = tuple(None if length == -1 else length for length in target)
    if total.value is not None and None not in shape and math.prod(known_lengths(shape)) != total.value:
        raise context.failure(
            f"a target_shape of {show(total.value)} numbers for {context.label}",
            f"{show_shape(target)} = {show(math.prod(known_lengths(shape)))}",
            "Let one length be -1 to have it worked out.",
        )
    fields = context.fields[0]
    seen = fields if fields is not None and all(field.jump == 0 for field in fields) else None
    return LayerArithmetic(
        output_shape=shape, fields=_all_positions(context) if len(shape) == 1 else seen, lines=(line,)
    )


_NOT_FOLLOWED = "receptive field: not followed further, since neighbours see the same pixels"


def upsampling(context: LayerContext) -> LayerArithmetic:
    """Analyse UpSampling2D."""
    lengths, channels = context.image_parts()
    factors = context.pair("size", 2)
    results = [product_of([length, factor]) for length, factor in zip(lengths, factors, strict=True)]
    same = factors == (1, 1)
    return LayerArithmetic(
        output_shape=context.image_shape([result.value for result in results], channels),
        fields=context.fields[0] if same else None,
        lines=(*by_axis("", results[0].text, results[1].text), *(() if same else (_NOT_FOLLOWED,))),
    )


def _all_positions(context: LayerContext) -> Fields:
    lengths = context.shape[1:] if context.channels_first else context.shape[:-1]
    return whole_image(context, lengths)


def margins(context: LayerContext, key: str, sign: str) -> LayerArithmetic:
    """Analyse ZeroPadding2D and Cropping2D."""
    lengths, channels = context.image_parts()
    sides = context.margins(key)
    direction = 1 if sign == "+" else -1
    results: list[Length] = []
    texts = []
    for length, (before, after) in zip(lengths, sides, strict=True):
        result = None if length is None else length + direction * (before + after)
        text = f"{show(length)} {sign} {before} {sign} {after} = {show(result).replace('-', '−')}"
        if result is not None and result < 1:
            raise context.failure(
                f"an input of more than {before + after} for {context.label}",
                f"{show_shape(lengths)}: {text}",
                "Crop less, or use a larger image.",
            )
        results.append(result)
        texts.append(text)
    fields: Fields = None
    if context.fields[0] is not None:
        height, width = (
            field.through(1, 1, direction * before)
            for field, (before, _) in zip(context.fields[0], sides, strict=True)
        )
        fields = height, width
    return LayerArithmetic(
        output_shape=context.image_shape(results, channels),
        fields=fields,
        lines=by_axis("", texts[0], texts[1]),
    )


def _recompute_flatten(context: ActivationContext) -> Recomputed:
    image = context.image()
    place = np.unravel_index(context.channel, image.shape)
    value = float(image[place])
    where = ", ".join(str(int(index)) for index in place)
    names = "row, column, channel" if image.ndim == 3 else "place"
    line = f"number {context.channel} of the row is the one at ({names}) = ({where}): {show_value(value)}"
    return context.result(np.array([value]), value=value, lines=[line])


def _recompute_reshape(context: ActivationContext) -> Recomputed:
    target = context.inputs[0].reshape([length or -1 for length in context.output_shape])
    value = context.at(context.channels_last(target))
    return context.result(
        np.array([value]), value=value, lines=[f"the same number elsewhere: {show_value(value)}"]
    )


def _recompute_margins(context: ActivationContext, key: str, sign: int) -> Recomputed:
    image = context.image()
    (top, _), (left, _) = context.layer.margins(key)
    row, column = context.place()[0] - sign * top, context.place()[1] - sign * left
    inside = 0 <= row < image.shape[0] and 0 <= column < image.shape[1]
    value = float(image[row, column, context.channel]) if inside else 0.0
    where = f"the input at row {row}, column {column}" if inside else "padding"
    return context.result(np.array([value]), value=value, lines=[f"{where}: {show_value(value)}"])


KINDS = (
    LayerKind("Flatten", flatten, _recompute_flatten, page="same"),
    LayerKind("Reshape", reshape, _recompute_reshape, page="same"),
    LayerKind(
        "ZeroPadding2D",
        partial(margins, key="padding", sign="+"),
        partial(_recompute_margins, key="padding", sign=1),
        page="zero_padding",
    ),
    LayerKind(
        "Cropping2D",
        partial(margins, key="cropping", sign="−"),
        partial(_recompute_margins, key="cropping", sign=-1),
        page="cropping",
    ),
    LayerKind("UpSampling2D", upsampling, page="upsampling"),
)
