"""Describe a program row by row, for people and for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convscope.lowering import ir as ops
from convscope.lowering.ir import Op, Program, Shape, written
from convscope.lowering.passes import PassReport


def describe(program: Program, reports: Sequence[PassReport] = ()) -> list[dict[str, Any]]:
    """Describe each op of a program, then what each pass did.

    Parameters
    ----------
    program : Program
        Optimised or not.
    reports : sequence of PassReport
        What ``optimise`` returned with it.

    Returns
    -------
    list of dict
        For each op a row with ``op``, ``kind``, ``layer``, ``input_shapes``, ``output_shapes``,
        ``precision``, ``layout``, ``algorithm``, ``settings`` and ``keras`` (whether the Keras layer itself
        runs); then for each pass a row with ``pass`` and ``changes``.

    Examples
    --------
    >>> import keras
    >>> from convscope.lowering import lower
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
    >>> row = describe(lower(model))[0]
    >>> row["op"], row["kind"], row["input_shapes"], row["output_shapes"], row["keras"]
    ('d', 'Dense', [[None, 4]], [[None, 2]], False)
    """
    rows = [_row(op, program) for op in program]
    return rows + [{"pass": report.name, "changes": list(report.changes)} for report in reports]


def _row(op: Op, program: Program) -> dict[str, Any]:
    choice = getattr(op, "choice", None)
    return {
        "op": op.name,
        "kind": op.kind,
        "layer": op.layer,
        "input_shapes": [_listed(program.value(name).shape) for name in op.inputs],
        "output_shapes": [_listed(program.value(name).shape) for name in written(op)],
        "precision": choice.precision if choice else "as its input",
        "layout": choice.layout if isinstance(op, ops.Conv2D) and choice else None,
        "algorithm": choice.algorithm if choice else None,
        "settings": _shown(op),
        "keras": isinstance(op, ops.KerasCall),
    }


def _listed(shape: Shape) -> list[int | None]:
    return list(shape)


def _shown(op: Op) -> dict[str, Any]:
    hidden = {
        "choice",
        "kernel",
        "bias",
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
        "alpha",
        "stream",
    }
    shown: dict[str, Any] = {}
    for key, value in op.settings().items():
        if key in hidden or value is None or (key in ("scale", "offset") and len(value) > 4):
            continue
        if isinstance(value, ops.Op):
            shown[key] = value.name
        elif isinstance(value, ops.Activation):
            shown[key] = str(value)
        else:
            shown[key] = list(value) if isinstance(value, tuple) else value
    return shown
