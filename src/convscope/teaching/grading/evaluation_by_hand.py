"""Lesson 3: predictions, confusion matrix, loss, worst errors, interval, an evaluation of your own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import expected_got
from convscope.evaluation import Evaluation, wilson_interval
from convscope.evaluation.metrics import confusion_matrix, cross_entropy, worst_errors
from convscope.teaching.grading.verdict import CheckFailed, as_array, as_number, call_answer, close, require

Array = NDArray[Any]

# Images that a check predicts anew; the student's numbers may come of another precision.
PREDICTED_ROWS = 256
PROBABILITY_TOLERANCE = 0.02
NUMBER_TOLERANCE = 1e-3


def judge_predictions(
    model: Any, x_test: Array, test_labels: Array, probabilities: Any, predicted: Any, accuracy: Any
) -> str:
    """Judge probabilities, predicted classes and their accuracy."""
    table = as_array(probabilities, "probabilities")
    _require_probabilities(model, x_test, table)
    classes = as_array(predicted, "predicted")
    _require_classes(table, classes)
    share = float(np.mean(classes == test_labels))
    _require_share(as_number(accuracy, "accuracy"), share, len(test_labels))
    return f"{share:.2%} of {len(test_labels):,} test images."


def _require_probabilities(model: Any, x_test: Array, table: Array) -> None:
    outputs = model.output_shape[-1]
    require(
        table.shape == (len(x_test), outputs),
        expected_got(f"`probabilities` of shape {(len(x_test), outputs)}", table.shape),
        "One row for each test image, one column for each class.",
        "convscope.predict(model, x_test)",
    )
    expected = _predict(model, x_test[:PREDICTED_ROWS])
    require(
        np.allclose(table[:PREDICTED_ROWS], expected, atol=PROBABILITY_TOLERANCE),
        expected_got("what `model` predicts for `x_test`", "other numbers"),
        "Predict the test images, prepared as the training images were.",
        "convscope.predict(model, x_test)",
    )


def _require_classes(table: Array, classes: Array) -> None:
    along_images = classes.shape == table.shape[1:]
    require(
        classes.shape == (len(table),),
        expected_got(f"`predicted` of shape ({len(table)},), a class for each image", classes.shape),
        "axis=0 runs over the images; the classes are axis 1."
        if along_images
        else "The class with the largest probability in each row.",
        "probabilities.argmax(axis=1)",
    )
    require(
        np.array_equal(classes, table.argmax(axis=1)),
        expected_got("the class with the largest probability of each image", "other classes"),
        "probabilities.argmax(axis=1)",
    )


def _require_share(found: float, share: float, images: int) -> None:
    wrong_share, hits = 1 - share, round(share * images)
    if close(found, share, 1e-6):
        return
    hint = "How many predictions are right, divided by how many there are."
    if close(found, 100 * share, NUMBER_TOLERANCE):
        hint = "A share lies between 0 and 1; this is in per cent."
    elif close(found, wrong_share, NUMBER_TOLERANCE):
        hint = "That is the share of errors."
    elif close(found, hits, NUMBER_TOLERANCE):
        hint = "That is how many are right; divide by the number of images."
    message = expected_got("`accuracy` as the share of right predictions", f"{found:g}")
    raise CheckFailed(message, (hint, "np.mean(predicted == test_labels)"))


def judge_confusion(test_labels: Array, predicted: Array, confusion: Any) -> str:
    """Judge a confusion matrix: counts, true classes down, predicted ones across."""
    table = as_array(confusion, "confusion")
    classes = int(max(test_labels.max(), np.max(predicted))) + 1
    right = confusion_matrix(test_labels.astype(np.int64), np.asarray(predicted).astype(np.int64), classes)
    require(
        table.shape == right.shape,
        expected_got(f"a table of {classes} × {classes} classes", table.shape),
        "A row for each true class, a column for each predicted one.",
    )
    if np.array_equal(table, right):
        return f"{int(np.trace(right)):,} on the diagonal, {int(right.sum() - np.trace(right)):,} beside it."
    hint = "Go through the images: add 1 in the row of the true class and the column of the predicted one."
    if np.array_equal(table, right.T):
        hint = "Rows and columns are exchanged: rows are true classes."
    elif np.isclose(table.sum(), classes, atol=0.01) or table.max() <= 1:
        hint = "These are shares; the table holds counts."
    elif not np.diagonal(table).any():
        hint = "The right predictions belong in it too: they are its diagonal."
    elif table.sum() != right.sum():
        hint = f"The entries must add up to the {right.sum():,} test images."
    message = expected_got("a count of each pair of true and predicted class", "another table")
    raise CheckFailed(message, (hint, "sklearn.metrics.confusion_matrix(test_labels, predicted)"))


def judge_loss(probabilities: Array, test_labels: Array, loss: Any) -> str:
    """Judge the categorical cross-entropy."""
    table, found = np.asarray(probabilities, np.float64), as_number(loss, "loss")
    right = cross_entropy(table, test_labels.astype(np.int64))
    if close(found, right, NUMBER_TOLERANCE):
        probability = f"{math.exp(-right):.1%}"
        return (
            f"{right:.4f} nats (the unit of natural logarithms): on average the true class has a probability "
            f"of {probability}."
        )
    images, classes = table.shape
    largest = float(-np.log(table.max(axis=1)).mean())
    mistakes = {
        "The logarithm of a number below 1 is negative: change the sign.": -right,
        "That is the sum; the loss is the mean over the images.": right * images,
        "One number for each image: take the mean over the images, not over all table entries.": right
        / classes,
        "That is the probability of the predicted class; take that of the true class.": largest,
        "Take the natural logarithm, np.log, as Keras does (this is log10).": right / math.log(10),
        "Take the natural logarithm, np.log, as Keras does (this is log2).": right / math.log(2),
    }
    near = [hint for hint, value in mistakes.items() if close(found, value, NUMBER_TOLERANCE)]
    first = near[0] if near else "The probability of the true class of each image: its logarithm, the mean."
    message = expected_got("`loss` as the mean of −ln p(true class)", f"{found:g}")
    raise CheckFailed(
        message, (first, "-np.log(probabilities[np.arange(len(test_labels)), test_labels]).mean()")
    )


def judge_worst(probabilities: Array, test_labels: Array, worst: Any) -> str:
    """Judge which test images the network is most wrong about."""
    table, labels = np.asarray(probabilities, np.float64), test_labels.astype(np.int64)
    right = worst_errors(table, labels, 6)
    found = as_array(worst, "worst")
    require(
        found.shape == right.shape and found.dtype.kind in "iu",
        expected_got(
            f"`worst` as the numbers of {len(right)} test images", f"{found.dtype} of {found.shape}"
        ),
        "The worst six errors; positions in the test set, from 0.",
    )
    gaps = _gaps(table, labels)
    if found.min() >= 0 and found.max() < len(labels) and np.allclose(gaps[found], gaps[right]):
        return f"The worst is image {right[0]}, with a gap of {gaps[right[0]]:.2f}."
    message = expected_got("the six errors with the largest gap, the worst first", found.tolist())
    raise CheckFailed(
        message, (_worst_hint(found, gaps, table, labels), "np.argsort(-gap)[:6], over all images")
    )


def _gaps(table: Array, labels: Array) -> Array:
    """Give the gap between the predicted and the true class; 0 for right predictions."""
    gaps: Array = table.max(axis=1) - table[np.arange(len(labels)), labels]
    return gaps


def _worst_hint(found: Array, gaps: Array, table: Array, labels: Array) -> str:
    right = worst_errors(table, labels, 6)
    errors = np.flatnonzero(gaps > 0)
    within = np.searchsorted(errors, right)
    if set(found.tolist()) == set(right.tolist()):
        return "These are the right ones in another order: argsort sorts upwards, the worst come last."
    if set(found.tolist()) == set(within.tolist()):
        return "These count within the errors only; count within the whole test set."
    known = found[(found >= 0) & (found < len(labels))]
    if len(known) < len(found) or (gaps[known] == 0).any():
        return "Some of these are predicted correctly: the gap of a right prediction is 0."
    return "The gap: probability of the predicted class minus probability of the true class."


def judge_interval(test_labels: Array, predicted: Array, interval: Any) -> str:
    """Judge a 95 % interval of the accuracy, by Wilson's formula or by p ± 1.96·√(p(1 − p)/n)."""
    found = as_array(interval, "interval")
    require(
        found.shape == (2,),
        expected_got("`interval` as (low, high)", found.shape if found.shape else found.item()),
        "Two numbers: accuracy minus and plus 1.96 standard errors.",
    )
    images, hits = len(test_labels), int(np.sum(predicted == test_labels))
    share = hits / images
    error = math.sqrt(share * (1 - share) / images)
    accepted = [(share - 1.96 * error, share + 1.96 * error), tuple(wilson_interval(hits, images))]
    tolerance = 0.06 * error + 1e-9
    if any(np.allclose(found, ends, rtol=0, atol=tolerance) for ends in accepted):
        return f"{found[0]:.2%} to {found[1]:.2%}, from {images:,} images."
    mistakes = {
        "Two standard errors, more exactly 1.96, hold 95 %; this is one.": error,
        "√(p(1 − p)/n): the square root is missing.": 1.96 * share * (1 - share) / images,
        "√(p(1 − p)/n): the number of images is missing.": 1.96 * math.sqrt(share * (1 - share)),
    }
    half = float(found[1] - found[0]) / 2
    near = [hint for hint, value in mistakes.items() if close(half, value, 0.02)]
    if found.max() > 1.5:
        near = ["In per cent; a share lies between 0 and 1."]
    hint = near[0] if near else "accuracy ± 1.96·√(accuracy·(1 − accuracy)/n)"
    message = expected_got("the 95 % interval of the accuracy", f"({found[0]:.4g}, {found[1]:.4g})")
    raise CheckFailed(message, (hint, "error = np.sqrt(accuracy * (1 - accuracy) / len(test_labels))"))


