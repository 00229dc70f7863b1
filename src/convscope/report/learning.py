"""How the training went: loss and accuracy, epoch by epoch."""

from __future__ import annotations

import math
from typing import Any

from convscope.plotting import plot_history
from convscope.report.charts import chart
from convscope.report.source import Contents
from convscope.report.words import number, percent, plural


def learning(contents: Contents) -> dict[str, Any]:
    """Draw the history of the training.

    Parameters
    ----------
    contents : Contents
        The run.

    Returns
    -------
    dict
        ``charts`` (title, svg), ``columns`` and ``rows`` of all numbers, ``sentences``.
    """
    history = contents.history
    epochs = max((len(values) for values in history.values()), default=0)
    rows = [
        [
            str(epoch + 1),
            *(number(values[epoch]) if epoch < len(values) else number(None) for values in history.values()),
        ]
        for epoch in range(epochs)
    ]
    return {
        "charts": _charts(history),
        "columns": ["epoch", *(_title(column) for column in history)],
        "rows": rows,
        "sentences": _sentences(history, epochs, contents.record.get("kept_epoch")),
    }


def _charts(history: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Draw loss and accuracy, each as a chart of its own, where they were recorded."""
    if not history.get("loss"):
        return []
    figure = plot_history(history)
    drawn = [(axes, axes.get_title()) for axes in figure.axes if axes.lines]
    charts = []
    for axes, title in drawn:
        name = title.lower()
        write = percent if name == "accuracy" else number
        described = _described(history.get(name, []), history.get(f"val_{name}", []), name, write)
        heading = f"{title} after each epoch"
        charts.append({"title": heading, "svg": chart(figure, heading, described, [axes])})
    return charts


def _described(training: list[float], validation: list[float], title: str, write: Any) -> str:
    parts = [
        f"{what} {title} goes from {write(values[0])} to {write(values[-1])}"
        if len(values) > 1
        else f"{what} {title} is {write(values[0])}"
        for values, what in ((training, "training"), (validation, "validation"))
        if values
    ]
    return "; ".join(parts).capitalize() + "."


def _title(column: str) -> str:
    """Write a column's name as a person would: val_loss → validation loss.

    Examples
    --------
    >>> _title("val_loss"), _title("learning_rate")
    ('validation loss', 'learning rate')
    """
    words = column.replace("_", " ")
    return f"validation {words[4:]}" if words.startswith("val ") else words


def _sentences(history: dict[str, list[float]], epochs: int, kept: object) -> list[str]:
    if not epochs:
        return ["No epoch was finished, so there is no history."]
    if epochs == 1:
        return [
            "One epoch: the curves are single points, and say nothing about what more training would bring."
        ]
    losses = [value for value in history.get("val_loss", []) if math.isfinite(value)]
    if not losses:
        return []
    best = losses.index(min(losses)) + 1
    if best == epochs:
        return [
            f"The validation loss was lowest after the last of {plural(epochs, 'epoch')}: more might help."
        ]
    rise = losses[-1] - min(losses)
    sentences = [
        f"The validation loss was lowest after epoch {best} of {epochs}, at {number(min(losses))}, and has "
        f"risen by {number(rise)} since."
    ]
    if isinstance(kept, int):
        sentences.append(f"The network has the weights of epoch {kept}, the best on the validation images.")
    return sentences
