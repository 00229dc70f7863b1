"""Calibration before and after temperature scaling, fitted on other data than it is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convscope.errors import UsageError, sentence
from convscope.evaluation.calibration import apply_temperature, fit_temperature
from convscope.evaluation.result import Evaluation


@dataclass(frozen=True, eq=False)
class TemperatureScaling:
    """What one number, fitted on validation data, does to the probabilities of other data.

    Attributes
    ----------
    temperature : float
        Above 1 the network was overconfident, below 1 underconfident.
    before, after : Evaluation
        The same images with the probabilities as they came and as they are scaled; the predicted classes
        are the same.
    """

    temperature: float
    before: Evaluation
    after: Evaluation

    def sentence(self) -> str:
        """Say in words what the scaling did.

        Returns
        -------
        str

        Examples
        --------
        >>> table = [[0.99, 0.01]] * 4
        >>> run = Evaluation.from_probabilities(table, [0, 0, 0, 1])
        >>> scale_temperature(run, run).sentence().split(":")[0]
        'Overconfident'
        """
        if abs(self.temperature - 1) < 0.02:
            kind = "Well calibrated"
        else:
            kind = "Overconfident" if self.temperature > 1 else "Underconfident"
        return (
            f"{kind}: at temperature {self.temperature:.2f}, fitted on validation data, the expected "
            f"calibration error goes from {self.before.reliability.expected_error:.2%} to "
            f"{self.after.reliability.expected_error:.2%} and the log loss from "
            f"{self.before.log_loss:.4f} to {self.after.log_loss:.4f}."
        )

    def to_json(self) -> dict[str, Any]:
        """Give the temperature and the calibration before and after as plain JSON types.

        Returns
        -------
        dict

        Examples
        --------
        >>> run = Evaluation.from_probabilities([[0.99, 0.01]] * 4, [0, 0, 0, 1])
        >>> sorted(scale_temperature(run, run).to_json())
        ['after', 'before', 'sentence', 'temperature']
        """
        return {
            "temperature": self.temperature,
            "before": _numbers(self.before),
            "after": _numbers(self.after),
            "sentence": self.sentence(),
        }


def scale_temperature(validation: Evaluation, judged: Evaluation) -> TemperatureScaling:
    """Fit a temperature on validation data and apply it to other data.

    Parameters
    ----------
    validation : Evaluation
        What the temperature is fitted on; not the test data.
    judged : Evaluation
        What it is applied to.

    Returns
    -------
    TemperatureScaling

    Raises
    ------
    UsageError
        When the two have different classes.

    Examples
    --------
    >>> run = Evaluation.from_probabilities([[0.99, 0.01]] * 4, [0, 0, 0, 1])
    >>> round(scale_temperature(run, run).temperature, 2)
    4.18
    """
    if validation.class_names != judged.class_names:
        raise UsageError(sentence("two evaluations of the same classes", "different class names"))
    temperature = fit_temperature(validation.probabilities, validation.labels)
    scaled = apply_temperature(judged.probabilities, temperature)
    after = Evaluation.from_probabilities(scaled, judged.labels, judged.class_names, judged.names)
    return TemperatureScaling(temperature, judged, after)


def _numbers(result: Evaluation) -> dict[str, float]:
    return {
        "loss": result.loss,
        "log_loss": result.log_loss,
        "brier_score": result.brier_score,
        "expected_error": result.reliability.expected_error,
        "largest_error": result.reliability.largest_error,
    }
