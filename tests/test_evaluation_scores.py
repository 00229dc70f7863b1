"""Intervals, summaries, ranking, calibration and coverage against independent oracles."""

import json

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from prediction_cases import case, predictions, random_case
from sklearn import metrics as oracle
from statsmodels.stats.proportion import proportion_confint

from convscope.errors import UsageError
from convscope.evaluation import Evaluation, apply_temperature, fit_temperature, wilson_interval
from convscope.evaluation.calibration import reliability

# float64 sums in another order
TIGHT = {"rtol": 1e-11, "atol": 1e-12}


def evaluate(probabilities, labels):
    return Evaluation.from_probabilities(probabilities, labels)


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


def binned_by_hand(probabilities, labels, bins):
    """The definition, image by image and bin by bin."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = largest = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
            largest = max(largest, gap)
    return expected, largest


class TestCalibration:
    @case
    @pytest.mark.parametrize("bins", [1, 7, 15], ids=str)
    def test_reliability_equals_its_definition(self, probabilities, labels, bins):
        found = reliability(probabilities, labels, bins)
        expected, largest = binned_by_hand(probabilities, labels, bins)
        np.testing.assert_allclose(found.expected_error, expected, **TIGHT)
        np.testing.assert_allclose(found.largest_error, largest, **TIGHT)
        assert found.counts.sum() == len(labels)

    def test_a_bin_holds_its_upper_edge(self):
        found = reliability(np.array([[0.6, 0.4], [0.8, 0.2], [1.0, 0.0]]), np.array([0, 0, 0]), bins=5)
        assert found.counts.tolist() == [0, 0, 1, 1, 1]
        assert np.isnan(found.confidence[0])

    def test_no_bins_are_refused(self):
        with pytest.raises(UsageError, match="Expected at least one bin, got 0"):
            reliability(np.array([[1.0, 0.0]]), np.array([0]), 0)

    def test_temperature_is_that_of_the_logits(self):
        rng = np.random.default_rng(1)
        logits = rng.normal(size=(50, 5)) * 6
        scaled = apply_temperature(scipy.special.softmax(logits, axis=1), 2.5)
        np.testing.assert_allclose(scaled, scipy.special.softmax(logits / 2.5, axis=1), rtol=1e-9)

    @pytest.mark.parametrize("true", [0.4, 1.0, 3.0], ids=str)
    def test_the_temperature_that_made_the_data_is_found(self, true):
        rng = np.random.default_rng(2)
        calibrated = scipy.special.softmax(rng.normal(size=(20_000, 5)) * 2, axis=1)
        labels = (calibrated.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
        distorted = apply_temperature(calibrated, 1 / true)
        assert fit_temperature(distorted, labels) == pytest.approx(true, rel=0.03)

    def test_the_temperature_minimises_the_loss(self):
        probabilities, labels = random_case(500, 6, skill=0.5)
        found = fit_temperature(probabilities, labels)
        grid = np.geomspace(0.05, 20, 401)
        losses = [evaluate(apply_temperature(probabilities, t), labels).log_loss for t in grid]
        assert found == pytest.approx(grid[np.argmin(losses)], rel=1.6e-2)  # one step of the grid

    def test_without_errors_the_lowest_temperature_is_kept(self):
        assert fit_temperature(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])) == pytest.approx(0.05)

    def test_with_errors_only_the_highest_is_kept(self):
        assert fit_temperature(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([1, 0])) == pytest.approx(20)

    def test_probabilities_of_zero_stay_finite(self):
        table = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        assert np.isfinite(fit_temperature(table, np.array([0, 1, 1])))
        assert np.isfinite(apply_temperature(table, 3.0)).all()

    @pytest.mark.parametrize("temperature", [0, -1, float("nan")], ids=str)
    def test_impossible_temperatures_are_refused(self, temperature):
        with pytest.raises(UsageError, match="Expected a temperature above 0, got"):
            apply_temperature(np.array([[0.5, 0.5]]), temperature)

    @given(predictions(), st.floats(0.1, 10))
    def test_temperature_keeps_predictions_and_one_changes_nothing(self, drawn, temperature):
        table, _, _ = drawn
        scaled = apply_temperature(table, temperature)
        np.testing.assert_allclose(scaled.sum(axis=1), 1, rtol=1e-9)
        best = np.take_along_axis(scaled, table.argmax(axis=1)[:, None], axis=1)[:, 0]
        assert (best >= scaled.max(axis=1) - 1e-12).all()
        np.testing.assert_allclose(apply_temperature(table, 1.0), table, atol=1e-9)

    @given(predictions())
    def test_bounds(self, drawn):
        table, labels, _ = drawn
        found = evaluate(table, labels).reliability
        assert 0 <= found.expected_error <= found.largest_error + 1e-12 <= 1 + 1e-9


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
