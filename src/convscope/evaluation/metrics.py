"""The numbers of a classifier: pure functions of checked probabilities and labels, in float64.

They are NumPy alone: loading scikit-learn's metrics takes longer than a stored evaluation may take to print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convscope.errors import DataError, UsageError, expected_got

# Rows that come out of a bfloat16 softmax miss 1 by up to about 0.4 %.
ROW_SUM_TOLERANCE = 1e-2
ONE_HOT_RANK = 2


def as_probabilities(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Check a table of predicted probabilities (n, k) and return a copy in float64.

    Raises UsageError for a wrong shape or entries that are no numbers; DataError where an entry is NaN or
    outside [0, 1], or a row does not sum to 1 within 0.01.
    """
    try:
        table = np.array(probabilities, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(expected_got("probabilities as a table of numbers", _short(error))) from error
    _check_probability_shape(table)
    _check_probability_values(table)
    return table


def _check_probability_shape(table: NDArray[np.float64]) -> None:
    if table.ndim == 1 or (table.ndim == ONE_HOT_RANK and table.shape[1] == 1):
        hint = "A single sigmoid output p becomes np.column_stack([1 - p, p])."
        raise UsageError(expected_got("probabilities of shape (images, classes)", table.shape, hint))
    if table.ndim != ONE_HOT_RANK or table.shape[1] == 0:
        raise UsageError(expected_got("probabilities of shape (images, classes)", table.shape))
    if table.shape[0] == 0:
        raise UsageError(expected_got("at least one image to evaluate", "none"))


def _check_probability_values(table: NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if bad.size:
        hint = "Did the training diverge?"
        raise DataError(expected_got("finite probabilities", f"NaN or infinity in {_rows(bad)}", hint))
    bad = np.flatnonzero(((table < 0) | (table > 1 + ROW_SUM_TOLERANCE)).any(axis=1))
    if bad.size:
        found = f"values from {table.min():.4g} to {table.max():.4g} ({_rows(bad)})"
        raise DataError(expected_got("probabilities from 0 to 1", found, "Logits need a softmax first."))
    sums = table.sum(axis=1)
    bad = np.flatnonzero(np.abs(sums - 1) > ROW_SUM_TOLERANCE)
    if bad.size:
        found = f"a sum of {sums[bad[0]]:.4g} ({_rows(bad)})"
        raise DataError(
            expected_got(
                "probabilities that sum to 1 in each row", found, "Does the network end in a softmax?"
            )
        )


def as_labels(labels: ArrayLike, classes: int, images: int | None = None) -> NDArray[np.int64]:
    """Check labels, class indices (n,) or (n, 1) or one-hot (n, classes), and return indices (n,) as a copy.

    Raises UsageError when the shape fits neither form, or the number of labels is not `images`; DataError
    when a label is no whole number from 0 to ``classes - 1``, or a row is not one-hot.
    """
    table = np.asarray(labels)
    if table.dtype.kind not in "iufb":
        raise UsageError(
            expected_got("labels as class indices or one-hot rows", f"values of type {table.dtype}")
        )
    if table.ndim == ONE_HOT_RANK and table.shape[1] == classes and classes > 1:
        indices = _from_one_hot(table)
    elif table.ndim == 1 or (table.ndim == ONE_HOT_RANK and table.shape[1] == 1):
        indices = _from_indices(table.reshape(-1), classes)  # (n, 1) → (n,)
    else:
        raise UsageError(expected_got(f"labels of shape (n,) or (n, {classes})", table.shape))
    if images is not None and indices.size != images:
        raise UsageError(expected_got(f"{images} labels, one for each image", indices.size))
    return indices


def _from_one_hot(table: NDArray[Any]) -> NDArray[np.int64]:
    bad = np.flatnonzero(((table != 0) & (table != 1)).any(axis=1) | (table.sum(axis=1) != 1))
    if bad.size:
        raise DataError(
            expected_got("one-hot labels with a single 1 in each row", f"{table[bad[0]]} ({_rows(bad)})")
        )
    indices: NDArray[np.int64] = np.argmax(table, axis=1).astype(np.int64)  # (n, k) → (n,)
    return indices


def _from_indices(values: NDArray[Any], classes: int) -> NDArray[np.int64]:
    bad = np.flatnonzero(~((values >= 0) & (values < classes) & (values == np.floor(values))))
    if bad.size:
        expected = f"labels from 0 to {classes - 1}, one of {classes} classes"
        raise DataError(expected_got(expected, f"{values[bad[0]]} ({_rows(bad)})"))
    indices: NDArray[np.int64] = values.astype(np.int64)
    return indices


def as_names(names: Sequence[str] | None, count: int, what: str) -> tuple[str, ...] | None:
    """Check that there is one name for each of `count` things (``what`` says which), and freeze them."""
    if names is None:
        return None
    if isinstance(names, str):
        raise UsageError(expected_got(f"a list of {what} names", f"the text {names!r}"))
    frozen = tuple(str(name) for name in names)
    if len(frozen) != count:
        raise UsageError(expected_got(f"{count} {what} names", len(frozen)))
    return frozen


def _rows(indices: NDArray[np.intp]) -> str:
    """Name the first offending row and say how many there are."""
    return f"row {indices[0]}" if indices.size == 1 else f"row {indices[0]} and {indices.size - 1} more"


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:120]


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


class Curve(NamedTuple):
    """One class against the rest at every threshold, the highest first; each of shape (t,).

    An image is called positive from the threshold on. NaN where there is nothing to divide by.
    """

    thresholds: FloatArray
    false_positive_rate: FloatArray
    recall: FloatArray
    precision: FloatArray


class Areas(NamedTuple):
    """Areas under the curves of each class; each of shape (k,), NaN where a curve does not exist."""

    roc: FloatArray
    average_precision: FloatArray


class OperatingPoint(NamedTuple):
    """Answer when the confidence reaches `threshold`: then this share is answered, this accurately."""

    threshold: float
    coverage: float
    accuracy: float


class Coverage(NamedTuple):
    """Accuracy when the network may abstain: at every distinct confidence, the highest first; each (t,).

    An image is answered when its confidence reaches the threshold; `coverage` is the share of images
    answered, up to 1, and `accuracy` the share of right ones among them.
    """

    thresholds: FloatArray
    coverage: FloatArray
    accuracy: FloatArray

    def for_accuracy(self, target: float) -> OperatingPoint | None:
        """Find the largest coverage at which the accuracy reaches a target, from 0 to 1; None if none does.

        Examples
        --------
        >>> curve = coverage_curve(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]), np.array([0, 0, 1]))
        >>> point = curve.for_accuracy(1.0)
        >>> point.threshold, round(point.coverage, 3)
        (0.8, 0.667)
        """
        if not 0 <= target <= 1:
            raise UsageError(expected_got("an accuracy from 0 to 1", target))
        good = np.flatnonzero(self.accuracy >= target)
        return self._point(int(good[-1])) if good.size else None

    def for_coverage(self, share: float) -> OperatingPoint:
        """Find the highest threshold at which at least this share of the images, from 0 to 1, is answered.

        Examples
        --------
        >>> curve = coverage_curve(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]), np.array([0, 0, 1]))
        >>> curve.for_coverage(0.5).threshold
        0.8
        """
        if not 0 <= share <= 1:
            raise UsageError(expected_got("a share from 0 to 1", share))
        return self._point(int(np.searchsorted(self.coverage, share - 1e-12)))

    def _point(self, place: int) -> OperatingPoint:
        return OperatingPoint(*(float(values[place]) for values in self))


def _count(
    scores: FloatArray, positive: NDArray[np.bool_]
) -> tuple[FloatArray, NDArray[np.intp], NDArray[np.intp]]:
    """Find the distinct thresholds, and at each how many images reach it and how many of them are hits."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), scores.size - 1)  # equal scores are called together
    return ranked[last], last + 1, np.cumsum(positive[order])[last]


def coverage_curve(probabilities: FloatArray, labels: IntArray) -> Coverage:
    """Follow the accuracy of the answers while the network abstains from fewer and fewer images."""
    right = np.argmax(probabilities, axis=1) == labels
    thresholds, called, hits = _count(probabilities.max(axis=1), right)
    return Coverage(thresholds, called / labels.size, hits / called)


def one_vs_rest_curve(probabilities: FloatArray, labels: IntArray, class_index: int) -> Curve:
    """Follow one class against the rest, from an infinite threshold, where the precision counts as 1."""
    positive = labels == class_index
    thresholds, called, hits = _count(probabilities[:, class_index], positive)
    positives = int(positive.sum())
    return Curve(
        thresholds=np.append(np.inf, thresholds),
        false_positive_rate=_share(np.append(0, called - hits), positive.size - positives),
        recall=_share(np.append(0, hits), positives),
        precision=np.append(1.0, hits / called),
    )


def one_vs_rest_areas(probabilities: FloatArray, labels: IntArray) -> Areas:
    """Compute the area under the ROC curve and the average precision of each class.

    The ROC area is the probability that a random image of the class gets a higher probability for it than
    a random other image, equal ones counting half (J. A. Hanley and B. J. McNeil, "The meaning and use of
    the area under a receiver operating characteristic (ROC) curve", 1982). The average precision is
    Σ (recall step) · precision, without interpolation.
    """
    columns = range(probabilities.shape[1])
    pairs = [_areas(np.ascontiguousarray(probabilities[:, index]), labels == index) for index in columns]
    roc, average_precision = np.array(pairs, dtype=np.float64).T  # (k, 2) → 2 × (k,)
    return Areas(roc, average_precision)


def _areas(scores: FloatArray, positive: NDArray[np.bool_]) -> tuple[float, float]:
    positives = int(positive.sum())
    if positives == 0:
        return np.nan, np.nan
    _, called, hits = _count(scores, positive)
    steps = np.diff(hits, prepend=0)
    average_precision = float(np.sum(steps * (hits / called)) / positives)
    negatives = positive.size - positives
    if negatives == 0:
        return np.nan, average_precision
    area = np.trapezoid(np.append(0, hits), np.append(0, called - hits))
    return float(area / (positives * negatives)), average_precision


def _share(counts: IntArray, total: int) -> FloatArray:
    return counts / total if total else np.full(counts.size, np.nan)
