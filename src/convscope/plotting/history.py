"""Draw how a training went: loss and accuracy, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from convscope.errors import UsageError, sentence
from convscope.plotting.style import BLUE, RED, new_figure

# What Keras calls accuracy depends on its version and on the loss.
ACCURACY_NAMES = ("accuracy", "acc", "categorical_accuracy", "sparse_categorical_accuracy", "binary_accuracy")


def plot_history(history: Any) -> Figure:
    """Draw loss and accuracy of each epoch, for training and validation data.

    Parameters
    ----------
    history : keras.callbacks.History, mapping, or any object with a ``history`` mapping
        Names (``loss``, ``accuracy``, ``val_loss``, ``val_accuracy``) to one number per epoch. Without
        validation data, or without accuracy, what is there is drawn.

    Returns
    -------
    Figure
        Two panels.

    Raises
    ------
    UsageError
        When there is no loss in it.

    Examples
    --------
    >>> figure = plot_history({"loss": [0.5, 0.2], "accuracy": [0.8, 0.9]})
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['loss (cross-entropy, nats)', 'accuracy (%)']
    """
    curves = _curves(history)
    epochs = _epochs(history, len(curves["loss"]))
    accuracy = next((name for name in ACCURACY_NAMES if name in curves), "accuracy")
    with new_figure(9, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        _draw(left, epochs, curves, "loss", 1.0)
        left.set(title="Loss", ylabel="loss (cross-entropy, nats)")
        left.set_ylim(bottom=min(0.0, left.get_ylim()[0]))
        _draw(right, epochs, curves, accuracy, 100.0)
        right.set(title="Accuracy", ylabel="accuracy (%)")
    return figure


def _curves(history: Any) -> dict[str, list[float]]:
    table = history if isinstance(history, Mapping) else getattr(history, "history", None)
    if not isinstance(table, Mapping):
        raise UsageError(sentence("a Keras History or a mapping of names to numbers", type(history).__name__))
    if not len(table.get("loss", ())):
        found = f"the names {', '.join(map(str, table))}" if table else "an empty history"
        raise UsageError(sentence("a history with a loss for each epoch", found))
    return {name: [float(value) for value in values] for name, values in table.items() if _is_curve(values)}


def _is_curve(values: Any) -> bool:
    return isinstance(values, Sequence) or hasattr(values, "__array__")


def _epochs(history: Any, count: int) -> list[int]:
    """Count epochs from 1; a resumed Keras History knows at which epoch it began."""
    known = getattr(history, "epoch", None)
    return [int(epoch) + 1 for epoch in known] if known and len(known) == count else list(range(1, count + 1))


def _draw(axes: Axes, epochs: list[int], curves: dict[str, list[float]], name: str, scale: float) -> None:
    styles = {name: ("training", BLUE, "-", "o"), f"val_{name}": ("validation", RED, "--", "s")}
    for key, (label, colour, line, marker) in styles.items():
        if key in curves:
            values = [scale * value for value in curves[key]]
            first = len(epochs) - len(values)  # validation every few epochs gives fewer values
            axes.plot(epochs[first:], values, line, color=colour, marker=marker, markersize=4, label=label)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(visible=True, axis="y")
    if axes.lines:
        axes.legend()
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, f"no {name} was recorded", ha="center", va="center", transform=axes.transAxes)
