"""Draw a sweep: what its trials reached, with which settings, and which settings matter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from convscope.errors import UsageError, expected_got
from convscope.plotting.images import message_figure
from convscope.plotting.style import BLACK, BLUE, GREY, ORANGE, RED, new_figure, shorten


def plot_trials(
    values: Sequence[float | None],
    *,
    ended_early: Sequence[float | None] = (),
    defaults: float | None = None,
    objective: str = "accuracy",
) -> Figure:
    """Draw what each trial reached on the validation images, in order, and the best so far as a line.

    Parameters
    ----------
    values : sequence of n float or None
        The objective of each complete trial; None for others.
    ended_early : sequence of n float or None
        What trials had reached that a pruner ended.
    defaults : float, optional
        What the settings reach that nothing was searched for.
    objective : str
        ``accuracy``, of which more is better, or ``loss``.

    Returns
    -------
    Figure

    Examples
    --------
    >>> figure = plot_trials([0.8, None, 0.9], defaults=0.85)
    >>> figure.axes[0].get_ylabel()
    'validation accuracy (%)'
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

    Parameters
    ----------
    settings : sequence of n mappings
        From a setting's name to its value: a number or a word; all have the same names.
    values : sequence of n float
        The objective.
    logarithmic : sequence of str
        Settings whose axis is logarithmic.
    objective : str
        ``accuracy``, of which more is better, or ``loss``.

    Returns
    -------
    Figure

    Raises
    ------
    UsageError
        When there is not a value for each trial.

    Examples
    --------
    >>> figure = plot_parallel_coordinates([{"epochs": 2, "optimizer": "sgd"}], [0.9])
    >>> [text.get_text() for text in figure.axes[0].get_xticklabels()]
    ['epochs', 'optimizer', 'accuracy']
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
    """Draw how much of the differences between trials each setting explains.

    Parameters
    ----------
    importances : mapping of str to float
        Shares that add up to 1.

    Returns
    -------
    Figure
        A figure that says so when there are none.

    Examples
    --------
    >>> figure = plot_importances({"epochs": 0.7, "optimizer": 0.3})
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['epochs', 'optimizer']
    """
    if not importances:
        return message_figure("No importances", "Too few trials are complete, or all reached the same.")
    ranked = sorted(importances.items(), key=lambda one: -one[1])
    with new_figure(5.5, 1.0 + 0.32 * len(ranked)) as figure:
        axes = figure.subplots()
        shares = [100 * share for _, share in ranked]
        bars = axes.barh(range(len(ranked)), shares, color=ORANGE)
        axes.bar_label(bars, [f"{share:.0f} %" for share in shares], padding=3, fontsize=9)
        axes.set_yticks(range(len(ranked)), [shorten(name, 24) for name, _ in ranked])
        axes.set(ylim=(len(ranked) - 0.4, -0.6), xlim=(0, 110), xlabel="share of the differences (%)")
        figure.suptitle("Which settings matter")
    return figure
