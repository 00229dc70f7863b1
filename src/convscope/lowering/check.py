"""Verify a program: every value written once before it is read, every shape as its op computes it."""

from __future__ import annotations

from convscope.errors import LoweringError
from convscope.lowering import ir as ops
from convscope.lowering.ir import Op, Program, Shape, written
from convscope.lowering.shapes import ShapeError, output_shape


def check(program: Program, after: str = "reading") -> Program:
    """Verify a program and return it.

    Parameters
    ----------
    program : Program
        The program to verify.
    after : str
        What was done to it last; the message begins with it.

    Returns
    -------
    Program
        The same program.

    Raises
    ------
    LoweringError
        When the program is wrong; names the op, its Keras layer and the shapes.

    Examples
    --------
    >>> from convscope.lowering.ir import Output, Value
    >>> x = Value("x", (None, 2))
    >>> check(Program("empty", (x,), (), (Output("x"),), {"x": x})).name
    'empty'
    """
    known = {value.name for value in program.inputs}
    names: set[str] = set()
    for op in program:
        _check_order(op, known, names, after)
        _check_shapes(op, program, after)
        names.add(op.name)
        known.update(written(op))
    for output in program.outputs:
        if output.value not in known:
            raise LoweringError(
                f"After {after}, output {output.value!r} of {program.name!r} is written by no op."
            )
    return program


def _check_order(op: Op, known: set[str], names: set[str], after: str) -> None:
    if op.name in names:
        raise _error(op, after, "its name is used twice")
    for name in op.inputs:
        if name not in known:
            raise _error(op, after, f"it reads {name!r}, which nothing has written before")
    for name in written(op):
        if name in known:
            raise _error(op, after, f"it writes {name!r}, which was written before")


def _check_shapes(op: Op, program: Program, after: str) -> None:
    if isinstance(op, ops.ActivityLoss):
        return
    missing = [name for name in (*op.inputs, *written(op)) if name not in program.values]
    if missing:
        raise _error(op, after, f"the shape of {missing[0]!r} is unknown")
    if isinstance(op, ops.KerasCall):
        return
    shapes = [program.value(name).shape for name in op.inputs]
    try:
        computed = output_shape(op, shapes)
    except ShapeError as error:
        raise _error(op, after, str(error)) from None
    recorded = program.value(op.output).shape
    if not _agree(computed, recorded):
        raise _error(op, after, f"from {_show(shapes)} it gives {computed}, but {recorded} is recorded")


def _agree(one: Shape, other: Shape) -> bool:
    return len(one) == len(other) and all(None in (a, b) or a == b for a, b in zip(one, other, strict=True))


def _show(shapes: list[Shape]) -> str:
    return " and ".join(map(str, shapes))


def _error(op: Op, after: str, what: str) -> LoweringError:
    return LoweringError(f"After {after}, op {op.name!r} ({op.kind}, layer {op.layer!r}) is wrong: {what}.")
