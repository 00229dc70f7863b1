"""The tasks of all lessons: what each is called, what it asks for, and who judges it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

from convscope.teaching.grading import (
    counting,
    data_preparation,
    evaluation_by_hand,
    layers_by_hand,
    pictures,
)
from convscope.teaching.grading.networks import judge_network, judge_training

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
    "2.1": Task("predict the shape of a convolution's output", counting.judge_conv_shapes, "shapes"),
    "2.2": Task(
        "predict the number of a convolution's parameters", counting.judge_conv_parameters, "parameters"
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
    "4.3": Task(
        "find out what dropout does", layers_by_hand.judge_dropout, "dropped share_of_zeros kept_value"
    ),
    "4.4": Task("count the parameters of each layer", counting.judge_layer_parameters, "parameters"),
    "5.1": Task("pool by hand", layers_by_hand.judge_max_pool, "max_pool"),
    "5.2": _network("deep"),
    "5.3": _training("deep"),
    "6.1": Task("predict the shape of every layer", counting.judge_layer_shapes, "shapes"),
    "6.2": Task("predict the parameters of every layer", counting.judge_layer_parameters, "parameters"),
    "6.3": Task("bring a kernel into torch's layout", counting.judge_kernel_layout, "torch_kernel"),
    "6.4": Task("recompute one activation", layers_by_hand.judge_activation, "activation", points=2),
    "7.1": Task("prepare a photograph", pictures.judge_prepare, "prepare", points=2),
    "7.2": Task("measure what the preparation is worth", pictures.judge_own_accuracy, "accuracy_prepared"),
    "7.3": Task("measure what a shift costs", pictures.judge_shifts, "accuracy_by_shift"),
}
# The quiz: two tasks for each of its networks, whose letter the variables end in.
for _number, _letter in enumerate("abc"):
    for _task, _judge, _made in (
        (2 * _number + 1, counting.judge_layer_shapes, "shapes"),
        (2 * _number + 2, counting.judge_layer_parameters, "parameters"),
    ):
        _title = f"predict the {_made} of network {_letter.upper()}"
        TASKS[f"8.{_task}"] = Task(_title, _judge, _made, ending=f"_{_letter}")


def tasks_of(lesson: int) -> dict[str, Task]:
    """List the tasks of a lesson."""
    return {key: task for key, task in TASKS.items() if key.startswith(f"{lesson}.")}
