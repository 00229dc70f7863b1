"""Which classes and which images: confused pairs, the hardest and the easiest examples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convscope.evaluation.metrics import FloatArray, IntArray, true_class_probabilities


class ConfusedPair(NamedTuple):
    """How often one class was taken for another."""

    true: int
    predicted: int
    images: int
    share: float  # of the images of the true class


def confused_pairs(confusion: IntArray, count: int = 10) -> list[ConfusedPair]:
    """List which class is most often taken for which other one.

    Parameters
    ----------
    confusion : ndarray of shape (k, k), int64
        Rows are true classes.
    count : int
        How many to list at most.

    Returns
    -------
    list of ConfusedPair
        The most frequent first; without pairs that never occurred.

    Examples
    --------
    >>> confused_pairs(np.array([[8, 2], [0, 10]]))
    [ConfusedPair(true=0, predicted=1, images=2, share=0.2)]
    """
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:count]
    support = confusion.sum(axis=1)
    pairs = zip(*np.unravel_index(order, errors.shape), strict=True)
    return [
        ConfusedPair(
            int(true),
            int(predicted),
            int(errors[true, predicted]),
            float(errors[true, predicted] / support[true]),
        )
        for true, predicted in pairs
        if errors[true, predicted]
    ]


def images_by_difficulty(probabilities: FloatArray, labels: IntArray, class_index: int) -> IntArray:
    """Sort the images of one class by the probability that they get for it.

    Parameters
    ----------
    probabilities : ndarray of shape (n, k), float64
    labels : ndarray of shape (n,), int64
    class_index : int
        From 0 to k − 1.

    Returns
    -------
    ndarray of shape (images of the class,), int64
        Indices of images, the hardest (least probable) first.

    Examples
    --------
    >>> images_by_difficulty(np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]]), np.array([0, 1, 0]), 0)
    array([2, 0])
    """
    own = np.flatnonzero(labels == class_index)
    true = true_class_probabilities(probabilities, labels)[own]
    return own[np.argsort(true, kind="stable")].astype(np.int64)
