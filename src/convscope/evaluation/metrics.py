"""The basic numbers of a classifier, each a pure function of probabilities and labels in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# keras.config.epsilon(): probabilities are clipped to [ε, 1 − ε] before the logarithm.
KERAS_EPSILON = 1e-7


class ClassScores(NamedTuple):
    """Precision, recall and F1 of each class, and its number of images; each of shape (k,)."""

    precision: FloatArray
    recall: FloatArray
    f1: FloatArray
    support: IntArray


def cross_entropy(probabilities: FloatArray, labels: IntArray, epsilon: float = KERAS_EPSILON) -> float:
    """Average the categorical cross-entropy over all images, as Keras computes it.

    Each row is divided by its sum and clipped to [ε, 1 − ε]; the loss is the mean of −ln p(true class).

    Parameters
    ----------
    probabilities : ndarray of shape (n, k), float64
    labels : ndarray of shape (n,), int64
    epsilon : float
        Where to clip; Keras's own value unless given.

    Returns
    -------
    float
        In nats.

    Examples
    --------
    >>> round(cross_entropy(np.array([[0.5, 0.5]]), np.array([0])), 4)
    0.6931
    """
    true = true_class_probabilities(probabilities, labels) / probabilities.sum(axis=1)
    return float(-np.log(np.clip(true, epsilon, 1 - epsilon)).mean())


def true_class_probabilities(probabilities: FloatArray, labels: IntArray) -> FloatArray:
    """Take from each row the probability of its true class.

    Parameters
    ----------
    probabilities : ndarray of shape (n, k), float64
    labels : ndarray of shape (n,), int64

    Returns
    -------
    ndarray of shape (n,), float64

    Examples
    --------
    >>> true_class_probabilities(np.array([[0.25, 0.75]]), np.array([1]))
    array([0.75])
    """
    return np.take_along_axis(probabilities, labels[:, np.newaxis], axis=1)[:, 0]  # (n,)


def confusion_matrix(labels: IntArray, predictions: IntArray, classes: int) -> IntArray:
    """Count how often each true class is predicted as each class.

    Parameters
    ----------
    labels, predictions : ndarray of shape (n,), int64
        Class indices.
    classes : int
        The number of classes, k.

    Returns
    -------
    ndarray of shape (k, k), int64
        Rows are true classes, columns predicted ones.

    Examples
    --------
    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
    array([[1, 1],
           [0, 1]])
    """
    pairs = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return pairs.reshape(classes, classes).astype(np.int64)  # (k·k,) → (k, k)


def class_scores(confusion: IntArray) -> ClassScores:
    """Compute precision, recall, F1 and support of each class.

    A ratio of nothing to nothing (a class never predicted, or without images) counts as 0, as in
    scikit-learn's reports.

    Parameters
    ----------
    confusion : ndarray of shape (k, k), int64
        Rows are true classes.

    Returns
    -------
    ClassScores

    Examples
    --------
    >>> class_scores(np.array([[1, 1], [0, 2]])).recall
    array([0.5, 1. ])
    """
    hits = np.diagonal(confusion).astype(np.float64)
    predicted = confusion.sum(axis=0)
    support = confusion.sum(axis=1)
    return ClassScores(
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, support),
        f1=_ratio(2 * hits, predicted + support),
        support=support.astype(np.int64),
    )


def _ratio(numerator: FloatArray, denominator: IntArray) -> FloatArray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def worst_errors(probabilities: FloatArray, labels: IntArray, count: int = 6) -> IntArray:
    """Find the errors with the largest gap between the probability of the predicted and of the true class.

    Parameters
    ----------
    probabilities : ndarray of shape (n, k), float64
    labels : ndarray of shape (n,), int64
    count : int
        How many to return at most.

    Returns
    -------
    ndarray of shape (at most count,), int64
        Indices of images, the worst first; equal gaps in the order of the images.

    Examples
    --------
    >>> worst_errors(np.array([[0.4, 0.6], [0.1, 0.9], [0.8, 0.2]]), np.array([0, 0, 0]))
    array([1, 0])
    """
    wrong = np.flatnonzero(np.argmax(probabilities, axis=1) != labels)
    gaps = (
        probabilities[wrong].max(axis=1, initial=0) - true_class_probabilities(probabilities, labels)[wrong]
    )
    return wrong[np.argsort(-gaps, kind="stable")][:count].astype(np.int64)
