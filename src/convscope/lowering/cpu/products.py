"""Matrix products of dense layers, in loops: where torch's library does not make much of the processor.

A product is computed in tiles of six rows and sixteen columns that stay in registers (the inner loop of Goto
and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). What a tile multiplies is copied
before into panels, so that it lies close together. The blocks are those of ``loops.py``.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from convscope.lowering.cpu import LANES
from convscope.lowering.cpu.loops import _inline, _loop, _share
from convscope.lowering.cpu.vectors import add, load, multiply_add, pointer, store, zeros

# The beginning of the SHA-256 of vectors.py, as in loops.py.
VECTORS = "631259124f7243fa"

_ROWS = 6  # of a tile: with two registers for each, AVX2's are full
_PANEL = 4 * LANES  # bytes in a line of a panel
_TALL = 48  # inputs that a part of the kernel's gradient has


@_inline
def _tile(
    rows: int, count: int, row_step: int, step: int, panel: int, length: int,
    target: int, line: int, fresh: bool,
) -> None:  # fmt: skip
    """Add to a tile of results, or write where ``fresh``, the products of some rows and a panel.

    ``step`` bytes lie from an element of a row to the next. Behind the last row it is computed again.
    """
    b, c, d = min(1, count - 1), min(2, count - 1), min(3, count - 1)
    e, f = min(4, count - 1), min(5, count - 1)
    at_a, at_b, at_c = rows, rows + b * row_step, rows + c * row_step
    at_d, at_e, at_f = rows + d * row_step, rows + e * row_step, rows + f * row_step
    sum_a = zeros()
    sum_b, sum_c, sum_d, sum_e, sum_f = sum_a, sum_a, sum_a, sum_a, sum_a
    for index in range(length):
        place, numbers = index * step, load(panel + index * _PANEL)
        sum_a = multiply_add(sum_a, at_a + place, numbers)
        sum_b = multiply_add(sum_b, at_b + place, numbers)
        sum_c = multiply_add(sum_c, at_c + place, numbers)
        sum_d = multiply_add(sum_d, at_d + place, numbers)
        sum_e = multiply_add(sum_e, at_e + place, numbers)
        sum_f = multiply_add(sum_f, at_f + place, numbers)
    if not fresh:
        sum_a, sum_b = add(sum_a, load(target)), add(sum_b, load(target + b * line))
        sum_c, sum_d = add(sum_c, load(target + c * line)), add(sum_d, load(target + d * line))
        sum_e, sum_f = add(sum_e, load(target + e * line)), add(sum_f, load(target + f * line))
    store(target, sum_a)
    store(target + b * line, sum_b)
    store(target + c * line, sum_c)
    store(target + d * line, sum_d)
    store(target + e * line, sum_e)
    store(target + f * line, sum_f)


@_inline
def _multiply(
    rows: int, count: int, row_step: int, panels: int, length: int, columns: int, target: int, fresh: bool
) -> None:
    """Add to results (count, columns), or write where ``fresh``, the products of rows and of all panels."""
    for row in range(0, count, _ROWS):
        here = min(_ROWS, count - row)
        for group in range(0, columns, LANES):
            _tile(
                rows + row * row_step, here, row_step, 4, panels + 4 * group * length, length,
                target + 4 * (row * columns + group), 4 * columns, fresh,
            )  # fmt: skip


@_inline
def _copy_panels(source: int, line: int, length: int, columns: int, panels: int) -> None:
    """Copy lines into panels of sixteen columns: (columns / 16, length, 16)."""
    for index in range(length):
        for group in range(0, columns, LANES):
            store(panels + 4 * (group * length + index * LANES), load(source + index * line + 4 * group))


@_loop
def dense_product(block: Any) -> None:
    """Multiply rows and a kernel, each part over some of the inputs.

    The block: parts; inputs of a part, of all; rows, outputs; rows (rows, inputs), kernel (inputs, outputs);
    sums (parts, rows, outputs); memory for the panels of each part; inputs of a panel.
    """
    each, inputs, count, outputs = block[3], block[4], block[5], block[6]
    rows, kernel, line = block[7], block[8], 4 * block[6]
    first, end = _share(block)
    for part in range(first, end):
        panels, sums = block[10] + part * block[11] * line, block[9] + part * count * line
        stop = min((part + 1) * each, inputs)
        for begin in range(part * each, stop, block[11]):
            length = min(block[11], stop - begin)
            _copy_panels(kernel + begin * line, line, length, outputs, panels)
            fresh = begin == part * each
            _multiply(rows + 4 * begin, count, 4 * inputs, panels, length, outputs, sums, fresh)


@_loop
def dense_input_gradient(block: Any) -> None:
    """Compute the gradients of the rows, sixteen inputs at a time.

    The block: sixteens of inputs; inputs, rows, outputs; gradients (rows, outputs), kernel (inputs, outputs);
    gradients of the rows (rows, inputs); memory for a panel of each part of sixteen.
    """
    inputs, count, outputs = block[3], block[4], block[5]
    gradients, kernel, line = block[6], block[7], 4 * block[5]
    first, end = _share(block)
    panel = block[9] + first * outputs * _PANEL
    numbers = numba.carray(pointer(panel), (outputs, LANES), np.float32)
    for part in range(first, end):
        weights = numba.carray(pointer(kernel + part * LANES * line), (LANES, outputs), np.float32)
        for output in range(outputs):
            for index in range(LANES):
                numbers[output, index] = weights[index, output]
        for row in range(0, count, _ROWS):
            target = block[8] + 4 * (row * inputs + part * LANES)
            here = min(_ROWS, count - row)
            _tile(gradients + row * line, here, line, 4, panel, outputs, target, 4 * inputs, True)


@_loop
def dense_kernel_gradient(block: Any) -> None:
    """Sum the gradients of the kernel, 48 inputs at a time.

    The block: parts of 48 inputs; inputs, rows, outputs; rows (rows, inputs), panels of the gradients
    (outputs / 16, rows, 16); gradients of the kernel (inputs, outputs); memory for (rows, 48) of each part.
    """
    inputs, count, outputs = block[3], block[4], block[5]
    first, end = _share(block)
    copied = block[9] + first * 4 * count * _TALL
    for part in range(first, end):
        begin = part * _TALL
        tall = min(_TALL, inputs - begin)
        for row in range(count):
            for index in range(0, tall, LANES):
                source = block[6] + 4 * (row * inputs + begin + index)
                store(copied + 4 * (row * _TALL + index), load(source))
        for group in range(0, outputs, LANES):
            for index in range(0, tall, _ROWS):
                target = block[8] + 4 * ((begin + index) * outputs + group)
                here = min(_ROWS, tall - index)
                _tile(
                    copied + 4 * index, here, 4, 4 * _TALL, block[7] + 4 * group * count, count, target,
                    4 * outputs, True,
                )  # fmt: skip
