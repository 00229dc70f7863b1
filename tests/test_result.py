"""Evaluation: scores, report and JSON against scikit-learn and Keras, on degenerate predictions too."""

import json
import re
import time

import numpy as np
import pytest
from hypothesis import assume, given
from prediction_cases import case, evaluate, predictions, random_case
from sklearn import metrics as oracle


@case
def test_counts_and_scores_equal_scikit_learn(probabilities, labels):
    result = evaluate(probabilities, labels)
    predictions = probabilities.argmax(axis=1)
    classes = range(probabilities.shape[1])
    expected = oracle.precision_recall_fscore_support(labels, predictions, labels=classes, zero_division=0.0)
    assert result.accuracy == oracle.accuracy_score(labels, predictions)
    np.testing.assert_array_equal(
        result.confusion, oracle.confusion_matrix(labels, predictions, labels=classes)
    )
    for own, true in zip((result.precision, result.recall, result.f1, result.support), expected, strict=True):
        np.testing.assert_allclose(own, true, rtol=1e-12)


@case
def test_report_is_scikit_learns(probabilities, labels):
    names = [f"class number {index}" for index in range(probabilities.shape[1])]
    expected = oracle.classification_report(
        labels,
        probabilities.argmax(axis=1),
        labels=range(len(names)),
        target_names=names,
        digits=4,
        zero_division=0.0,
    )
    expected = re.sub(r"\.0$", "  ", expected, flags=re.MULTILINE)  # without hits its counts are floats
    own = evaluate(probabilities, labels, names).report()
    assert own.split() == expected.split()
    assert own.splitlines()[0] == expected.splitlines()[0]


@case
def test_loss_is_keras_loss(probabilities, labels):
    import keras

    classes = probabilities.shape[1]
    loss = keras.losses.CategoricalCrossentropy()(np.eye(classes)[labels], probabilities)
    own = evaluate(probabilities, labels).loss
    np.testing.assert_allclose(own, float(loss), rtol=2e-5, atol=3e-8)  # Keras in float32


def test_loss_of_impossible_predictions_is_clipped_at_epsilon():
    result = evaluate([[1.0, 0.0]], [1])
    np.testing.assert_allclose(result.loss, -np.log(1e-7), rtol=1e-12)


@case
def test_json_holds_only_plain_finite_values(probabilities, labels):
    text = json.dumps(evaluate(probabilities, labels).to_json(), allow_nan=False)
    assert json.loads(text)["images"] == len(labels)


def test_one_hot_and_integer_labels_give_the_same_evaluation():
    probabilities, labels = random_case(100, 5)
    integer = evaluate(probabilities, labels).to_json()
    assert evaluate(probabilities, np.eye(5)[labels]).to_json() == integer


def test_an_evaluation_cannot_be_changed():
    probabilities, labels = random_case(10, 3)
    result = evaluate(probabilities, labels)
    with pytest.raises(ValueError, match="read-only"):
        result.probabilities[0, 0] = 1
    probabilities[:] = 0  # the caller's own array stays the caller's
    assert result.probabilities.sum() == pytest.approx(10)


@pytest.mark.parametrize(("wrong", "expected"), [(0, 0), (1, 1), (4, 4), (9, 6)], ids=str)
def test_at_most_six_worst_errors(wrong, expected):
    labels = np.zeros(20, dtype=int)
    predicted = np.where(np.arange(20) < wrong, 1, 0)
    assert len(evaluate(np.eye(2)[predicted], labels).worst_errors()) == expected


def test_names_reach_the_worst_errors():
    result = evaluate([[0.9, 0.1]], [1], ["cat", "dog"], ["photos/7.jpg"])
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
    result = evaluate([[0.9, 0.1], [0.6, 0.4]], [0, 1])
    assert str(result) == f"{result.summary()}\n\n{result.report()}"
    assert result.summary().startswith("accuracy 50.00% (1 of 2 images, 95 % interval 9.45% … 90.55%), loss")
    assert repr(result) == f"<Evaluation: {result.summary()}>"


