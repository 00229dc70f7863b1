"""The exercise's figures of an evaluation, as a notebook and a run show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import NDArray

from convscope.evaluation import Evaluation
from convscope.plotting.evaluation import plot_confusion_matrix, plot_probability
from convscope.plotting.images import plot_errors, plot_predictions
from convscope.plotting.style import png_bytes
from convscope.plotting.training import plot_history

# Two halves that take about as long as one another.
SMALL_FIGURES, LARGE_FIGURES = ("history", "probability", "worst_errors"), ("confusion_matrix", "predictions")


def draw_figures(
    evaluation: Evaluation,
    images: NDArray[Any],
    history: dict[str, list[float]] | None = None,
    which: Sequence[str] = SMALL_FIGURES + LARGE_FIGURES,
) -> dict[str, Figure]:
    """Draw the figures of the exercise for images (n, h, w, c) in the evaluation's order."""
    probabilities, labels, names = evaluation.probabilities, evaluation.labels, evaluation.class_names
    draw = {
        "history": lambda: plot_history(history or {}),
        "probability": lambda: plot_probability(probabilities, labels, class_names=names),
        "confusion_matrix": lambda: plot_confusion_matrix(evaluation.confusion, names),
        "worst_errors": lambda: plot_errors(images, labels, probabilities, names, names=evaluation.names),
        "predictions": lambda: plot_predictions(images, probabilities, labels, names),
    }
    return {name: draw[name]() for name in which if name != "history" or history is not None}


def draw_png_files(
    which: Sequence[str],
    evaluation: Evaluation,
    images: NDArray[Any],
    history: dict[str, list[float]],
    subject: str,
) -> dict[str, bytes]:
    """Draw some of them as files."""
    return png_files(draw_figures(evaluation, images, history, which), subject)


def png_files(figures: Mapping[str, Figure], subject: str) -> dict[str, bytes]:
    """Make files of figures, with the subject (such as ``deep on mnist``) in every title."""
    files = {}
    for name, figure in figures.items():
        own = figure.get_suptitle()
        figure.suptitle(f"{subject}: {own}" if own else subject)
        files[name] = png_bytes(figure)
    return files
