"""Draw a confusion matrix, legible from 2 to 100 classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

from convscope.errors import UsageError, expected_got
from convscope.plotting.style import new_figure, shorten

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
    """Choose black or white on a background, whichever has the greater contrast: at least 4.5 : 1 (WCAG 2.2).

    Examples
    --------
    >>> readable_on(np.array([0.0, 0.0, 0.5]))
    'white'
    """
    rgb = np.asarray(background)[:3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"
