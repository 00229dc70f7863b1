"""Sixteen floating-point numbers at once: a type for numba's compiled loops, which have none for it.

A vector is a value that lives in registers; memory is named by addresses, which are integers. LLVM makes of
it what the processor has: one register of sixteen numbers, two of eight, or four of four.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from convscope.lowering.cpu import LANES

_BYTE, _HALF, _WORD, _LONG, _FLOAT = *map(ir.IntType, (8, 16, 32, 64)), ir.FloatType()
_FLOATS, _WORDS, _HALVES = (ir.VectorType(kind, LANES) for kind in (_FLOAT, _WORD, _HALF))


class Vector(types.Type):
    """The type of sixteen float32 numbers."""

    def __init__(self) -> None:
        super().__init__(name="Vector")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


_VECTOR, _ADDRESS = Vector(), types.int64


def _instruction(result: Any, *given: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make an intrinsic of these types of a function that takes LLVM's builder and the values."""

    def decorate(build: Callable[..., Any]) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            made = build(builder, *values)
            return context.get_dummy_value() if result is types.void else made

        def define(_typing: Any, *_types: Any) -> Any:
            return result(*given), generate

        return intrinsic(functools.wraps(build)(define))

    return decorate


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder: Any, address: Any, kind: Any, align: int) -> Any:
    value = builder.load(_at(builder, address, kind))
    value.align = align
    return value


def _store(builder: Any, value: Any, address: Any, kind: Any, align: int) -> None:
    builder.store(value, _at(builder, address, kind)).align = align


def _all(value: float, kind: Any = _WORDS) -> Any:
    return ir.Constant(kind, [value] * LANES)


_ZERO = _all(0.0, _FLOATS)


def _repeat(builder: Any, number: Any) -> Any:
    return builder.shuffle_vector(builder.insert_element(_ZERO, number, _WORD(0)), _ZERO, _all(0))


def _multiply_add(builder: Any, first: Any, second: Any, total: Any) -> Any:
    # Without such an instruction, ``llvm.fma`` would call a function for each number.
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(function, [first, second, total])


@_instruction(types.int32, _ADDRESS)
def call(builder: Any, address: Any) -> Any:
    """Call a C function without arguments at an address; it returns an int."""
    return builder.call(_at(builder, address, ir.FunctionType(_WORD, [])), [])


@_instruction(types.voidptr, _ADDRESS)
def pointer(builder: Any, address: Any) -> Any:
    """Take an integer for an address, for ``numba.carray``."""
    return _at(builder, address, _BYTE)


@_instruction(types.float32, _ADDRESS)
def number_at(builder: Any, address: Any) -> Any:
    """Read one float32 number."""
    return _load(builder, address, _FLOAT, align=4)


@_instruction(types.int64, _ADDRESS)
def byte_at(builder: Any, address: Any) -> Any:
    """Read one byte."""
    return builder.zext(_load(builder, address, _BYTE, align=1), _LONG)


@_instruction(types.int64, _ADDRESS)
def offset_at(builder: Any, address: Any) -> Any:
    """Read the offset of an entry, an integer of 32 bits."""
    return builder.sext(_load(builder, address, _WORD, align=4), _LONG)


@_instruction(types.void, _ADDRESS, types.int64, types.float32)
def store_entry(builder: Any, address: Any, offset: Any, number: Any) -> None:
    """Write an integer of 32 bits, and a float32 number behind it."""
    _store(builder, builder.trunc(offset, _WORD), address, _WORD, align=4)
    _store(builder, number, builder.add(address, _LONG(4)), _FLOAT, align=4)


@_instruction(_VECTOR, _ADDRESS)
def load(builder: Any, address: Any) -> Any:
    """Read sixteen float32 numbers."""
    return _load(builder, address, _FLOATS, align=4)


@_instruction(_VECTOR, _ADDRESS)
def load_bfloat16(builder: Any, address: Any) -> Any:
    """Read sixteen bfloat16 numbers: the upper halves of float32 numbers."""
    halves = builder.zext(_load(builder, address, _HALVES, align=2), _WORDS)
    return builder.bitcast(builder.shl(halves, _all(16)), _FLOATS)


