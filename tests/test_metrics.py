"""Inputs are checked; numbers, curves, areas and coverage against scikit-learn, statsmodels and SciPy."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from prediction_cases import case, evaluate, predictions, random_case
from sklearn import metrics as oracle
from statsmodels.stats.proportion import proportion_confint

from convscope.errors import DataError, UsageError
from convscope.evaluation import (
    Evaluation,
    as_labels,
    as_probabilities,
    wilson_interval,
    worst_errors,
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


# float64 sums in another order
TIGHT = {"rtol": 1e-11, "atol": 1e-12}


class TestWilsonInterval:
    @pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999], ids=str)
    @pytest.mark.parametrize(
        ("successes", "trials"),
        [(0, 1), (1, 1), (0, 10_000), (10_000, 10_000), (9_908, 10_000), (3, 7)],
        ids=str,
    )
    def test_equals_statsmodels_and_scipy(self, successes, trials, confidence):
        own = wilson_interval(successes, trials, confidence)
        np.testing.assert_allclose(
            own, proportion_confint(successes, trials, 1 - confidence, method="wilson"), rtol=1e-9, atol=1e-12
        )
        exact = scipy.stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
        np.testing.assert_allclose(own, (exact.low, exact.high), rtol=1e-9, atol=1e-12)

    @given(st.integers(0, 500), st.integers(0, 500))
    def test_holds_the_share_and_is_symmetric(self, successes, failures):
        own = wilson_interval(successes, successes + failures)
        mirrored = wilson_interval(failures, successes + failures)
        assert 0 <= own.low <= own.high <= 1
        assert own.low == pytest.approx(1 - mirrored.high, abs=1e-12)
        if successes + failures:
            assert successes / (successes + failures) in own

    def test_without_trials_nothing_is_known(self):
        assert wilson_interval(0, 0) == (0, 1)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((5, 4), "Expected from 0 to 4 successes, got 5"),
            ((-1, 4), "Expected from 0 to 4 successes, got -1"),
            ((1, 4, 1.0), r"Expected a confidence between 0 and 1, got 1\.0"),
        ],
        ids=["too many", "negative", "certain"],
    )
    def test_refuses(self, arguments, message):
        with pytest.raises(UsageError, match=message):
            wilson_interval(*arguments)


class TestSummaries:
    @case
    def test_brier_score_and_log_loss_equal_scikit_learn(self, probabilities, labels):
        result = evaluate(probabilities, labels)
        truth = np.eye(probabilities.shape[1])[labels]
        np.testing.assert_allclose(
            result.brier_score, ((probabilities - truth) ** 2).sum(axis=1).mean(), **TIGHT
        )
        classes = range(probabilities.shape[1])
        np.testing.assert_allclose(
            result.log_loss, oracle.log_loss(labels, probabilities, labels=classes), rtol=1e-9, atol=1e-12
        )

    @case
    @pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:.*single label")
    def test_balanced_accuracy_and_kappa_equal_scikit_learn(self, probabilities, labels):
        result = evaluate(probabilities, labels)
        predicted = probabilities.argmax(axis=1)
        np.testing.assert_allclose(
            result.balanced_accuracy, oracle.balanced_accuracy_score(labels, predicted), **TIGHT
        )
        if np.unique(np.append(labels, predicted)).size > 1:
            np.testing.assert_allclose(result.kappa, oracle.cohen_kappa_score(labels, predicted), **TIGHT)
        else:
            assert np.isnan(result.kappa)

    def test_top_k_equals_scikit_learn(self):
        probabilities, labels = random_case(400, 8, skill=1.0)
        top = evaluate(probabilities, labels).top_k
        expected = {
            k: oracle.top_k_accuracy_score(labels, probabilities, k=k, labels=range(8)) for k in (1, 3, 5)
        }
        assert top == pytest.approx(expected, rel=1e-12)

    @case
    def test_top_1_is_the_accuracy_and_more_is_never_worse(self, probabilities, labels):
        result = evaluate(probabilities, labels)
        shares = list(result.top_k.values())
        assert shares[0] == result.accuracy
        assert shares == sorted(shares)
        assert set(result.top_k) <= set(range(1, probabilities.shape[1]))

    @given(predictions())
    def test_bounds(self, drawn):
        table, labels, _ = drawn
        result = evaluate(table, labels)
        assert 0 <= result.balanced_accuracy <= 1
        assert 0 <= result.brier_score <= 2 + 1e-9
        assert np.isnan(result.kappa) or -1 <= result.kappa <= 1
        assert result.accuracy in result.accuracy_interval
        assert result.log_loss >= result.loss - 1e-6


def test_worst_errors_are_sorted_by_their_gap():
    probabilities, labels = random_case(500, 6)
    found = worst_errors(probabilities, labels, 8)
    predicted = probabilities.argmax(axis=1)
    rows = np.arange(500)
    gaps = np.where(predicted != labels, probabilities.max(axis=1) - probabilities[rows, labels], -1)
    assert found.tolist() == np.argsort(-gaps, kind="stable")[:8].tolist()


# float64 sums in another order


class TestRanking:
    @case
    def test_areas_equal_the_probability_of_right_order(self, probabilities, labels):
        """Mann and Whitney's statistic, counted by scipy from ranks; no trapezoids."""
        areas = evaluate(probabilities, labels).areas
        for index in range(0, probabilities.shape[1], max(1, probabilities.shape[1] // 20)):
            own, other = probabilities[labels == index, index], probabilities[labels != index, index]
            if own.size and other.size:
                statistic = scipy.stats.mannwhitneyu(own, other, method="asymptotic").statistic
                np.testing.assert_allclose(areas.roc[index], statistic / (own.size * other.size), **TIGHT)
            else:
                assert np.isnan(areas.roc[index])

    @case
    @pytest.mark.filterwarnings("ignore:No positive class found")
    def test_average_precision_equals_scikit_learn(self, probabilities, labels):
        areas = evaluate(probabilities, labels).areas
        for index in range(0, probabilities.shape[1], max(1, probabilities.shape[1] // 20)):
            positive = labels == index
            expected = (
                oracle.average_precision_score(positive, probabilities[:, index])
                if positive.any()
                else np.nan
            )
            np.testing.assert_allclose(areas.average_precision[index], expected, **TIGHT)

    @pytest.mark.parametrize("decimals", [1, 12], ids=["ties", "distinct"])
    def test_curves_equal_scikit_learn(self, decimals):
        probabilities, labels = random_case(300, 4, skill=1.0)
        table = np.round(probabilities, decimals)
        table[:, 0] += 1 - table.sum(axis=1)
        table = np.clip(table, 0, 1)
        curve = evaluate(table / table.sum(axis=1, keepdims=True), labels).curve(2)
        scores = (table / table.sum(axis=1, keepdims=True))[:, 2]
        false_rate, recall, thresholds = oracle.roc_curve(labels == 2, scores, drop_intermediate=False)
        np.testing.assert_allclose(curve.false_positive_rate, false_rate, **TIGHT)
        np.testing.assert_allclose(curve.recall, recall, **TIGHT)
        np.testing.assert_array_equal(curve.thresholds, thresholds)
        precision, _, _ = oracle.precision_recall_curve(labels == 2, scores)
        np.testing.assert_allclose(curve.precision, precision[::-1], **TIGHT)

    def test_a_class_without_images_has_no_curve(self):
        curve = evaluate(np.full((4, 3), 1 / 3), [0, 1, 0, 1]).curve(2)
        assert np.isnan(curve.recall).all()
        assert np.isfinite(curve.false_positive_rate).all()

    @pytest.mark.parametrize("method", ["curve", "hardest", "easiest"])
    @pytest.mark.parametrize("index", [-1, 2], ids=str)
    def test_refuses_a_class_that_does_not_exist(self, method, index):
        with pytest.raises(UsageError, match=f"Expected a class from 0 to 1, got {index}"):
            getattr(evaluate([[0.5, 0.5]], [0]), method)(index)

    @given(predictions())
    def test_order_does_not_matter_and_two_classes_are_symmetric(self, drawn):
        table, labels, rng = drawn
        order = rng.permutation(len(labels))
        first, second = evaluate(table, labels).areas, evaluate(table[order], labels[order]).areas
        np.testing.assert_allclose(first, second, **TIGHT)
        share = np.round(table[:, 0], 6)  # 1 − p has the ties that p has
        pair = np.stack([share, 1 - share], axis=1)
        two = evaluate(pair, (labels > 0).astype(int)).areas.roc
        np.testing.assert_allclose(two[0], two[1], rtol=1e-9)


class TestCoverage:
    @case
    def test_each_point_is_the_accuracy_of_what_reaches_its_threshold(self, probabilities, labels):
        curve = evaluate(probabilities, labels).coverage
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        for place in np.unique(np.linspace(0, len(curve.thresholds) - 1, 20).astype(int)):
            answered = confidence >= curve.thresholds[place]
            assert curve.coverage[place] == pytest.approx(answered.mean(), rel=1e-12)
            assert curve.accuracy[place] == pytest.approx(right[answered].mean(), rel=1e-12)

    @case
    def test_answering_everything_gives_the_accuracy(self, probabilities, labels):
        result = evaluate(probabilities, labels)
        assert result.coverage.coverage[-1] == 1
        assert result.coverage.accuracy[-1] == pytest.approx(result.accuracy, rel=1e-12)
        assert (np.diff(result.coverage.thresholds) < 0).all()

    def test_operating_points(self):
        table = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
        curve = evaluate(table, [0, 0, 1, 0]).coverage
        assert curve.for_accuracy(1.0) == (0.8, 0.5, 1.0)
        assert curve.for_accuracy(0.75) == (0.6, 1.0, 0.75)
        assert curve.for_coverage(0.5) == (0.8, 0.5, 1.0)
        assert curve.for_coverage(0.51).coverage == 0.75
        assert curve.for_coverage(0) == (0.9, 0.25, 1.0)
        assert curve.for_coverage(1).coverage == 1

    def test_an_accuracy_out_of_reach(self):
        assert evaluate([[0.9, 0.1]], [1]).coverage.for_accuracy(0.5) is None

    def test_refuses_what_is_no_share(self):
        curve = evaluate([[0.9, 0.1]], [1]).coverage
        with pytest.raises(UsageError, match=r"Expected an accuracy from 0 to 1, got 99"):
            curve.for_accuracy(99)
        with pytest.raises(UsageError, match=r"Expected a share from 0 to 1, got 1\.5"):
            curve.for_coverage(1.5)
