"""Draw comparisons: shares with intervals on one scale, two networks, several seeds, images that differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from convscope.errors import UsageError, expected_got
from convscope.evaluation import Comparison, ConfusedPair, Evaluation, SeedComparison
from convscope.plotting.images import as_pictures, image_grid, message_figure
from convscope.plotting.style import BLACK, BLUE, GREY, RED, new_figure, shorten


def plot_intervals(
    names: Sequence[str],
    shares: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    baseline: tuple[str, float] | None = None,
    what: str = "accuracy",
) -> Figure:
    """Draw shares such as accuracies with their 95 % intervals, None where there is none, from 0 to 100 %.

    ``baseline``, a name and a share, is what a guess reaches: a dashed line. ``what`` names the axis.
    """
    if not len(names) == len(shares) == len(intervals) > 0:
        expected = "a name, a share and an interval for each row"
        raise UsageError(expected_got(expected, f"{len(names)}, {len(shares)} and {len(intervals)}"))
    with new_figure(4.4, 0.85 + 0.3 * len(names)) as figure:
        axes = figure.subplots()
        for place, (share, interval) in enumerate(zip(shares, intervals, strict=True)):
            if interval is not None:
                axes.plot([100 * edge for edge in interval], [place, place], color=BLUE, linewidth=2.5)
            axes.plot(100 * share, place, "o", color=BLUE, markersize=5)
        label = f"{what} (%) with its 95 % interval"
        if baseline is not None:
            axes.axvline(100 * baseline[1], color=GREY, linestyle="--", linewidth=1.2)
            label += f"\ndashed: {shorten(baseline[0], 30)}, {100 * baseline[1]:.1f} %"
        axes.set_yticks(range(len(names)), [shorten(name, 32) for name in names])
        axes.set(xlim=(-1, 101), ylim=(len(names) - 0.4, -0.6), xlabel=label)
        axes.grid(visible=True, axis="x")
    return figure


def plot_comparison(found: Comparison) -> Figure:
    """Draw both accuracies with their intervals, and the difference with its own: two panels."""
    with _two_panels(found) as (figure, axes):
        _whisker(axes, 0, found.accuracy_a, found.interval_a, BLUE)
        _whisker(axes, 1, found.accuracy_b, found.interval_b, BLUE)
        axes.set_xlabel("accuracy (%), 95 % interval")
        axes.set_title(f"Accuracy on {found.images:,} images")
    return figure


def plot_seed_comparison(found: SeedComparison) -> Figure:
    """Draw the accuracy of every seed, and the difference of the means with its interval: two panels."""
    with _two_panels(found) as (figure, axes):
        for place, accuracies in enumerate([found.accuracies_a, found.accuracies_b]):
            spread = np.linspace(-0.18, 0.18, len(accuracies)) if len(accuracies) > 1 else np.zeros(1)
            axes.plot(100 * np.array(accuracies), place + spread, "o", color=BLUE, alpha=0.7, markersize=5)
            axes.plot([100 * np.mean(accuracies)] * 2, [place - 0.3, place + 0.3], color=BLACK)
        axes.set_xlabel("accuracy (%); line: mean")
        axes.set_title(f"Each seed on {found.images:,} images")
    return figure


@contextmanager
def _two_panels(found: Comparison | SeedComparison) -> Iterator[tuple[Figure, Axes]]:
    """Draw the difference and the verdict; the panel on the left is for both sides' accuracies."""
    with new_figure(9.5, 2.6) as figure:
        left, right = figure.subplots(1, 2)
        names = [shorten(found.label_a), shorten(found.label_b)]
        yield figure, left
        left.set_yticks([0, 1], names)
        left.set_ylim(1.6, -0.6)
        _draw_difference(right, found, names)
        title = f"{names[1]} is {found.verdict} than {names[0]}"
        if found.verdict == "could be chance":
            title = f"{names[0]} and {names[1]}: the difference could be chance"
        figure.suptitle(title, wrap=True)


