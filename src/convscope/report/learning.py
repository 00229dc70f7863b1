"""How the training went: loss and accuracy, epoch by epoch."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from convscope.report.charts import Chart, as_percent, padded
from convscope.report.source import Contents
from convscope.report.words import number, percent, plural

# A column of the history, its counterpart on validation data, what both are called, and an axis label.
PANELS = (("loss", "val_loss", "loss", "loss (nats)"), ("accuracy", "val_accuracy", "accuracy", "accuracy"))
MOST_MARKERS = 30


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
    charts = [
        {
            "title": f"{title.capitalize()} after each epoch",
            "svg": _panel(history, first, second, title, label),
        }
        for first, second, title, label in PANELS
        if first in history or second in history
    ]
    epochs = max((len(values) for values in history.values()), default=0)
    rows = [
        [
            str(epoch + 1),
            *(number(values[epoch]) if epoch < len(values) else number(None) for values in history.values()),
        ]
        for epoch in range(epochs)
    ]
    return {
        "charts": charts,
        "columns": ["epoch", *(_title(column) for column in history)],
        "rows": rows,
        "sentences": _sentences(history, epochs, contents.record.get("kept_epoch")),
    }


def _panel(history: dict[str, list[float]], first: str, second: str, title: str, label: str) -> Markup:
    training, validation = history.get(first, []), history.get(second, [])
    epochs = max(len(training), len(validation))
    share = title == "accuracy"
    low, high = padded([*training, *validation])
    chart = Chart(
        x_range=(0.5, 1.5) if epochs == 1 else (1, epochs),
        y_range=(max(low, 0.0), min(high, 1.0)) if share else (max(low, 0.0), high),
        x_label="epoch",
        y_label=label,
        y_format=as_percent if share else lambda value: f"{value:.6g}",
        x_ticks=_epoch_ticks(epochs),
    )
    write = percent if share else number
    for values, style, what in ((training, "series-1", "training"), (validation, "series-2", "validation")):
        epochs_of = list(range(1, len(values) + 1))
        chart.line(epochs_of, values, style)
        if len(values) <= MOST_MARKERS:
            notes = [
                f"epoch {epoch}, {what}: {write(value)}"
                for epoch, value in zip(epochs_of, values, strict=True)
            ]
            chart.markers(epochs_of, values, style, notes)
    return chart.svg(f"{title.capitalize()} after each epoch", _described(training, validation, title, write))


def _described(training: list[float], validation: list[float], title: str, write: Any) -> str:
    parts = [
        f"{what} {title} goes from {write(values[0])} to {write(values[-1])}"
        if len(values) > 1
        else f"{what} {title} is {write(values[0])}"
        for values, what in ((training, "training"), (validation, "validation"))
        if values
    ]
    return "; ".join(parts).capitalize() + "."


def _epoch_ticks(epochs: int) -> list[float]:
    """Choose whole epochs, at most eight of them."""
    step = max(1, math.ceil(epochs / 8))
    return [1.0, *(float(epoch) for epoch in range(step, epochs + 1, step) if epoch > 1)]


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
