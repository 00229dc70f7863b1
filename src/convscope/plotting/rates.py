"""Draw the search for a learning rate."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from convscope.errors import UsageError, sentence
from convscope.plotting.style import BLUE, GREY, RED, new_figure


def plot_rate_search(rates: ArrayLike, losses: ArrayLike, smoothed: ArrayLike, found: float) -> Figure:
    """Draw the loss of each step against its learning rate, and the rate that was chosen.

    Parameters
    ----------
    rates, losses, smoothed : array of shape (n,)
        Rate, loss and averaged loss of each step.
    found : float
        The chosen rate.

    Returns
    -------
    Figure
        With a logarithmic rate; losses far above the first one are cut off.

    Raises
    ------
    UsageError
        When the three are not of one length, or there are none.

    Examples
    --------
    >>> figure = plot_rate_search([0.01, 0.1, 1.0], [2.0, 1.0, 4.0], [2.0, 1.5, 3.0], 0.01)
    >>> figure.axes[0].get_xlabel()
    'learning rate'
    """
    x, raw, mean = (np.asarray(values, np.float64) for values in (rates, losses, smoothed))
    if not len(x) or not len(x) == len(raw) == len(mean):
        expected = "as many losses as rates, at least one"
        raise UsageError(sentence(expected, f"{len(x)} rates, {len(raw)} and {len(mean)} losses"))
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
        figure.suptitle("Search for a learning rate")
    return figure