@_instruction(types.void, _ADDRESS, _VECTOR)
def store(builder: Any, address: Any, vector: Any) -> None:
    """Write sixteen float32 numbers."""
    _store(builder, vector, address, _FLOATS, align=4)


@_instruction(types.void, _ADDRESS, _VECTOR)
def store_bfloat16(builder: Any, address: Any, vector: Any) -> None:
    """Write sixteen numbers rounded to bfloat16, halves to even; what is not a number stays none."""
    bits = builder.bitcast(vector, _WORDS)
    odd = builder.and_(builder.lshr(bits, _all(16)), _all(1))
    rounded = builder.add(bits, builder.add(odd, _all(0x7FFF)))
    # Rounding could carry out of what is not a number, and make one of it.
    nothing = builder.fcmp_unordered("uno", vector, vector)
    rounded = builder.select(nothing, _all(0x7FC00000), rounded)
    _store(builder, builder.trunc(builder.lshr(rounded, _all(16)), _HALVES), address, _HALVES, align=2)


@_instruction(types.void, _ADDRESS)
def prefetch(builder: Any, address: Any) -> None:
    """Ask for a line of memory ahead of time; it may lie anywhere, in no memory even."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _WORD, _WORD, _WORD])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    # To read, to be kept, data.
    builder.call(function, [_at(builder, address, _BYTE), _WORD(0), _WORD(3), _WORD(1)])


@_instruction(_VECTOR)
def zeros(_builder: Any) -> Any:
    """Make a vector of zeros."""
    return _ZERO


@_instruction(_VECTOR, types.float64)
def repeat(builder: Any, number: Any) -> Any:
    """Make a vector of one number, sixteen times."""
    return _repeat(builder, builder.fptrunc(number, _FLOAT))


@_instruction(types.float32, _VECTOR)
def total(builder: Any, vector: Any) -> Any:
    """Sum the sixteen numbers of a vector, by halves."""
    half = LANES // 2
    while half:
        order = ir.Constant(_WORDS, [(lane + half) % LANES for lane in range(LANES)])
        vector = builder.fadd(vector, builder.shuffle_vector(vector, vector, order))
        half //= 2
    return builder.extract_element(vector, _WORD(0))


@_instruction(_VECTOR, _VECTOR, _VECTOR)
def add(builder: Any, first: Any, second: Any) -> Any:
    """Add two vectors."""
    return builder.fadd(first, second)


@_instruction(_VECTOR, _VECTOR, _VECTOR)
def subtract(builder: Any, first: Any, second: Any) -> Any:
    """Subtract a vector from another."""
    return builder.fsub(first, second)


@_instruction(_VECTOR, _VECTOR, _VECTOR)
def multiply(builder: Any, first: Any, second: Any) -> Any:
    """Multiply two vectors."""
    return builder.fmul(first, second)


@_instruction(_VECTOR, _VECTOR, _VECTOR)
def divide(builder: Any, first: Any, second: Any) -> Any:
    """Divide a vector by another."""
    return builder.fdiv(first, second)


@_instruction(_VECTOR, _VECTOR, _VECTOR, _VECTOR)
def fused(builder: Any, first: Any, second: Any, total: Any) -> Any:
    """Add the product of two vectors to a third; rounded once if possible."""
    return _multiply_add(builder, first, second, total)


@_instruction(_VECTOR, _VECTOR, _ADDRESS, _VECTOR)
def multiply_add(builder: Any, total: Any, address: Any, vector: Any) -> Any:
    """Add the product of one float32 number in memory and a vector to a sum; rounded once if possible."""
    number = builder.load(_at(builder, address, _FLOAT))
    return _multiply_add(builder, _repeat(builder, number), vector, total)


@_instruction(_VECTOR, _VECTOR)
def magnitude(builder: Any, vector: Any) -> Any:
    """Take the numbers of a vector without their signs."""
    return builder.bitcast(builder.and_(builder.bitcast(vector, _WORDS), _all(0x7FFFFFFF)), _FLOATS)


@_instruction(_VECTOR, _VECTOR)
def relu(builder: Any, vector: Any) -> Any:
    """Replace negative numbers by zero; what is not a number stays none."""
    return builder.select(builder.fcmp_ordered("<=", vector, _ZERO), _ZERO, vector)


@_instruction(_VECTOR, _VECTOR, _VECTOR)
def clip(builder: Any, vector: Any, ceiling: Any) -> Any:
    """Bring numbers between zero and those of a ceiling; what is not a number stays none."""
    vector = builder.select(builder.fcmp_ordered("<=", vector, _ZERO), _ZERO, vector)
    return builder.select(builder.fcmp_ordered(">=", vector, ceiling), ceiling, vector)


@_instruction(_VECTOR, _VECTOR, _VECTOR, _VECTOR)
def where_between(builder: Any, vector: Any, judged: Any, ceiling: Any) -> Any:
    """Keep numbers where those of a second vector are not clipped to zero or a ceiling, zero elsewhere."""
    low, high = builder.fcmp_ordered("<=", judged, _ZERO), builder.fcmp_ordered(">=", judged, ceiling)
    return builder.select(builder.or_(low, high), _ZERO, vector)


@_instruction(_VECTOR, _VECTOR, _VECTOR, _VECTOR)
def where_negative(builder: Any, judged: Any, first: Any, second: Any) -> Any:
    """Take numbers of the second vector where those of the first are negative, else of the third."""
    return builder.select(builder.fcmp_ordered("<", judged, _ZERO), first, second)


@_instruction(types.void, _ADDRESS, _VECTOR)
def store_signs(builder: Any, address: Any, vector: Any) -> None:
    """Write which of sixteen numbers are positive, as the bits of one 16-bit integer."""
    positive = builder.fcmp_ordered(">", vector, _ZERO)
    _store(builder, builder.bitcast(positive, _HALF), address, _HALF, align=2)


@_instruction(_VECTOR, _VECTOR, _ADDRESS)
def where_signs(builder: Any, vector: Any, address: Any) -> Any:
    """Keep the numbers of a vector whose bits ``store_signs`` has set, zero elsewhere."""
    bits = _load(builder, address, _HALF, align=2)
    return builder.select(builder.bitcast(bits, ir.VectorType(ir.IntType(1), LANES)), vector, _ZERO)


_SHIFT = 1.5 * 2.0**23  # added to a number of moderate size, it leaves the nearest whole number in its bits


@_instruction(_VECTOR, _VECTOR)
def exponential(builder: Any, x: Any) -> Any:
    """Compute e to the power of numbers, −87 and 88 at most: a power of 2 times a series."""

    def every(number: float) -> Any:
        return _all(float(np.float32(number)), _FLOATS)

    def times_plus(one: Any, other: Any, third: Any) -> Any:
        return builder.fadd(builder.fmul(one, other, flags=("contract",)), third, flags=("contract",))

    x = builder.select(builder.fcmp_ordered("<", x, every(-87.0)), every(-87.0), x)
    x = builder.select(builder.fcmp_ordered(">", x, every(88.0)), every(88.0), x)
    shifted = builder.fadd(builder.fmul(x, every(1 / math.log(2))), every(_SHIFT))
    whole = builder.fsub(shifted, every(_SHIFT))
    upper = 0.693359375  # of the logarithm of 2: its product with a whole number is exact
    rest = times_plus(whole, every(-upper), x)
    rest = times_plus(whole, every(upper - math.log(2)), rest)
    series = every(1 / 720)
    for factor in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        series = times_plus(series, rest, every(factor))
    power = builder.shl(builder.bitcast(shifted, _WORDS), _all(23))
    return builder.bitcast(builder.add(builder.bitcast(series, _WORDS), power), _FLOATS)
