"""Accuracy against coverage: what a network gains when it may abstain from its least certain answers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convscope.errors import UsageError, sentence
from convscope.evaluation.metrics import FloatArray, IntArray


class OperatingPoint(NamedTuple):
    """Answer when the confidence reaches `threshold`: then this share is answered, this accurately."""

    threshold: float
    coverage: float
    accuracy: float


class Coverage(NamedTuple):
    """Accuracy of the answers at every threshold of confidence, the highest first.

    Attributes
    ----------
    thresholds : ndarray of shape (t,), float64
        The distinct confidences; an image is answered when its own reaches the threshold.
    coverage : ndarray of shape (t,), float64
        Share of images answered, up to 1.
    accuracy : ndarray of shape (t,), float64
        Share of right ones among the answered.
    """

    thresholds: FloatArray
    coverage: FloatArray
    accuracy: FloatArray

    def for_accuracy(self, target: float) -> OperatingPoint | None:
        """Find the largest coverage at which the accuracy reaches a target.

        Parameters
        ----------
        target : float
            From 0 to 1.

        Returns
        -------
        OperatingPoint, or None
            None when no threshold reaches it.

        Raises
        ------
        UsageError
            When the target is not from 0 to 1.

        Examples
        --------
        >>> curve = coverage_curve(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]), np.array([0, 0, 1]))
        >>> point = curve.for_accuracy(1.0)
        >>> point.threshold, round(point.coverage, 3)
        (0.8, 0.667)
        """
        if not 0 <= target <= 1:
            raise UsageError(sentence("an accuracy from 0 to 1", target))
        good = np.flatnonzero(self.accuracy >= target)
        return self._point(int(good[-1])) if good.size else None

    def for_coverage(self, share: float) -> OperatingPoint:
        """Find the highest threshold at which at least this share of the images is answered.

        Parameters
        ----------
        share : float
            From 0 to 1.

        Returns
        -------
        OperatingPoint

        Raises
        ------
        UsageError
            When the share is not from 0 to 1.

        Examples
        --------
        >>> curve = coverage_curve(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]), np.array([0, 0, 1]))
        >>> curve.for_coverage(0.5).threshold
        0.8
        """
        if not 0 <= share <= 1:
            raise UsageError(sentence("a share from 0 to 1", share))
        return self._point(int(np.searchsorted(self.coverage, share - 1e-12)))

    def _point(self, place: int) -> OperatingPoint:
        return OperatingPoint(
            float(self.thresholds[place]), float(self.coverage[place]), float(self.accuracy[place])
        )


def coverage_curve(probabilities: FloatArray, labels: IntArray) -> Coverage:
    """Follow the accuracy of the answers while the network abstains from fewer and fewer images.

    Parameters
    ----------
    probabilities : ndarray of shape (n, k), float64
        The confidence of an answer is the probability of the predicted class.
    labels : ndarray of shape (n,), int64

    Returns
    -------
    Coverage
        The last point answers everything; its accuracy is the network's.

    Examples
    --------
    >>> coverage_curve(np.array([[0.9, 0.1], [0.7, 0.3]]), np.array([0, 1])).accuracy
    array([1. , 0.5])
    """
    confidence = probabilities.max(axis=1)  # (n,)
    order = np.argsort(-confidence, kind="stable")
    right = np.cumsum((np.argmax(probabilities, axis=1) == labels)[order])
    last = np.append(np.flatnonzero(np.diff(confidence[order])), labels.size - 1)
    answered = last + 1
    return Coverage(confidence[order][last], answered / labels.size, right[last] / answered)
