"""Comparing networks: exact against independent oracles, and honest about chance in training."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar

from convscope.errors import UsageError
from convscope.evaluation import Evaluation, compare, compare_seeds
from convscope.evaluation.comparison import (
    bootstrap_difference,
    give_verdict,
    mcnemar_exact,
    mcnemar_with_training,
)


def run(right, names=None, classes=2):
    """An evaluation that is right exactly where it is told to be."""
    right = np.asarray(right, dtype=bool)
    table = np.full((right.size, classes), 0.1 / (classes - 1))
    table[np.arange(right.size), np.where(right, 0, 1)] = 0.9
    return Evaluation.from_probabilities(table, np.zeros(right.size, int), names=names)


def pair(only_a, only_b, both=50, neither=10):
    """Two evaluations with the given four counts."""
    a = [True] * only_a + [False] * only_b + [True] * both + [False] * neither
    b = [False] * only_a + [True] * only_b + [True] * both + [False] * neither
    return run(a), run(b)


counts = pytest.mark.parametrize(
    ("only_a", "only_b"), [(0, 0), (0, 1), (5, 15), (15, 5), (30, 30), (0, 40), (400, 500)], ids=str
)


class TestMcNemar:
    @counts
    def test_equals_statsmodels(self, only_a, only_b):
        expected = mcnemar([[50, only_a], [only_b, 10]], exact=True).pvalue if only_a + only_b else 1.0
        assert mcnemar_exact(only_a, only_b) == pytest.approx(expected, rel=1e-9)

    @counts
    def test_the_allowance_is_a_widened_normal_test(self, only_a, only_b):
        """With few images it is McNemar's own normal approximation, without continuity correction."""
        total = only_a + only_b
        z = abs(only_a - only_b) / np.sqrt(total) if total else 0.0
        few = mcnemar_with_training(only_a, only_b, 0)
        assert few == pytest.approx(2 * scipy.stats.norm.sf(z), rel=1e-9)
        many = mcnemar_with_training(only_a, only_b, 12_000)  # three times the constant: twice the deviation
        assert many == pytest.approx(2 * scipy.stats.norm.sf(z / 2), rel=1e-9)

    @given(st.integers(0, 300), st.integers(0, 300), st.integers(600, 100_000))
    def test_symmetric_and_between_0_and_1(self, only_a, only_b, images):
        assert mcnemar_exact(only_a, only_b) == mcnemar_exact(only_b, only_a)
        assert 0 <= mcnemar_exact(only_a, only_b) <= 1
        assert mcnemar_with_training(only_a, only_b, images) == mcnemar_with_training(only_b, only_a, images)
        assert mcnemar_with_training(only_a, only_b, images) <= 1


