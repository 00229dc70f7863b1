"""Loops for the way back through a convolution and the max-pooling behind it.

Pooling by tiles of two by two lets the gradient of at most one result in four through, and fewer behind a
ReLU and a dropout. So the gradients that get through are listed, and only they are multiplied: each with a
few neighbouring pixels (for the kernel) or with a few weights (for the images), whose sums stay in registers.

An *entry* of a list is eight bytes: how many bytes behind some address the elements lie, and the gradient
that multiplies them. The blocks are those of ``loops.py``.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from convscope.lowering.cpu import LANES
from convscope.lowering.cpu.loops import _inline, _loop, _share
from convscope.lowering.cpu.vectors import (
    byte_at,
    load,
    multiply_add,
    number_at,
    offset_at,
    pointer,
    store,
    store_entry,
)

# The beginning of the SHA-256 of vectors.py, as in loops.py.
VECTORS = "631259124f7243fa"

_ENTRY = 8
_BYTES = 4 * LANES  # of a vector


@_inline
def _add_one(entries: int, end: int, base: int, target: int) -> None:
    sum_a = load(target)
    while entries < end:
        sum_a = multiply_add(sum_a, entries + 4, load(base + offset_at(entries)))
        entries += _ENTRY
    store(target, sum_a)


@_inline
def _add_three(entries: int, end: int, base: int, target: int) -> None:
    sum_a, sum_b, sum_c = load(target), load(target + _BYTES), load(target + 2 * _BYTES)
    while entries < end:
        at, number = base + offset_at(entries), entries + 4
        sum_a = multiply_add(sum_a, number, load(at))
        sum_b = multiply_add(sum_b, number, load(at + _BYTES))
        sum_c = multiply_add(sum_c, number, load(at + 2 * _BYTES))
        entries += _ENTRY
    store(target, sum_a)
    store(target + _BYTES, sum_b)
    store(target + 2 * _BYTES, sum_c)


@_inline
def _add_six(entries: int, end: int, base: int, target: int) -> None:
    sum_a, sum_b, sum_c = load(target), load(target + _BYTES), load(target + 2 * _BYTES)
    sum_d, sum_e, sum_f = load(target + 3 * _BYTES), load(target + 4 * _BYTES), load(target + 5 * _BYTES)
    while entries < end:
        at, number = base + offset_at(entries), entries + 4
        sum_a = multiply_add(sum_a, number, load(at))
        sum_b = multiply_add(sum_b, number, load(at + _BYTES))
        sum_c = multiply_add(sum_c, number, load(at + 2 * _BYTES))
        sum_d = multiply_add(sum_d, number, load(at + 3 * _BYTES))
        sum_e = multiply_add(sum_e, number, load(at + 4 * _BYTES))
        sum_f = multiply_add(sum_f, number, load(at + 5 * _BYTES))
        entries += _ENTRY
    store(target, sum_a)
    store(target + _BYTES, sum_b)
    store(target + 2 * _BYTES, sum_c)
    store(target + 3 * _BYTES, sum_d)
    store(target + 4 * _BYTES, sum_e)
    store(target + 5 * _BYTES, sum_f)


@_inline
def _add_products(entries: int, end: int, base: int, target: int, vectors: int) -> None:
    """Add to some vectors at ``target`` the sum of all entries' gradients times the elements they name.

    Six vectors of sixteen fill twelve of AVX2's registers; the gradient and the elements need the others.
    """
    done = 0
    while done + 6 <= vectors:
        _add_six(entries, end, base + done * _BYTES, target + done * _BYTES)
        done += 6
    while done + 3 <= vectors:
        _add_three(entries, end, base + done * _BYTES, target + done * _BYTES)
        done += 3
    while done < vectors:
        _add_one(entries, end, base + done * _BYTES, target + done * _BYTES)
        done += 1


@_loop
def pooled_kernel_gradient(block: Any) -> None:
    """Sum the gradients of kernel and bias, each part over some of the images.

    The block: parts; images of a part, of all; height, width, channels of the images; rows and columns of
    tiles, filters; rows and columns of the kernel; images, gradients and places of the tiles; sums
    (parts, filters, rows, columns · channels), bias sums (parts, filters); rows of tiles that are listed at
    once; memory for the entries of each part.
    """
    each, count, height, width, channels = block[3], block[4], block[5], block[6], block[7]
    high, wide, filters, rows, columns = block[8], block[9], block[10], block[11], block[12]
    at_once, line = block[18], 4 * width * channels
    size = 4 * columns * channels
    first, end = _share(block)
    for part in range(first, end):
        sums, entries = block[16] + part * filters * rows * size, block[19] + part * at_once * wide * _ENTRY
        numba.carray(pointer(sums), (filters * rows * size // 4,), np.float32)[:] = 0
        bias = numba.carray(pointer(block[17] + 4 * part * filters), (filters,), np.float32)
        bias[:] = 0
        for image in range(part * each, min((part + 1) * each, count)):
            corner = block[13] + image * height * line
            for above in range(0, high, at_once):
                below = min(above + at_once, high)
                for number in range(filters):
                    last = entries
                    for row in range(above, below):
                        tile = (image * high + row) * wide * filters + number
                        offset = 2 * row * line
                        for _ in range(wide):
                            place, gradient = byte_at(block[15] + tile), number_at(block[14] + 4 * tile)
                            # Written in any case, kept only if a gradient gets through: no branch to guess.
                            down, right = (place - 1) >> 1, (place - 1) & 1
                            store_entry(last, offset + down * line + right * 4 * channels, gradient)
                            last += np.int64(place != 0) * _ENTRY
                            tile += filters
                            offset += 8 * channels
                    total = np.float32(0)
                    for entry in range(entries, last, _ENTRY):
                        total += number_at(entry + 4)
                    bias[number] += total
                    for row in range(rows):
                        target = sums + (number * rows + row) * size
                        _add_products(entries, last, corner + row * line, target, size // _BYTES)


@_loop
def pooled_image_gradient(block: Any) -> None:
    """Compute the gradients of the images, each part of them with memory of its own.

    The block: parts; images of a part, of all; height, width, channels of the images; rows and columns of
    tiles, filters; rows and columns of the kernel; gradients of the images; gradients and places of the
    tiles; the kernel (filters, rows, columns · channels); rows of tiles that are listed at once; memory for
    the entries of each part, and for where each list of them begins.
    """
    each, count, height, width, channels = block[3], block[4], block[5], block[6], block[7]
    high, wide, filters, rows, columns = block[8], block[9], block[10], block[11], block[12]
    at_once, line = block[17], 4 * width * channels
    size, room = 4 * columns * channels, block[17] * wide
    first, end = _share(block)
    for part in range(first, end):
        # One entry more than can be kept: one is written behind the last.
        entries = block[18] + part * (room * filters + 1) * _ENTRY
        begins = numba.carray(pointer(block[19] + 8 * part * (4 * room + 1)), (4 * room + 1,), np.int64)
        for image in range(part * each, min((part + 1) * each, count)):
            corner = block[13] + image * height * line
            numba.carray(pointer(corner), (height * line // 4,), np.float32)[:] = 0
            for above in range(0, high, at_once):
                tiles = (min(above + at_once, high) - above) * wide
                last = entries
                for tile in range(tiles):
                    element = ((image * high + above) * wide + tile) * filters
                    for place in range(4):
                        begins[4 * tile + place] = last
                        for number in range(filters):
                            gradient = number_at(block[14] + 4 * (element + number))
                            store_entry(last, number * rows * size, gradient)
                            taken = byte_at(block[15] + element + number) == place + 1
                            last += np.int64(taken) * _ENTRY
                begins[4 * tiles] = last
                # A row of the kernel at a time, so that its weights stay in the nearest cache.
                for row in range(rows):
                    for tile in range(tiles):
                        top, left = 2 * (above + tile // wide) + row, 2 * (tile % wide)
                        for place in range(4):
                            begin, stop = begins[4 * tile + place], begins[4 * tile + place + 1]
                            if begin < stop:
                                down, right = place >> 1, place & 1
                                pixel = corner + (top + down) * line + (left + right) * 4 * channels
                                _add_products(begin, stop, block[16] + row * size, pixel, size // _BYTES)
