"""How good predictions are, and how those of two networks compare.

Probabilities, reliability, curves of classes, coverage, the confusion matrix; shares with their intervals on
one scale, two networks, several seeds, images that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogFormatter
from numpy.typing import ArrayLike, NDArray

from convscope.errors import UsageError, expected_got
from convscope.evaluation import (
    Comparison,
    ConfusedPair,
    Coverage,
    Curve,
    Evaluation,
    Reliability,
    SeedComparison,
    as_labels,
    as_probabilities,
)
from convscope.plotting.images import as_pictures, image_grid, message_figure, names_below
from convscope.plotting.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    name_rows,
    new_figure,
    shorten,
)


def plot_probability(
    probabilities: ArrayLike,
    labels: ArrayLike,
    class_index: int = 0,
    class_names: Sequence[str] | None = None,
    bins: int = 10,
) -> Figure:
    """Draw the histogram of the predicted probability of one class: its own images red, all others blue.

    Parameters
    ----------
    probabilities : array-like of shape (n, k)
    labels : array-like of shape (n,) or (n, k)
        Class indices or one-hot.
    class_index : int
        Which class, from 0 to k − 1.
    class_names : sequence of k str, optional
    bins : int
        Of equal width between 0 and 1.

    Returns
    -------
    Figure
        With logarithmic counts.

    Raises
    ------
    UsageError
        When the class does not exist, or shapes do not fit.
    DataError
        When probabilities or labels hold impossible values.

    Examples
    --------
    >>> figure = plot_probability([[0.9, 0.1], [0.2, 0.8]], [0, 1], class_names=["cat", "dog"])
    >>> figure.axes[0].get_xlabel()
    'predicted probability of cat'
    """
    table = as_probabilities(probabilities)  # (n, k)
    images, classes = table.shape
    own = as_labels(labels, classes, images) == class_index
    if not 0 <= class_index < classes:
        raise UsageError(expected_got(f"a class from 0 to {classes - 1}", class_index))
    if bins < 1:
        raise UsageError(expected_got("at least one bin", bins))
    name = shorten(class_names[class_index]) if class_names is not None else f"class {class_index}"
    column = np.clip(table[:, class_index], 0, 1)
    with new_figure(7, 4) as figure:
        axes = figure.subplots()
        axes.hist(
            [column[own], column[~own]],
            bins=np.linspace(0, 1, bins + 1).tolist(),
            color=[RED, BLUE],
            label=[f"truly {name} ({own.sum()})", f"others ({(~own).sum()})"],
        )
        _count_logarithmically(axes)
        axes.set_xlim(0, 1)
        axes.grid(visible=True, axis="y")
        axes.set(xlabel=f"predicted probability of {name}", ylabel="images (logarithmic)")
        axes.set_title(f"Predicted probability of {name}")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _count_logarithmically(axes: Axes) -> None:
    """Give an axis of numbers of images, written out, on which a bar for a single one is visible."""
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(bottom=0.5)
    axes.yaxis.set_major_formatter(_WholeNumbers())
    axes.yaxis.set_minor_formatter(_WholeNumbers(minor_thresholds=(1, 0.4)))


class _WholeNumbers(LogFormatter):
    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:,.0f}" if x >= 1 and super().__call__(x, pos) else ""


# More coloured lines than these cannot be told apart.
LINE_COLOURS = (RED, BLUE, GREEN, ORANGE, SKY, PINK, BLACK)
LINE_STYLES = ("-", "--", "-.", ":")
# The accuracy of a bin with fewer images is mostly luck; it is drawn pale.
FEW, PALE = 10, "#DCEEF8"
MARKED_ACCURACIES = (0.99, 0.995, 0.999)
# A network that abstains more often is no use.
LEAST_ANSWERED = 0.05


def plot_reliability(before: Reliability, after: Reliability | None = None) -> Figure:
    """Draw confidence against accuracy, and how many images have which; ``after`` scaling beside it."""
    if after is None:
        columns = {"Reliability": before}
    else:
        columns = {"As predicted": before, "After temperature scaling": after}
    with new_figure(4.6 * len(columns), 5.2) as figure:
        grid = figure.subplots(2, len(columns), height_ratios=[3, 1], squeeze=False, sharex=True)
        for (title, found), upper, lower in zip(columns.items(), grid[0], grid[1], strict=True):
            _draw_reliability(upper, lower, found)
            upper.set_title(f"{title}\nexpected calibration error {found.expected_error:.2%}")
        grid[0, 0].set_ylabel("accuracy (share of images)")
        grid[1, 0].set_ylabel("images")
    return figure


def _draw_reliability(upper: Axes, lower: Axes, found: Reliability) -> None:
    """Draw the accuracy of each bin of confidence, and below it how many images it has."""
    filled = found.counts > 0
    centres, width = (found.edges[:-1] + found.edges[1:]) / 2, float(found.edges[1] - found.edges[0])
    accuracy, confidence = found.accuracy[filled], found.confidence[filled]
    for which, colour, label in (
        (found.counts >= FEW, SKY, "accuracy of the bin"),
        (filled & (found.counts < FEW), PALE, f"of fewer than {FEW} images"),
    ):
        if which.any():
            upper.bar(centres[which], found.accuracy[which], width, color=colour, label=label)
    upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1.2, label="confidence = accuracy")
    upper.plot(confidence, confidence, "o", color=RED, markersize=4, label="mean confidence of the bin")
    upper.vlines(confidence, accuracy, confidence, color=RED, linewidth=1.2)
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(loc="upper left")
    lower.bar(centres, found.counts, width, color=GREY, edgecolor="white")
    _count_logarithmically(lower)
    lower.set_xlabel("confidence (probability of the predicted class)")


def plot_roc(result: Evaluation, classes: Sequence[int] | None = None) -> Figure:
    """Draw the ROC curve of each class against the rest, whole and its upper left corner.

    Without ``classes``: the seven with the smallest areas.
    """
    whole = (0.0, 1.0, 0.0, 1.0)
    with new_figure(10, 4.6) as figure:
        panels = figure.subplots(1, 2)
        drawn = _draw_classes(
            panels, result, classes, result.areas.roc, lambda curve: (curve.false_positive_rate, curve.recall)
        )
        # As far as 99 % of every class is found, and down to where the curves are near the axis.
        x_end = _nice_end(max((float(x[np.argmax(y >= 0.99)]) for x, y in drawn), default=1.0))
        starts = [float(y[np.searchsorted(x, x_end / 50, side="right") - 1]) for x, y in drawn]
        y_start = 1 - _nice_end(1 - min(starts, default=0.0))
        _frame(panels, whole, (0.0, x_end, y_start, 1.0))
        for axes in panels:
            axes.set(xlabel="false positive rate", ylabel="true positive rate (recall)")
        panels[0].plot([0, 1], [0, 1], "--", color=GREY, linewidth=1.2)
        panels[0].set_title("ROC curve of each class against the rest")
        panels[1].set_title("Its upper left corner")
        _legend(panels[0], "area", "lower right")
    return figure


def plot_precision_recall(result: Evaluation, classes: Sequence[int] | None = None) -> Figure:
    """Draw the precision–recall curve of each class against the rest, whole and its upper right corner.

    Without ``classes``: the seven with the smallest average precision.
    """
    with new_figure(10, 4.6) as figure:
        panels = figure.subplots(1, 2)
        drawn = _draw_classes(
            panels,
            result,
            classes,
            result.areas.average_precision,
            lambda curve: (curve.recall, curve.precision),
        )
        # The height at which precision and recall are closest to each other.
        reach = [float(np.min([x, y], axis=0).max()) for x, y in drawn]
        start = 1 - _nice_end(min(1.0, 2.5 * (1 - min(reach, default=0.0))))
        _frame(panels, (0.0, 1.0, 0.0, 1.02), (start, 1.0, start, 1 + 0.02 * (1 - start)))
        for axes in panels:
            axes.set(xlabel="recall", ylabel="precision")
        panels[0].set_title("Precision and recall of each class against the rest")
        panels[1].set_title("Its upper right corner")
        weak = max(reach, default=1.0) < 0.5  # the curves are in the lower left corner themselves
        _legend(panels[0], "average precision", "upper right" if weak else "lower left")
    return figure


def _draw_classes(
    panels: Sequence[Axes],
    result: Evaluation,
    classes: Sequence[int] | None,
    areas: np.ndarray,
    coordinates: Callable[[Curve], tuple[np.ndarray, np.ndarray]],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw the chosen classes in colour and return their curves."""
    if classes is None:
        smallest = np.argsort(areas, kind="stable")[: len(LINE_COLOURS)]  # NaN comes last
        classes = [int(index) for index in smallest if np.isfinite(areas[index])]
    drawn = []
    for place, index in enumerate(classes):
        x, y = coordinates(result.curve(index))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            continue
        colour = LINE_COLOURS[place % len(LINE_COLOURS)]
        style = LINE_STYLES[place % len(LINE_STYLES)]
        label = f"{shorten(result.class_names[index], 18)}: {areas[index]:.4f}"
        for axes in panels:
            axes.plot(x, y, style, color=colour, linewidth=1.5, label=label)
        drawn.append((x, y))
    if not drawn:
        panels[0].text(0.6, 0.3, "no class has a curve", ha="center", va="center")
    return drawn


