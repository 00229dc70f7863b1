"""The basic numbers of a classifier, each a pure function of probabilities and labels in float64.

They are NumPy alone: loading scikit-learn's metrics takes longer than a stored evaluation may take to print.
SciPy is imported where a number needs it, because a prediction needs none of it.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convscope.errors import UsageError, expected_got

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# keras.config.epsilon(): probabilities are clipped to [ε, 1 − ε] before the logarithm.
KERAS_EPSILON = 1e-7


class Interval(NamedTuple):
    """A confidence interval, its ends included."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Compute the Wilson score interval of a share; [0, 1] when there are no trials.

    Unlike the usual p ± 1.96·√(p(1 − p)/n) it keeps its confidence near 0 and 1, where good networks are:
    without a single error among n images it still does not promise an accuracy of 100 %.

    With z the normal quantile: (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n)
    (E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927).

    Examples
    --------
    >>> low, high = wilson_interval(990, 1000)
    >>> f"{low:.4f} … {high:.4f}"
    '0.9817 … 0.9946'
    """
    if not 0 <= successes <= trials:
        raise UsageError(expected_got(f"from 0 to {trials} successes", successes))
    if not 0 < confidence < 1:
        raise UsageError(expected_got("a confidence between 0 and 1", confidence))
    if trials == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)  # without SciPy, which takes a prediction's memory
    share = successes / trials
    centre = share + z * z / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low = 0.0 if successes == 0 else (centre - reach) / scale
    high = 1.0 if successes == trials else (centre + reach) / scale
    return Interval(low, high)


def cross_entropy(probabilities: FloatArray, labels: IntArray, epsilon: float = KERAS_EPSILON) -> float:
    """Average −ln p(true class) as Keras does: each row divided by its sum and clipped to [ε, 1 − ε]."""
    true = true_class_probabilities(probabilities, labels) / probabilities.sum(axis=1)
    return float(-np.log(np.clip(true, epsilon, 1 - epsilon)).mean())


def true_class_probabilities(probabilities: FloatArray, labels: IntArray) -> FloatArray:
    """Take from each row (n, k) the probability of its true class (n,)."""
    return np.take_along_axis(probabilities, labels[:, np.newaxis], axis=1)[:, 0]  # (n,)


def confusion_matrix(labels: IntArray, predictions: IntArray, classes: int) -> IntArray:
    """Count how often each true class (row) is predicted as each class (column): (k, k)."""
    pairs = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return pairs.reshape(classes, classes).astype(np.int64)  # (k·k,) → (k, k)


def class_scores(confusion: IntArray) -> dict[str, FloatArray]:
    """Compute precision, recall and F1 of each class (k,); nothing divided by nothing counts as 0."""
    hits = np.diagonal(confusion).astype(np.float64)
    predicted, support = confusion.sum(axis=0), confusion.sum(axis=1)
    return {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, predicted + support),
    }


def _ratio(numerator: FloatArray, denominator: IntArray) -> FloatArray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def cohen_kappa(confusion: IntArray) -> float:
    """Compute how far predictions and labels agree beyond what chance would give.

    (observed − expected) / (1 − expected) agreement, where expected is the agreement of independent draws
    with the same totals (J. Cohen, "A coefficient of agreement for nominal scales", 1960); NaN when labels
    and predictions all name the same class, where chance agrees fully too.
    """
    total = confusion.sum()
    observed = np.trace(confusion) / total
    expected = float((confusion.sum(axis=0) / total) @ (confusion.sum(axis=1) / total))
    return float("nan") if expected >= 1 else float((observed - expected) / (1 - expected))


def brier_score(probabilities: FloatArray, labels: IntArray) -> float:
    """Average Σ over classes (p − y)², from 0 to 2 (G. W. Brier, 1950)."""
    true = true_class_probabilities(probabilities, labels)
    squares = np.einsum("nk,nk->n", probabilities, probabilities)  # (n,)
    return float(np.mean(squares - 2 * true + 1))


def top_k_accuracies(probabilities: FloatArray, labels: IntArray) -> dict[int, float]:
    """Compute how often the true class is among the k most probable ones, for k = 1, 3, 5 below the classes.

    Of equal probabilities the first class comes first.
    """
    true = true_class_probabilities(probabilities, labels)[:, np.newaxis]  # (n, 1)
    before = np.arange(probabilities.shape[1]) < labels[:, np.newaxis]  # (n, k)
    ranks = ((probabilities > true) | ((probabilities == true) & before)).sum(axis=1)  # (n,)
    return {k: float(np.mean(ranks < k)) for k in (1, 3, 5) if k < probabilities.shape[1]}


def worst_errors(probabilities: FloatArray, labels: IntArray, count: int = 6) -> IntArray:
    """Find the errors with the largest gap between the probability of the predicted and of the true class.

    Gives indices of images, the worst first, at most so many; equal gaps in the order of the images.
    """
    wrong = np.flatnonzero(np.argmax(probabilities, axis=1) != labels)
    gaps = (
        probabilities[wrong].max(axis=1, initial=0) - true_class_probabilities(probabilities, labels)[wrong]
    )
    return wrong[np.argsort(-gaps, kind="stable")][:count].astype(np.int64)
