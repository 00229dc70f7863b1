"""How a training went: its history, its health, the search for a rate; and the trials of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from convscope.errors import UsageError, expected_got
from convscope.plotting.images import message_figure
from convscope.plotting.style import BLACK, BLUE, GREEN, GREY, ORANGE, RED, name_rows, new_figure, shorten

if TYPE_CHECKING:
    from convscope.inspection import LayerHealth


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
        raise UsageError(
            expected_got("a Keras History or a mapping of names to numbers", type(history).__name__)
        )
    if not len(table.get("loss", ())):
        found = f"the names {', '.join(map(str, table))}" if table else "an empty history"
        raise UsageError(expected_got("a history with a loss for each epoch", found))
    return {
        name: [float(value) for value in values]
        for name, values in table.items()
        if isinstance(values, Sequence) or hasattr(values, "__array__")
    }


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


def plot_rate_search(rates: ArrayLike, losses: ArrayLike, smoothed: ArrayLike, found: float) -> Figure:
    """Draw the loss of each step, and its average, against the learning rate, and the rate that was chosen.

    Arrays of shape (n,). Losses far above the first one are cut off.
    """
    x, raw, mean = (np.asarray(values, np.float64) for values in (rates, losses, smoothed))
    if not len(x) or not len(x) == len(raw) == len(mean):
        expected = "as many losses as rates, at least one"
        raise UsageError(expected_got(expected, f"{len(x)} rates, {len(raw)} and {len(mean)} losses"))
    with new_figure(7, 4.2) as figure:
        axes = figure.subplots()
        axes.plot(x, raw, ".", color=GREY, markersize=4, label="loss of a step")
        axes.plot(x, mean, color=BLUE, label="averaged over its neighbours")
        axes.axvline(found, color=RED, linestyle="--", label=f"chosen: {found:.2g}")
        axes.set_xscale("log")
        low, high = float(mean.min()), float(mean[0])
        margin = 0.15 * max(high - low, 0.1)
        axes.set_ylim(low - 2 * margin, high + 3 * margin)
        axes.set(xlabel="learning rate", ylabel="training loss (cross-entropy, nats)")
        axes.legend(loc="lower left")
        axes.grid(visible=True)
        figure.suptitle("Search for a learning rate", wrap=True)
    return figure


def plot_health(layers: Sequence[LayerHealth]) -> Figure:
    """Draw, layer by layer, the spread of activations, the scale of gradients, and dead units.

    Parameters
    ----------
    layers : sequence of LayerHealth
        From ``convscope.inspection.layer_health``.

    Returns
    -------
    Figure
        Three panels; a layer without a number has a dash in its place.

    Raises
    ------
    UsageError
        When there is no layer.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> layer = SimpleNamespace(layer="conv2d_1", activation_std=0.5, relative_gradient=1e-3, units=32,
    ...                         dead=(3,), zero_share=0.4)
    >>> [axes.get_title() for axes in plot_health([layer]).axes]
    ['Activations', 'Gradients', 'Silent outputs']
    """
    if not layers:
        raise UsageError(expected_got("at least one layer", "none"))
    with new_figure(10.5, 1.5 + 0.4 * len(layers)) as figure:
        panels = figure.subplots(1, 3, sharey=True)
        names = [shorten(layer.layer, 20) for layer in layers]
        _draw_scales(panels[0], [layer.activation_std for layer in layers], BLUE)
        panels[0].set(title="Activations", xlabel="standard deviation")
        name_rows(panels[0], names)
        _draw_scales(panels[1], [layer.relative_gradient for layer in layers], GREEN)
        panels[1].set(title="Gradients", xlabel="gradient's scale / weights' scale")
        _draw_silence(panels[2], layers)
        figure.suptitle("Training health, layer by layer", wrap=True)
    return figure


def _draw_scales(axes: Axes, values: Sequence[float | None], colour: str) -> None:
    """Draw scales as points on a logarithmic axis, which has no zero for bars to begin at."""
    drawn = False
    for place, value in enumerate(values):
        if value is None or not 0 < value < float("inf"):
            axes.text(0.02, place, "–", va="center", transform=axes.get_yaxis_transform(), color=GREY)
        else:
            drawn = True
            axes.plot(value, place, "o", color=colour)
            axes.annotate(
                f"{value:.2g}", (value, place), (6, 0), textcoords="offset points", va="center", fontsize=8
            )
    if drawn:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())  # the numbers stand beside the points
    axes.margins(x=0.25)
    axes.grid(visible=True, axis="y")


def _draw_silence(axes: Axes, layers: Sequence[LayerHealth]) -> None:
    for place, layer in enumerate(layers):
        axes.barh(
            place - 0.18,
            100 * layer.zero_share,
            0.34,
            color=ORANGE,
            label="_" if place else "outputs that are 0",
        )
        if layer.dead is None:
            continue
        share = 100 * len(layer.dead) / layer.units
        axes.barh(place + 0.18, share, 0.34, color=RED, label="units that are always 0")
        axes.annotate(
            f"{len(layer.dead)} of {layer.units} dead",
            (share, place + 0.18),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(
        unique.values(), unique.keys(), loc="upper center", bbox_to_anchor=(0.5, -0.25), fontsize=8, ncols=2
    )
    axes.set(title="Silent outputs", xlabel="share (%)", xlim=(0, 105))


def plot_trials(
    values: Sequence[float | None],
    *,
    ended_early: Sequence[float | None] = (),
    defaults: float | None = None,
    objective: str = "accuracy",
) -> Figure:
    """Draw what each trial reached on the validation images, in order, and the best so far as a line.

    ``values`` are those of complete trials, ``ended_early`` those of trials that a pruner ended, each None
    for the others; ``defaults`` is what is reached without a search. Of an ``objective`` accuracy more is
    better.
    """
    scale, better = (100, np.fmax) if objective == "accuracy" else (1, np.fmin)
    known = np.array([math.nan if value is None else scale * value for value in values], float)  # (n,)
    if np.isnan(known).all():
        return message_figure("No complete trial", "Every trial failed or was ended early.")
    with new_figure(6.5, 3.2) as figure:
        axes = figure.subplots()
        numbers = np.arange(len(known))
        axes.plot(numbers, known, "o", color=BLUE, markersize=5, label="complete")
        early = [math.nan if value is None else scale * value for value in ended_early]
        if not np.isnan(early).all():
            axes.plot(numbers, early, "x", color=GREY, markersize=5, label="ended early")
        axes.step(numbers, better.accumulate(known), where="post", color=RED, label="best so far")
        if defaults is not None:
            axes.axhline(scale * defaults, color=BLACK, linestyle="--", linewidth=1.0, label="defaults")
        unit = " (%)" if objective == "accuracy" else ""
        axes.set(xlabel="trial", ylabel=f"validation {objective}{unit}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, axis="y")
        axes.legend()
        figure.suptitle("What the trials reached")
    return figure


def plot_parallel_coordinates(
    settings: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    *,
    logarithmic: Sequence[str] = (),
    objective: str = "accuracy",
) -> Figure:
    """Draw each complete trial as a line through its settings to what it reached; the best one is red.

    All ``settings`` have the same names; the axes of ``logarithmic`` ones are logarithmic.
    """
    if len(settings) != len(values):
        raise UsageError(expected_got("a value for each trial", f"{len(settings)} and {len(values)}"))
    if not settings:
        return message_figure("No complete trial", "Every trial failed or was ended early.")
    names = [*settings[0], objective]
    columns = [[one[name] for one in settings] for name in names[:-1]] + [list(values)]
    sign = 1 if objective == "accuracy" else -1
    order = np.argsort(sign * np.array(values), kind="stable")  # the best last, on top
    with new_figure(max(5.0, 1.5 * len(names)), 3.4) as figure:
        axes = figure.subplots()
        places = np.empty((len(values), len(names)))  # (n, axes), each from 0 to 1
        for column, name in enumerate(names):
            places[:, column], ticks = _axis(columns[column], name in logarithmic)
            axes.axvline(column, color=BLACK, linewidth=1.0)
            for place, text in ticks:
                axes.text(column + 0.03, place, shorten(text, 12), fontsize=8, va="center")
        half = len(order) // 2
        for rank, row in enumerate(order):
            best = rank == len(order) - 1
            colour = RED if best else BLUE if rank >= half else GREY
            axes.plot(places[row], color=colour, linewidth=2.2 if best else 1.0, alpha=1 if best else 0.6)
        axes.set_xticks(range(len(names)), [shorten(name, 18) for name in names])
        axes.set(xlim=(-0.1, len(names) - 0.5), ylim=(-0.05, 1.05), yticks=[])
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
        figure.suptitle("Settings and what they reached (red: the best; blue: the better half)")
    return figure


def _axis(values: Sequence[Any], logarithmic: bool) -> tuple[Any, list[tuple[float, str]]]:
    """Place values between 0 and 1; words at equal distances. Give the places of some labels too."""
    if any(isinstance(value, str | bool) for value in values):
        words = sorted({str(value) for value in values})
        ranks = [(index + 0.5) / len(words) for index in range(len(words))]
        found = dict(zip(words, ranks, strict=True))
        return np.array([found[str(value)] for value in values]), list(zip(ranks, words, strict=True))
    numbers = np.array(values, float)
    low, high = numbers.min(), numbers.max()
    if low == high:
        return np.full(len(numbers), 0.5), [(0.5, f"{low:.3g}")]
    change = np.log if logarithmic and low > 0 else np.asarray
    places = (change(numbers) - change(low)) / (change(high) - change(low))
    middle = math.sqrt(low * high) if logarithmic and low > 0 else (low + high) / 2
    return places, [(0.0, f"{low:.3g}"), (0.5, f"{middle:.3g}"), (1.0, f"{high:.3g}")]


def plot_importances(importances: Mapping[str, float]) -> Figure:
    """Draw which share of the differences between trials each setting explains; if none, say so."""
    if not importances:
        return message_figure("No importances", "Too few trials are complete, or all reached the same.")
    ranked = sorted(importances.items(), key=lambda one: -one[1])
    with new_figure(5.5, 1.0 + 0.32 * len(ranked)) as figure:
        axes = figure.subplots()
        shares = [100 * share for _, share in ranked]
        bars = axes.barh(range(len(ranked)), shares, color=ORANGE)
        axes.bar_label(bars, [f"{share:.0f} %" for share in shares], padding=3, fontsize=9)
        name_rows(axes, [shorten(name, 24) for name, _ in ranked])
        axes.set(xlim=(0, 110), xlabel="share of the differences (%)")
        figure.suptitle("Which settings matter")
    return figure
