"""The tasks of all lessons, and the check of one: find the answer, judge it, say what to try next."""

from __future__ import annotations

import hmac
import importlib
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np

from convscope.environment import own_warning_filters
from convscope.errors import ConvscopeError, expected_got, unknown_name
from convscope.teaching.grading import data_preparation, evaluation_by_hand, layers, pictures
from convscope.teaching.grading.networks import judge_network, judge_training
from convscope.teaching.grading.verdict import MIME_TYPE, CheckFailed, Verdict

# What notebooks write in capitals.
_CONSTANTS = ("batch_size", "epochs", "box", "shifts")


@dataclass(frozen=True)
class Task:
    """One task: its judge, and which of the judge's arguments a student makes; the others are there before.

    The judge says what is right, or raises a ``CheckFailed``. Its arguments are called as the notebook's
    variables, but for the ``ending`` that these may have.
    """

    title: str
    judge: Callable[..., str]
    made: str  # names with a space between them
    points: int = 1
    ending: str = ""

    @property
    def answers(self) -> dict[str, str]:
        """The variables that a student makes, and the arguments of the judge that they are."""
        return {f"{name}{self.ending}": name for name in self.made.split()}

    @property
    def given(self) -> dict[str, str]:
        """The variables that are there before, and the arguments of the judge that they are."""
        arguments = signature(self.judge).parameters.values()
        names = [
            one.name for one in arguments if one.default is one.empty and one.name not in self.made.split()
        ]
        return {f"{name.upper() if name in _CONSTANTS else name}{self.ending}": name for name in names}


def _network(name: str) -> Task:
    def judge(model: Any, x_train: Any, y_train: Any) -> str:
        return judge_network(name, model, x_train.shape[1:], y_train.shape[1])

    return Task(f"build the network `{name}`", judge, "model")


def _training(name: str) -> Task:
    def judge(
        model: Any, history: Any, data: Any, x_train: Any, y_train: Any, x_val: Any, y_val: Any, x_test: Any,
        y_test: Any, batch_size: Any, epochs: Any,
    ) -> str:  # fmt: skip
        train, val, test = (x_train, y_train), (x_val, y_val), (x_test, y_test)
        return judge_training(name, model, history, data.name, train, val, test, batch_size, epochs)

    return Task(f"train the network `{name}`", judge, "model history", points=2)


TASKS: dict[str, Task] = {
    "1.1": Task(
        "split the training images",
        data_preparation.judge_split,
        "images_train labels_train images_val labels_val",
    ),
    "1.2": Task(
        "scale the pixels", data_preparation.judge_scaling, "scaler scaled_train scaled_val scaled_test"
    ),
    "1.3": Task(
        "add the channel axis", data_preparation.judge_channel_axis, "input_shape x_train x_val x_test"
    ),
    "1.4": Task("make one-hot targets", data_preparation.judge_one_hot, "y_train y_val y_test"),
    "2.1": Task("predict the shape of a convolution's output", layers.judge_conv_shapes, "shapes"),
    "2.2": Task(
        "predict the number of a convolution's parameters", layers.judge_conv_parameters, "parameters"
    ),
    "2.3": _network("simple"),
    "2.4": _training("simple"),
    "3.1": Task(
        "predict the test images", evaluation_by_hand.judge_predictions, "probabilities predicted accuracy"
    ),
    "3.2": Task("count the confusions", evaluation_by_hand.judge_confusion, "confusion"),
    "3.3": Task("compute the loss", evaluation_by_hand.judge_loss, "loss"),
    "3.4": Task("find the worst errors", evaluation_by_hand.judge_worst, "worst"),
    "3.5": Task("say how sure the accuracy is", evaluation_by_hand.judge_interval, "interval"),
    "3.6": Task("write a function that evaluates", evaluation_by_hand.judge_evaluate, "evaluate", points=2),
    "4.1": _network("dense"),
    "4.2": _training("dense"),
    "4.3": Task("find out what dropout does", layers.judge_dropout, "dropped share_of_zeros kept_value"),
    "4.4": Task("count the parameters of each layer", layers.judge_layer_parameters, "parameters"),
    "5.1": Task("pool by hand", layers.judge_max_pool, "max_pool"),
    "5.2": _network("deep"),
    "5.3": _training("deep"),
    "6.1": Task("predict the shape of every layer", layers.judge_layer_shapes, "shapes"),
    "6.2": Task("predict the parameters of every layer", layers.judge_layer_parameters, "parameters"),
    "6.3": Task("bring a kernel into torch's layout", layers.judge_kernel_layout, "torch_kernel"),
    "6.4": Task("recompute one activation", layers.judge_activation, "activation", points=2),
    "7.1": Task("prepare a photograph", pictures.judge_prepare, "prepare", points=2),
    "7.2": Task("measure what the preparation is worth", pictures.judge_own_accuracy, "accuracy_prepared"),
    "7.3": Task("measure what a shift costs", pictures.judge_shifts, "accuracy_by_shift"),
}
# The quiz: two tasks for each of its networks, whose letter the variables end in.
for _number, _letter in enumerate("abc"):
    for _task, _made, _asked in (
        (2 * _number + 1, "shapes", layers.judge_layer_shapes),
        (2 * _number + 2, "parameters", layers.judge_layer_parameters),
    ):
        _title = f"predict the {_made} of network {_letter.upper()}"
        TASKS[f"8.{_task}"] = Task(_title, _asked, _made, ending=f"_{_letter}")


def tasks_of(lesson: int) -> dict[str, Task]:
    """List the tasks of a lesson."""
    return {key: task for key, task in TASKS.items() if key.startswith(f"{lesson}.")}


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
    sys.modules[name] = _sealed_check()  # type: ignore[assignment]  # anything may stand there


# What judges compute with; a kernel itself changes some of the built-in functions.
_INSTRUMENTS = ("convscope.training.api", "convscope.arithmetic", "numpy", "builtins")
_CHANGED_BY_KERNELS = frozenset({"builtins.input", "builtins.print"})


def _sealed_check() -> Callable[[str, str, Mapping[str, Any]], SignedVerdict]:
    """Make what checks an answer and signs the verdict with a key known to the grader and this call alone."""
    for name in _INSTRUMENTS:  # what it imports, it imports for the notebook, too
        importlib.import_module(name)
    functions = _functions()

    def check_and_sign(task: str, key: str, answers: Mapping[str, Any]) -> SignedVerdict:
        now = _functions()
        changed = [name for name, function in functions.items() if now.get(name) is not function]
        if changed:
            entry = TASKS[task]
            message = expected_got(f"`{changed[0]}` as it is installed", "one that the notebook changed")
            return SignedVerdict(Verdict(task, entry.title, 0, entry.points, message), key)
        return SignedVerdict(check(task, **answers), key)

    return check_and_sign


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
