"""Draw shares with their intervals, one below the other, on one scale with what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from convscope.errors import UsageError, sentence
from convscope.plotting.style import BLUE, GREY, new_figure, shorten


def plot_intervals(
    names: Sequence[str],
    shares: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    baseline: tuple[str, float] | None = None,
    what: str = "accuracy",
) -> Figure:
    """Draw shares such as accuracies with their 95 % intervals on one scale from 0 to 100 %.

    Parameters
    ----------
    names : sequence of n str
    shares : sequence of n float
        From 0 to 1.
    intervals : sequence of n pairs of float, or None where there is none
    baseline : (str, float), optional
        The name and the share of what a guess reaches, drawn as a line.
    what : str
        What the shares are, below the axis.

    Returns
    -------
    Figure

    Raises
    ------
    UsageError
        When there is nothing to draw, or the lengths differ.

    Examples
    --------
    >>> figure = plot_intervals(["test"], [0.9], [(0.85, 0.93)], ("guessing", 0.1))
    >>> print(figure.axes[0].get_xlabel())
    accuracy (%) with its 95 % interval
    dashed: guessing, 10.0 %
    """
    if not len(names) == len(shares) == len(intervals) > 0:
        expected = "a name, a share and an interval for each row"
        raise UsageError(sentence(expected, f"{len(names)}, {len(shares)} and {len(intervals)}"))
    with new_figure(4.8, 0.85 + 0.3 * len(names)) as figure:
        axes = figure.subplots()
        for place, (share, interval) in enumerate(zip(shares, intervals, strict=True)):
            if interval is not None:
                axes.plot([100 * edge for edge in interval], [place, place], color=BLUE, linewidth=2.5)
            axes.plot(100 * share, place, "o", color=BLUE, markersize=5)
        label = f"{what} (%) with its 95 % interval"
        if baseline is not None:
            axes.axvline(100 * baseline[1], color=GREY, linestyle="--", linewidth=1.2)
            label += f"\ndashed: {shorten(baseline[0], 30)}, {100 * baseline[1]:.1f} %"
        axes.set_yticks(range(len(names)), [shorten(name, 28) for name in names])
        axes.set(xlim=(-1, 101), ylim=(len(names) - 0.4, -0.6), xlabel=label)
        axes.grid(visible=True, axis="x")
    return figure