def _whisker(axes: Axes, place: float, value: float, interval: Sequence[float], colour: str) -> None:
    axes.plot([100 * interval[0], 100 * interval[1]], [place, place], color=colour)
    axes.plot(100 * value, place, "o", color=colour)
    axes.annotate(f"{100 * value:.2f}", (100 * value, place), (0, 6), textcoords="offset points", ha="center")


def _draw_difference(axes: Axes, found: Comparison | SeedComparison, names: Sequence[str]) -> None:
    colour = GREY if found.verdict == "could be chance" else RED
    _whisker(axes, 0, found.difference, found.difference_interval, colour)
    axes.axvline(0, color=BLACK, linewidth=1.0, linestyle="--")
    axes.set(ylim=(0.8, -0.8), yticks=[], xlabel="difference in points, 95 % interval")
    axes.set_title(f"{names[1]} minus {names[0]} (p = {found.p_value:.2g})")
    axes.margins(x=0.15)


def plot_differences(
    images: ArrayLike, a: Evaluation, b: Evaluation, found: Comparison, *, count: int = 12
) -> Figure:
    """Draw images on which two networks differ, those that only one got right in equal parts.

    At most ``count`` of (n, h, w, c), (n, c, h, w) or (n, h, w); where they differ on none, the figure says
    so.
    """
    chosen = _share_out([found.only_b_right, found.only_a_right, found.both_wrong], count)
    if not chosen:
        return message_figure("No difference", "Both networks predict the same class for every image.")
    total = found.only_a_right.size + found.only_b_right.size + found.both_wrong.size
    captions = [
        f"{_answer(found.label_a, a, index)}\n{_answer(found.label_b, b, index)}\n"
        f"true {shorten(a.class_names[a.labels[index]], 14)}"
        for index in chosen
    ]
    names = f"{shorten(found.label_a)} and {shorten(found.label_b)}"
    title = f"{len(chosen)} of {total} images on which {names} differ"
    below = None if a.names is None else [shorten(a.names[index], 30, keep_end=True) for index in chosen]
    return image_grid(as_pictures(images, a.images)[chosen], captions, title, 6, below=below)


def _share_out(groups: Sequence[np.ndarray], count: int) -> list[int]:
    """Take from each group in turn, so that none crowds out the others."""
    longest = max(group.size for group in groups)
    turns = [int(group[place]) for place in range(longest) for group in groups if place < group.size]
    return sorted(turns[:count])


def _answer(label: str, result: Evaluation, index: int) -> str:
    predicted = int(result.predictions[index])
    sign = "✓" if predicted == result.labels[index] else "✗"
    name = shorten(result.class_names[predicted], 14)
    return f"{shorten(label, 12)}: {name} {sign} ({result.probabilities[index, predicted]:.2f})"


def plot_confused_pairs(pairs: Sequence[ConfusedPair], class_names: Sequence[str]) -> Figure:
    """Draw which class is most often taken for which other one; a figure that says so for none."""
    if not pairs:
        return message_figure("No confused classes", "No class was taken for another.")
    names = [
        f"{shorten(class_names[p.true], 18)} taken for {shorten(class_names[p.predicted], 18)}" for p in pairs
    ]
    counts = [pair.images for pair in pairs]
    with new_figure(7.5, 1.1 + 0.32 * len(pairs)) as figure:
        axes = figure.subplots()
        bars = axes.barh(range(len(pairs)), counts, color=BLUE)
        axes.bar_label(bars, [f"{pair.images} ({pair.share:.1%})" for pair in pairs], padding=3, fontsize=9)
        axes.set_yticks(range(len(pairs)), names)
        axes.set(ylim=(len(pairs) - 0.4, -0.6), xlabel="images (share of the true class)")
        axes.set_title("Classes that are taken for one another")
        axes.margins(x=0.15)
    return figure
