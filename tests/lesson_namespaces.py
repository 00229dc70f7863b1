"""The lessons' variables once everything is solved, from their own sources, run here on the digits.

What trains a network for long is left out; one small network is trained once for all tests.
"""

import os
from functools import cache
from unittest import mock

import convscope  # isort: skip  (it chooses Keras's back end, before Keras is imported)
from matplotlib import pyplot

from convscope.teaching.grading import tasks
from convscope.teaching.lessons.notebooks import lesson_names, read_lesson, without_marks

QUICK_DIGITS = {"CONVSCOPE_LESSONS": "digits,quick"}


@cache
def solved(number):
    """Run a lesson's code; return its variables, which tests copy before they change one."""
    name = next(name for name in lesson_names() if name.startswith(f"{number}-"))
    namespace = {"display": lambda *_: None}
    if number in (3, 7):
        namespace["model"] = solved(2)["model"]
    try:
        with mock.patch.dict(os.environ, QUICK_DIGITS):
            for cell in read_lesson(name).cells:
                if cell.kind == "code" and not left_out(cell, number):
                    exec(without_marks(cell.source), namespace)
    finally:
        pyplot.close("all")
    return namespace


def left_out(cell, number):
    """Leave out checks, figures for the eye only, and all trainings but the first lesson's own."""
    trains = "convscope.fit(" in cell.source and number != 2
    draws = cell.role == "given" and (
        "convscope.check(" in cell.source or "convscope.evaluate(" in cell.source
    )
    return cell.role == "check" or trains or draws or "assessment" in cell.source


def check(task, **answers):
    """Check a task with everything right but the given answers."""
    return convscope.check(task, **{**solved(int(task.split(".")[0])), **answers})


def checked_wrong(task, fragment, **answers):
    """Check a wrong answer; assert that the message, or one of its hints, says what is wrong."""
    tasks._met.clear()  # each test hears the first hint
    verdict = check(task, **answers)
    assert not verdict, str(verdict)
    assert verdict.points == 0
    assert fragment in f"{verdict.message} {verdict.hint}", str(verdict)
    return verdict
