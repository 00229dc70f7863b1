"""Sixteen floating-point numbers at once: a type for numba's compiled loops, which have none for it.

A vector is a value that lives in registers; memory is named by addresses, which are integers. LLVM makes of
it what the processor has: one register of sixteen numbers, two of eight, or four of four.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from convscope.lowering.cpu import LANES

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_WORDS = ir.VectorType(ir.IntType(32), LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)


class Vector(types.Type):
    """The type of sixteen float32 numbers."""

    def __init__(self) -> None:
        super().__init__(name="Vector")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


_VECTOR = Vector()


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


@intrinsic
def call(_typing: Any, _address: Any) -> Any:
    """Call a C function without arguments at an address; it returns an int."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(ir.IntType(32), [])
        return builder.call(_at(builder, arguments[0], function), [])

    return types.int32(types.int64), generate


@intrinsic
def pointer(_typing: Any, _address: Any) -> Any:
    """Take an integer for an address, for ``numba.carray``."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _at(builder, arguments[0], ir.IntType(8))

    return types.voidptr(types.int64), generate


@intrinsic
def number_at(_typing: Any, _address: Any) -> Any:
    """Read one float32 number."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _load(builder, arguments[0], ir.FloatType(), align=4)

    return types.float32(types.int64), generate


@intrinsic
def byte_at(_typing: Any, _address: Any) -> Any:
    """Read one byte."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.zext(_load(builder, arguments[0], ir.IntType(8), align=1), ir.IntType(64))

    return types.int64(types.int64), generate


@intrinsic
def offset_at(_typing: Any, _address: Any) -> Any:
    """Read the offset of an entry, an integer of 32 bits."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.sext(_load(builder, arguments[0], ir.IntType(32), align=4), ir.IntType(64))

    return types.int64(types.int64), generate


@intrinsic
def store_entry(_typing: Any, _address: Any, _offset: Any, _number: Any) -> Any:
    """Write an integer of 32 bits, and a float32 number behind it."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address, offset, number = arguments
        half = ir.IntType(32)
        _store(builder, builder.trunc(offset, half), address, half, align=4)
        behind = builder.add(address, ir.Constant(ir.IntType(64), 4))
        _store(builder, number, behind, ir.FloatType(), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), generate


@intrinsic
def load(_typing: Any, _address: Any) -> Any:
    """Read sixteen float32 numbers."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _load(builder, arguments[0], _FLOATS, align=4)

    return _VECTOR(types.int64), generate


@intrinsic
def load_bfloat16(_typing: Any, _address: Any) -> Any:
    """Read sixteen bfloat16 numbers: the upper halves of float32 numbers."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        halves = builder.zext(_load(builder, arguments[0], _HALVES, align=2), _WORDS)
        return builder.bitcast(builder.shl(halves, _all(16)), _FLOATS)

    return _VECTOR(types.int64), generate


@intrinsic
def store(_typing: Any, _address: Any, _vector: Any) -> Any:
    """Write sixteen float32 numbers."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        _store(builder, arguments[1], arguments[0], _FLOATS, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, _VECTOR), generate


