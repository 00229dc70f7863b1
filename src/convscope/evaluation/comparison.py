"""Two networks on the same test images: say whether one is better or it could be chance.

Two kinds of chance are at work. The test images are a sample: McNemar's test and the bootstrap know that
one. And training is a lottery: another seed gives other weights, which one run on each side cannot show
(T. G. Dietterich, "Approximate statistical tests for comparing supervised classification learning
algorithms", 1998, section 3.1; X. Bouthillier et al., "Accounting for variance in machine learning
benchmarks", 2021). McNemar's test alone tells two seeds of the same network apart in far more than 5 of
100 cases.

So a difference has to pass two tests at the 5 % level. One is McNemar's exact test. The other widens its
variance, b + c, by the factor 1 + n/m: over n test images the training lottery weighs n/m times as much
as the lottery of the test images. m is `TRAINING_CHANCE`, set from runs that differ in nothing but their
seed (benchmarks/seed_pairs.py): on MNIST's 10,000 test images McNemar's z had a root mean square of 1.2 to
1.8 for such pairs, where 1 would be chance in the test images alone, and the factor is 1.87². With several
seeds on each side nothing has to be assumed: seeds and images are then crossed random effects, and the
seeds' spread is told apart from the difference (`compare_seeds`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import UsageError, expected_got
from convscope.evaluation.metrics import FloatArray, IntArray, Interval
from convscope.evaluation.result import Evaluation

LEVEL = 0.05
TRAINING_CHANCE = 4000
RESAMPLES = 10_000


@dataclass(frozen=True, eq=False)
class Comparison:
    """Network B against network A, image by image.

    ``difference`` is the accuracy of B minus that of A, its interval the 95 % percentile bootstrap over the
    test images; ``agreement`` the share of images for which both predict the same class. The indices of the
    images on which they differ are in ``only_a_right``, ``only_b_right`` and ``both_wrong`` (each in its own
    way). ``p_value`` is McNemar's exact one, for chance in the test images alone; ``p_value_with_training``
    allows for chance in training. The verdict on B is ``"better"``, ``"worse"`` or ``"could be chance"``.
    """

    label_a: str
    label_b: str
    images: int
    accuracy_a: float
    accuracy_b: float
    interval_a: Interval
    interval_b: Interval
    difference: float
    difference_interval: Interval
    agreement: float
    only_a_right: IntArray
    only_b_right: IntArray
    both_wrong: IntArray
    p_value: float
    p_value_with_training: float
    verdict: str

    def sentence(self) -> str:
        """Say in words what was compared and what came out.

        Examples
        --------
        >>> same = Evaluation.from_probabilities([[0.9, 0.1], [0.6, 0.4]], [0, 1])
        >>> compare(same, same).sentence()
        'A and B predict the same class for each of the 2 test images.'
        """
        if self.agreement == 1:
            return (
                f"{self.label_a} and {self.label_b} predict the same class for each of the "
                f"{self.images:,} test images."
            )
        if self.verdict == "could be chance":
            return f"{self._facts()} {self._why_chance()}"
        return f"{self.label_b} is {self.verdict} than {self.label_a}. {self._facts()}"

    def _facts(self) -> str:
        low, high = (100 * end for end in self.difference_interval)
        return (
            f"On the same {self.images:,} test images {self.label_b} is right in {self.accuracy_b:.2%} and "
            f"{self.label_a} in {self.accuracy_a:.2%}, a difference of {100 * self.difference:+.2f} points "
            f"(95 % interval {low:+.2f} to {high:+.2f}); only {self.label_b} is right in "
            f"{self.only_b_right.size}, only {self.label_a} in {self.only_a_right.size} "
            f"(McNemar's exact test: p = {self.p_value:.2g})."
        )

    def _why_chance(self) -> str:
        if self.p_value >= LEVEL:
            return "This could be chance: other test images of the same kind could turn it round."
        return (
            "This could be chance: these two trained networks may differ, but two seeds of the same network "
            "can differ as much. Train several seeds of each to know."
        )

    def to_json(self) -> dict[str, Any]:
        """Give everything as a dictionary of plain JSON types."""
        return {
            "a": {
                "name": self.label_a,
                "accuracy": self.accuracy_a,
                "accuracy_interval": list(self.interval_a),
            },
            "b": {
                "name": self.label_b,
                "accuracy": self.accuracy_b,
                "accuracy_interval": list(self.interval_b),
            },
            "images": self.images,
            "difference": self.difference,
            "difference_interval": list(self.difference_interval),
            "agreement": self.agreement,
            "only_a_right": self.only_a_right.tolist(),
            "only_b_right": self.only_b_right.tolist(),
            "both_wrong": self.both_wrong.tolist(),
            "p_value": self.p_value,
            "p_value_with_training": self.p_value_with_training,
            "verdict": self.verdict,
            "sentence": self.sentence(),
        }

    def __str__(self) -> str:
        return self.sentence()


def compare(
    a: Evaluation,
    b: Evaluation,
    label_a: str = "A",
    label_b: str = "B",
    *,
    fingerprints: tuple[str, str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare two networks on the same test images.

    Parameters
    ----------
    a, b : Evaluation
        Of the same images in the same order.
    label_a, label_b : str
        What to call them.
    fingerprints : pair of str, optional
        Of the data of A and of B; they have to be the same.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Comparison

    Raises
    ------
    UsageError
        When the two were not tested on the same images.

    Examples
    --------
    >>> labels = np.zeros(400, int)
    >>> good, bad = np.tile([0.9, 0.1], (400, 1)), np.tile([0.9, 0.1], (400, 1))
    >>> bad[:60] = [0.2, 0.8]
    >>> first, second = (Evaluation.from_probabilities(table, labels) for table in (bad, good))
    >>> compare(first, second).verdict
    'better'
    """
    check_same_test(a, b, fingerprints)
    right_a, right_b = a.predictions == a.labels, b.predictions == b.labels
    only_a, only_b = np.flatnonzero(right_a & ~right_b), np.flatnonzero(right_b & ~right_a)
    p_value = mcnemar_exact(only_a.size, only_b.size)
    allowed = mcnemar_with_training(only_a.size, only_b.size, a.images)
    return Comparison(
        label_a=label_a,
        label_b=label_b,
        images=a.images,
        accuracy_a=a.accuracy,
        accuracy_b=b.accuracy,
        interval_a=a.accuracy_interval,
        interval_b=b.accuracy_interval,
        difference=(only_b.size - only_a.size) / a.images,
        difference_interval=bootstrap_difference(only_a.size, only_b.size, a.images, seed),
        agreement=float(np.mean(a.predictions == b.predictions)),
        only_a_right=only_a,
        only_b_right=only_b,
        both_wrong=np.flatnonzero(~right_a & ~right_b & (a.predictions != b.predictions)),
        p_value=p_value,
        p_value_with_training=allowed,
        verdict=give_verdict(only_b.size - only_a.size, max(p_value, allowed)),
    )