class TestBootstrap:
    def test_equals_scipys_bootstrap_of_the_images(self):
        steps = np.array([1] * 30 + [-1] * 12 + [0] * 458)
        expected = scipy.stats.bootstrap(
            (steps,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
        # the ends are multiples of 1/500, and 10,000 resamples leave them about half of that uncertain
        np.testing.assert_allclose(bootstrap_difference(12, 30, 500), expected, atol=0.0021)

    @given(st.integers(0, 60), st.integers(0, 60), st.integers(120, 5000), st.integers(0, 2**31))
    def test_exchanging_the_networks_turns_the_interval_round(self, only_a, only_b, images, seed):
        low, high = bootstrap_difference(only_a, only_b, images, seed)
        turned = bootstrap_difference(only_b, only_a, images, seed)
        if only_a != only_b:
            assert turned == (-high, -low)
        assert low <= (only_b - only_a) / images <= high

    def test_the_seed_decides(self):
        assert bootstrap_difference(12, 30, 500, seed=3) == bootstrap_difference(12, 30, 500, seed=3)


class TestCompare:
    def test_everything_is_counted_on_the_same_images(self):
        a, b = pair(only_a=3, only_b=8)
        found = compare(a, b, "simple", "deep")
        assert (found.accuracy_a, found.accuracy_b) == (a.accuracy, b.accuracy)
        assert (found.interval_a, found.interval_b) == (a.accuracy_interval, b.accuracy_interval)
        assert found.only_a_right.tolist() == [0, 1, 2]
        assert found.only_b_right.tolist() == list(range(3, 11))
        assert found.difference == pytest.approx(b.accuracy - a.accuracy)
        assert found.agreement == pytest.approx(60 / 71)

    def test_both_wrong_in_different_ways(self):
        labels = [0, 0, 0]
        a = Evaluation.from_probabilities([[0.1, 0.8, 0.1]] * 3, labels)
        b = Evaluation.from_probabilities([[0.1, 0.1, 0.8], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1]], labels)
        found = compare(a, b)
        assert found.both_wrong.tolist() == [0]
        assert found.only_b_right.tolist() == [2]
        assert found.agreement == pytest.approx(1 / 3)

    @pytest.mark.parametrize(
        ("only_a", "only_b", "verdict", "words"),
        [
            (10, 90, "better", "deep is better than simple. On the same 10,000 test images deep is right in"),
            (90, 10, "worse", "deep is worse than simple."),
            (40, 50, "could be chance", "This could be chance: other test images of the same kind"),
            (60, 90, "could be chance", "Train several seeds of each to know."),
            (
                0,
                0,
                "could be chance",
                "simple and deep predict the same class for each of the 10,000 test images.",
            ),
            (
                0,
                5,
                "could be chance",
                "only deep is right in 5, only simple in 0 (McNemar's exact test: p = 0.062)",
            ),
        ],
        ids=str,
    )
    def test_the_verdict_is_said_in_words(self, only_a, only_b, verdict, words):
        both = 10_000 - only_a - only_b - 100
        found = compare(*pair(only_a, only_b, both=both, neither=100), "simple", "deep")
        assert found.verdict == verdict
        assert words in found.sentence()
        assert found.sentence() == str(found)

    @settings(max_examples=40)
    @given(st.integers(0, 40), st.integers(0, 40))
    def test_exchanging_the_networks_turns_everything_round(self, only_a, only_b):
        a, b = pair(only_a, only_b)
        one, other = compare(a, b), compare(b, a)
        assert other.difference == -one.difference
        assert other.p_value == one.p_value
        assert {one.verdict, other.verdict} in ({"better", "worse"}, {"could be chance"})
        np.testing.assert_array_equal(one.only_a_right, other.only_b_right)

    @settings(max_examples=40)
    @given(st.integers(0, 2**32 - 1))
    def test_the_order_of_images_does_not_matter(self, seed):
        rng = np.random.default_rng(seed)
        a, b = rng.random((2, 60)) < 0.8
        order = rng.permutation(60)
        one, other = compare(run(a), run(b)).to_json(), compare(run(a[order]), run(b[order])).to_json()
        lists = ("only_a_right", "only_b_right", "both_wrong")
        assert {key: len(value) if key in lists else value for key, value in one.items()} == {
            key: len(value) if key in lists else value for key, value in other.items()
        }

    def test_json_is_plain(self):
        content = json.loads(json.dumps(compare(*pair(3, 8)).to_json(), allow_nan=False))
        assert content["a"]["name"] == "A"
        assert content["verdict"] == "could be chance"

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (run([True] * 3), "got 2 and 3 images. Evaluate both networks on the same data"),
            (run([True] * 2, classes=3), "got different class names"),
            (run([True] * 2, names=["a", "c"]), "got 'b' and 'c' as image 1"),
            (Evaluation.from_probabilities([[0.9, 0.1]] * 2, [0, 1]), "got different labels for 1 images"),
        ],
        ids=["images", "classes", "names", "labels"],
    )
    def test_refuses_other_test_data(self, other, message):
        with pytest.raises(UsageError, match=f"Expected two evaluations of the same test images, {message}"):
            compare(run([True] * 2, names=["a", "b"]), other)


def test_refuses_other_fingerprints():
    one = run([True, False])
    with pytest.raises(UsageError, match="got data with the fingerprints 0123456789ab… and ffffffffffff…"):
        compare(one, one, fingerprints=("0123456789abcdef", "f" * 64))
    assert compare(one, one, fingerprints=("same", "same")).agreement == 1


def test_a_difference_of_nothing_is_never_real():
    assert give_verdict(0.0, 0.0) == "could be chance"


def simulate(rng, seeds, images, shift=0.0):
    """Runs of one network: images differ in difficulty, seeds in luck, and every pair of them too."""
    difficulty = np.random.default_rng(0).normal(2.0, 1.0, images)
    skill = difficulty + rng.normal(0, 0.15, (seeds, 1)) + rng.normal(0, 0.7, (seeds, images)) + shift
    return [run(row > 0) for row in skill]


def residual_mean_square(runs):
    right = np.stack([run.predictions == run.labels for run in runs]).astype(float)
    seeds, images = np.indices(right.shape).reshape(2, -1)
    table = pd.DataFrame({"right": right.ravel(), "seed": seeds, "image": images})
    variance = anova_lm(ols("right ~ C(seed) + C(image)", table).fit())
    return variance.loc["Residual", "mean_sq"]


