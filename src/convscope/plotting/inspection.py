"""What is inside a network: filters, feature maps, synthesis, attributions, an activation recomputed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from convscope.errors import UsageError, expected_got
from convscope.plotting.evaluation import readable_on
from convscope.plotting.images import as_pictures, image_grid, stretched
from convscope.plotting.style import (
    BLACK,
    BLUE,
    GREY,
    RED,
    SIGNED,
    hide_axes,
    hide_frame,
    new_figure,
    plain,
    shorten,
)

if TYPE_CHECKING:
    from convscope.inspection import (
        Attribution,
        FaithfulnessCurve,
        FeatureMaps,
        Filters,
        Recomputed,
        Synthesis,
    )


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


MOST_PANELS_IN_A_ROW = 3
METHOD_NAMES = {
    "grad_cam": "Grad-CAM",
    "grad_cam_plus_plus": "Grad-CAM++",
    "integrated_gradients": "Integrated gradients",
    "occlusion": "Occlusion",
}


def plot_attribution(
    image: Any, found: Attribution | Sequence[Attribution], class_names: Sequence[str] | None = None
) -> Figure:
    r"""Draw an image and, over a pale copy of it, which pixels speak for a class.

    Parameters
    ----------
    image : array of shape (h, w), (h, w, c) or (c, h, w)
    found : Attribution, or a sequence of them
        From ``convscope.inspection``; maps of the same image.
    class_names : sequence of str, optional

    Returns
    -------
    Figure
        Red speaks for the class, and in maps with a sign blue against it.

    Raises
    ------
    UsageError
        When there is no map, or it has not the image's size.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> seen = SimpleNamespace(method="occlusion", class_index=3, score=2.0, values=np.eye(8), signed=True,
    ...                        layer=None, completeness=None)
    >>> [axes.get_title() for axes in plot_attribution(np.zeros((8, 8)), seen).axes[:2]]
    ['Image\n', 'Occlusion\nfor class 3']
    """
    maps = list(found) if isinstance(found, Sequence) else [found]
    (picture,) = as_pictures(np.asarray(image)[np.newaxis])
    if not maps:
        raise UsageError(expected_got("at least one attribution", "none"))
    for one in maps:
        if one.values.shape != picture.shape[:2]:
            raise UsageError(expected_got(f"attributions of shape {picture.shape[:2]}", one.values.shape))
    with new_figure(2.3 * (len(maps) + 1), 3.4) as figure:
        panels = figure.subplots(1, len(maps) + 1)
        panels[0].imshow(stretched(picture), cmap="gray", vmin=0, vmax=1)
        panels[0].set_title("Image\n")
        panels[0].set_anchor("S")  # as a colour bar anchors those that it stands below
        hide_axes(panels[0])
        for axes, one in zip(panels[1:], maps, strict=True):
            axes.imshow(attribution_picture(image, one))
            hide_frame(axes)
            bar = figure.colorbar(_scale(one), ax=axes, orientation="horizontal", shrink=0.9, pad=0.03)
            bar.ax.tick_params(labelsize=7)
            bar.ax.locator_params(nbins=4)
            axes.set_xlabel(_note(one), fontsize=8)
            axes.set_title(f"{METHOD_NAMES.get(one.method, one.method)}\nfor {_class(one, class_names)}")
    return figure


def attribution_picture(image: Any, found: Attribution) -> NDArray[np.uint8]:
    """Lay a map over a pale grey copy of its image, as `plot_attribution` shows it: (h, w, 3)."""
    (picture,) = as_pictures(np.asarray(image)[np.newaxis])
    grey = np.atleast_3d(stretched(picture))[..., :3].mean(axis=2, keepdims=True)  # (h, w, 1)
    pale = 1 - 0.25 * (1 - grey) if grey.mean() > 0.5 else 1 - 0.35 * grey
    colours = _scale(found).to_rgba(found.values)  # (h, w, 4)
    mixed = colours[..., :3] * colours[..., 3:] + pale * (1 - colours[..., 3:])
    return np.asarray((255 * mixed).round(), np.uint8)


def _scale(found: Attribution) -> ScalarMappable:
    """Give values their colours, which cover the image the more, the larger they are."""
    share = np.linspace(-1 if found.signed else 0, 1, 511)
    # Of signed values a few are large, and the root shows the others too; a smooth map it would make solid.
    strength = 0.9 * (np.sqrt(np.abs(share)) if found.signed else share)
    colours = np.where(share[:, np.newaxis] >= 0, to_rgb(RED), to_rgb(BLUE))
    largest = float(np.abs(found.values).max()) or 1.0
    norm = Normalize(-largest if found.signed else 0, largest)
    return ScalarMappable(norm, ListedColormap(np.column_stack([colours, strength])))


def _note(one: Attribution) -> str:
    if one.completeness is not None:
        return f"adds up to {one.completeness.total:.3g} of {one.completeness.difference:.3g}"
    return f"at {shorten(one.layer, 22)}" if one.layer else ""


def _class(one: Attribution | FaithfulnessCurve, class_names: Sequence[str] | None) -> str:
    return f"class {one.class_index}" if class_names is None else shorten(class_names[one.class_index], 16)


def plot_faithfulness(
    curves: Sequence[FaithfulnessCurve],
    methods: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draw the probability of a class while the pixels that matter go or come.

    Parameters
    ----------
    curves : sequence of FaithfulnessCurve
        From ``convscope.inspection.deletion`` and ``insertion``.
    methods : sequence of str, optional
        The method of attribution that each curve checks, as ``Attribution.method`` names it.
    class_names : sequence of str, optional

    Returns
    -------
    Figure
        A panel for each, with its area and that of pixels in random order.

    Raises
    ------
    UsageError
        When there is none, or not a method for each.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> line = SimpleNamespace(kind="deletion", fractions=np.array([0.0, 1.0]), class_index=0,
    ...                        probabilities=np.array([1.0, 0.1]), area=0.2, random_area=0.5)
    >>> print(plot_faithfulness([line]).axes[0].get_title())
    Deletion: area 0.200 (random 0.500)
    """
    if not curves:
        raise UsageError(expected_got("at least one curve", "none"))
    if methods is not None and len(methods) != len(curves):
        raise UsageError(expected_got(f"{len(curves)} methods, one for each curve", len(methods)))
    columns = len(curves) if len(curves) <= MOST_PANELS_IN_A_ROW else 2
    rows = -(-len(curves) // columns)
    with new_figure(4.4 * columns, (3.2 if methods is None else 3.5) * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for place, (axes, curve) in enumerate(zip(panels, curves, strict=False)):
            _draw_faithfulness(axes, curve, _class(curve, class_names))
            if methods is not None:
                axes.set_title(f"{METHOD_NAMES.get(methods[place], methods[place])}\n{axes.get_title()}")
        for axes in panels[len(curves) :]:
            hide_axes(axes)
    return figure


def _draw_faithfulness(axes: Axes, curve: FaithfulnessCurve, label: str) -> None:
    done = "removed" if curve.kind == "deletion" else "shown"
    axes.fill_between(100 * curve.fractions, curve.probabilities, color=BLUE, alpha=0.15)
    axes.plot(100 * curve.fractions, curve.probabilities, color=BLUE)
    axes.axhline(curve.random_area, color=GREY, linestyle="--", linewidth=1.2, label="random order, mean")
    axes.set(xlim=(0, 100), ylim=(0, 1.02), xlabel=f"pixels {done}, the most important first (%)")
    axes.set_ylabel(f"probability of {label}")
    axes.set_title(f"{curve.kind.capitalize()}: area {curve.area:.3f} (random {curve.random_area:.3f})")
    axes.legend(loc="upper right" if curve.kind == "deletion" else "lower right")


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
        words = lower.subplots()
        hide_axes(words)
        text = "\n".join(map(plain, lines))
        words.text(0, 1, text, fontsize=8, va="top", family="monospace", transform=words.transAxes)
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


def _draw_window(figure: SubFigure, found: Recomputed) -> None:
    """Draw input, weights and products of the channels that contribute most, a row for each."""
    products = None if found.weights is None else found.inputs * found.weights
    sums = (found.inputs if products is None else products).sum(axis=(0, 1))  # (c,)
    shown = np.argsort(-np.abs(sums), kind="stable")[:MOST_CHANNELS].tolist()
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
