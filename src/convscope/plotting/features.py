"""Draw what layers hold and make: filters, feature maps, images that excite a filter or class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from convscope.errors import UsageError, expected_got
from convscope.plotting.images import as_pictures, image_grid, stretched
from convscope.plotting.style import GREY, SIGNED, hide_axes, new_figure, plain, shorten

if TYPE_CHECKING:
    # Inspection loads torch and Keras; drawing needs only the arrays that it gives.
    from convscope.inspection import FeatureMaps, Filters, Synthesis

IMAGE_RANK = 3


def plot_filters(filters: Filters, channel: int | None = None, count: int = 64) -> Figure:
    """Draw the kernels of a convolution, all on one scale: red positive, blue negative.

    Parameters
    ----------
    filters : Filters
        From ``convscope.inspection.filters``.
    channel : int, optional
        Which input channel; the mean over all of them unless given.
    count : int
        How many filters to show at most.

    Returns
    -------
    Figure

    Raises
    ------
    UsageError
        When there is no such channel.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> layer = SimpleNamespace(layer="conv2d_1", kernels=np.ones((4, 3, 3, 1)), biases=np.zeros(4))
    >>> plot_filters(layer).get_suptitle()
    'conv2d_1: 4 filters of 3×3×1'
    """
    total, height, width, channels = filters.kernels.shape
    pictures, limit = filter_pictures(filters, channel, count)
    title = f"{plain(filters.layer)}: {total} filters of {height}×{width}×{channels}"
    if channels > 1:
        title += ", mean over the input channels" if channel is None else f", input channel {channel}"
    columns = min(8, len(pictures))
    rows = -(-len(pictures) // columns)
    with new_figure(max(4.6, 0.85 * columns + 1.2), 0.8 + 1.0 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            hide_axes(axes)
        for number, (axes, picture) in enumerate(zip(grid.flat, pictures, strict=False)):
            axes.imshow(picture)
            axes.set_title(str(number), fontsize=7, color=GREY, pad=2)
        scale = ScalarMappable(Normalize(-limit, limit), SIGNED)
        figure.colorbar(scale, ax=grid, label="weight", shrink=min(1.0, 2.4 / rows), aspect=15)
        figure.suptitle(title, wrap=True)
    return figure


def filter_pictures(
    filters: Filters, channel: int | None = None, count: int = 64
) -> tuple[NDArray[np.uint8], float]:
    """Colour kernels as `plot_filters` shows them: (n, h, w, 3), and the weight that has the full colour."""
    channels = filters.kernels.shape[3]
    if channel is not None and not 0 <= channel < channels:
        raise UsageError(expected_got(f"a channel from 0 to {channels - 1}", channel))
    kernels = filters.kernels[:count]  # (n, h, w, c)
    kernels = kernels.mean(axis=3) if channel is None else kernels[..., channel]  # (n, h, w)
    limit = float(np.abs(kernels).max(initial=0)) or 1.0
    return SIGNED((kernels / limit + 1) / 2, bytes=True)[..., :3], limit


def plot_feature_maps(
    maps: FeatureMaps | Sequence[FeatureMaps], image: Any = None, count: int | None = None
) -> Figure:
    """Draw what one layer, or each of several, makes of an image.

    Parameters
    ----------
    maps : FeatureMaps, or a sequence of them
        From ``convscope.inspection.feature_maps``.
    image : array of shape (h, w) or (h, w, c), optional
        The image itself, drawn first.
    count : int, optional
        How many channels to show of each layer: 32 of a single one, 8 of each of several unless given.

    Returns
    -------
    Figure
        Each map from its smallest (dark) to its largest (bright) value; rows of numbers as strips.

    Raises
    ------
    UsageError
        When there is no layer.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> layer = SimpleNamespace(layer="conv2d_1", type="Conv2D", values=np.ones((26, 26, 32)))
    >>> len(plot_feature_maps(layer, count=4).axes)
    4
    """
    layers = list(maps) if isinstance(maps, Sequence) else [maps]
    if not layers:
        raise UsageError(expected_got("at least one layer", "none"))
    if len(layers) == 1 and layers[0].values.ndim == IMAGE_RANK:
        return _one_layer(layers[0], image, count or 32)
    return _all_layers(layers, image, count or 8)


def _one_layer(layer: FeatureMaps, image: Any, count: int) -> Figure:
    height, width, channels = layer.values.shape
    title = f"{plain(layer.layer)} ({layer.type}): {height}×{width}×{channels}"
    chosen = layer.values[:, :, :count]
    shown = 1 + chosen.shape[2] if image is not None else chosen.shape[2]
    columns = min(8, shown)
    rows = -(-shown // columns)
    with new_figure(max(3.6, 1.15 * columns), 0.5 + 1.3 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            hide_axes(axes)
        places = list(grid.flat)
        if image is not None:
            _draw_image(places.pop(0), image)
        for number, axes in enumerate(places[: chosen.shape[2]]):
            _draw_map(axes, chosen[:, :, number], f"channel {number}")
        figure.suptitle(title, wrap=True)
    return figure


def _all_layers(layers: Sequence[FeatureMaps], image: Any, count: int) -> Figure:
    rows = len(layers) + (image is not None)
    with new_figure(1.6 + 1.05 * count, 0.5 + 1.12 * rows) as figure:
        grid = figure.add_gridspec(rows, count + 1, width_ratios=[1.3] + [1] * count)
        first = 0
        if image is not None:
            _draw_image(figure.add_subplot(grid[0, 1]), image)
            _name_row(figure.add_subplot(grid[0, 0]), "image", np.asarray(image).shape)
            first = 1
        for row, layer in enumerate(layers, first):
            name = f"{plain(layer.layer)}\n{layer.type}"
            _name_row(figure.add_subplot(grid[row, 0]), name, layer.values.shape)
            if layer.values.ndim == IMAGE_RANK:
                for number in range(min(count, layer.values.shape[2])):
                    _draw_map(figure.add_subplot(grid[row, number + 1]), layer.values[:, :, number], "")
            else:
                _draw_strip(figure.add_subplot(grid[row, 1:]), layer.values)
        figure.suptitle("What each layer makes of the image", wrap=True)
    return figure


def _name_row(axes: Axes, name: str, shape: tuple[int, ...]) -> None:
    hide_axes(axes)
    text = f"{name}\n{'×'.join(map(str, shape))}"
    axes.text(0, 0.5, text, fontsize=8, va="center", transform=axes.transAxes)


def _draw_image(axes: Axes, image: Any) -> None:
    (picture,) = as_pictures(np.asarray(image)[np.newaxis])
    axes.imshow(stretched(picture), cmap="gray", vmin=0, vmax=1)
    hide_axes(axes)
    axes.set_title("image", fontsize=8)


def _draw_map(axes: Axes, values: NDArray[Any], title: str) -> None:
    silent = np.ptp(values) == 0
    axes.imshow(np.zeros_like(values) if silent else values, cmap="viridis")
    hide_axes(axes)
    axes.set_title(f"{title} (all {values.flat[0]:.2g})" if silent and title else title, fontsize=7)


def _draw_strip(axes: Axes, values: NDArray[Any]) -> None:
    """Draw a row of numbers: bars where there are few, a strip of colours where there are many."""
    if values.size <= 64:
        axes.bar(range(values.size), values, color=GREY)
    else:
        axes.imshow(values[np.newaxis], cmap="viridis", aspect="auto", interpolation="nearest")
        axes.set_yticks([])
    axes.tick_params(labelsize=7)


def plot_synthesis(found: Synthesis | Sequence[Synthesis]) -> Figure:
    """Draw images that were made to excite a filter or a class, with how far its score rose.

    Parameters
    ----------
    found : Synthesis, or a sequence of them
        From ``convscope.inspection.maximise_filter`` or ``maximise_class``.

    Returns
    -------
    Figure

    Raises
    ------
    UsageError
        When there is none.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> one = SimpleNamespace(target="class 3", image=np.zeros((8, 8, 1)), scores=np.array([0.0, 4.0]))
    >>> print(plot_synthesis(one).axes[0].get_title())
    class 3
    score 0 to 4
    """
    images = list(found) if isinstance(found, Sequence) else [found]
    if not images:
        raise UsageError(expected_got("at least one synthesised image", "none"))
    captions = [
        f"{shorten(one.target, 24)}\nscore {one.scores[0]:.3g} to {one.scores[-1]:.3g}" for one in images
    ]
    pictures = as_pictures(np.stack([one.image for one in images]))
    return image_grid(pictures, captions, "Images that excite the network most", columns=5)
