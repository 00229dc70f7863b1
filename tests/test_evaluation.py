"""Evaluation: the basic numbers against scikit-learn and Keras, on random and degenerate predictions."""

import json
import re
import time

import numpy as np
import pytest
from hypothesis import assume, given
from prediction_cases import case, predictions, random_case
from sklearn import metrics as sklearn_metrics

from convscope.errors import DataError, UsageError
from convscope.evaluation import Evaluation, as_labels, as_probabilities, worst_errors


@case
def test_counts_and_scores_equal_scikit_learn(probabilities, labels):
    result = Evaluation.from_probabilities(probabilities, labels)
    predictions = probabilities.argmax(axis=1)
    classes = range(probabilities.shape[1])
    expected = sklearn_metrics.precision_recall_fscore_support(
        labels, predictions, labels=classes, zero_division=0.0
    )
    assert result.accuracy == sklearn_metrics.accuracy_score(labels, predictions)
    np.testing.assert_array_equal(
        result.confusion, sklearn_metrics.confusion_matrix(labels, predictions, labels=classes)
    )
    for own, oracle in zip(
        (result.precision, result.recall, result.f1, result.support), expected, strict=True
    ):
        np.testing.assert_allclose(own, oracle, rtol=1e-12)


@case
def test_report_is_scikit_learns(probabilities, labels):
    names = [f"class number {index}" for index in range(probabilities.shape[1])]
    expected = sklearn_metrics.classification_report(
        labels,
        probabilities.argmax(axis=1),
        labels=range(len(names)),
        target_names=names,
        digits=4,
        zero_division=0.0,
    )
    expected = re.sub(r"\.0$", "  ", expected, flags=re.MULTILINE)  # without hits its counts are floats
    own = Evaluation.from_probabilities(probabilities, labels, names).report()
    assert own.split() == expected.split()
    assert own.splitlines()[0] == expected.splitlines()[0]


@case
def test_loss_is_keras_loss(probabilities, labels):
    import keras

    classes = probabilities.shape[1]
    loss = keras.losses.CategoricalCrossentropy()(np.eye(classes)[labels], probabilities)
    own = Evaluation.from_probabilities(probabilities, labels).loss
    np.testing.assert_allclose(own, float(loss), rtol=2e-5, atol=3e-8)  # Keras in float32


def test_loss_of_impossible_predictions_is_clipped_at_epsilon():
    result = Evaluation.from_probabilities([[1.0, 0.0]], [1])
    np.testing.assert_allclose(result.loss, -np.log(1e-7), rtol=1e-12)


@case
def test_json_holds_only_plain_finite_values(probabilities, labels):
    text = json.dumps(Evaluation.from_probabilities(probabilities, labels).to_json(), allow_nan=False)
    assert json.loads(text)["images"] == len(labels)


@pytest.mark.parametrize("column", [False, True], ids=["flat", "column"])
@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.float32], ids=str)
def test_integer_labels_of_every_type_are_accepted(column, kind):
    labels = np.array([0, 2, 1], dtype=kind)
    found = as_labels(labels[:, None] if column else labels, classes=3)
    assert found.dtype == np.int64
    assert found.tolist() == [0, 2, 1]


def test_one_hot_and_integer_labels_give_the_same_evaluation():
    probabilities, labels = random_case(100, 5)
    integer = Evaluation.from_probabilities(probabilities, labels).to_json()
    assert Evaluation.from_probabilities(probabilities, np.eye(5)[labels]).to_json() == integer


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


def test_an_evaluation_cannot_be_changed():
    probabilities, labels = random_case(10, 3)
    result = Evaluation.from_probabilities(probabilities, labels)
    with pytest.raises(ValueError, match="read-only"):
        result.probabilities[0, 0] = 1
    probabilities[:] = 0  # the caller's own array stays the caller's
    assert result.probabilities.sum() == pytest.approx(10)


