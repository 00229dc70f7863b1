"""Whether probabilities mean what they say, and temperature scaling, which makes them mean it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convscope.errors import UsageError, sentence
from convscope.evaluation.metrics import FloatArray, IntArray

BINS = 15
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0

# ln 0 is taken at the smallest normal float32: what a float32 softmax rounds to zero lies below it.
SMALLEST = float(np.finfo(np.float32).tiny)


class Reliability(NamedTuple):
    """Confidence against accuracy, in bins of confidence.

    Attributes
    ----------
    edges : ndarray of shape (bins + 1,), float64
        From 0 to 1; a bin holds its upper edge.
    counts : ndarray of shape (bins,), int64
        Images in each bin.
    confidence, accuracy : ndarray of shape (bins,), float64
        Means over the images of each bin; NaN in an empty bin.
    expected_error : float
        Expected calibration error: the gap between the two, averaged over images.
    largest_error : float
        The gap of the worst bin.
    """

    edges: FloatArray
    counts: IntArray
    confidence: FloatArray
    accuracy: FloatArray
    expected_error: float
    largest_error: float


def reliability(probabilities: FloatArray, labels: IntArray, bins: int = BINS) -> Reliability:
    """Compare the confidence of the predictions with how often they are right.

    (C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On calibration of modern neural networks", 2017,
    section 2.)

    Parameters
    ----------
    probabilities : ndarray of shape (n, k), float64
    labels : ndarray of shape (n,), int64
    bins : int
        Of equal width.

    Returns
    -------
    Reliability

    Raises
    ------
    UsageError
        When there is less than one bin.

    Examples
    --------
    >>> found = reliability(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]), bins=10)
    >>> round(found.expected_error, 6)
    0.4
    """
    if bins < 1:
        raise UsageError(sentence("at least one bin", bins))
    confidence = np.clip(probabilities.max(axis=1), 0, 1)  # (n,)
    right = np.argmax(probabilities, axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    filled = np.where(counts > 0, counts, np.nan)
    mean_confidence = np.bincount(places, confidence, bins) / filled
    accuracy = np.bincount(places, right, bins) / filled
    gaps = np.nan_to_num(np.abs(accuracy - mean_confidence))
    expected = float(counts @ gaps / counts.sum())
    return Reliability(edges, counts, mean_confidence, accuracy, expected, float(gaps.max()))


def apply_temperature(probabilities: FloatArray, temperature: float) -> FloatArray:
    """Soften (above 1) or sharpen (below 1) probabilities; the predicted class stays the same.

    softmax(ln p / T), which equals softmax(logits / T).

    Parameters
    ----------
    probabilities : ndarray of shape (n, k), float64
    temperature : float
        Above 0.

    Returns
    -------
    ndarray of shape (n, k), float64

    Raises
    ------
    UsageError
        When the temperature is not above 0.

    Examples
    --------
    >>> apply_temperature(np.array([[0.8, 0.2]]), 2.0).round(4)
    array([[0.6667, 0.3333]])
    """
    if not temperature > 0:
        raise UsageError(sentence("a temperature above 0", temperature))
    # In NumPy, as scipy.special.log_softmax does it: a prediction needs nothing else of SciPy.
    shifted = _logits(probabilities) / temperature
    shifted -= shifted.max(axis=1, keepdims=True)
    scaled: FloatArray = np.exp(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
    return scaled


def fit_temperature(probabilities: FloatArray, labels: IntArray) -> float:
    """Find the temperature with the smallest cross-entropy, on validation data.

    The cross-entropy is convex in 1/T (Guo et al., 2017, section 4.2), so the minimum is the only one.

    Parameters
    ----------
    probabilities : ndarray of shape (n, k), float64
        Of validation images.
    labels : ndarray of shape (n,), int64

    Returns
    -------
    float
        From 0.05 to 20. Without any error no temperature is low enough, and the lowest is returned.

    Examples
    --------
    >>> table = np.array([[0.99, 0.01]] * 4)
    >>> round(fit_temperature(table, np.array([0, 0, 0, 1])), 2)  # right in 3 of 4
    4.18
    """
    from scipy.optimize import minimize_scalar

    logits = _logits(probabilities)
    true = np.take_along_axis(logits, labels[:, np.newaxis], axis=1)[:, 0]  # (n,)
    highest = logits.max(axis=1)

    def loss(inverse: float) -> float:
        shifted = np.exp((logits - highest[:, np.newaxis]) * inverse).sum(axis=1)
        return float(np.mean(np.log(shifted) + (highest - true) * inverse))

    bounds = 1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x
    return float(1 / min((*bounds, float(found)), key=loss))


def _logits(probabilities: FloatArray) -> FloatArray:
    logits: FloatArray = np.log(np.maximum(probabilities, SMALLEST))
    return logits