def check_same_test(a: Evaluation, b: Evaluation, fingerprints: tuple[str, str] | None = None) -> None:
    """Refuse to compare where fingerprints, number, classes, labels or names of the images differ."""
    expected, hint = "two evaluations of the same test images", "Evaluate both networks on the same data."
    if fingerprints is not None and fingerprints[0] != fingerprints[1]:
        found = f"data with the fingerprints {fingerprints[0][:12]}… and {fingerprints[1][:12]}…"
        raise UsageError(expected_got(expected, found, hint))
    if a.images != b.images:
        raise UsageError(expected_got(expected, f"{a.images:,} and {b.images:,} images", hint))
    if a.class_names != b.class_names:
        raise UsageError(expected_got(expected, "different class names", hint))
    if a.names is not None and b.names is not None and a.names != b.names:
        place = next(index for index in range(a.images) if a.names[index] != b.names[index])
        found = f"{a.names[place]!r} and {b.names[place]!r} as image {place}"
        raise UsageError(expected_got(expected, found, hint))
    differing = np.flatnonzero(a.labels != b.labels)
    if differing.size:
        raise UsageError(expected_got(expected, f"different labels for {differing.size:,} images", hint))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Compute the two-sided p-value of McNemar's exact test; 1 when no image tells the two apart.

    If both networks were equally good, each image on which just one is right would fall to either with
    probability ½ (Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", 1947).
    """
    from scipy.special import bdtr

    total = only_a + only_b
    return min(1.0, float(2 * bdtr(min(only_a, only_b), total, 0.5)))


def mcnemar_with_training(only_a: int, only_b: int, images: int) -> float:
    """Compute McNemar's p-value with an allowance for chance in training; 1 when nothing tells them apart.

    z = |c − b| / √((b + c)·(1 + n/m)) for n images, with the constant m explained at the top of this module.
    """
    from scipy.special import ndtr

    total = only_a + only_b
    if total == 0:
        return 1.0
    z = abs(only_b - only_a) / math.sqrt(total * (1 + images / TRAINING_CHANCE))
    return float(2 * ndtr(-z))


def bootstrap_difference(only_a: int, only_b: int, images: int, seed: int = 0) -> Interval:
    """Compute the 95 % percentile bootstrap interval of accuracy B minus accuracy A.

    An image adds +1, 0 or −1, so drawing n images with replacement is drawing how many of each kind there are
    (B. Efron, "Bootstrap methods: another look at the jackknife", 1979).
    """
    fewer, more = sorted((only_a, only_b))  # so that exchanging A and B exactly turns the interval round
    shares = np.array([fewer, more, images - fewer - more]) / images
    draws = np.random.default_rng(seed).multinomial(images, shares, RESAMPLES)  # (resamples, 3)
    low, high = np.percentile(draws[:, 1] - draws[:, 0], [2.5, 97.5]) / images
    return Interval(float(low), float(high)) if only_b >= only_a else Interval(float(-high), float(-low))


def give_verdict(difference: float, p_value: float) -> str:
    """Say of B whether a difference, B minus A, is real; `p_value` is the largest that must be small."""
    if p_value >= LEVEL or difference == 0:
        return "could be chance"
    return "better" if difference > 0 else "worse"


@dataclass(frozen=True, eq=False)
class SeedComparison:
    """Network B against network A, each trained several times.

    There is an accuracy for each seed; ``spread_a`` and ``spread_b`` are their standard deviations, NaN for a
    single seed. ``difference`` is the mean accuracy of B minus that of A, its 95 % interval holds for other
    seeds and other test images of the same kind; ``error_from_seeds`` and ``error_from_images`` are the
    standard errors that each of these gives it. The verdict is said of B, as in `Comparison`.
    """

    label_a: str
    label_b: str
    images: int
    accuracies_a: tuple[float, ...]
    accuracies_b: tuple[float, ...]
    spread_a: float
    spread_b: float
    difference: float
    difference_interval: Interval
    error_from_seeds: float
    error_from_images: float
    p_value: float
    verdict: str

    def sentence(self) -> str:
        """Say in words what was compared and what came out."""
        low, high = (100 * end for end in self.difference_interval)
        sides = (
            f"{self._side(self.label_b, self.accuracies_b, self.spread_b)}, "
            f"{self._side(self.label_a, self.accuracies_a, self.spread_a)}"
        )
        facts = (
            f"On the same {self.images:,} test images {sides}: a difference of "
            f"{100 * self.difference:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}, "
            f"p = {self.p_value:.2g}). Other seeds would change it by about "
            f"{100 * self.error_from_seeds:.2f} points, other test images by about "
            f"{100 * self.error_from_images:.2f}."
        )
        if self.verdict == "could be chance":
            return f"This could be chance. {facts}"
        return f"{self.label_b} is {self.verdict} than {self.label_a}. {facts}"

    @staticmethod
    def _side(label: str, accuracies: tuple[float, ...], spread: float) -> str:
        if len(accuracies) == 1:
            return f"{label} is right in {accuracies[0]:.2%} (one seed)"
        return f"{label} is right in {np.mean(accuracies):.2%} ({len(accuracies)} seeds, ±{100 * spread:.2f})"

    def to_json(self) -> dict[str, Any]:
        """Give everything as a dictionary of plain JSON types."""
        return {
            "a": _side_json(self.label_a, self.accuracies_a, self.spread_a),
            "b": _side_json(self.label_b, self.accuracies_b, self.spread_b),
            "images": self.images,
            "difference": self.difference,
            "difference_interval": list(self.difference_interval),
            "error_from_seeds": self.error_from_seeds,
            "error_from_images": self.error_from_images,
            "p_value": self.p_value,
            "verdict": self.verdict,
            "sentence": self.sentence(),
        }

    def __str__(self) -> str:
        return self.sentence()


def compare_seeds(
    a: Sequence[Evaluation], b: Sequence[Evaluation], label_a: str = "A", label_b: str = "B"
) -> SeedComparison:
    """Compare two networks of which each was trained with several seeds, on the same images in one order.

    Seeds and images are crossed random effects: the variance of a side's mean accuracy over m seeds and n
    images is (MS_seeds + MS_images − MS_residual) / (m·n) (S. R. Searle, G. Casella and C. E. McCulloch,
    "Variance components", 1992, chapter 4); Welch and Satterthwaite's degrees of freedom go with it. One
    side may have a single seed: its spread is then taken to be the other side's.
    """
    from scipy.special import stdtr, stdtrit

    if not a or not b or len(a) + len(b) < 3:
        found = f"{len(a)} and {len(b)}"
        expected = "a run on each side and at least two on one"
        raise UsageError(expected_got(expected, found, "Compare two runs with compare."))
    for other in [*a[1:], *b]:
        check_same_test(a[0], other)
    right_a, right_b = (
        np.stack([(run.predictions == run.labels).astype(np.float64) for run in runs]) for runs in (a, b)
    )  # (seeds, images)
    from_seeds, from_images, error, freedom = _standard_errors(right_a, right_b)
    difference = float(right_b.mean() - right_a.mean())
    reach = float(stdtrit(freedom, 1 - LEVEL / 2)) * error
    if error == 0:
        p_value = 1.0 if difference == 0 else 0.0
    else:
        p_value = float(2 * stdtr(freedom, -abs(difference) / error))
    return SeedComparison(
        label_a=label_a,
        label_b=label_b,
        images=a[0].images,
        accuracies_a=tuple(run.accuracy for run in a),
        accuracies_b=tuple(run.accuracy for run in b),
        spread_a=_spread(right_a),
        spread_b=_spread(right_b),
        difference=difference,
        difference_interval=Interval(difference - reach, difference + reach),
        error_from_seeds=from_seeds,
        error_from_images=from_images,
        p_value=p_value,
        verdict=give_verdict(difference, p_value),
    )


def _spread(right: FloatArray) -> float:
    return float(right.mean(axis=1).std(ddof=1)) if len(right) > 1 else float("nan")


def _standard_errors(right_a: FloatArray, right_b: FloatArray) -> tuple[float, float, float, float]:
    """Compute the standard errors from seeds, from images and from both, and the degrees of freedom."""
    sides = [right_a, right_b]
    variances = np.array([_spread(right) ** 2 for right in sides])
    known = np.isfinite(variances)
    variances[~known] = variances[known].mean()
    counts = np.array([len(right) for right in sides])
    freedoms = np.where(known, counts - 1, counts[known].max() - 1)
    parts = variances / counts
    from_seeds = parts.sum()
    paired = right_b.mean(axis=0) - right_a.mean(axis=0)  # (images,)
    from_images = paired.var(ddof=1) / paired.size if paired.size > 1 else 0.0
    counted_twice = sum(_residual(right) / right.size for right in sides)
    total = max(from_seeds + from_images - counted_twice, from_seeds, from_images)
    squared = (parts**2 / freedoms).sum()
    freedom = total**2 / squared if squared > 0 else np.inf
    return float(np.sqrt(from_seeds)), float(np.sqrt(from_images)), float(np.sqrt(total)), float(freedom)


def _residual(right: FloatArray) -> float:
    """Mean square of what neither the seed nor the image explains."""
    seeds, images = right.shape
    if seeds < 2 or images < 2:
        return 0.0
    left: NDArray[np.float64] = right - right.mean(axis=0) - right.mean(axis=1, keepdims=True) + right.mean()
    return float((left**2).sum() / ((seeds - 1) * (images - 1)))


def _side_json(label: str, accuracies: tuple[float, ...], spread: float) -> dict[str, Any]:
    return {
        "name": label,
        "accuracies": list(accuracies),
        "mean_accuracy": float(np.mean(accuracies)),
        "spread": spread if np.isfinite(spread) else None,
    }
