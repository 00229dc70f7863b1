"""How good predictions are: probabilities, reliability, curves of classes, coverage, the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

from convscope.errors import UsageError, expected_got
from convscope.evaluation import Coverage, Curve, Evaluation, Reliability, as_labels, as_probabilities
from convscope.plotting.style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, new_figure, shorten


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
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(bottom=0.5)  # a bar for a single image is visible
        axes.set_xlim(0, 1)
        axes.grid(visible=True, axis="y")
        axes.set(xlabel=f"predicted probability of {name}", ylabel="images (logarithmic)")
        axes.set_title(f"Predicted probability of {name}")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


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
            _draw_reliability(upper, found)
            upper.set_title(f"{title}\nexpected calibration error {found.expected_error:.2%}")
            _draw_confidence_counts(lower, found)
        grid[0, 0].set_ylabel("accuracy (share of images)")
        grid[1, 0].set_ylabel("images")
    return figure


def _draw_reliability(axes: Axes, found: Reliability) -> None:
    filled = found.counts > 0
    centres, width = _bins(found)
    accuracy, confidence = found.accuracy[filled], found.confidence[filled]
    for which, colour, label in (
        (found.counts >= FEW, SKY, "accuracy of the bin"),
        (filled & (found.counts < FEW), PALE, f"of fewer than {FEW} images"),
    ):
        if which.any():
            axes.bar(centres[which], found.accuracy[which], width, color=colour, label=label)
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1.2, label="confidence = accuracy")
    axes.plot(confidence, confidence, "o", color=RED, markersize=4, label="mean confidence of the bin")
    axes.vlines(confidence, accuracy, confidence, color=RED, linewidth=1.2)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left")


def _draw_confidence_counts(axes: Axes, found: Reliability) -> None:
    centres, width = _bins(found)
    axes.bar(centres, found.counts, width, color=GREY, edgecolor="white")
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(bottom=0.5)
    axes.set_xlabel("confidence (probability of the predicted class)")


def _bins(found: Reliability) -> tuple[np.ndarray, float]:
    return (found.edges[:-1] + found.edges[1:]) / 2, float(found.edges[1] - found.edges[0])


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
        x_end = _nice_end(max((_first_reach(x, y) for x, y in drawn), default=1.0))
        y_start = 1 - _nice_end(1 - min((_at(x, y, x_end / 50) for x, y in drawn), default=0.0))
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
        reach = [_balance(x, y) for x, y in drawn]
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
    chosen = _smallest(areas) if classes is None else list(classes)
    drawn = []
    for place, index in enumerate(chosen):
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


def _smallest(areas: np.ndarray) -> list[int]:
    order = np.argsort(areas, kind="stable")  # NaN comes last
    return [int(index) for index in order[: len(LINE_COLOURS)] if np.isfinite(areas[index])]


def _frame(panels: Sequence[Axes], *limits: tuple[float, float, float, float]) -> None:
    for axes, (left, right, bottom, top) in zip(panels, limits, strict=True):
        axes.set(xlim=(left, right), ylim=(bottom, top))
        axes.locator_params(nbins=5)
        axes.grid(visible=True)


def _legend(axes: Axes, title: str, place: Literal["lower left", "lower right", "upper right"]) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(title=title, loc=place)


def _first_reach(x: np.ndarray, y: np.ndarray) -> float:
    """Find the false positive rate at which 99 % of the class is found."""
    return float(x[np.argmax(y >= 0.99)])


def _at(x: np.ndarray, y: np.ndarray, place: float) -> float:
    return float(y[np.searchsorted(x, place, side="right") - 1])


def _balance(recall: np.ndarray, precision: np.ndarray) -> float:
    """Find the height at which precision and recall are closest to each other."""
    return float(np.min([recall, precision], axis=0).max())


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
    counts = _as_counts(cm, classes)
    shares = _row_shares(counts)
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


def _as_counts(cm: ArrayLike, classes: Sequence[str]) -> NDArray[Any]:
    counts = np.asarray(cm)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise UsageError(expected_got("a square confusion matrix", f"shape {counts.shape}"))
    if len(classes) != len(counts):
        raise UsageError(expected_got(f"{len(counts)} class names, one for each row", len(classes)))
    return counts


def _row_shares(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Divide each row by its sum; a class without images stays 0."""
    totals = counts.sum(axis=1, keepdims=True)  # (k, 1)
    shares = np.zeros(counts.shape)
    np.divide(counts, totals, out=shares, where=totals > 0)
    return shares


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
