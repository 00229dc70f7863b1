"""Normalization by the statistics of a batch, with a ReLU or a sum behind it, in loops.

Images are lines, of as many pixels as make the number of elements a multiple of sixteen. Lines are summed
in blocks, in float32; what blocks give is put together in float64. The block of integers is that of
``loops.py``.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from convscope.lowering.cpu import LANES
from convscope.lowering.cpu.loops import _inline, _loop, _share
from convscope.lowering.cpu.vectors import (
    add,
    clip,
    fused,
    load,
    multiply,
    pointer,
    store,
    subtract,
    where_between,
    zeros,
)

# The beginning of the SHA-256 of vectors.py, as in loops.py.
VECTORS = "631259124f7243fa"

_BYTES = 4 * LANES
# Short lines are summed column by column, sixteen at a time, so that sums stay in registers. Long ones go one
# by one, in the order in which they lie: the processor fetches ahead only there (twice as fast).
_SHORT, _STRIP = 64 * 4, 16


@_loop
def block_statistics(block: Any) -> None:
    """Compute the mean of each column of a block of lines, and the sum of squared distances from it.

    The block: blocks; lines of a block, of all; elements of a line; images; results (blocks, 2, line); the
    inverse of the number of lines of a block, of the last block, each for sixteen elements.
    """
    each, lines, line, images = block[3], block[4], 4 * block[5], block[6]
    height = _STRIP if line <= _SHORT else 1
    first, end = _share(block)
    for number in range(first, end):
        count = min(each, lines - number * each)
        inverse = load(block[8] + (0 if count == each else _BYTES))
        target = block[7] + 2 * number * line
        corner = images + number * each * line
        for group in range(0, line, _BYTES):
            store(target + group, zeros())
        for strip in range(0, count, height):
            for group in range(0, line, _BYTES):
                total, first_line = load(target + group), load(corner + group)
                for index in range(strip, min(strip + height, count)):
                    total = add(total, subtract(load(corner + index * line + group), first_line))
                store(target + group, total)
        for group in range(0, line, _BYTES):
            # Far from zero, sums of distances from the first line keep digits that others would lose.
            mean = fused(load(target + group), inverse, load(corner + group))
            first_sum = zeros()
            second_sum = first_sum
            for index in range(0, count - 1, 2):
                distance = subtract(load(corner + group + index * line), mean)
                first_sum = fused(distance, distance, first_sum)
                other = subtract(load(corner + group + (index + 1) * line), mean)
                second_sum = fused(other, other, second_sum)
            if count % 2:
                distance = subtract(load(corner + group + (count - 1) * line), mean)
                first_sum = fused(distance, distance, first_sum)
            store(target + group, mean)
            store(target + line + group, add(first_sum, second_sum))


@_inline
def _array(address: int, size: int) -> Any:
    return numba.carray(pointer(address), (size,), np.float32)


@_loop
def finish_statistics(block: Any) -> None:
    """Put the statistics of blocks together, and say how images are normalized by them.

    The block: 1; lines of a block, of all; elements of a line; channels; statistics (blocks, 2, line); gamma,
    beta, each 0 for none; epsilon as a float64 number; mean, biased variance and 1 / deviation (3, channels);
    scales, offsets and means (3, line).
    """
    each, lines, line, channels = block[3], block[4], block[5], block[6]
    blocks, repeats = (lines + each - 1) // each, line // channels
    found = numba.carray(pointer(block[7]), (blocks, 2, line), np.float32)
    epsilon = numba.carray(pointer(block[10]), (1,), np.float64)[0]
    moments, columns = _array(block[11], 3 * channels), _array(block[12], 3 * line)
    total, squares = np.zeros(line), np.zeros(line)
    for number in range(blocks):
        count = float(min(each, lines - number * each))
        for index in range(line):
            total[index] += count * found[number, 0, index]
    for index in range(channels, line):
        total[index % channels] += total[index]
    total[:channels] /= lines * repeats
    for index in range(channels, line):
        total[index] = total[index % channels]
    for number in range(blocks):
        count = float(min(each, lines - number * each))
        for index in range(line):
            distance = found[number, 0, index] - total[index]
            squares[index] += found[number, 1, index] + count * distance * distance
    for index in range(channels, line):
        squares[index % channels] += squares[index]
    for channel in range(channels):
        variance = squares[channel] / (lines * repeats)
        inverse = 1.0 / np.sqrt(variance + epsilon)
        moments[channel], moments[channels + channel] = total[channel], variance
        moments[2 * channels + channel] = inverse
        scale = inverse * (_array(block[8], channels)[channel] if block[8] != 0 else np.float32(1))
        beta = _array(block[9], channels)[channel] if block[9] != 0 else np.float32(0)
        offset = beta - total[channel] * scale
        for repeat in range(repeats):
            place = repeat * channels + channel
            columns[place], columns[line + place], columns[2 * line + place] = scale, offset, total[channel]


@_loop
def finish_gradients(block: Any) -> None:
    """Put the sums of blocks together: gradients of gamma and beta, and what ``image_gradients`` needs.

    The block: 1; lines of a block, of all; elements of a line; channels; sums (blocks, 2, line); gamma or 0;
    moments (3, channels) of ``finish_statistics``; gradients of gamma and beta (2, channels); columns
    (6, line), of which a, b and c of ``image_gradients`` are written.
    """
    each, lines, line, channels = block[3], block[4], block[5], block[6]
    blocks, repeats = (lines + each - 1) // each, line // channels
    found = numba.carray(pointer(block[7]), (blocks, 2, line), np.float32)
    moments, columns = _array(block[9], 3 * channels), _array(block[11], 6 * line)[3 * line :]
    gradients = _array(block[10], 2 * channels)
    plain, scaled = np.zeros(line), np.zeros(line)
    for number in range(blocks):
        for index in range(line):
            plain[index] += found[number, 0, index]
            scaled[index] += found[number, 1, index]
    for index in range(channels, line):
        plain[index % channels] += plain[index]
        scaled[index % channels] += scaled[index]
    for channel in range(channels):
        inverse = float(moments[2 * channels + channel])
        gradients[channel], gradients[channels + channel] = scaled[channel] * inverse, plain[channel]
        scale = inverse * (_array(block[8], channels)[channel] if block[8] != 0 else np.float32(1))
        for repeat in range(repeats):
            place = repeat * channels + channel
            columns[place] = plain[channel] / (lines * repeats)
            columns[line + place] = scaled[channel] * inverse * inverse / (lines * repeats)
            columns[2 * line + place] = scale


@_loop
def normalize(block: Any) -> None:
    """Compute images · scale + offset, a residual added where there is one, clipped if wanted.

    The block: blocks; lines of a block, of all; elements of a line; images, results; scales and offsets
    (2, line); residual or 0; the ceiling for sixteen elements, or 0 to clip nothing.
    """
    each, lines, line, images, results = block[3], block[4], 4 * block[5], block[6], block[7]
    scales, offsets, residual = block[8], block[8] + line, block[9]
    first, end = _share(block)
    if block[10] == 0:
        for index in range(first * each, min(end * each, lines)):
            for group in range(0, line, _BYTES):
                place = index * line + group
                result = fused(load(images + place), load(scales + group), load(offsets + group))
                if residual != 0:
                    result = add(result, load(residual + place))
                store(results + place, result)
        return
    ceiling = load(block[10])
    for index in range(first * each, min(end * each, lines)):
        for group in range(0, line, _BYTES):
            place = index * line + group
            result = fused(load(images + place), load(scales + group), load(offsets + group))
            if residual != 0:
                result = add(result, load(residual + place))
            store(results + place, clip(result, ceiling))


@_inline
def _passed(gradient: Any, image: Any, judged: int, place: int, scale: Any, offset: Any, ceiling: Any) -> Any:
    """Stop a gradient where the result was clipped: the one in memory, or the one computed again."""
    if judged != 0:
        return where_between(gradient, load(judged + place), ceiling)
    return where_between(gradient, fused(image, scale, offset), ceiling)


@_loop
def gradient_sums(block: Any) -> None:
    """Sum the columns of the gradients that got through, and of these times (image − mean), block by block.

    The block: blocks; lines of a block, of all; elements of a line; images, gradients; results, or 0 to
    compute them again; scales, offsets, means (3, line); the ceiling for sixteen elements, or 0 where nothing
    was clipped; sums (blocks, 2, line).
    """
    each, lines, line, images, gradients = block[3], block[4], 4 * block[5], block[6], block[7]
    judged, scales = block[8], block[9]
    height = _STRIP if line <= _SHORT else 1
    first, end = _share(block)
    for number in range(first, end):
        count = min(each, lines - number * each)
        target = block[11] + 2 * number * line
        for place in range(0, 2 * line, _BYTES):
            store(target + place, zeros())
        for strip in range(0, count, height):
            stop = min(strip + height, count)
            for group in range(0, line, _BYTES):
                corner, column = number * each * line + group, scales + group
                mean = load(column + 2 * line)
                plain, scaled = load(target + group), load(target + line + group)
                if block[10] == 0:
                    for index in range(strip, stop):
                        place = corner + index * line
                        gradient = load(gradients + place)
                        plain = add(plain, gradient)
                        scaled = fused(gradient, subtract(load(images + place), mean), scaled)
                else:
                    scale, offset, ceiling = load(column), load(column + line), load(block[10])
                    for index in range(strip, stop):
                        place = corner + index * line
                        image = load(images + place)
                        gradient = _passed(
                            load(gradients + place), image, judged, place, scale, offset, ceiling
                        )
                        plain = add(plain, gradient)
                        scaled = fused(gradient, subtract(image, mean), scaled)
                store(target + group, plain)
                store(target + line + group, scaled)


@_loop
def image_gradients(block: Any) -> None:
    """Compute (gradient − a − (image − mean) · b) · c of the gradients that got through.

    The block: blocks; lines of a block, of all; elements of a line; images, gradients; results, or 0 to
    compute them again; scales, offsets, means, a, b, c (6, line); the ceiling for sixteen elements, or 0
    where nothing was clipped; image gradients; where to write what got through, for the residual, or 0.
    """
    each, lines, line, images, gradients = block[3], block[4], 4 * block[5], block[6], block[7]
    judged, scales, found, through = block[8], block[9], block[11], block[12]
    first, end = _share(block)
    for index in range(first * each, min(end * each, lines)):
        for group in range(0, line, _BYTES):
            place, column = index * line + group, scales + group
            image, gradient = load(images + place), load(gradients + place)
            if block[10] != 0:
                gradient = _passed(
                    gradient, image, judged, place, load(column), load(column + line), load(block[10])
                )
            if through != 0:
                store(through + place, gradient)
            distance = subtract(image, load(column + 2 * line))
            rest = subtract(
                subtract(gradient, load(column + 3 * line)), multiply(distance, load(column + 4 * line))
            )
            store(found + place, multiply(rest, load(column + 5 * line)))
