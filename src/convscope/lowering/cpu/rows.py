"""Rows of numbers in loops: layer normalization, and activation functions that need an exponential.

The block of integers is that of ``loops.py``. Rows are of as many elements as a multiple of sixteen; float32
or bfloat16 in memory, float32 in between.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from convscope.lowering.cpu import LANES
from convscope.lowering.cpu.loops import _inline, _loop, _share
from convscope.lowering.cpu.vectors import (
    add,
    divide,
    exponential,
    fused,
    load,
    load_bfloat16,
    magnitude,
    multiply,
    pointer,
    repeat,
    store,
    store_bfloat16,
    subtract,
    total,
    where_negative,
    zeros,
)

# The beginning of the SHA-256 of vectors.py, as in loops.py.
VECTORS = "631259124f7243fa"

# The activation functions, as `compiled.py` numbers them.
FUNCTIONS = ("gelu", "gelu_tanh", "silu")


@_inline
def _read(address: int, index: int, size: int) -> Any:
    return load(address + 4 * index) if size == 4 else load_bfloat16(address + 2 * index)


@_inline
def _write(address: int, index: int, size: int, vector: Any) -> None:
    if size == 4:
        store(address + 4 * index, vector)
    else:
        store_bfloat16(address + 2 * index, vector)


_ROOT, _DENSITY = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)
_STEEP, _CUBE = 2 * math.sqrt(2 / math.pi), 0.044715


@_inline
def _normal(x: Any) -> Any:
    """Return the normal distribution at x, and its density: Abramowitz and Stegun, 7.1.26, within 1e-7."""
    power = exponential(multiply(multiply(x, x), repeat(-0.5)))
    t = divide(repeat(1.0), fused(magnitude(x), repeat(0.3275911 * _ROOT), repeat(1.0)))
    series = fused(t, repeat(0.5 * 1.061405429), repeat(0.5 * -1.453152027))
    series = fused(t, series, repeat(0.5 * 1.421413741))
    series = fused(t, series, repeat(0.5 * -0.284496736))
    series = fused(t, series, repeat(0.5 * 0.254829592))
    tail = multiply(multiply(t, series), power)
    return where_negative(x, tail, subtract(repeat(1.0), tail)), multiply(power, repeat(_DENSITY))


@_inline
def _sigmoid(x: Any) -> Any:
    return divide(repeat(1.0), add(repeat(1.0), exponential(subtract(zeros(), x))))


@_inline
def _steepened(x: Any, kind: int) -> Any:
    """Return the number whose sigmoid multiplies x: x itself for SiLU, a cubic of it for GELU by tanh."""
    return x if kind == 2 else multiply(x, fused(multiply(x, x), repeat(_STEEP * _CUBE), repeat(_STEEP)))


@_inline
def _activated(x: Any, kind: int) -> Any:
    share = _normal(x)[0] if kind == 0 else _sigmoid(_steepened(x, kind))
    return multiply(x, share)


@_inline
def _slope(x: Any, kind: int) -> Any:
    if kind == 0:
        share, density = _normal(x)
        return fused(x, density, share)
    share = _sigmoid(_steepened(x, kind))
    rise = multiply(x, share)
    if kind == 1:
        rise = multiply(rise, fused(multiply(x, x), repeat(3 * _STEEP * _CUBE), repeat(_STEEP)))
    return fused(rise, subtract(repeat(1.0), share), share)


@_loop
def activate(block: Any) -> None:
    """Compute an activation function of source + bias.

    The block: rows; columns; number of the function; source, bytes of an element; bias or 0; results, bytes
    of an element.
    """
    columns, kind, source, size, bias = block[3], block[4], block[5], block[6], block[7]
    results, result_size = block[8], block[9]
    first, end = _share(block)
    for row in range(first, end):
        for column in range(0, columns, LANES):
            place = row * columns + column
            x = _read(source, place, size)
            if bias != 0:
                x = add(x, load(bias + 4 * column))
            _write(results, place, result_size, _activated(x, kind))


@_loop
def activate_back(block: Any) -> None:
    """Multiply gradients by the slope of an activation function at source + bias; sum columns in parts.

    The block: parts; rows of a part, of all; columns; number of the function; source, bytes of an element;
    bias or 0; gradients, bytes of an element; results, bytes of an element; sums (parts, columns) or 0.
    """
    each, rows, columns, kind, source, size = block[3], block[4], block[5], block[6], block[7], block[8]
    bias, gradients, gradient_size = block[9], block[10], block[11]
    results, result_size = block[12], block[13]
    first, end = _share(block)
    for part in range(first, end):
        sums = block[14] + 4 * part * columns
        if block[14] != 0:
            for column in range(0, columns, LANES):
                store(sums + 4 * column, zeros())
        for row in range(part * each, min((part + 1) * each, rows)):
            for column in range(0, columns, LANES):
                place = row * columns + column
                x = _read(source, place, size)
                if bias != 0:
                    x = add(x, load(bias + 4 * column))
                gradient = multiply(_read(gradients, place, gradient_size), _slope(x, kind))
                _write(results, place, result_size, gradient)
                if block[14] != 0:
                    store(sums + 4 * column, add(load(sums + 4 * column), gradient))


@_loop
def normalize_rows(block: Any) -> None:
    """Normalize each row by its own mean and variance, which are kept as mean and 1 / deviation.

    The block: rows; elements of a row, and of gamma and beta, which repeat; source, bytes of an element;
    gamma, beta, each 0 for none; epsilon as a float64 number; moments (rows, 2); results, their bytes.
    """
    length, channels, source, size, gamma, beta = block[3], block[4], block[5], block[6], block[7], block[8]
    epsilon = numba.carray(pointer(block[9]), (1,), np.float64)[0]
    moments = numba.carray(pointer(block[10]), (block[2], 2), np.float32)
    results, result_size = block[11], block[12]
    first, end = _share(block)
    for row in range(first, end):
        sums = zeros()
        for place in range(row * length, (row + 1) * length, LANES):
            sums = add(sums, _read(source, place, size))
        mean = total(sums) / np.float32(length)
        center, squares = repeat(mean), zeros()
        for place in range(row * length, (row + 1) * length, LANES):
            distance = subtract(_read(source, place, size), center)
            squares = fused(distance, distance, squares)
        inverse = np.float32(1.0 / np.sqrt(total(squares) / np.float32(length) + epsilon))
        moments[row, 0], moments[row, 1] = mean, inverse
        for begin in range(row * length, (row + 1) * length, channels):
            for channel in range(0, channels, LANES):
                x = multiply(subtract(_read(source, begin + channel, size), center), repeat(inverse))
                if gamma != 0:
                    x = multiply(x, load(gamma + 4 * channel))
                if beta != 0:
                    x = add(x, load(beta + 4 * channel))
                _write(results, begin + channel, result_size, x)


@_loop
def normalize_rows_back(block: Any) -> None:
    """Compute the gradients of rows, and of gamma and beta in parts, from those of ``normalize_rows``.

    The block: parts; rows of a part, of all; elements of a row, and of gamma; source, bytes of an element;
    gamma or 0; moments (rows, 2); gradients, bytes of an element; results, bytes of an element; gradients of
    gamma and beta (parts, 2, channels).
    """
    each, rows, length, channels, source, size = block[3], block[4], block[5], block[6], block[7], block[8]
    gamma, moments = block[9], numba.carray(pointer(block[10]), (rows, 2), np.float32)
    gradients, gradient_size, results, result_size = block[11], block[12], block[13], block[14]
    first, end = _share(block)
    for part in range(first, end):
        scaled = block[15] + 8 * part * channels
        plain = scaled + 4 * channels
        for channel in range(0, 2 * channels, LANES):
            store(scaled + 4 * channel, zeros())
        for row in range(part * each, min((part + 1) * each, rows)):
            center, inverse = repeat(moments[row, 0]), repeat(moments[row, 1])
            first_sum, second_sum = zeros(), zeros()
            for begin in range(row * length, (row + 1) * length, channels):
                for channel in range(0, channels, LANES):
                    gradient = _read(gradients, begin + channel, gradient_size)
                    x = multiply(subtract(_read(source, begin + channel, size), center), inverse)
                    here, there = scaled + 4 * channel, plain + 4 * channel
                    store(here, fused(gradient, x, load(here)))
                    store(there, add(load(there), gradient))
                    if gamma != 0:
                        gradient = multiply(gradient, load(gamma + 4 * channel))
                    first_sum, second_sum = add(first_sum, gradient), fused(gradient, x, second_sum)
            mean_gradient = repeat(total(first_sum) / np.float32(length))
            mean_product = repeat(total(second_sum) / np.float32(length))
            for begin in range(row * length, (row + 1) * length, channels):
                for channel in range(0, channels, LANES):
                    gradient = _read(gradients, begin + channel, gradient_size)
                    x = multiply(subtract(_read(source, begin + channel, size), center), inverse)
                    if gamma != 0:
                        gradient = multiply(gradient, load(gamma + 4 * channel))
                    rest = subtract(subtract(gradient, mean_gradient), multiply(x, mean_product))
                    _write(results, begin + channel, result_size, multiply(rest, inverse))
