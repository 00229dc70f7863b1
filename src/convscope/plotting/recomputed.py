"""Draw one activation recomputed: patch times kernel, plus bias, through the activation."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from convscope.plotting.confusion import readable_on
from convscope.plotting.style import BLACK, BLUE, GREY, RED, SIGNED, hide_axes, hide_frame, new_figure, plain

if TYPE_CHECKING:
    # Inspection loads torch and Keras; drawing needs only the arrays that it gives.
    from convscope.inspection import Recomputed

IMAGE_RANK = 3
MOST_CHANNELS = 4
MOST_WRITTEN = 7
# Signs of a number that fit into a cell.
WIDEST = 7
MOST_BARS = 20

Array = NDArray[np.float64]


def plot_recomputed(found: Recomputed) -> Figure:
    """Draw the arithmetic of one activation: what enters it, the weights, their products, and the sum.

    Parameters
    ----------
    found : Recomputed
        From ``convscope.inspection.recompute``.

    Returns
    -------
    Figure
        For a window the four channels that contribute most; for a row of numbers the twenty largest
        products; below it the arithmetic in words.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> found = SimpleNamespace(
    ...     layer="conv2d_1", type="Conv2D", position=(0, 0), channel=5, inputs=np.ones((3, 3, 1)),
    ...     weights=np.ones((3, 3, 1)), bias=0.0, total=9.0, activation="relu", value=9.0, network_value=9.0,
    ...     inside=np.ones((3, 3), bool), sums=None, lines=("Σ = 9",), difference=0.0, agrees=True)
    >>> plot_recomputed(found).get_suptitle()
    'conv2d_1 (Conv2D) at row 0, column 0, channel 5: 9'
    """
    lines = _arithmetic(found)
    windowed = found.inputs.ndim == IMAGE_RANK
    height = 1.9 * min(MOST_CHANNELS, found.inputs.shape[2]) if windowed else 2.4
    if found.inputs.size == 1 and not windowed:
        height = 0.05  # a single number, passed on: there is nothing to draw
    with new_figure(9, 0.6 + height + 0.2 * len(lines)) as figure:
        ratios = [height, 0.2 * len(lines)]
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=ratios)[:, 0]
        if windowed:
            _draw_window(upper, found)
        elif found.inputs.size > 1:
            _draw_row(upper.subplots(), found)
        _write(lower.subplots(), lines)
        figure.suptitle(f"{plain(found.layer)} ({found.type}) {_place(found)}: {found.value:.6g}", wrap=True)
    return figure


def _place(found: Recomputed) -> str:
    if found.position is None:
        return f"unit {found.channel}"
    row, column = found.position
    return f"at row {row}, column {column}, channel {found.channel}"


def _arithmetic(found: Recomputed) -> list[str]:
    """Wrap the arithmetic in words, and cry out where it is not the network's."""
    lines = [part for line in found.lines for part in textwrap.wrap(line, 110, subsequent_indent="    ")]
    if not found.agrees:
        lines.append(f"NOT EQUAL to the network's own number, {found.network_value:.7g}.")
    return lines


def _write(axes: Axes, lines: list[str]) -> None:
    hide_axes(axes)
    text = "\n".join(map(plain, lines))
    axes.text(0, 1, text, fontsize=8, va="top", family="monospace", transform=axes.transAxes)


def _draw_window(figure: SubFigure, found: Recomputed) -> None:
    """Draw input, weights and products of the channels that contribute most, a row for each."""
    products = None if found.weights is None else found.inputs * found.weights
    shown = _largest_channels(found.inputs if products is None else products)
    grid = figure.subplots(len(shown), 1 if products is None else 3, squeeze=False)
    ranges = [_limit(found.inputs[..., shown])]
    if found.weights is not None and products is not None:
        ranges += [_limit(found.weights[..., shown]), _limit(products[..., shown])]
    for row, channel in zip(grid, shown, strict=True):
        name = f" channel {channel}" if found.inputs.shape[2] > 1 else ""
        _draw_numbers(row[0], found.inputs[..., channel], ranges[0], f"input{name}", found.inside)
        if found.weights is not None and products is not None:
            _draw_numbers(row[1], found.weights[..., channel], ranges[1], "× weights", None)
            title = f"= products, sum {_number(products[..., channel].sum(), 4)}"
            _draw_numbers(row[2], products[..., channel], ranges[2], title, None)
    rest = found.inputs.shape[2] - len(shown)
    if rest > 0 and products is not None:
        others = _number(products.sum() - products[..., shown].sum(), 4)
        figure.supxlabel(f"and {rest} more input channels, whose products sum to {others}", fontsize=8)


def _largest_channels(values: Array) -> list[int]:
    order = np.argsort(-np.abs(values.sum(axis=(0, 1))), kind="stable")
    return [int(channel) for channel in order[:MOST_CHANNELS]]


def _limit(values: Array) -> float:
    return float(np.abs(values).max(initial=0)) or 1.0


def _draw_numbers(
    axes: Axes, values: Array, limit: float, title: str, inside: NDArray[np.bool_] | None
) -> None:
    shown = axes.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit)
    hide_frame(axes)
    axes.set_title(title, fontsize=8)
    if max(values.shape) > MOST_WRITTEN:
        return
    colours = np.asarray(shown.to_rgba(values))
    for (row, column), value in np.ndenumerate(values):
        padding = inside is not None and not inside[row, column]
        text, colour = "pad" if padding else _cell(value), readable_on(colours[row, column])
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)


def _number(value: float, digits: int) -> str:
    """Write a number with a real minus sign, and none before a zero."""
    return f"{value + 0.0:.{digits}g}".replace("-", "−")


def _cell(value: float) -> str:
    """Write a number so that it fits into its cell."""
    text = _number(value, 3)
    small = abs(value) < 1 and len(text) > WIDEST
    return f"{round(value, 4) + 0.0:.4f}".replace("-", "−") if small else text


def _draw_row(axes: Axes, found: Recomputed) -> None:
    """Draw the largest products of a row of numbers; for a softmax the sums of all units."""
    if found.sums is not None:
        colours = [RED if unit == found.channel else GREY for unit in range(found.sums.size)]
        axes.bar(range(found.sums.size), found.sums, color=colours)
        axes.set(xlabel="unit", ylabel="sum before the softmax")
        axes.set_title(f"Sums of all units; unit {found.channel} in red")
    else:
        products = found.inputs if found.weights is None else found.inputs * found.weights
        order = np.argsort(-np.abs(products), kind="stable")[:MOST_BARS]
        axes.bar(range(order.size), products[order], color=[RED if products[i] >= 0 else BLUE for i in order])
        axes.set_xticks(range(order.size), [str(index) for index in order], fontsize=7, rotation=90)
        axes.set(xlabel="number of the input", ylabel="input" if found.weights is None else "input × weight")
        axes.set_title(f"The {order.size} largest of {products.size} products")
    axes.axhline(0, color=BLACK, linewidth=0.8)
