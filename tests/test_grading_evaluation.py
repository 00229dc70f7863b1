"""Lesson 3: what the checks say about right and about wrong evaluations."""

import convscope  # isort: skip  (it chooses Keras's back end, before Keras is imported)
import numpy as np
import pytest
from lesson_namespaces import check, checked_wrong, solved
from sklearn.metrics import confusion_matrix, log_loss

TASKS = ["3.1", "3.2", "3.3", "3.4", "3.5", "3.6"]


@pytest.mark.parametrize("task", TASKS)
def test_the_solution_is_right(task):
    verdict = check(task)
    assert verdict.state == "right", str(verdict)


@pytest.fixture
def lesson():
    return dict(solved(3))


def test_a_library_gives_the_same_numbers(lesson):
    labels, probabilities = lesson["test_labels"], lesson["probabilities"]
    assert check("3.2", confusion=confusion_matrix(labels, lesson["predicted"]))
    assert check("3.3", loss=log_loss(labels, probabilities))
    images = len(labels)
    assert check("3.5", interval=convscope_interval(round(lesson["accuracy"] * images), images))


def convscope_interval(hits, images):
    from convscope.evaluation import wilson_interval

    return tuple(wilson_interval(hits, images))


WRONG_PREDICTIONS = {
    "along-the-images": (
        lambda n: {"predicted": n["probabilities"].argmax(axis=0)},
        "axis=0 runs over the images",
    ),
    "one-hot": (lambda n: {"predicted": n["probabilities"].round()}, "a class for each image"),
    "smallest": (lambda n: {"predicted": n["probabilities"].argmin(axis=1)}, "with the largest probability"),
    "per-cent": (lambda n: {"accuracy": 100 * n["accuracy"]}, "this is in per cent"),
    "errors": (lambda n: {"accuracy": 1 - n["accuracy"]}, "the share of errors"),
    "count": (lambda n: {"accuracy": (n["predicted"] == n["test_labels"]).sum()}, "how many are right"),
    "validation-images": (
        lambda n: {"probabilities": convscope.predict(n["model"], n["x_val"])},
        "One row for each test image",
    ),
    "unscaled-images": (
        lambda n: {"probabilities": convscope.predict(n["model"], 255 * n["x_test"])},
        "prepared as the training images were",
    ),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_PREDICTIONS.values(), ids=WRONG_PREDICTIONS)
def test_wrong_predictions(lesson, wrong, message):
    checked_wrong("3.1", message, **wrong(lesson))


WRONG_CONFUSIONS = {
    "transposed": (lambda n: n["confusion"].T, "rows are true classes"),
    "shares": (lambda n: n["confusion"] / n["confusion"].sum(axis=1, keepdims=True), "These are shares"),
    "errors-only": (lambda n: n["confusion"] - np.diag(np.diag(n["confusion"])), "they are its diagonal"),
    "half-of-the-images": (lambda n: n["confusion"] // 2, "must add up to the 360"),
    "nine-classes": (lambda n: n["confusion"][:9, :9], "a table of 10 × 10 classes"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_CONFUSIONS.values(), ids=WRONG_CONFUSIONS)
def test_wrong_confusion_matrices(lesson, wrong, message):
    checked_wrong("3.2", message, confusion=wrong(lesson))


WRONG_LOSSES = {
    "sign": (lambda n: -n["loss"], "change the sign"),
    "sum": (lambda n: n["loss"] * 360, "That is the sum"),
    "mean-of-the-table": (lambda n: n["loss"] / 10, "over the images, not over all"),
    "of-the-predicted-class": (
        lambda n: -np.log(n["probabilities"].max(axis=1)).mean(),
        "take that of the true class",
    ),
    "log10": (lambda n: n["loss"] / np.log(10), "this is log10"),
    "log2": (lambda n: n["loss"] / np.log(2), "this is log2"),
    "accuracy": (lambda n: n["accuracy"], "its logarithm, the mean"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_LOSSES.values(), ids=WRONG_LOSSES)
def test_wrong_losses(lesson, wrong, message):
    checked_wrong("3.3", message, loss=wrong(lesson))


def within_the_errors(lesson):
    errors = lesson["gap"][lesson["gap"] > 0]
    return np.argsort(-errors, kind="stable")[:6]


WRONG_WORST = {
    "upwards": (lambda n: n["worst"][::-1], "the worst come last"),
    "within-the-errors": (within_the_errors, "count within the whole test set"),
    "smallest": (lambda n: np.argsort(n["gap"], kind="stable")[:6], "Some of these are predicted correctly"),
    "the-gaps": (lambda n: n["gap"][n["worst"]], "the numbers of 6 test images, got float"),
    "all": (lambda n: np.flatnonzero(n["gap"] > 0), "the numbers of 6 test images"),
    "another-order-of-errors": (
        lambda n: np.flatnonzero(n["gap"] > 0)[np.argsort(n["gap"][n["gap"] > 0])[:6]],
        "The gap: probability of the predicted class minus",
    ),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_WORST.values(), ids=WRONG_WORST)
def test_wrong_worst_errors(lesson, wrong, message):
    checked_wrong("3.4", message, worst=wrong(lesson))


def around(lesson, half):
    return lesson["accuracy"] - half, lesson["accuracy"] + half


WRONG_INTERVALS = {
    "one-standard-error": (lambda n: around(n, n["error"]), "this is one"),
    "no-square-root": (
        lambda n: around(n, 1.96 * n["accuracy"] * (1 - n["accuracy"]) / 360),
        "the square root is missing",
    ),
    "no-number-of-images": (
        lambda n: around(n, 1.96 * np.sqrt(n["accuracy"] * (1 - n["accuracy"]))),
        "the number of images is missing",
    ),
    "per-cent": (lambda n: 100 * np.array(n["interval"]), "In per cent"),
    "half-width-only": (lambda n: 1.96 * n["error"], "`interval` as (low, high)"),
    "anything": (lambda n: (0.5, 0.7), "accuracy ± 1.96"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_INTERVALS.values(), ids=WRONG_INTERVALS)
def test_wrong_intervals(lesson, wrong, message):
    checked_wrong("3.5", message, interval=wrong(lesson))


def raising(x, y):
    raise ValueError("shapes do not fit")


WRONG_FUNCTIONS = {
    "ignores-its-arguments": (
        lambda n: lambda x, y: n["evaluate"](n["x_test"], n["y_test"]),
        "not x_test and labels from outside",
    ),
    "accuracy-first": (lambda n: lambda x, y: n["evaluate"](x, y)[::-1], "The loss comes first"),
    "accuracy-only": (lambda n: lambda x, y: n["evaluate"](x, y)[1], "return loss, accuracy"),
    "nothing-returned": (lambda n: lambda x, y: None, "End the function with return loss, accuracy"),
    "raises": (lambda n: raising, "ValueError: shapes do not fit"),
    "no-function": (lambda n: 0.98, "`evaluate` as a function, got float"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_FUNCTIONS.values(), ids=WRONG_FUNCTIONS)
def test_wrong_functions(lesson, wrong, message):
    checked_wrong("3.6", message, evaluate=wrong(lesson))
