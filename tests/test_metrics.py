"""The basic numbers against scikit-learn, statsmodels and SciPy."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from prediction_cases import case, evaluate, predictions, random_case
from sklearn import metrics as oracle
from statsmodels.stats.proportion import proportion_confint

from convscope.errors import UsageError
from convscope.evaluation import wilson_interval, worst_errors

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
