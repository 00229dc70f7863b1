"""What is evaluated is checked before any number is computed from it."""

import numpy as np
import pytest

from convscope.errors import DataError, UsageError
from convscope.evaluation import (
    Evaluation,
    as_labels,
    as_probabilities,
)


@pytest.mark.parametrize("column", [False, True], ids=["flat", "column"])
@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.float32], ids=str)
def test_integer_labels_of_every_type_are_accepted(column, kind):
    labels = np.array([0, 2, 1], dtype=kind)
    found = as_labels(labels[:, None] if column else labels, classes=3)
    assert found.dtype == np.int64
    assert found.tolist() == [0, 2, 1]


BAD_PROBABILITIES = {
    "flat": ([0.1, 0.9], UsageError, r"shape \(images, classes\), got \(2,\).*np.column_stack"),
    "one column": ([[0.1], [0.9]], UsageError, r"got \(2, 1\)\. A single sigmoid output"),
    "three axes": (np.zeros((2, 2, 2)), UsageError, r"got \(2, 2, 2\)"),
    "no images": (np.zeros((0, 3)), UsageError, "at least one image to evaluate, got none"),
    "no classes": (np.zeros((3, 0)), UsageError, r"got \(3, 0\)"),
    "text": ([["a", "b"]], UsageError, "Expected probabilities as a table of numbers"),
    "ragged": ([[0.1, 0.9], [1.0]], UsageError, "Expected probabilities as a table of numbers"),
    "NaN": ([[0.5, 0.5], [np.nan, 1.0]], DataError, "NaN or infinity in row 1. Did the training diverge"),
    "logits": ([[3.0, -2.0]], DataError, r"from -2 to 3 \(row 0\)\. Logits need a softmax first\."),
    "sums": ([[0.6, 0.6], [0.7, 0.7]], DataError, r"got a sum of 1.2 \(row 0 and 1 more\)"),
}


@pytest.mark.parametrize(
    ("probabilities", "error", "message"), BAD_PROBABILITIES.values(), ids=BAD_PROBABILITIES.keys()
)
def test_bad_probabilities_are_refused(probabilities, error, message):
    with pytest.raises(error, match=message):
        as_probabilities(probabilities)


BAD_LABELS = {
    "out of range": ([0, 3, 1], DataError, r"Expected labels from 0 to 2, one of 3 classes, got 3 \(row 1\)"),
    "negative": ([0, -1, 1], DataError, "got -1"),
    "fraction": ([0, 0.5, 1], DataError, "got 0.5"),
    "NaN": ([0, np.nan, 1], DataError, "got nan"),
    "too few": ([0, 1], UsageError, "Expected 3 labels, one for each image, got 2"),
    "text": (
        ["a", "b", "c"],
        UsageError,
        "Expected labels as class indices or one-hot rows, got values of type",
    ),
    "soft": ([[0.9, 0.1, 0], [0, 1, 0], [0, 0, 1]], DataError, "Expected one-hot labels with a single 1"),
    "two ones": ([[1, 1, 0], [0, 1, 0], [0, 0, 1]], DataError, "Expected one-hot labels with a single 1"),
    "wrong width": (np.eye(4)[:3], UsageError, r"shape \(n,\) or \(n, 3\), got \(3, 4\)"),
}


@pytest.mark.parametrize(("labels", "error", "message"), BAD_LABELS.values(), ids=BAD_LABELS.keys())
def test_bad_labels_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        Evaluation.from_probabilities(np.full((3, 3), 1 / 3), labels)


def test_names_must_fit():
    table = [[0.5, 0.5], [0.5, 0.5]]
    with pytest.raises(UsageError, match="Expected 2 class names, got 1"):
        Evaluation.from_probabilities(table, [0, 1], ["cat"])
    with pytest.raises(UsageError, match="Expected 2 image names, got 3"):
        Evaluation.from_probabilities(table, [0, 1], names=["a", "b", "c"])
    with pytest.raises(UsageError, match="Expected a list of class names, got the text 'ab'"):
        Evaluation.from_probabilities(table, [0, 1], "ab")