@intrinsic
def store_bfloat16(_typing: Any, _address: Any, _vector: Any) -> Any:
    """Write sixteen numbers rounded to bfloat16, halves to even; what is not a number stays none."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[1], _WORDS)
        odd = builder.and_(builder.lshr(bits, _all(16)), _all(1))
        rounded = builder.add(bits, builder.add(odd, _all(0x7FFF)))
        # Rounding could carry out of what is not a number, and make one of it.
        nothing = builder.fcmp_unordered("uno", arguments[1], arguments[1])
        rounded = builder.select(nothing, _all(0x7FC00000), rounded)
        halves = builder.trunc(builder.lshr(rounded, _all(16)), _HALVES)
        _store(builder, halves, arguments[0], _HALVES, align=2)
        return context.get_dummy_value()

    return types.void(types.int64, _VECTOR), generate


@intrinsic
def prefetch(_typing: Any, _address: Any) -> Any:
    """Ask for a line of memory ahead of time; it may lie anywhere, in no memory even."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        address = builder.inttoptr(arguments[0], byte)
        # To read, to be kept, data.
        builder.call(function, [address, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def add(_typing: Any, _first: Any, _second: Any) -> Any:
    """Add two vectors."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments)

    return _VECTOR(_VECTOR, _VECTOR), generate


@intrinsic
def subtract(_typing: Any, _first: Any, _second: Any) -> Any:
    """Subtract a vector from another."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fsub(*arguments)

    return _VECTOR(_VECTOR, _VECTOR), generate


@intrinsic
def zeros(_typing: Any) -> Any:
    """Make a vector of zeros."""

    def generate(_context: Any, _builder: Any, _signature: Any, _arguments: Any) -> Any:
        return _all(0.0, _FLOATS)

    return _VECTOR(), generate


@intrinsic
def repeat(_typing: Any, _number: Any) -> Any:
    """Make a vector of one number, sixteen times."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        number = builder.fptrunc(arguments[0], ir.FloatType())
        first = builder.insert_element(_all(0.0, _FLOATS), number, ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, _all(0.0, _FLOATS), _all(0))

    return _VECTOR(types.float64), generate


@intrinsic
def multiply_add(_typing: Any, _sum: Any, _address: Any, _vector: Any) -> Any:
    """Add the product of one float32 number in memory and a vector to a sum; rounded once if possible."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        total, address, vector = arguments
        number = builder.load(_at(builder, address, ir.FloatType()))
        first = builder.insert_element(_all(0.0, _FLOATS), number, ir.Constant(ir.IntType(32), 0))
        numbers = builder.shuffle_vector(first, _all(0.0, _FLOATS), _all(0))
        # Without such an instruction, ``llvm.fma`` would call a function for each number.
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
        return builder.call(fused, [numbers, vector, total])

    return _VECTOR(_VECTOR, types.int64, _VECTOR), generate


@intrinsic
def relu(_typing: Any, _vector: Any) -> Any:
    """Replace negative numbers by zero; what is not a number stays none."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        zero = _all(0.0, _FLOATS)
        return builder.select(builder.fcmp_ordered("<=", arguments[0], zero), zero, arguments[0])

    return _VECTOR(_VECTOR), generate


@intrinsic
def store_signs(_typing: Any, _address: Any, _vector: Any) -> Any:
    """Write which of sixteen numbers are positive, as the bits of one 16-bit integer."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        positive = builder.fcmp_ordered(">", arguments[1], _all(0.0, _FLOATS))
        half = ir.IntType(16)
        _store(builder, builder.bitcast(positive, half), arguments[0], half, align=2)
        return context.get_dummy_value()

    return types.void(types.int64, _VECTOR), generate


@intrinsic
def where_signs(_typing: Any, _vector: Any, _address: Any) -> Any:
    """Keep the numbers of a vector whose bits ``store_signs`` has set, zero elsewhere."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bits = _load(builder, arguments[1], ir.IntType(16), align=2)
        keep = builder.bitcast(bits, ir.VectorType(ir.IntType(1), LANES))
        return builder.select(keep, arguments[0], _all(0.0, _FLOATS))

    return _VECTOR(_VECTOR, types.int64), generate


@intrinsic
def fused(_typing: Any, _first: Any, _second: Any, _sum: Any) -> Any:
    """Add the product of two vectors to a third; rounded once if possible."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
        return builder.call(function, list(arguments))

    return _VECTOR(_VECTOR, _VECTOR, _VECTOR), generate


@intrinsic
def multiply(_typing: Any, _first: Any, _second: Any) -> Any:
    """Multiply two vectors."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fmul(*arguments)

    return _VECTOR(_VECTOR, _VECTOR), generate


@intrinsic
def clip(_typing: Any, _vector: Any, _ceiling: Any) -> Any:
    """Bring numbers between zero and those of a ceiling; what is not a number stays none."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        vector, ceiling = arguments
        zero = _all(0.0, _FLOATS)
        vector = builder.select(builder.fcmp_ordered("<=", vector, zero), zero, vector)
        return builder.select(builder.fcmp_ordered(">=", vector, ceiling), ceiling, vector)

    return _VECTOR(_VECTOR, _VECTOR), generate


@intrinsic
def where_between(_typing: Any, _vector: Any, _judged: Any, _ceiling: Any) -> Any:
    """Keep numbers where those of a second vector are not clipped to zero or a ceiling, zero elsewhere."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        vector, judged, ceiling = arguments
        zero = _all(0.0, _FLOATS)
        low, high = builder.fcmp_ordered("<=", judged, zero), builder.fcmp_ordered(">=", judged, ceiling)
        return builder.select(builder.or_(low, high), zero, vector)

    return _VECTOR(_VECTOR, _VECTOR, _VECTOR), generate