@given(predictions())
def test_the_order_of_images_does_not_matter(drawn):
    table, labels, rng = drawn
    order = rng.permutation(len(labels))
    first = evaluate(table, labels)
    second = evaluate(table[order], labels[order])
    assert second.accuracy == first.accuracy
    assert second.loss == pytest.approx(first.loss, rel=1e-12)
    np.testing.assert_array_equal(second.confusion, first.confusion)


@given(predictions())
def test_bounds(drawn):
    table, labels, _ = drawn
    result = evaluate(table, labels)
    scores = np.concatenate([result.precision, result.recall, result.f1, [result.accuracy]])
    assert ((scores >= 0) & (scores <= 1)).all()
    assert 0 <= result.loss <= -np.log(1e-7) + 1e-9
    assert result.confusion.sum() == result.images == result.support.sum()
    assert np.trace(result.confusion) == result.images - result.errors


@given(predictions())
def test_renaming_the_classes_moves_their_scores_and_nothing_else(drawn):
    table, labels, rng = drawn
    order = rng.permutation(table.shape[1])
    first = evaluate(table, labels)
    top_two = np.sort(table, axis=1)[:, -2:]
    assume((top_two[:, 0] < top_two[:, 1]).all())  # of equal probabilities the first class is predicted
    second = evaluate(table[:, order], np.argsort(order)[labels])
    assert second.accuracy == first.accuracy
    np.testing.assert_array_equal(second.confusion, first.confusion[np.ix_(order, order)])


def test_ten_thousand_images_are_evaluated_quickly():
    probabilities, labels = random_case(10_000, 10)
    start = time.process_time()  # of this process: the tests may share the machine
    evaluate(probabilities, labels).to_json()
    assert time.process_time() - start < 2


@pytest.mark.slow
def test_a_thousand_classes_are_evaluated_quickly_too():
    probabilities, labels = random_case(10_000, 1000, skill=4.0)
    start = time.process_time()
    evaluate(probabilities, labels).to_json()
    assert time.process_time() - start < 10


class TestExamples:
    @case
    def test_confused_pairs_are_the_largest_cells_off_the_diagonal(self, probabilities, labels):
        result = evaluate(probabilities, labels)
        pairs = result.confused_pairs(5)
        off = result.confusion.copy()
        np.fill_diagonal(off, 0)
        largest = np.sort(off, axis=None)[::-1][:5]
        assert [pair.images for pair in pairs] == [count for count in largest if count]
        assert all(off[pair.true, pair.predicted] == pair.images for pair in pairs)
        assert all(pair.share == pytest.approx(pair.images / result.support[pair.true]) for pair in pairs)

    def test_hardest_and_easiest_images_of_a_class(self):
        probabilities, labels = random_case(200, 3)
        result = evaluate(probabilities, labels)
        own = np.flatnonzero(labels == 1)
        by_probability = own[np.argsort(probabilities[own, 1], kind="stable")]
        assert result.hardest(1, 4).tolist() == by_probability[:4].tolist()
        assert result.easiest(1, 4).tolist() == by_probability[::-1][:4].tolist()
        assert sorted(result.hardest(1, 999)) == own.tolist()

    def test_a_class_without_images_has_none(self):
        assert evaluate([[0.5, 0.5]], [0]).hardest(1).size == 0


@case
def test_json_says_none_for_what_does_not_exist(probabilities, labels):
    content = json.loads(json.dumps(evaluate(probabilities, labels).to_json(), allow_nan=False))
    assert len(content["calibration"]["edges"]) == 16
    assert content["coverage"]["coverage"][-1] == 1
    assert len(content["coverage"]["accuracy"]) <= 101
    empty = [row for row in content["per_class"] if row["support"] == 0]
    assert all(row["roc_area"] is None and row["average_precision"] is None for row in empty)
