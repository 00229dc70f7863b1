"""Loops that numba compiles: one pass over memory where torch's own operations would need several.

Each loop is a C function of one pointer, to a block of 64-bit integers: three that say which share of the
work is its own (``_share``), then addresses and sizes. ``compiled.py`` fills the block and calls. Where
elements are only compared and moved, they come as the bits they are made of, in integers as wide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from convscope.lowering.cpu import LANES
from convscope.lowering.cpu.vectors import (
    add,
    call,
    load,
    load_bfloat16,
    multiply_add,
    pointer,
    relu,
    store,
    store_bfloat16,
    store_signs,
    where_signs,
)

# The beginning of the SHA-256 of vectors.py. Numba keeps what it has compiled until the text of this file
# changes; so it has to change with that one, which a test sees to.
VECTORS = "631259124f7243fa"

# What they are compiled for, as LLVM calls it.
TARGET = numba.core.registry.cpu_target.target_context.codegen().magic_tuple()[1]

_BLOCK = types.void(types.CPointer(types.int64))

_LINE = 4096  # elements that stay in the nearest cache between two passes
# A moment this small moves no float32 weight; smaller ones would become denormals, which are slow: many times
# as many cycles.
_NEGLIGIBLE = np.float32(1e-30)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER, _OTHER_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _inline(function: Callable[..., Any]) -> Any:
    return numba.njit(error_model="numpy")(function)


def _loop(function: Callable[..., Any]) -> Any:
    """Compile a loop, once for this machine where there is a folder to keep the result in."""
    try:
        return numba.cfunc(_BLOCK, cache=True, error_model="numpy")(function)
    except RuntimeError:
        return numba.cfunc(_BLOCK, error_model="numpy")(function)


@_inline
def _share(block: Any) -> Any:
    """Return the first and the end of the items that are this thread's; without a team it has them all."""
    number, threads, items = 0, 1, block[2]
    if block[0] != 0:
        number, threads = call(block[0]), call(block[1])
    return items * number // threads, items * (number + 1) // threads


@_loop
def hash_counters(block: Any) -> None:
    """Fill words with hashed counters, decided field by field: what ``masks.py`` does with torch.

    The block: words, their address, key, bits of a field (0 for words as they are), threshold.
    """
    words = numba.carray(pointer(block[3]), (block[2],), np.uint64)
    key, bits, threshold = np.uint64(block[4]), block[5], block[6]
    first, end = _share(block)
    for index in range(first, end):
        word = np.uint64(index + 1) * _GOLDEN + key
        word = (word ^ (word >> np.uint64(30))) * _MULTIPLIER
        word = (word ^ (word >> np.uint64(27))) * _OTHER_MULTIPLIER
        word ^= word >> np.uint64(31)
        if bits > 0:
            enough = ~np.uint64(0)
            for place in range(bits):
                bit = word >> np.uint64(place)
                enough = bit & enough if threshold >> place & 1 else bit | enough
            word = enough
        words[index] = word


@_inline
def _drop_line(elements: Any, start: int, lanes: Any, bits: int) -> None:
    """Set to zero what a mask drops of a line that begins at ``start`` of the whole tensor."""
    number, lane_type = elements.dtype.type, lanes.dtype.type
    done = 0
    while done < len(elements):
        plane, lane = divmod(start + done, len(lanes))
        count = min(len(elements) - done, len(lanes) - lane)
        part, decisions = elements[done : done + count], lanes[lane : lane + count]
        bit = lane_type(1 << (plane * bits))
        for index in range(count):
            part[index] = part[index] if lane_type(decisions[index] & bit) != lane_type(0) else number(0)
        done += count


@_inline
def _drop(block: Any, number: Any) -> None:
    source = numba.carray(pointer(block[3]), (block[2],), number)
    target = numba.carray(pointer(block[4]), (block[2],), number)
    lanes = numba.carray(pointer(block[5]), (block[6],), number)
    first, end = _share(block)
    for begin in range(first, end, _LINE):
        stop = min(begin + _LINE, end)
        if block[3] != block[4]:
            target[begin:stop] = source[begin:stop]
        _drop_line(target[begin:stop], begin, lanes, block[7])


@_inline
def _rank(bits: Any, infinity: Any, largest: Any, sign: Any, number: Any) -> Any:
    """Order floating-point numbers as integers; what is not a number has more bits than infinity."""
    ordered = number(bits ^ number(number(bits >> sign) & largest))
    return largest if number(bits & largest) > infinity else ordered