def judge_evaluate(model: Any, x_test: Array, y_test: Array, evaluate: Callable[..., Any]) -> str:
    """Judge a function that evaluates: on other images than the whole test set it must give other numbers."""
    require(
        callable(evaluate),
        expected_got("`evaluate` as a function", type(evaluate).__name__),
        "def evaluate(x, y): …",
    )
    half = len(x_test) // 2
    for x, y in ((x_test[:half], y_test[:half]), (x_test[half:], y_test[half:])):
        expected = Evaluation.from_probabilities(_predict(model, x), y)
        called = "It was called with half of x_test and of y_test."
        result = call_answer(
            evaluate, "two numbers from evaluate(x, y)", called, x, y, ending="return loss, accuracy"
        )
        _require_result(result, expected)
    return "Right on two different halves of the test images."


def _require_result(result: Any, expected: Evaluation) -> None:
    pair = isinstance(result, tuple | list) and len(result) == 2
    require(
        pair,
        expected_got("(loss, accuracy) from evaluate(x, y)", type(result).__name__),
        "return loss, accuracy",
    )
    loss, accuracy = as_number(result[0], "loss"), as_number(result[1], "accuracy")
    right = close(loss, expected.loss, 0.02) and close(accuracy, expected.accuracy, 0.005)
    swapped = close(accuracy, expected.loss, 0.02) and close(loss, expected.accuracy, 0.005)
    require(
        right,
        expected_got(
            f"({expected.loss:.4f}, {expected.accuracy:.4f}) for half of the test images",
            f"({loss:.4f}, {accuracy:.4f})",
        ),
        "The loss comes first, then the accuracy."
        if swapped
        else "Use the arguments x and y inside the function, not x_test and labels from outside it; "
        "y is one-hot.",
    )


def _predict(model: Any, x: Array) -> Array:
    from convscope.training.api import predict

    return predict(model, x)
