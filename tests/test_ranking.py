"""Curves, areas and coverage against scikit-learn, SciPy and their definitions."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from prediction_cases import case, evaluate, predictions, random_case
from sklearn import metrics as oracle

from convscope.errors import UsageError

# float64 sums in another order
TIGHT = {"rtol": 1e-11, "atol": 1e-12}


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