@_inline
def _largest_of_four(
    a: Any, b: Any, c: Any, d: Any, relu: bool, results: Any, places: Any, infinity: Any
) -> None:
    number = results.dtype.type
    largest, sign = number(np.iinfo(results.dtype).max), number(np.iinfo(results.dtype).bits - 1)
    least = number(0) if relu else number(np.iinfo(results.dtype).min)
    for index in range(len(results)):
        most, place = least, number(0)
        rank = _rank(a[index], infinity, largest, sign, number)
        if rank > most:
            most, place = rank, number(1)
        rank = _rank(b[index], infinity, largest, sign, number)
        if rank > most:
            most, place = rank, number(2)
        rank = _rank(c[index], infinity, largest, sign, number)
        if rank > most:
            most, place = rank, number(3)
        rank = _rank(d[index], infinity, largest, sign, number)
        if rank > most:
            most, place = rank, number(4)
        results[index] = most ^ number(number(most >> sign) & largest)
        places[index] = np.uint8(place)


@_inline
def _tile_max(block: Any, number: Any, infinity: Any) -> None:
    rows, height, width, channels, relu = block[2], block[3], block[4], block[5], block[9] != 0
    high, wide = height // 2, width // 2
    images = numba.carray(pointer(block[6]), (rows // high, height, width, channels), number)
    results = numba.carray(pointer(block[7]), (rows, wide * channels), number)
    places = numba.carray(pointer(block[8]), (rows, wide * channels), np.uint8)
    lanes = numba.carray(pointer(block[10]), (block[11],), number)
    first, end = _share(block)
    for row in range(first, end):
        upper, lower = images[row // high, row % high * 2], images[row // high, row % high * 2 + 1]
        for column in range(wide):
            left, right = 2 * column, 2 * column + 1
            here = slice(column * channels, (column + 1) * channels)
            _largest_of_four(
                upper[left], upper[right], lower[left], lower[right],
                relu, results[row, here], places[row, here], infinity,
            )  # fmt: skip
        if len(lanes) > 0:
            _drop_line(results[row], row * wide * channels, lanes, block[12])
            _drop_line(places[row], row * wide * channels, lanes, block[12])


@_inline
def _send(gradients: Any, places: Any, place: Any, targets: Any) -> None:
    zero = targets.dtype.type(0)
    for index in range(len(targets)):
        targets[index] = gradients[index] if places[index] == place else zero


@_inline
def _tile_max_back(block: Any, number: Any) -> None:
    rows, height, width, channels = block[2], block[3], block[4], block[5]
    high, wide = height // 2, width // 2
    gradients = numba.carray(pointer(block[6]), (rows, wide, channels), number)
    places = numba.carray(pointer(block[7]), (rows, wide, channels), np.uint8)
    targets = numba.carray(pointer(block[8]), (rows // high, height, width, channels), number)
    first, end = _share(block)
    for row in range(first, end):
        for column in range(wide):
            for tile in range(4):
                target = targets[row // high, row % high * 2 + tile // 2, 2 * column + tile % 2]
                _send(gradients[row, column], places[row, column], np.uint8(tile + 1), target)


@_loop
def drop_16(block: Any) -> None:
    """Copy a tensor, unless source and target are one, and set to zero what a mask drops.

    The block: elements; source, target; lanes, their number, bits of a field.
    """
    _drop(block, np.int16)


@_loop
def drop_32(block: Any) -> None:
    """Drop as ``drop_16`` does."""
    _drop(block, np.int32)


@_loop
def tile_max_16(block: Any) -> None:
    """Take the largest of each tile of two by two, then ReLU if wanted, then dropout where there are lanes.

    The block: rows of the results of all images; height, width, channels; images, results, places; relu;
    lanes, their number, bits of a field. A place says which of the four the gradient goes to, 0 for none.
    """
    _tile_max(block, np.int16, np.int16(0x7F80))


@_loop
def tile_max_32(block: Any) -> None:
    """Take maxima as ``tile_max_16`` does."""
    _tile_max(block, np.int32, np.int32(0x7F800000))


@_loop
def tile_max_back_16(block: Any) -> None:
    """Send each gradient to its place in the tile, zero to the others; an odd last row or column stays.

    The block: rows of the gradients of all images; height, width, channels of the images; gradients, places,
    gradients of the images.
    """
    _tile_max_back(block, np.int16)


@_loop
def tile_max_back_32(block: Any) -> None:
    """Send gradients back as ``tile_max_back_16`` does."""
    _tile_max_back(block, np.int32)


@_inline
def _settle(moment: Any) -> Any:
    return np.float32(0) if abs(moment) < _NEGLIGIBLE else moment  # what is not a number stays


@_inline
def _adam_line(weights: Any, gradients: Any, moments: Any, squares: Any, numbers: Any) -> None:
    rate, epsilon = numbers[0], numbers[5]
    for index in range(len(weights)):
        gradient = gradients[index]
        moment = _settle(moments[index] * numbers[1] + gradient * numbers[2])
        square = _settle(squares[index] * numbers[3] + gradient * gradient * numbers[4])
        moments[index], squares[index] = moment, square
        weights[index] -= moment * rate / (np.sqrt(square) + epsilon)


@_inline
def _narrow_line(words: Any, halves: Any) -> None:
    """Round float32 numbers, as the words they are made of, to bfloat16; halves go to even."""
    for index in range(len(words)):
        word = words[index]
        odd = np.uint32(word >> np.uint32(16)) & np.uint32(1)
        rounded = np.uint32(word + np.uint32(0x7FFF) + odd)
        nothing = np.uint32(word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        halves[index] = np.uint16(0x7FC0) if nothing else np.uint16(rounded >> np.uint32(16))


@_loop
def adam(block: Any) -> None:
    """Update weights as Adam does, moments and squares included; moments too small to matter become zero.

    The block: weights, their address; gradients, bytes of each; moments, squares; six float32 numbers: the
    learning rate with both corrections, β₁, 1 − β₁, β₂, 1 − β₂, epsilon; a bfloat16 copy of the weights
    or 0.
    """
    weights = numba.carray(pointer(block[3]), (block[2],), np.float32)
    gradients = numba.carray(pointer(block[4]), (block[2],), np.float32)
    moments = numba.carray(pointer(block[6]), (block[2],), np.float32)
    squares = numba.carray(pointer(block[7]), (block[2],), np.float32)
    numbers = numba.carray(pointer(block[8]), (6,), np.float32)
    first, end = _share(block)
    widened = np.empty(_LINE, np.float32)
    for begin in range(first, end, _LINE):
        stop = min(begin + _LINE, end)
        line = gradients[begin:stop]
        if block[5] == 2:
            narrow = numba.carray(pointer(block[4]), (block[2],), np.uint16)[begin:stop]
            bits = widened.view(np.uint32)[: stop - begin]
            for index in range(len(bits)):
                bits[index] = np.uint32(narrow[index]) << np.uint32(16)
            line = widened[: stop - begin]
        _adam_line(weights[begin:stop], line, moments[begin:stop], squares[begin:stop], numbers)
        if block[9] != 0:
            words = numba.carray(pointer(block[3]), (block[2],), np.uint32)[begin:stop]
            _narrow_line(words, numba.carray(pointer(block[9]), (block[2],), np.uint16)[begin:stop])


@_inline
def _put(results: int, signs: int, place: int, vector: Any, size: int) -> None:
    if size == 4:
        store(results + 4 * place, vector)
    else:
        store_bfloat16(results + 2 * place, vector)
    if signs != 0:
        store_signs(signs + place // 8, vector)


@_loop
def few_channel_convolution(block: Any) -> None:
    """Convolve images of few channels, four pixels and sixteen filters at a time.

    The block: rows of the results of all images; height, line (elements in a row) of the images; rows and
    columns of a result, filters, a multiple of sixteen; elements from one row or column to the next; images;
    taps, their number, the kernel (taps, filters), bias; results, bytes of their elements; relu; signs (0 for
    none). A tap is how many elements after the first of a window one of its elements lies; the signs say, in
    a bit for each result, which are positive.
    """
    height, line, high, wide, filters = block[3], block[4], block[5], block[6], block[7]
    down, along, images = block[8], block[9], block[10]
    taps, kernel, bias = numba.carray(pointer(block[11]), (block[12],), np.int64), block[13], block[14]
    results, size, signs = block[15], block[16], block[18]
    first, end = _share(block)
    for row in range(first, end):
        corner = images + 4 * (row // high * height * line + row % high * down)
        for column in range(0, wide, 4):
            # Behind the last column it is computed again.
            b, c, d = min(column + 1, wide - 1), min(column + 2, wide - 1), min(column + 3, wide - 1)
            at_a, at_b = corner + 4 * column * along, corner + 4 * b * along
            at_c, at_d = corner + 4 * c * along, corner + 4 * d * along
            for group in range(0, filters, LANES):
                sum_a = load(bias + 4 * group)
                sum_b, sum_c, sum_d = sum_a, sum_a, sum_a
                for tap in range(len(taps)):
                    offset, weights = 4 * taps[tap], load(kernel + 4 * (tap * filters + group))
                    sum_a = multiply_add(sum_a, at_a + offset, weights)
                    sum_b = multiply_add(sum_b, at_b + offset, weights)
                    sum_c = multiply_add(sum_c, at_c + offset, weights)
                    sum_d = multiply_add(sum_d, at_d + offset, weights)
                if block[17] != 0:
                    sum_a, sum_b, sum_c, sum_d = relu(sum_a), relu(sum_b), relu(sum_c), relu(sum_d)
                first_result = row * wide * filters + group
                _put(results, signs, first_result + column * filters, sum_a, size)
                _put(results, signs, first_result + b * filters, sum_b, size)
                _put(results, signs, first_result + c * filters, sum_c, size)
                _put(results, signs, first_result + d * filters, sum_d, size)


@_inline
def _widen_row(
    pixel: int, wide: int, filters: int, gradients: int, signs: int, size: int, widened: int, total: int
) -> None:
    """Bring a row of gradients to float32, zero where ReLU stops them, and add them to a sum per filter."""
    for group in range(0, filters, LANES):
        summed = load(total + 4 * group)
        for column in range(wide):
            place = (pixel + column) * filters + group
            gradient = load(gradients + 4 * place) if size == 4 else load_bfloat16(gradients + 2 * place)
            if signs != 0:
                gradient = where_signs(gradient, signs + place // 8)
            store(widened + 4 * (column * filters + group), gradient)
            summed = add(summed, gradient)
        store(total + 4 * group, summed)


@_loop
def few_channel_gradient(block: Any) -> None:
    """Sum the gradients of kernel and bias of a few-channel convolution, each part over some of the images.

    The block: parts; rows of a part, rows of all; height, line of the images; rows and columns of a result,
    filters; elements from one row or column to the next; images; taps, their number, a multiple of three;
    gradients, signs (0 if no ReLU stops a gradient), bytes of a gradient; sums, of the size (parts, taps + 1,
    filters); memory for a row of float32 gradients for each part.
    """
    length, rows, height, line, high, wide, filters = (
        block[3], block[4], block[5], block[6], block[7], block[8], block[9],
    )  # fmt: skip
    down, along, images = block[10], block[11], block[12]
    taps = numba.carray(pointer(block[13]), (block[14],), np.int64)
    gradients, signs, size, sums = block[15], block[16], block[17], block[18]
    first, end = _share(block)
    for part in range(first, end):
        widened = block[19] + 4 * part * wide * filters
        total = sums + 4 * part * (len(taps) + 1) * filters
        numba.carray(pointer(total), ((len(taps) + 1) * filters,), np.float32)[:] = 0
        for row in range(part * length, min((part + 1) * length, rows)):
            _widen_row(
                row * wide, wide, filters, gradients, signs, size, widened, total + 4 * len(taps) * filters
            )
            corner = images + 4 * (row // high * height * line + row % high * down)
            for tap in range(0, len(taps), 3):
                at_a, at_b = corner + 4 * taps[tap], corner + 4 * taps[tap + 1]
                at_c = corner + 4 * taps[tap + 2]
                for group in range(0, filters, LANES):
                    target = total + 4 * (tap * filters + group)
                    sum_a, sum_b, sum_c = load(target), load(target + 4 * filters), load(target + 8 * filters)
                    for column in range(wide):
                        gradient, step = load(widened + 4 * (column * filters + group)), 4 * column * along
                        sum_a = multiply_add(sum_a, at_a + step, gradient)
                        sum_b = multiply_add(sum_b, at_b + step, gradient)
                        sum_c = multiply_add(sum_c, at_c + step, gradient)
                    store(target, sum_a)
                    store(target + 4 * filters, sum_b)
                    store(target + 8 * filters, sum_c)
