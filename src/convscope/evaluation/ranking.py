"""Images ranked by a probability: ROC and precision–recall of each class, accuracy against coverage."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convscope.errors import UsageError, expected_got
from convscope.evaluation.metrics import FloatArray, IntArray


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


class _Counts(NamedTuple):
    """At each distinct threshold: how many images reach it, and how many of them are hits."""

    thresholds: FloatArray
    called: IntArray
    hits: IntArray


def _count(scores: FloatArray, positive: NDArray[np.bool_]) -> _Counts:
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), scores.size - 1)  # equal scores are called together
    return _Counts(ranked[last], last + 1, np.cumsum(positive[order])[last])


def coverage_curve(probabilities: FloatArray, labels: IntArray) -> Coverage:
    """Follow the accuracy of the answers while the network abstains from fewer and fewer images."""
    counts = _count(probabilities.max(axis=1), np.argmax(probabilities, axis=1) == labels)
    return Coverage(counts.thresholds, counts.called / labels.size, counts.hits / counts.called)


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
