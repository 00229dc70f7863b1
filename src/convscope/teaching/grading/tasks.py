"""The tasks of all lessons: what each is called, what it asks for, and who judges it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from convscope.teaching.grading import counting, layers_by_hand, pictures, preparation, scores
from convscope.teaching.grading.networks import judge_network, judge_training


@dataclass(frozen=True)
class Task:
    """One task: its judge, the variables that a student makes, and those that are there before.

    The judge takes them all, their names in lower case; it says what is right, or raises a ``CheckFailed``.
    """

    title: str
    judge: Callable[..., str]
    answers: tuple[str, ...]
    given: tuple[str, ...] = ()
    points: int = 1


def _network(name: str) -> Task:
    def judge(model: Any, x_train: Any, y_train: Any) -> str:
        return judge_network(name, model, x_train.shape[1:], y_train.shape[1])

    return Task(f"build the network `{name}`", judge, ("model",), ("x_train", "y_train"))


_PARTS = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")


def _training(name: str) -> Task:
    def judge(model: Any, history: Any, data: Any, **values: Any) -> str:
        parts = [values[part] for part in _PARTS]
        train, val, test = zip(parts[::2], parts[1::2], strict=True)
        settings = (values["batch_size"], values["epochs"])
        return judge_training(name, model, history, data.name, train, val, test, *settings)

    given = ("data", *_PARTS, "BATCH_SIZE", "EPOCHS")
    return Task(f"train the network `{name}`", judge, ("model", "history"), given, points=2)


def _one_hot(data: Any, **values: Any) -> str:
    return preparation.judge_one_hot(data.class_names, **values)


_SCALED = ("scaled_train", "scaled_val", "scaled_test")

TASKS: dict[str, Task] = {
    "1.1": Task(
        "split the training images",
        preparation.judge_split,
        ("images_train", "labels_train", "images_val", "labels_val"),
        ("images", "labels", "test_images"),
    ),
    "1.2": Task(
        "scale the pixels",
        preparation.judge_scaling,
        ("scaler", *_SCALED),
        ("images_train", "images_val", "test_images"),
    ),
    "1.3": Task(
        "add the channel axis",
        preparation.judge_channel_axis,
        ("input_shape", "x_train", "x_val", "x_test"),
        ("data_format", *_SCALED),
    ),
    "1.4": Task(
        "make one-hot targets",
        _one_hot,
        ("y_train", "y_val", "y_test"),
        ("data", "labels_train", "labels_val", "test_labels"),
    ),
    "2.1": Task(
        "predict the shape of a convolution's output",
        counting.judge_conv_shapes,
        ("shapes",),
        ("questions",),
    ),
    "2.2": Task(
        "predict the number of a convolution's parameters",
        counting.judge_conv_parameters,
        ("parameters",),
        ("questions",),
    ),
    "2.3": _network("simple"),
    "2.4": _training("simple"),
    "3.1": Task(
        "predict the test images",
        scores.judge_predictions,
        ("probabilities", "predicted", "accuracy"),
        ("model", "x_test", "test_labels"),
    ),
    "3.2": Task("count the confusions", scores.judge_confusion, ("confusion",), ("test_labels", "predicted")),
    "3.3": Task("compute the loss", scores.judge_loss, ("loss",), ("probabilities", "test_labels")),
    "3.4": Task("find the worst errors", scores.judge_worst, ("worst",), ("probabilities", "test_labels")),
    "3.5": Task(
        "say how sure the accuracy is",
        scores.judge_interval,
        ("interval",),
        ("test_labels", "predicted"),
    ),
    "3.6": Task(
        "write a function that evaluates",
        scores.judge_evaluate,
        ("evaluate",),
        ("model", "x_test", "y_test"),
        points=2,
    ),
    "4.1": _network("dense"),
    "4.2": _training("dense"),
    "4.3": Task(
        "find out what dropout does",
        layers_by_hand.judge_dropout,
        ("dropped", "share_of_zeros", "kept_value"),
        ("ones", "rate"),
    ),
    "4.4": Task(
        "count the parameters of each layer",
        counting.judge_layer_parameters,
        ("parameters",),
        ("layers",),
    ),
    "5.1": Task("pool by hand", layers_by_hand.judge_max_pool, ("max_pool",)),
    "5.2": _network("deep"),
    "5.3": _training("deep"),
    "6.1": Task("predict the shape of every layer", counting.judge_layer_shapes, ("shapes",), ("layers",)),
    "6.2": Task(
        "predict the parameters of every layer",
        counting.judge_layer_parameters,
        ("parameters",),
        ("layers",),
    ),
    "6.3": Task(
        "bring a kernel into torch's layout",
        partial(counting.judge_kernel_layout, layer_name="conv2d_3"),
        ("torch_kernel",),
        ("model",),
    ),
    "6.4": Task(
        "recompute one activation",
        partial(layers_by_hand.judge_activation, layer_name="conv2d_1"),
        ("activation",),
        ("model", "image"),
        points=2,
    ),
    "7.1": Task(
        "prepare a photograph",
        pictures.judge_prepare,
        ("prepare",),
        ("BOX",),
        points=2,
    ),
    "7.2": Task(
        "measure what the preparation is worth",
        pictures.judge_own_accuracy,
        ("accuracy_prepared",),
        ("model", "preprocess", "pictures", "digits", "prepare"),
    ),
    "7.3": Task(
        "measure what a shift costs",
        pictures.judge_shifts,
        ("accuracy_by_shift",),
        ("model", "data_format", "x_some", "labels_some", "SHIFTS"),
    ),
}


def _quiz_task(judge: Callable[[Any, Any], str], title: str, variable: str, letter: str) -> Task:
    """Make a task of the quiz, whose variables end in the network's letter."""
    answer, layers = f"{variable}_{letter}", f"layers_{letter}"

    def judge_named(**values: Any) -> str:
        return judge(values[layers], values[answer])

    return Task(f"{title} of network {letter.upper()}", judge_named, (answer,), (layers,))


for _number, _letter in enumerate("abc"):
    TASKS[f"8.{2 * _number + 1}"] = _quiz_task(
        counting.judge_layer_shapes, "predict the shapes", "shapes", _letter
    )
    TASKS[f"8.{2 * _number + 2}"] = _quiz_task(
        counting.judge_layer_parameters, "predict the parameters", "parameters", _letter
    )


def tasks_of(lesson: int) -> dict[str, Task]:
    """List the tasks of a lesson."""
    return {key: task for key, task in TASKS.items() if key.startswith(f"{lesson}.")}
