"""The classification report as text, in scikit-learn's layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convscope.evaluation.metrics import FloatArray

if TYPE_CHECKING:
    from convscope.evaluation.result import Evaluation


def classification_report(result: Evaluation, digits: int) -> str:
    """Write precision, recall, F1 and support of each class, and their averages, as a table.

    Parameters
    ----------
    result : Evaluation
    digits : int
        Decimal places.

    Returns
    -------
    str
        Several lines.

    Examples
    --------
    >>> from convscope.evaluation import Evaluation
    >>> text = classification_report(Evaluation.from_probabilities([[0.9, 0.1]], [0]), 2)
    >>> text.split()[:4]
    ['precision', 'recall', 'f1-score', 'support']
    """
    width = max(len("weighted avg"), *map(len, result.class_names))
    scores = np.stack([result.precision, result.recall, result.f1])  # (3, k)
    rows = [
        _row(name, scores[:, index], int(result.support[index]), width, digits)
        for index, name in enumerate(result.class_names)
    ]
    accuracy = f"{'accuracy':>{width}}  {'':>9} {'':>9} {result.accuracy:>9.{digits}f} {result.images:>9}"
    macro = _row("macro avg", scores.mean(axis=1), result.images, width, digits)
    weighted = _row("weighted avg", scores @ result.support / result.images, result.images, width, digits)
    header = f"{'':>{width}}  {'precision':>9} {'recall':>9} {'f1-score':>9} {'support':>9}"
    return "\n".join([header, "", *rows, "", accuracy, macro, weighted, ""])


def _row(name: str, scores: FloatArray, support: int, width: int, digits: int) -> str:
    numbers = " ".join(f"{score:>9.{digits}f}" for score in scores)
    return f"{name:>{width}}  {numbers} {support:>9}"
