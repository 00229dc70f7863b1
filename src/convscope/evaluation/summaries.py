"""Single numbers that sum up a classifier beyond its accuracy, each a pure function in float64."""

from __future__ import annotations

import numpy as np

from convscope.evaluation.metrics import FloatArray, IntArray, cross_entropy, true_class_probabilities


def true_class_ranks(probabilities: FloatArray, labels: IntArray) -> IntArray:
    """Rank the true class of each image among all classes by its probability.

    Parameters
    ----------
    probabilities : ndarray of shape (n, k), float64
    labels : ndarray of shape (n,), int64

    Returns
    -------
    ndarray of shape (n,), int64
        0 when the true class is predicted; of equal probabilities the first class comes first.

    Examples
    --------
    >>> true_class_ranks(np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]]), np.array([0, 1]))
    array([2, 1])
    """
    true = true_class_probabilities(probabilities, labels)[:, np.newaxis]  # (n, 1)
    before = np.arange(probabilities.shape[1]) < labels[:, np.newaxis]  # (n, k)
    ranks: IntArray = ((probabilities > true) | ((probabilities == true) & before)).sum(
        axis=1, dtype=np.int64
    )
    return ranks


def top_k_accuracies(probabilities: FloatArray, labels: IntArray) -> dict[int, float]:
    """Compute how often the true class is among the k most probable ones, for k = 1, 3 and 5.

    Parameters
    ----------
    probabilities : ndarray of shape (n, classes), float64
    labels : ndarray of shape (n,), int64

    Returns
    -------
    dict of int to float
        k → share of images; only k below the number of classes, where the share says something.

    Examples
    --------
    >>> top_k_accuracies(np.array([[0.1, 0.2, 0.3, 0.4]]), np.array([1]))
    {1: 0.0, 3: 1.0}
    """
    ranks = true_class_ranks(probabilities, labels)
    return {k: float(np.mean(ranks < k)) for k in (1, 3, 5) if k < probabilities.shape[1]}


def balanced_accuracy(confusion: IntArray) -> float:
    """Average the recall over the classes that have images: rare classes count as much as common ones.

    Parameters
    ----------
    confusion : ndarray of shape (k, k), int64
        Rows are true classes.

    Returns
    -------
    float
        From 0 to 1.

    Examples
    --------
    >>> balanced_accuracy(np.array([[90, 0], [10, 0]]))
    0.5
    """
    support = confusion.sum(axis=1)
    present = support > 0
    return float(np.mean(np.diagonal(confusion)[present] / support[present]))


def cohen_kappa(confusion: IntArray) -> float:
    """Compute Cohen's kappa: how far predictions and labels agree beyond what chance would give.

    (observed − expected) / (1 − expected) agreement, where expected is the agreement of independent draws
    with the same totals (J. Cohen, "A coefficient of agreement for nominal scales", 1960).

    Parameters
    ----------
    confusion : ndarray of shape (k, k), int64

    Returns
    -------
    float
        1 for full agreement, 0 for chance, negative below it; NaN when labels and predictions
        all name the same class, where chance agrees fully too.

    Examples
    --------
    >>> round(cohen_kappa(np.array([[45, 5], [5, 45]])), 3)
    0.8
    """
    total = confusion.sum()
    observed = np.trace(confusion) / total
    expected = float((confusion.sum(axis=0) / total) @ (confusion.sum(axis=1) / total))
    return float("nan") if expected >= 1 else float((observed - expected) / (1 - expected))


def log_loss(probabilities: FloatArray, labels: IntArray) -> float:
    """Average −ln p of the true class, clipped only where the logarithm would be infinite.

    Keras clips at 1e-7 and so forgives a network that is certain and wrong; this clips at float64's
    epsilon, 2.2e-16, as scikit-learn does.

    Parameters
    ----------
    probabilities : ndarray of shape (n, k), float64
    labels : ndarray of shape (n,), int64

    Returns
    -------
    float
        In nats.

    Examples
    --------
    >>> round(log_loss(np.array([[1.0, 0.0]]), np.array([1])), 2)
    36.04
    """
    return cross_entropy(probabilities, labels, epsilon=float(np.finfo(np.float64).eps))


def brier_score(probabilities: FloatArray, labels: IntArray) -> float:
    """Average the squared distance between the predicted probabilities and the one-hot truth.

    Σ over classes (p − y)², averaged over images (G. W. Brier, "Verification of forecasts expressed in
    terms of probability", 1950).

    Parameters
    ----------
    probabilities : ndarray of shape (n, k), float64
    labels : ndarray of shape (n,), int64

    Returns
    -------
    float
        From 0 (certain and right) to 2 (certain and wrong).

    Examples
    --------
    >>> brier_score(np.array([[0.5, 0.5]]), np.array([0]))
    0.5
    """
    true = true_class_probabilities(probabilities, labels)
    squares = np.einsum("nk,nk->n", probabilities, probabilities)  # (n,)
    return float(np.mean(squares - 2 * true + 1))