class TestSeeds:
    def test_the_errors_from_seeds_are_welchs(self):
        rng = np.random.default_rng(0)
        a, b = simulate(rng, 4, 800), simulate(rng, 6, 800, shift=0.2)
        found = compare_seeds(a, b)
        welch = scipy.stats.ttest_ind(found.accuracies_b, found.accuracies_a, equal_var=False)
        assert found.error_from_seeds == pytest.approx(found.difference / welch.statistic, rel=1e-9)
        assert found.spread_a == pytest.approx(np.std(found.accuracies_a, ddof=1))

    def test_the_errors_from_images_are_those_of_the_paired_mean(self):
        rng = np.random.default_rng(1)
        a, b = simulate(rng, 3, 500), simulate(rng, 2, 500)
        steps = np.mean([r.predictions == 0 for r in b], axis=0) - np.mean(
            [r.predictions == 0 for r in a], axis=0
        )
        assert compare_seeds(a, b).error_from_images == pytest.approx(scipy.stats.sem(steps), rel=1e-9)

    def test_what_seeds_and_images_share_is_counted_once(self):
        """The residual mean squares come from statsmodels' two-way analysis of variance."""
        rng = np.random.default_rng(2)
        a, b = simulate(rng, 3, 60), simulate(rng, 4, 60)
        found = compare_seeds(a, b)
        shared = residual_mean_square(a) / (3 * 60) + residual_mean_square(b) / (4 * 60)
        total = found.error_from_seeds**2 + found.error_from_images**2 - shared
        assert total > max(found.error_from_seeds, found.error_from_images) ** 2  # or the case shows nothing
        parts = found.spread_a**2 / 3, found.spread_b**2 / 4
        freedom = total**2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)
        reach = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(total)
        expected = found.difference - reach, found.difference + reach
        np.testing.assert_allclose(found.difference_interval, expected, rtol=1e-9)
        p_value = 2 * scipy.stats.t.sf(abs(found.difference) / np.sqrt(total), freedom)
        assert found.p_value == pytest.approx(p_value, rel=1e-9)

    @pytest.mark.parametrize("seeds", [(2, 2), (3, 5), (1, 4)], ids=str)
    def test_the_same_network_is_told_apart_in_about_5_of_100_cases(self, seeds):
        rng = np.random.default_rng(2)
        wrong = sum(
            compare_seeds(*(simulate(rng, count, 300) for count in seeds)).verdict != "could be chance"
            for _ in range(200)
        )
        assert wrong <= 20  # of 10 expected, a deviation of 3.2 of the binomial's

    def test_a_real_difference_is_found(self):
        rng = np.random.default_rng(3)
        found = compare_seeds(simulate(rng, 5, 2000), simulate(rng, 5, 2000, shift=0.8), "simple", "deep")
        assert found.verdict == "better"
        assert found.sentence().startswith(
            "deep is better than simple. On the same 2,000 test images deep is right in"
        )
        assert "(5 seeds, ±" in found.sentence()
        assert found.difference_interval.low > 0

    def test_exchanging_the_networks_turns_everything_round(self):
        rng = np.random.default_rng(4)
        a, b = simulate(rng, 3, 400), simulate(rng, 4, 400, shift=1.2)
        one, other = compare_seeds(a, b), compare_seeds(b, a)
        assert other.difference == pytest.approx(-one.difference)
        assert other.p_value == pytest.approx(one.p_value)
        assert {one.verdict, other.verdict} == {"better", "worse"}

    def test_one_seed_on_one_side_takes_the_others_spread(self):
        rng = np.random.default_rng(5)
        found = compare_seeds(simulate(rng, 1, 400), simulate(rng, 4, 400))
        assert np.isnan(found.spread_a)
        assert found.error_from_seeds == pytest.approx(found.spread_b * np.sqrt(1 + 1 / 4))
        assert "(one seed)" in found.sentence()
        assert json.loads(json.dumps(found.to_json(), allow_nan=False))["a"]["spread"] is None

    def test_seeds_that_agree_in_everything(self):
        same = run([True] * 8 + [False] * 2)
        found = compare_seeds([same, same], [same, same])
        assert (found.p_value, found.verdict) == (1.0, "could be chance")
        better = run([True] * 10)
        assert compare_seeds([same, same], [better, better]).difference == pytest.approx(0.2)

    @pytest.mark.parametrize("sides", [(0, 3), (1, 1), (2, 0)], ids=str)
    def test_refuses_too_few_runs(self, sides):
        one, other = ([run([True, False])] * count for count in sides)
        with pytest.raises(
            UsageError, match=r"Expected a run on each side and at least two on one, got \d and \d"
        ):
            compare_seeds(one, other)

    def test_refuses_other_test_data(self):
        with pytest.raises(UsageError, match="got 2 and 3 images"):
            compare_seeds([run([True] * 2)] * 2, [run([True] * 3)])
