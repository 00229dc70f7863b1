"""The one decision about calibration: which temperature a run's probabilities are divided by, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from convscope.evaluation.calibration import SMALLEST, apply_temperature, fit_temperature, reliability
from convscope.evaluation.metrics import FloatArray, IntArray, true_class_probabilities
from convscope.evaluation.result import Evaluation

# A temperature fitted to fewer images or errors says more about those few than about the network.
FEWEST_IMAGES, FEWEST_ERRORS = 50, 10
FOLDS = 5
# The gain on images that a temperature was not fitted on has to be this many standard errors above zero.
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Calibration:
    """The temperature that a run uses, decided by its validation images alone.

    Prediction, exports, evaluation and report all read this decision; none of them makes one of its own.

    Attributes
    ----------
    temperature : float
        What scores are divided by before the softmax; 1 leaves the probabilities as they are.
    images, errors : int
        How many validation images there were, and how many of them were given a wrong class.
    fitted : float or None
        The temperature with the smallest log loss, whether it is used or not; None where none was fitted.
    reason : str
        Why it is used or not: the end of a sentence.
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

        Parameters
        ----------
        validation : Evaluation
            Of the network's own probabilities, for images that it was not trained on; not the test images.

        Returns
        -------
        Calibration

        Examples
        --------
        >>> few = Evaluation.from_probabilities([[0.99, 0.01]] * 4, [0, 0, 0, 1])
        >>> Calibration.fit(few).sentence()
        'No temperature is used: 4 validation images are too few (50 are needed).'
        >>> sure = Evaluation.from_probabilities([[0.99, 0.01]] * 400, [0, 0, 0, 1] * 100)
        >>> round(Calibration.fit(sure).temperature, 2)
        4.18
        """
        images, errors = validation.images, validation.errors
        if images < FEWEST_IMAGES or errors < FEWEST_ERRORS:
            what, found, needed = (
                ("image", images, FEWEST_IMAGES)
                if images < FEWEST_IMAGES
                else ("error", errors, FEWEST_ERRORS)
            )
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