def test_worst_errors_are_sorted_by_their_gap():
    probabilities, labels = random_case(500, 6)
    found = worst_errors(probabilities, labels, 8)
    predicted = probabilities.argmax(axis=1)
    rows = np.arange(500)
    gaps = np.where(predicted != labels, probabilities.max(axis=1) - probabilities[rows, labels], -1)
    assert found.tolist() == np.argsort(-gaps, kind="stable")[:8].tolist()


@pytest.mark.parametrize(("wrong", "expected"), [(0, 0), (1, 1), (4, 4), (9, 6)], ids=str)
def test_at_most_six_worst_errors(wrong, expected):
    labels = np.zeros(20, dtype=int)
    predicted = np.where(np.arange(20) < wrong, 1, 0)
    assert len(Evaluation.from_probabilities(np.eye(2)[predicted], labels).worst_errors()) == expected


def test_names_reach_the_worst_errors():
    result = Evaluation.from_probabilities([[0.9, 0.1]], [1], ["cat", "dog"], ["photos/7.jpg"])
    assert result.to_json()["worst_errors"] == [
        {
            "index": 0,
            "name": "photos/7.jpg",
            "true": "dog",
            "predicted": "cat",
            "probability_true": 0.1,
            "probability_predicted": 0.9,
        }
    ]


def test_it_prints_as_summary_and_report():
    result = Evaluation.from_probabilities([[0.9, 0.1], [0.6, 0.4]], [0, 1])
    assert str(result) == f"{result.summary()}\n\n{result.report()}"
    assert result.summary().startswith("accuracy 50.00% (1 of 2 images, 95 % interval 9.45% … 90.55%), loss")
    assert repr(result) == f"<Evaluation: {result.summary()}>"


@given(predictions())
def test_the_order_of_images_does_not_matter(drawn):
    table, labels, rng = drawn
    order = rng.permutation(len(labels))
    first = Evaluation.from_probabilities(table, labels)
    second = Evaluation.from_probabilities(table[order], labels[order])
    assert second.accuracy == first.accuracy
    assert second.loss == pytest.approx(first.loss, rel=1e-12)
    np.testing.assert_array_equal(second.confusion, first.confusion)


@given(predictions())
def test_bounds(drawn):
    table, labels, _ = drawn
    result = Evaluation.from_probabilities(table, labels)
    scores = np.concatenate([result.precision, result.recall, result.f1, [result.accuracy]])
    assert ((scores >= 0) & (scores <= 1)).all()
    assert 0 <= result.loss <= -np.log(1e-7) + 1e-9
    assert result.confusion.sum() == result.images == result.support.sum()
    assert np.trace(result.confusion) == result.images - result.errors


@given(predictions())
def test_renaming_the_classes_moves_their_scores_and_nothing_else(drawn):
    table, labels, rng = drawn
    order = rng.permutation(table.shape[1])
    first = Evaluation.from_probabilities(table, labels)
    top_two = np.sort(table, axis=1)[:, -2:]
    assume((top_two[:, 0] < top_two[:, 1]).all())  # of equal probabilities the first class is predicted
    second = Evaluation.from_probabilities(table[:, order], np.argsort(order)[labels])
    assert second.accuracy == first.accuracy
    np.testing.assert_array_equal(second.confusion, first.confusion[np.ix_(order, order)])


def test_ten_thousand_images_are_evaluated_quickly():
    probabilities, labels = random_case(10_000, 10)
    start = time.process_time()  # of this process: the tests may share the machine
    Evaluation.from_probabilities(probabilities, labels).to_json()
    assert time.process_time() - start < 2


@pytest.mark.slow
def test_a_thousand_classes_are_evaluated_quickly_too():
    probabilities, labels = random_case(10_000, 1000, skill=4.0)
    start = time.process_time()
    Evaluation.from_probabilities(probabilities, labels).to_json()
    assert time.process_time() - start < 10
