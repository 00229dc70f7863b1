"""An evaluation as plain JSON types; an undefined number becomes None."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from convscope.evaluation.examples import ConfusedPair

if TYPE_CHECKING:
    from convscope.evaluation.metrics import FloatArray
    from convscope.evaluation.result import Evaluation

# A curve over 10,000 thresholds is drawn no better by all of them.
CURVE_POINTS = 101


def to_json(result: Evaluation) -> dict[str, Any]:
    """Give everything that an evaluation knows as a dictionary of plain JSON types.

    Parameters
    ----------
    result : Evaluation

    Returns
    -------
    dict
        Without probabilities and curves' every threshold; those belong into arrays.

    Examples
    --------
    >>> from convscope.evaluation import Evaluation
    >>> to_json(Evaluation.from_probabilities([[0.9, 0.1]], [0]))["areas"]["roc_mean"] is None
    True
    """
    return {
        "images": result.images,
        "errors": result.errors,
        "loss": result.loss,
        "accuracy": result.accuracy,
        "accuracy_interval": list(result.accuracy_interval),
        "top_k": {str(k): share for k, share in result.top_k.items()},
        "balanced_accuracy": result.balanced_accuracy,
        "kappa": plain(result.kappa),
        "log_loss": result.log_loss,
        "brier_score": result.brier_score,
        "class_names": list(result.class_names),
        "per_class": [_class(result, index) for index in range(result.classes)],
        "areas": {
            "roc_mean": plain(_mean(result.areas.roc)),
            "average_precision_mean": plain(_mean(result.areas.average_precision)),
        },
        "confusion": result.confusion.tolist(),
        "confused_pairs": [_pair(result, pair) for pair in result.confused_pairs()],
        "worst_errors": [_image(result, int(index)) for index in result.worst_errors()],
        "calibration": _calibration(result),
        "coverage": _coverage(result),
    }


def plain(value: float) -> float | None:
    """Turn a number into one that JSON has: NaN and infinity become None.

    Parameters
    ----------
    value : float

    Returns
    -------
    float or None

    Examples
    --------
    >>> plain(float("nan")) is None
    True
    """
    return float(value) if math.isfinite(value) else None


def _mean(values: FloatArray) -> float:
    """Average over the classes for which the number exists."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if defined.size else math.nan


def _class(result: Evaluation, index: int) -> dict[str, Any]:
    return {
        "name": result.class_names[index],
        "precision": float(result.precision[index]),
        "recall": float(result.recall[index]),
        "f1": float(result.f1[index]),
        "support": int(result.support[index]),
        "roc_area": plain(result.areas.roc[index]),
        "average_precision": plain(result.areas.average_precision[index]),
    }


def _image(result: Evaluation, index: int) -> dict[str, Any]:
    true, predicted = int(result.labels[index]), int(result.predictions[index])
    return {
        "index": index,
        "name": result.name_of(index),
        "true": result.class_names[true],
        "predicted": result.class_names[predicted],
        "probability_true": float(result.probabilities[index, true]),
        "probability_predicted": float(result.probabilities[index, predicted]),
    }


def _pair(result: Evaluation, pair: ConfusedPair) -> dict[str, Any]:
    return {
        "true": result.class_names[pair.true],
        "predicted": result.class_names[pair.predicted],
        "images": pair.images,
        "share": pair.share,
    }


def _calibration(result: Evaluation) -> dict[str, Any]:
    found = result.reliability
    return {
        "expected_error": found.expected_error,
        "largest_error": found.largest_error,
        "edges": found.edges.tolist(),
        "counts": found.counts.tolist(),
        "confidence": [plain(value) for value in found.confidence],
        "accuracy": [plain(value) for value in found.accuracy],
    }


def _coverage(result: Evaluation) -> dict[str, list[float]]:
    curve = result.coverage
    chosen = np.unique(np.linspace(0, curve.coverage.size - 1, CURVE_POINTS).round().astype(int))
    return {name: values[chosen].tolist() for name, values in curve._asdict().items()}
