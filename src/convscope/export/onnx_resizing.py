"""``Preprocess.resize_to_input`` as an ONNX graph, for an export that takes images of any size.

The weights of ONNX Runtime's filter are less exact than Pillow's: on noise, up to 1 % of the pixels are one
level apart, and one in a million two levels.
"""

from __future__ import annotations

import importlib
from string import Template
from typing import Any

from convscope.preprocessing import Preprocess

SIZED = "sized"

# Luminance in weights of 16 bits, then Pillow's triangle filter in two passes, each rounded to uint8; height
# first where that shrinks by more than twice as many pixels as the width, as Pillow has it since version 13.
_RESIZE = Template("""
<ir_version: 10, opset_import: ["" : 18]>
resize (uint8[n, height, width, channels] pixels) => (uint8[n, $height, $width, $channels] sized)
<int64[3] input = {$height, $width, $channels}> {
    given = Shape <start = 1> (pixels)
    equal = Equal (given, input)
    equal_as_int = Cast <to = 6> (equal)
    all_equal = ReduceMin <keepdims = 0> (equal_as_int)
    fits = Cast <to = 9> (all_equal)
    sized = If (fits) <
        then_branch = keep () => (uint8[n, $height, $width, $channels] kept) {
            kept = Identity (pixels)
        },
        else_branch = fit () => (uint8[n, $height, $width, $channels] fitted)
        <int64[4] as_rgb = {1, 1, 1, 3}, int64[2] wanted = {$height, $width}, int64[2] axes = {1, 2},
         int64[1] zero = {0}, int64[1] two = {2}, uint8 black = {0}> {
            rgb = Expand (pixels, as_rgb)
            $colours
            size = Shape <start = 1, end = 3> (pixels)
            $inner
            less = Sub (size, inner)
            less_height, less_width = Split <num_outputs = 2> (less)
            less_width_twice = Mul (less_width, two)
            shrinks = Greater (less_height, zero)
            shrinks_more = Greater (less_height, less_width_twice)
            height_first = And (shrinks, shrinks_more)
            width_first = Not (height_first)
            first = Concat <axis = 0> (height_first, width_first)
            halfway = Where (first, inner, size)
            one_pass = Resize <$filter> (colours, , , halfway)
            resized = Resize <$filter> (one_pass, , , inner)
            space = Sub (wanted, inner)
            odd = Mod (space, two)
            even = Sub (space, odd)
            before = Div (even, two)
            after = Sub (space, before)
            border = Concat <axis = 0> (before, after)
            fitted = Pad (resized, border, black, axes)
        }
    >
}
""")
_FILTER = 'mode = "linear", antialias = 1, exclude_outside = 1, axes = [1, 2]'
_COLOURS = {
    3: "colours = Identity (rgb)",
    1: """
            in_65536 = Constant <value = float[3, 1] {19595, 38470, 7471}> ()
            whole = Constant <value_float = 65536.0> ()
            weights = Div (in_65536, whole)
            half = Constant <value_float = 0.5> ()
            rgb_as_float = Cast <to = 1> (rgb)
            luminance = MatMul (rgb_as_float, weights)
            rounded_up = Add (luminance, half)
            colours = Cast <to = 2> (rounded_up)""",
}
_SCALED = Template("""
            size_as_double = Cast <to = 11> (size)
            wanted_as_double = Cast <to = 11> (wanted)
            factors = Div (wanted_as_double, size_as_double)
            factor = $pick <keepdims = 0> (factors)
            scaled = Mul (size_as_double, factor)
            rounded = Round (scaled)
            rounded_as_int = Cast <to = 7> (rounded)
            one = Constant <value_int = 1> ()
            inner = Max (rounded_as_int, one)""")
_INNER = {
    "letterbox": _SCALED.substitute(pick="ReduceMin"),
    "crop": _SCALED.substitute(pick="ReduceMax"),
    "stretch": "inner = Identity (wanted)",
}


def to_resizing(settings: Preprocess) -> Any:
    """Give an ONNX model of uint8 pixels (n, h, w, 1 or 3) → (n, height, width, channels)."""
    parser: Any = importlib.import_module("onnx.parser")
    text = _RESIZE.substitute(
        height=settings.height,
        width=settings.width,
        channels=settings.channels,
        colours=_COLOURS[settings.channels],
        inner=_INNER[settings.resize],
        filter=_FILTER,
    )
    return parser.parse_model(text)
