"""Whether probabilities mean what they say, and the temperature that makes them: decided once for a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from convscope.errors import UsageError, expected_got
from convscope.evaluation.metrics import FloatArray, IntArray, true_class_probabilities

if TYPE_CHECKING:
    from convscope.evaluation.result import Evaluation

BINS = 15
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0

# ln 0 is taken at the smallest normal float32: what a float32 softmax rounds to zero lies below it.
SMALLEST = float(np.finfo(np.float32).tiny)

# A temperature fitted to fewer images or errors says more about those few than about the network.
FEWEST_IMAGES, FEWEST_ERRORS = 50, 10
FOLDS = 5
# The gain on images that a temperature was not fitted on has to be this many standard errors above zero.
STANDARD_ERRORS = 2.0


class Reliability(NamedTuple):
    """Confidence against accuracy, in bins of confidence; a bin holds its upper edge.

    ``edges`` (bins + 1,) go from 0 to 1; ``counts``, and the means ``confidence`` and ``accuracy`` over the
    images of each bin, are (bins,), the means NaN in an empty bin. ``expected_error`` is the gap between the
    two averaged over images (expected calibration error), ``largest_error`` that of the worst bin.
    """

    edges: FloatArray
    counts: IntArray
    confidence: FloatArray
    accuracy: FloatArray
    expected_error: float
    largest_error: float


def reliability(probabilities: FloatArray, labels: IntArray, bins: int = BINS) -> Reliability:
    """Compare the confidence of the predictions with how often they are right, in bins of equal width.

    (C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On calibration of modern neural networks", 2017,
    section 2.)
    """
    if bins < 1:
        raise UsageError(expected_got("at least one bin", bins))
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
    """Soften (above 1) or sharpen (below 1) probabilities (n, k): softmax(ln p / T) = softmax(logits / T)."""
    if not temperature > 0:
        raise UsageError(expected_got("a temperature above 0", temperature))
    # In NumPy, as scipy.special.log_softmax does it: a prediction needs nothing else of SciPy.
    shifted = _logits(probabilities) / temperature
    shifted -= shifted.max(axis=1, keepdims=True)
    scaled: FloatArray = np.exp(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
    return scaled


def fit_temperature(probabilities: FloatArray, labels: IntArray) -> float:
    """Find the temperature from 0.05 to 20 with the smallest cross-entropy, on validation data.

    The cross-entropy is convex in 1/T (Guo et al., 2017, section 4.2), so the minimum is the only one.
    Without any error no temperature is low enough, and the lowest is returned.
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


@dataclass(frozen=True)
class Calibration:
    """The temperature that a run uses, decided by its validation images alone, once for all who predict.

    ``fitted`` is the one with the smallest log loss, whether it is used or not (None where none was fitted),
    and ``reason`` says why it is used or not, as the end of a sentence.
    """

    temperature: float = 1.0
    images: int = 0
    errors: int = 0
    fitted: float | None = None
    reason: str = "the run has no predictions for validation images"

    @classmethod
    def fit(cls, validation: Evaluation) -> Self:
        """Fit a temperature, and decide whether it is used.

        It takes at least 50 images and 10 errors. Then the temperature is fitted on four fifths of the
        images and tried on the last fifth, five times in turn: it is used where both the log loss falls (by
        more than two standard errors) and the expected calibration error falls on images that it was not
        fitted on.

        The probabilities must be the network's own, for images that it was not trained on, and not the test
        images.

        Examples
        --------
        >>> from convscope.evaluation import Evaluation
        >>> few = Evaluation.from_probabilities([[0.99, 0.01]] * 4, [0, 0, 0, 1])
        >>> Calibration.fit(few).sentence()
        'No temperature is used: 4 validation images are too few (50 are needed).'
        >>> sure = Evaluation.from_probabilities([[0.99, 0.01]] * 400, [0, 0, 0, 1] * 100)
        >>> round(Calibration.fit(sure).temperature, 2)
        4.18
        """
        images, errors = validation.images, validation.errors
        if images < FEWEST_IMAGES or errors < FEWEST_ERRORS:
            what, found, needed = "error", errors, FEWEST_ERRORS
            if images < FEWEST_IMAGES:
                what, found, needed = "image", images, FEWEST_IMAGES
            few = f"1 validation {what} is" if found == 1 else f"{found} validation {what}s are"
            return cls(images=images, errors=errors, reason=f"{few} too few ({needed} are needed)")
        probabilities, labels = validation.probabilities, validation.labels
        fitted = round(fit_temperature(probabilities, labels), 4)
        held_out = _held_out(probabilities, labels)
        gains = _log_losses(probabilities, labels) - _log_losses(held_out, labels)  # (n,)
        significant = gains.mean() > STANDARD_ERRORS * gains.std(ddof=1) / np.sqrt(images)
        before, after = (reliability(table, labels).expected_error for table in (probabilities, held_out))
        if significant and after < before:
            reason = "on validation images that it was not fitted on it improves log loss and calibration"
            return cls(fitted, images, errors, fitted, reason)
        what = "calibration" if significant else "log loss by more than chance"
        reason = (
            f"T = {fitted:.2f} does not improve the {what} on validation images that it was not fitted on"
        )
        return cls(1.0, images, errors, fitted, reason)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Take a decision out of ``calibration.json``; a record of the temperature alone will do."""
        known = {key: record[key] for key in cls.__dataclass_fields__ if key in record}
        return cls(**{"reason": "the run recorded it", **known})

    @property
    def used(self) -> bool:
        """Whether the temperature changes anything."""
        return self.temperature != 1

    def to_json(self) -> dict[str, Any]:
        """Give the decision as plain JSON types."""
        return asdict(self)

    def sentence(self) -> str:
        """Say what was decided, and why."""
        if not self.used:
            return f"No temperature is used: {self.reason}."
        softens = "softened" if self.temperature > 1 else "sharpened"
        return (
            f"Probabilities are {softens} by the temperature {self.temperature:.2f}, fitted on "
            f"{self.images:,} validation images: {self.reason}."
        )


def _held_out(probabilities: FloatArray, labels: IntArray) -> FloatArray:
    """Scale every image's probabilities by a temperature that was fitted without it."""
    folds = np.arange(len(labels)) % FOLDS  # images that are sorted by class fall evenly into all folds
    scaled = np.empty_like(probabilities)
    for fold in range(FOLDS):
        out = folds == fold
        temperature = fit_temperature(probabilities[~out], labels[~out])
        scaled[out] = apply_temperature(probabilities[out], temperature)
    return scaled


def _log_losses(probabilities: FloatArray, labels: IntArray) -> FloatArray:
    losses: FloatArray = -np.log(np.maximum(true_class_probabilities(probabilities, labels), SMALLEST))
    return losses
