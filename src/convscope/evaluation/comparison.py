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
seeds on each side nothing has to be assumed: see `convscope.evaluation.seeds`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from convscope.errors import UsageError, sentence
from convscope.evaluation.intervals import Interval
from convscope.evaluation.metrics import IntArray
from convscope.evaluation.result import Evaluation

LEVEL = 0.05
TRAINING_CHANCE = 4000
RESAMPLES = 10_000


@dataclass(frozen=True, eq=False)
class Comparison:
    """Network B against network A, image by image.

    Attributes
    ----------
    label_a, label_b : str
        What the two are called.
    images : int
        The number of test images, n.
    accuracy_a, accuracy_b : float
    interval_a, interval_b : Interval
        95 % Wilson intervals.
    difference : float
        Accuracy of B minus accuracy of A.
    difference_interval : Interval
        95 % percentile bootstrap interval over the test images.
    agreement : float
        Share of images for which both predict the same class.
    only_a_right, only_b_right, both_wrong : ndarray of int64
        Indices of the images on which they differ: one of them is right, or each is wrong in its own way.
    p_value : float
        McNemar's exact test: how often chance in the test images alone makes such a difference.
    p_value_with_training : float
        The same with an allowance for chance in training.
    verdict : str
        ``"better"`` or ``"worse"``, said of B, or ``"could be chance"``.
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

        Returns
        -------
        str

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
        """Give everything as a dictionary of plain JSON types.

        Returns
        -------
        dict

        Examples
        --------
        >>> same = Evaluation.from_probabilities([[0.9, 0.1], [0.6, 0.4]], [0, 1])
        >>> compare(same, same).to_json()["verdict"]
        'could be chance'
        """
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
    """Refuse to compare what was tested on different data.

    Parameters
    ----------
    a, b : Evaluation
    fingerprints : pair of str, optional
        Of their data.

    Raises
    ------
    UsageError
        When fingerprints, number, classes, labels or names of the images differ.

    Examples
    --------
    >>> one = Evaluation.from_probabilities([[0.9, 0.1]], [0])
    >>> check_same_test(one, one)
    """
    expected, hint = "two evaluations of the same test images", "Evaluate both networks on the same data."
    if fingerprints is not None and fingerprints[0] != fingerprints[1]:
        found = f"data with the fingerprints {fingerprints[0][:12]}… and {fingerprints[1][:12]}…"
        raise UsageError(sentence(expected, found, hint))
    if a.images != b.images:
        raise UsageError(sentence(expected, f"{a.images:,} and {b.images:,} images", hint))
    if a.class_names != b.class_names:
        raise UsageError(sentence(expected, "different class names", hint))
    if a.names is not None and b.names is not None and a.names != b.names:
        place = next(index for index in range(a.images) if a.names[index] != b.names[index])
        found = f"{a.names[place]!r} and {b.names[place]!r} as image {place}"
        raise UsageError(sentence(expected, found, hint))
    differing = np.flatnonzero(a.labels != b.labels)
    if differing.size:
        raise UsageError(sentence(expected, f"different labels for {differing.size:,} images", hint))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Compute the two-sided p-value of McNemar's exact test.

    If both networks were equally good, each image on which just one is right would fall to either with
    probability ½ (Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", 1947).

    Parameters
    ----------
    only_a, only_b : int
        Images on which only A, or only B, is right.

    Returns
    -------
    float
        1 when there are none.

    Examples
    --------
    >>> round(mcnemar_exact(5, 15), 4)
    0.0414
    """
    total = only_a + only_b
    from scipy.special import bdtr

    return min(1.0, float(2 * bdtr(min(only_a, only_b), total, 0.5)))


def mcnemar_with_training(only_a: int, only_b: int, images: int) -> float:
    """Compute McNemar's p-value with an allowance for chance in training.

    z = |c − b| / √((b + c)·(1 + n/m)), with the constant m explained at the top of this module.

    Parameters
    ----------
    only_a, only_b : int
        Images on which only A, or only B, is right; b and c.
    images : int
        All test images, n.

    Returns
    -------
    float
        1 when there are none.

    Examples
    --------
    >>> round(mcnemar_with_training(60, 90, 10_000), 3)
    0.19
    """
    total = only_a + only_b
    if total == 0:
        return 1.0
    z = abs(only_b - only_a) / math.sqrt(total * (1 + images / TRAINING_CHANCE))
    from scipy.special import ndtr

    return float(2 * ndtr(-z))


def bootstrap_difference(only_a: int, only_b: int, images: int, seed: int = 0) -> Interval:
    """Compute the 95 % percentile bootstrap interval of the difference in accuracy.

    An image adds +1, 0 or −1, so drawing n images with replacement is drawing how many of each kind there are
    (B. Efron, "Bootstrap methods: another look at the jackknife", 1979).

    Parameters
    ----------
    only_a, only_b, images : int
        As in `mcnemar_with_training`.
    seed : int

    Returns
    -------
    Interval
        Of accuracy B minus accuracy A.

    Examples
    --------
    >>> low, high = bootstrap_difference(60, 90, 10_000)
    >>> f"{low:+.4f} {high:+.4f}"
    '+0.0006 +0.0054'
    """
    fewer, more = sorted((only_a, only_b))  # so that exchanging A and B exactly turns the interval round
    shares = np.array([fewer, more, images - fewer - more]) / images
    draws = np.random.default_rng(seed).multinomial(images, shares, RESAMPLES)  # (resamples, 3)
    low, high = np.percentile(draws[:, 1] - draws[:, 0], [2.5, 97.5]) / images
    return Interval(float(low), float(high)) if only_b >= only_a else Interval(float(-high), float(-low))


def give_verdict(difference: float, p_value: float) -> str:
    """Say whether a difference is real.

    Parameters
    ----------
    difference : float
        B minus A.
    p_value : float
        The largest of those that have to be small.

    Returns
    -------
    str
        ``"better"`` or ``"worse"``, said of B, or ``"could be chance"``.

    Examples
    --------
    >>> give_verdict(-0.01, 0.001)
    'worse'
    """
    if p_value >= LEVEL or difference == 0:
        return "could be chance"
    return "better" if difference > 0 else "worse"
