"""Each class against the rest: ROC and precision–recall curves and the areas under them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convscope.evaluation.metrics import FloatArray, IntArray


class Curve(NamedTuple):
    """One class against the rest at every threshold, the highest first.

    Attributes
    ----------
    thresholds : ndarray of shape (t,), float64
        An image is called positive from this probability on.
    false_positive_rate, recall, precision : ndarray of shape (t,), float64
        NaN where there is nothing to divide by.
    """

    thresholds: FloatArray
    false_positive_rate: FloatArray
    recall: FloatArray
    precision: FloatArray


class Areas(NamedTuple):
    """Areas under the curves of each class; each of shape (k,), NaN where a curve does not exist."""

    roc: FloatArray
    average_precision: FloatArray


class _Counts(NamedTuple):
    """At each distinct threshold: how many images are called positive, and how many of them rightly."""

    thresholds: FloatArray
    called: IntArray
    hits: IntArray


def _count(scores: FloatArray, positive: NDArray[np.bool_]) -> _Counts:
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), scores.size - 1)  # equal scores are called together
    return _Counts(ranked[last], last + 1, np.cumsum(positive[order])[last])


def one_vs_rest_curve(probabilities: FloatArray, labels: IntArray, class_index: int) -> Curve:
    """Follow one class against the rest over all thresholds.

    Parameters
    ----------
    probabilities : ndarray of shape (n, k), float64
    labels : ndarray of shape (n,), int64
    class_index : int
        From 0 to k − 1.

    Returns
    -------
    Curve
        Begins at an infinite threshold, where nothing is called positive and the precision counts as 1.

    Examples
    --------
    >>> table = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    >>> one_vs_rest_curve(table, np.array([0, 1, 1]), 1).recall
    array([0. , 0.5, 1. , 1. ])
    """
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

    Parameters
    ----------
    probabilities : ndarray of shape (n, k), float64
    labels : ndarray of shape (n,), int64

    Returns
    -------
    Areas
        NaN for a class without images; the ROC area also for one that has all of them.

    Examples
    --------
    >>> one_vs_rest_areas(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), np.array([0, 1, 1])).roc
    array([1., 1.])
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
    below = np.append(0, called - hits)  # trapezoids over the false positives
    area = np.sum(np.diff(below) * (np.append(0, hits[:-1]) + hits)) / 2
    return float(area / (positives * negatives)), average_precision


def _share(counts: IntArray, total: int) -> FloatArray:
    return counts / total if total else np.full(counts.size, np.nan)
