"""``Preprocess.resize_to_input`` as an ONNX graph, for an export that takes images of any size.

Its pixels are those of Pillow, to the last bit. ONNX's own Resize computes its weights in single precision,
which puts 1 in 100 pixels one level apart; so they are computed here, in double precision, and applied as
whole numbers.
"""

from __future__ import annotations

import importlib
from string import Template
from typing import Any

from convscope.preprocessing import Preprocess

SIZED = "sized"

# Luminance in weights of 16 bits, then Pillow's triangle filter along one axis and then the other, each
# rounded to uint8, in the order of `preprocessing._resample`. Here `resample` brings axis 1 of (n, length, …)
# to another length, eight places at a time, which share their inputs. The filter's weights have 22 bits and
# are applied as three digits of 8, in products that every runtime gets exactly right.
_RESIZE = Template("""
<ir_version: 10, opset_import: ["" : 18, "convscope" : 1]>
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
         int64[1] none = {0}, int64[1] two = {2}, uint8 black = {0}> {
            rgb = Expand (pixels, as_rgb)
            $colours
            size = Shape <start = 1, end = 3> (pixels)
            $inner
            inner_height, inner_width = Split <num_outputs = 2> (inner)
            less = Sub (size, inner)
            less_height, less_width = Split <num_outputs = 2> (less)
            less_width_twice = Mul (less_width, two)
            at_least = Max (less_width_twice, none)
            down_first_listed = Greater (less_height, at_least)
            down_first = Squeeze (down_first_listed)
            turned = If (down_first) <
                then_branch = as_it_is () => (rows) { rows = Identity (colours) },
                else_branch = aside () => (columns) { columns = Transpose <perm = [0, 2, 1, 3]> (colours) }
            >
            first_length = Where (down_first, inner_height, inner_width)
            second_length = Where (down_first, inner_width, inner_height)
            half_resized = convscope.resample (turned, first_length)
            other_way = Transpose <perm = [0, 2, 1, 3]> (half_resized)
            both_resized = convscope.resample (other_way, second_length)
            resized = If (down_first) <
                then_branch = back () => (low) { low = Transpose <perm = [0, 2, 1, 3]> (both_resized) },
                else_branch = stay () => (high) { high = Identity (both_resized) }
            >
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
<domain: "convscope", opset_import: ["" : 18]>
resample (lines, wanted) => (resampled) {
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    seven = Constant <value = int64 {7}> ()
    eight = Constant <value = int64 {8}> ()
    nothing = Constant <value = double {0.0}> ()
    half = Constant <value = double {0.5}> ()
    all = Constant <value = double {1.0}> ()
    gaps = Constant <value = double {7.0}> ()
    unit = Constant <value = double {4194304.0}> ()
    base = Constant <value = int32 {256}> ()
    base_squared = Constant <value = int32 {65536}> ()
    half_unit = Constant <value = int32 {2097152}> ()
    whole_unit = Constant <value = int32 {4194304}> ()
    start = Constant <value = int64[1] {0}> ()
    axis = Constant <value = int64[1] {1}> ()
    last_axis = Constant <value = int64[1] {2}> ()
    in_eights = Constant <value = int64[3] {-1, 8, 1}> ()
    flat = Constant <value = int64[4] {0, 0, 0, -1}> ()

    length_listed = Shape <start = 1, end = 2> (lines)
    length = Squeeze (length_listed)
    new_length = Squeeze (wanted)
    double_length = Cast <to = 11> (length)
    double_new_length = Cast <to = 11> (new_length)
    factor = Div (double_length, double_new_length)
    support = Max (factor, all)
    twice_support = Add (support, support)

    up_to_seven_more = Add (new_length, seven)
    blocks = Div (up_to_seven_more, eight)
    padded = Mul (blocks, eight)
    places = Range (zero, padded, one)
    last = Sub (new_length, one)
    clipped = Min (places, last)
    blocked = Reshape (clipped, in_eights)
    double_places = Cast <to = 11> (blocked)
    new_middles = Add (double_places, half)
    centres = Mul (new_middles, factor)

    across_gaps = Mul (gaps, factor)
    width = Add (across_gaps, twice_support)
    upper_width = Ceil (width)
    whole_width = Cast <to = 7> (upper_width)
    wide_enough = Add (whole_width, one)
    taps = Min (wide_enough, length)
    first_centres = ReduceMin (centres, axis)
    borders = Sub (first_centres, support)
    lower_borders = Floor (borders)
    first_taps = Cast <to = 7> (lower_borders)
    inside = Max (first_taps, zero)
    last_start = Sub (length, taps)
    starts = Min (inside, last_start)
    counted = Range (zero, taps, one)
    sources = Add (starts, counted)

    double_sources = Cast <to = 11> (sources)
    to_centres = Sub (double_sources, centres)
    to_middles = Add (to_centres, half)
    distances = Abs (to_middles)
    narrow = Div (all, support)
    parts = Mul (distances, narrow)
    signed = Sub (all, parts)
    triangles = Max (signed, nothing)
    sums = ReduceSum (triangles, last_axis)
    shares = Div (triangles, sums)
    units = Mul (shares, unit)
    rounded_up = Add (units, half)
    weights = Cast <to = 6> (rounded_up)

    upper = Div (weights, base)
    digit0 = Mod (weights, base)
    digit1 = Mod (upper, base)
    digit2 = Div (upper, base)
    digits = Concat <axis = 1> (digit0, digit1, digit2)
    bytes = Cast <to = 2> (digits)
    gathered_at = Squeeze (sources, axis)
    gathered = Gather <axis = 1> (lines, gathered_at)
    taken = Reshape (gathered, flat)
    products = MatMulInteger (bytes, taken)
    low, middle, high = Split <axis = 2, num_outputs = 3> (products)
    middle_in_units = Mul (middle, base)
    high_in_units = Mul (high, base_squared)
    low_and_half = Add (low, half_unit)
    middle_and_high = Add (middle_in_units, high_in_units)
    sum = Add (low_and_half, middle_and_high)
    level = Div (sum, whole_unit)
    byte = Cast <to = 2> (level)
    padded_listed = Unsqueeze (padded, start)
    others = Shape <start = 2> (lines)
    shape = Concat <axis = 0> (start, padded_listed, others)
    joined = Reshape (byte, shape)
    resampled = Slice (joined, start, wanted, axis)
}
""")
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
    inliner: Any = importlib.import_module("onnx.inliner")
    text = _RESIZE.substitute(
        height=settings.height,
        width=settings.width,
        channels=settings.channels,
        colours=_COLOURS[settings.channels],
        inner=_INNER[settings.resize],
    )
    return inliner.inline_local_functions(parser.parse_model(text))
