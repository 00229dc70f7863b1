"""Draw the health of a training: scales of activations, weights and gradients, dead units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from convscope.errors import UsageError, sentence
from convscope.plotting.style import BLUE, GREEN, GREY, ORANGE, RED, new_figure, shorten

if TYPE_CHECKING:
    # Inspection loads torch and Keras; drawing needs only the numbers that it gives.
    from convscope.inspection import LayerHealth


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
        raise UsageError(sentence("at least one layer", "none"))
    with new_figure(10.5, 1.5 + 0.4 * len(layers)) as figure:
        panels = figure.subplots(1, 3, sharey=True)
        names = [shorten(layer.layer, 20) for layer in layers]
        _draw_scales(panels[0], [layer.activation_std for layer in layers], BLUE)
        panels[0].set(title="Activations", xlabel="standard deviation")
        panels[0].set_yticks(range(len(layers)), names)
        panels[0].set_ylim(len(layers) - 0.4, -0.6)
        _draw_scales(panels[1], [layer.relative_gradient for layer in layers], GREEN)
        panels[1].set(title="Gradients", xlabel="gradient's scale / weights' scale")
        _draw_silence(panels[2], layers)
        figure.suptitle("Training health, layer by layer")
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
