"""The check of one task: find the answer, judge it, say what to try next."""

from __future__ import annotations

import hmac
import importlib
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from convscope.environment import own_warning_filters
from convscope.errors import ConvscopeError, expected_got, unknown_name
from convscope.teaching.grading.tasks import TASKS, Task
from convscope.teaching.grading.verdict import MIME_TYPE, CheckFailed, Verdict

# How often each mistake, known by task and hints, was met in this session: each time the next hint is given.
_met: Counter[tuple[str, tuple[str, ...]]] = Counter()


def check(task: str, /, **answers: Any) -> Verdict:
    """Judge the answer to a lesson's task by its properties; say what is wrong, and give the next hint.

    Parameters
    ----------
    task : str
        The task's number, e.g. ``"1.2"``.
    **answers
        The variables that the task asks for. Those left out are taken from where the call stands, so that
        ``convscope.check("1.2")`` is all that a notebook needs.

    Returns
    -------
    Verdict
        True when the task is solved. A notebook shows it; asking again gives the next hint.

    Raises
    ------
    UnknownNameError
        If there is no such task. An answer, however wrong, raises nothing.

    Examples
    --------
    >>> questions = {"A": ({"filters": 16, "kernel_size": 5}, (28, 28, 1))}
    >>> print(check("2.1", questions=questions, shapes={"A": (28, 28, 16)}))
    ✗ Task 2.1, predict the shape of a convolution's output: 0 of 1
    Expected the output shape of A, got (28, 28, 16), which padding="same" would give.
    Hint: Without padding the kernel must fit inside the image, so height and width shrink.
    """
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)
    entry = TASKS[task]
    found = {**sys._getframe(1).f_globals, **answers}
    try:
        message = _judge(entry, found)
    except CheckFailed as failed:
        hint = failed.hints[min(_met[task, failed.hints], len(failed.hints) - 1)] if failed.hints else ""
        _met[task, failed.hints] += 1
        return Verdict(task, entry.title, 0, entry.points, failed.message, hint, failed.answered)
    return Verdict(task, entry.title, entry.points, entry.points, message)


def seal(name: str) -> None:
    """Set these checks aside under a name in ``sys.modules`` before any code of a student runs.

    What the student imports later are other copies: whatever a notebook does to the modules that it can
    name, to ``convscope.check`` or to a judge, the checks that were set aside stay as they are.
    """
    package = __name__.rpartition(".")[0]
    for loaded in [one for one in sys.modules if one == package or one.startswith(f"{package}.")]:
        del sys.modules[loaded]
    parent, _, own = package.rpartition(".")
    vars(sys.modules[parent]).pop(own, None)
    sealed = _Sealed()  # what it imports, it imports for the notebook, too
    sys.modules[name] = sealed  # type: ignore[assignment]  # anything may stand there


# What judges compute with; a kernel itself changes some of the built-in functions.
_INSTRUMENTS = ("convscope.training.api", "convscope.arithmetic", "numpy", "builtins")
_CHANGED_BY_KERNELS = frozenset({"builtins.input", "builtins.print"})


class _Sealed:
    """Checks an answer and signs the verdict with a key that is known to the grader and this call alone."""

    def __init__(self) -> None:
        for name in _INSTRUMENTS:
            importlib.import_module(name)
        self._functions = _functions()

    def __call__(self, task: str, key: str, answers: Mapping[str, Any]) -> SignedVerdict:
        now = _functions()
        changed = [name for name, function in self._functions.items() if now.get(name) is not function]
        if changed:
            entry = TASKS[task]
            message = expected_got(f"`{changed[0]}` as it is installed", "one that the notebook changed")
            return SignedVerdict(Verdict(task, entry.title, 0, entry.points, message), key)
        return SignedVerdict(check(task, **answers), key)


def _functions() -> dict[str, Any]:
    """List the functions and classes of this package and of what its judges compute with."""
    package = __name__.partition(".")[0]
    return {
        name: value
        for module in list(sys.modules)
        if module in _INSTRUMENTS or module.partition(".")[0] == package
        for attribute, value in list(vars(sys.modules[module]).items())
        if callable(value) and (name := f"{module}.{attribute}") not in _CHANGED_BY_KERNELS
    }


class SignedVerdict:
    """A verdict that shows itself in a notebook with a signature."""

    def __init__(self, verdict: Verdict, key: str) -> None:
        bundle = verdict._repr_mimebundle_()
        content = bundle[MIME_TYPE]
        self._bundle = {**bundle, MIME_TYPE: {**content, "signature": sign(content, key)}}
        self._text = str(verdict)

    def __repr__(self) -> str:
        return self._text

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return self._bundle


def sign(verdict: Mapping[str, Any], key: str) -> str:
    """Compute the signature of a verdict's content (HMAC, RFC 2104, with SHA-256)."""
    content = json.dumps({**verdict, "signature": ""}, sort_keys=True).encode()
    return hmac.new(key.encode(), content, "sha256").hexdigest()


def _judge(task: Task, found: Mapping[str, Any]) -> str:
    """Judge what was found; whatever an answer makes go wrong is a mistake of the answer."""
    values = _take(task, found)
    try:
        with own_warning_filters(), _own_figures(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # an answer may well divide by zero; its result is judged
            return task.judge(**values)
    except CheckFailed:
        raise
    except ConvscopeError as error:
        raise CheckFailed(str(error)) from error
    except Exception as error:
        message = expected_got("an answer that can be checked", f"{type(error).__name__}: {error}")
        raise CheckFailed(message, ("Look at the types and shapes of what you made.",)) from error


@contextmanager
def _own_figures() -> Iterator[None]:
    """Close what an answer draws with pyplot while it is judged; a notebook would show it under the check."""

    def numbers() -> list[int]:
        pyplot = sys.modules.get("matplotlib.pyplot")  # whoever draws has loaded it
        return pyplot.get_fignums() if pyplot else []

    before = numbers()
    try:
        yield
    finally:
        for number in set(numbers()).difference(before):
            sys.modules["matplotlib.pyplot"].close(number)


def _take(task: Task, found: Mapping[str, Any]) -> dict[str, Any]:
    """Take the variables that the student makes, and those that the lesson made or an earlier task."""
    missing = [name for name in task.answers if found.get(name, ...) is ...]
    if missing:
        message = expected_got(
            ", ".join(f"`{name}`" for name in missing), "nothing yet", "Fill in the cell above and run it."
        )
        raise CheckFailed(message, answered=len(missing) < len(task.answers))
    for name in task.given:
        if found.get(name, ...) is ...:
            hint = "Run the notebook from its top, and solve the tasks above first."
            raise CheckFailed(expected_got(f"`{name}` from the cells above", "nothing", hint), answered=False)
    return {argument: found[name] for name, argument in (task.answers | task.given).items()}