def _frame(panels: Sequence[Axes], *limits: tuple[float, float, float, float]) -> None:
    for axes, (left, right, bottom, top) in zip(panels, limits, strict=True):
        axes.set(xlim=(left, right), ylim=(bottom, top))
        axes.locator_params(nbins=5)
        axes.grid(visible=True)


def _legend(axes: Axes, title: str, place: Literal["lower left", "lower right", "upper right"]) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(title=title, loc=place)


def _nice_end(value: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten, from 0.01 to 1."""
    steps = [step * 10.0**power for power in (-2, -1) for step in (1, 2, 5)]
    return next((step for step in steps if step >= value), 1.0)


def plot_coverage(coverage: Coverage) -> Figure:
    """Draw the accuracy of the answers against the share of images answered.

    The largest coverage with an accuracy of 99, 99.5 and 99.9 % is marked where it is at least 5 %.
    """
    if not coverage.coverage.size:
        raise UsageError(expected_got("a coverage curve with at least one point", "none"))
    with new_figure(5.4, 4) as figure:
        axes = figure.subplots()
        axes.plot(100 * coverage.coverage, 100 * coverage.accuracy, color=BLUE)
        _mark_accuracies(axes, coverage)
        label = f"all answered: {coverage.accuracy[-1]:.2%}"
        axes.plot(100, 100 * coverage.accuracy[-1], "o", color=BLACK, label=label)
        low = min(99.0, 100 * coverage.accuracy[coverage.coverage >= 0.2].min())
        # The curve of a weak network falls early: its free corner is the upper right one.
        weak = 100 * coverage.for_coverage(0.5).accuracy < (low + 100) / 2
        axes.legend(loc="upper right" if weak else "lower left")
        axes.set(xlim=(0, 102), ylim=(low - 0.12 * (100.5 - low), 100 + 0.06 * (100.5 - low)))
        axes.set(xlabel="images answered (%)", ylabel="accuracy of the answers (%)")
        axes.set_title("Accuracy when the network may abstain")
        axes.grid(visible=True)
    return figure


def _mark_accuracies(axes: Axes, coverage: Coverage) -> None:
    for target, colour in zip(MARKED_ACCURACIES, (ORANGE, RED, PINK), strict=True):
        point = coverage.for_accuracy(target)
        if point is None or point.coverage < LEAST_ANSWERED:
            continue
        if coverage.accuracy[-1] < target:
            label = f"{target:.1%} of {point.coverage:.1%}, from confidence {point.threshold:.5f}"
            axes.plot(100 * point.coverage, 100 * point.accuracy, "o", color=colour, label=label)


# Beyond these, numbers and names would overlap.
MOST_WRITTEN = 25
MOST_NAMED = 50


def plot_confusion_matrix(
    cm: ArrayLike,
    classes: Sequence[str],
    normalize: bool = False,
    title: str | None = None,
    cmap: str | Colormap = "Blues",
) -> Figure:
    """Draw how often each true class was predicted as each class, with the number in each cell.

    The colours follow the square root of the share of the row: errors stay visible beside a diagonal
    that holds nearly everything.

    Parameters
    ----------
    cm : array-like of shape (k, k)
        Counts; rows are true classes, columns predicted ones.
    classes : sequence of k str
        The names of the classes.
    normalize : bool
        Write the share of the true class instead of the count.
    title : str, optional
        "Confusion matrix" and what its cells show, unless given.
    cmap : str or Colormap
        Any colormap of matplotlib.

    Returns
    -------
    Figure
        Above 25 classes without numbers, above 50 with only some of the names.

    Raises
    ------
    UsageError
        When `cm` is not square, or there are not as many names.

    Examples
    --------
    >>> figure = plot_confusion_matrix([[9, 1], [0, 10]], ["cat", "dog"], normalize=True)
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['0.90', '0.10', '0.00', '1.00']
    """
    counts = np.asarray(cm)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise UsageError(expected_got("a square confusion matrix", f"shape {counts.shape}"))
    if len(classes) != len(counts):
        raise UsageError(expected_got(f"{len(counts)} class names, one for each row", len(classes)))
    totals = counts.sum(axis=1, keepdims=True)  # (k, 1)
    shares = np.zeros(counts.shape)  # a class without images stays 0
    np.divide(counts, totals, out=shares, where=totals > 0)
    unit = "share of the true class" if normalize else "images"
    side = min(11.0, 3.4 + 0.42 * len(classes))
    with new_figure(side + 0.8, side) as figure:
        axes = figure.subplots()
        shown = axes.imshow(shares, cmap=cmap, norm=PowerNorm(0.5, 0, 1))
        figure.colorbar(shown, ax=axes, label="share of the true class", shrink=0.75)
        _name_classes(axes, [shorten(name, 16) for name in classes])
        if len(classes) <= MOST_WRITTEN:
            _write_cells(
                axes, shown, shares if normalize else counts, normalize, 0.75 * 72 * side / len(classes)
            )
        axes.set_title(f"Confusion matrix ({unit})" if title is None else title)
    return figure


def _name_classes(axes: Axes, names: list[str]) -> None:
    step = -(-len(names) // MOST_NAMED)
    ticks = range(0, len(names), step)
    size = max(5.0, 9.0 - 0.08 * len(names))
    longest = max(len(name) for name in names)
    slanted = longest > 3 or len(names) > MOST_WRITTEN
    axes.set_xticks(ticks, names[::step], fontsize=size, rotation=90 if slanted else 0)
    axes.set_yticks(ticks, names[::step], fontsize=size)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[:].set_visible(False)


def _write_cells(axes: Axes, shown: AxesImage, values: NDArray[Any], normalize: bool, points: float) -> None:
    """Write each number so that the longest fits into a cell of the given width in points."""
    longest = 4 if normalize else len(str(int(values.max(initial=0))))
    size = float(np.clip(points / (0.75 * longest), 4, 10))
    colours = np.asarray(shown.to_rgba(np.asarray(shown.get_array())))  # (k, k, 4)
    for (row, column), value in np.ndenumerate(values):
        text = f"{value:.2f}" if normalize else f"{value:g}" if value % 1 else f"{int(value)}"
        colour = readable_on(colours[row, column])
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def readable_on(background: NDArray[np.float64]) -> str:
    """Choose black or white on a background, whichever has the greater contrast: at least 4.5 : 1."""
    rgb = np.asarray(background)[:3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


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
        name_rows(axes, [shorten(name, 32) for name in names])
        axes.set(xlim=(-1, 101), xlabel=label)
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
        name_rows(left, names)
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
    below = names_below(a.names, chosen, a.images)
    return image_grid(as_pictures(images, a.images, chosen), captions, title, 6, below=below)


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
        name_rows(axes, names)
        axes.set_xlabel("images (share of the true class)")
        axes.set_title("Classes that are taken for one another")
        axes.margins(x=0.15)
    return figure
