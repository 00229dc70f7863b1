"""Winograd's convolution F(2×2, 3×3) with the max-pooling by tiles of two by two behind it, in loops.

Lavin and Gray ("Fast Algorithms for Convolutional Neural Networks", 2016, section 4.1): tiles of four by
four pixels are transformed, multiplied with the transformed kernel position by position, and transformed back
to two by two results, which takes 2.25 times fewer multiplications. Those results are just what a pooling
takes the largest of, so only the largest is written. The block is that of ``loops.py``.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from convscope.lowering.cpu import LANES
from convscope.lowering.cpu.loops import _drop_line, _inline, _largest_of_four, _loop, _share
from convscope.lowering.cpu.products import _multiply
from convscope.lowering.cpu.vectors import add, call, load, pointer, store, subtract

# The beginning of the SHA-256 of vectors.py, as in loops.py.
VECTORS = "631259124f7243fa"

_BYTES = 4 * LANES  # of a vector
_INFINITY = np.int32(0x7F800000)


@_inline
def _store_differences(first: Any, second: Any, third: Any, fourth: Any, target: int, step: int) -> None:
    """Transform four vectors along a row of a tile, into four positions."""
    store(target, subtract(first, third))
    store(target + step, add(second, third))
    store(target + 2 * step, subtract(third, second))
    store(target + 3 * step, subtract(second, fourth))


@_inline
def _transform_pixels(corner: int, line: int, pixel: int, channels: int, target: int, step: int) -> None:
    """Transform a tile of pixels into sixteen positions that lie ``step`` bytes apart."""
    for group in range(0, 4 * channels, _BYTES):
        for position in range(4):
            # Row 0 − 2, 1 + 2, 2 − 1, 1 − 3.
            upper = corner + group + (0 if position == 0 else 2 * line if position == 2 else line)
            lower = corner + group + (line if position == 2 else 3 * line if position == 3 else 2 * line)
            place = target + group + 4 * position * step
            if position == 1:
                _store_differences(
                    add(load(upper), load(lower)),
                    add(load(upper + pixel), load(lower + pixel)),
                    add(load(upper + 2 * pixel), load(lower + 2 * pixel)),
                    add(load(upper + 3 * pixel), load(lower + 3 * pixel)),
                    place,
                    step,
                )
            else:
                _store_differences(
                    subtract(load(upper), load(lower)),
                    subtract(load(upper + pixel), load(lower + pixel)),
                    subtract(load(upper + 2 * pixel), load(lower + 2 * pixel)),
                    subtract(load(upper + 3 * pixel), load(lower + 3 * pixel)),
                    place,
                    step,
                )


@_inline
def _transform_products(products: int, step: int, bias: int, filters: int, target: int) -> None:
    """Transform sixteen positions back to two by two results (4, filters), and add the bias."""
    for group in range(0, 4 * filters, _BYTES):
        upper_left = load(bias + group)
        upper_right, lower_left, lower_right = upper_left, upper_left, upper_left
        for row in range(4):
            place = products + group + 4 * row * step
            second, third = load(place + step), load(place + 2 * step)
            left = add(add(load(place), second), third)
            right = subtract(subtract(second, third), load(place + 3 * step))
            if row < 3:
                upper_left, upper_right = add(upper_left, left), add(upper_right, right)
            if row == 1:
                lower_left, lower_right = add(lower_left, left), add(lower_right, right)
            if row > 1:
                lower_left, lower_right = subtract(lower_left, left), subtract(lower_right, right)
        store(target + group, upper_left)
        store(target + 4 * filters + group, upper_right)
        store(target + 8 * filters + group, lower_left)
        store(target + 12 * filters + group, lower_right)


@_loop
def winograd_tile_max(block: Any) -> None:
    """Convolve, take the largest of each tile of two by two, then ReLU if wanted, then dropout.

    The block: pieces of all images; tiles of a piece; height, width, channels of the images; rows and columns
    of tiles, filters; images; the transformed kernel (16, filters / 16, channels, 16), bias; results, places;
    relu; lanes, their number, bits of a field; memory for each thread, its size in bytes.
    """
    length, height, width, channels = block[3], block[4], block[5], block[6]
    high, wide, filters = block[7], block[8], block[9]
    images, kernel, bias, relu = block[10], block[11], block[12], block[15] != 0
    lanes, bits = numba.carray(pointer(block[16]), (block[17],), np.int32), block[18]
    pieces = -(-high * wide // length)  # of an image
    first, end = _share(block)
    number = 0 if block[0] == 0 else call(block[0])
    pixels = block[19] + number * block[20]
    products = pixels + 64 * length * channels
    found = products + 64 * length * filters
    four = numba.carray(pointer(found), (4, filters), np.int32)
    line, pixel = 4 * width * channels, 4 * channels
    step, product_step = 4 * length * channels, 4 * length * filters
    for piece in range(first, end):
        image, begin = piece // pieces, piece % pieces * length
        count = min(length, high * wide - begin)
        for index in range(count):
            row, column = (begin + index) // wide, (begin + index) % wide
            corner = images + image * height * line + 2 * row * line + 2 * column * pixel
            _transform_pixels(corner, line, pixel, channels, pixels + index * pixel, step)
        for position in range(16):
            _multiply(
                pixels + position * step, count, pixel, kernel + position * filters * pixel, channels,
                filters, products + position * product_step, True,
            )  # fmt: skip
        for index in range(count):
            tile = image * high * wide + begin + index
            _transform_products(products + 4 * index * filters, product_step, bias, filters, found)
            results = numba.carray(pointer(block[13] + 4 * tile * filters), (filters,), np.int32)
            places = numba.carray(pointer(block[14] + tile * filters), (filters,), np.uint8)
            _largest_of_four(four[0], four[1], four[2], four[3], relu, results, places, _INFINITY)
            if len(lanes) > 0:
                _drop_line(results, tile * filters, lanes, bits)
                _drop_line(places, tile * filters, lanes, bits)
