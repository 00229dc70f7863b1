"""Draw images: predictions, worst errors, likely wrong labels, contact sheets, neighbours, maps of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from convscope.data.quality import ContactSheet
from convscope.errors import UsageError, expected_got
from convscope.evaluation import Evaluation, as_labels, as_probabilities, worst_errors
from convscope.plotting.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    hide_axes,
    hide_frame,
    new_figure,
    plain,
    shorten,
)

if TYPE_CHECKING:
    from convscope.inspection import EmbeddingMap, Neighbours


COLOUR_CHANNELS = (3, 4)
CHANNEL_COUNTS = (1, *COLOUR_CHANNELS)


def plot_errors(
    images: ArrayLike,
    labels: ArrayLike,
    probabilities: ArrayLike,
    class_names: Sequence[str] | None = None,
    count: int = 6,
    *,
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw the worst errors: those with the largest gap between the predicted and the true class.

    Parameters
    ----------
    images : array-like of shape (n, h, w, c), (n, c, h, w) or (n, h, w)
        Grey or colour; uint8 from 0 to 255, or floating point.
    labels : array-like of shape (n,) or (n, k)
        Class indices or one-hot.
    probabilities : array-like of shape (n, k)
    class_names : sequence of k str, optional
    count : int
        How many to show at most.
    names : sequence of n str, optional
        A name for each image, written below it.

    Returns
    -------
    Figure
        A figure that says so when there are no errors.

    Raises
    ------
    UsageError
        When shapes do not fit together.
    DataError
        When probabilities or labels hold impossible values.

    Examples
    --------
    >>> figure = plot_errors(np.zeros((2, 8, 8)), [0, 1], [[0.2, 0.8], [0.1, 0.9]], ["cat", "dog"])
    >>> print(figure.axes[0].get_title())
    predicted dog (0.80)
    true cat (0.20)
    """
    table = as_probabilities(probabilities)  # (n, k)
    truth = as_labels(labels, table.shape[1], len(table))  # (n,)
    worst = worst_errors(table, truth, count)
    if not worst.size:
        return message_figure("No errors", f"All {len(table)} images are predicted correctly.")
    predicted = np.argmax(table, axis=1)  # (n, k) → (n,)
    captions = [
        f"predicted {_class(class_names, predicted[index])} ({table[index, predicted[index]]:.2f})\n"
        f"true {_class(class_names, truth[index])} ({table[index, truth[index]]:.2f})"
        for index in worst
    ]
    total = int((predicted != truth).sum())
    title = f"The worst {len(worst)} of {total} errors" if total > len(worst) else f"All {total} errors"
    title = "The only error" if total == 1 else title
    below = names_below(names, worst, len(table))
    return image_grid(as_pictures(images, len(table), worst), captions, title, columns=3, below=below)


def plot_predictions(
    images: ArrayLike,
    probabilities: ArrayLike,
    labels: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    count: int = 15,
) -> Figure:
    """Draw the first images with their predictions.

    Parameters
    ----------
    images : array-like of shape (n, h, w, c), (n, c, h, w) or (n, h, w)
        Grey or colour; uint8 from 0 to 255, or floating point.
    probabilities : array-like of shape (n, k)
    labels : array-like of shape (n,) or (n, k), optional
        With them, right predictions are ticked and wrong ones crossed.
    class_names : sequence of k str, optional
    count : int
        How many to show at most.

    Returns
    -------
    Figure

    Raises
    ------
    UsageError
        When shapes do not fit together.
    DataError
        When probabilities or labels hold impossible values.

    Examples
    --------
    >>> figure = plot_predictions(np.zeros((1, 8, 8, 1)), [[0.2, 0.8]], [0], ["cat", "dog"])
    >>> print(figure.axes[0].get_title())
    ✗ dog (0.80)
    true cat
    """
    table = as_probabilities(probabilities)  # (n, k)
    pictures = as_pictures(images, len(table), slice(count))
    shown = table[: len(pictures)]
    predicted = np.argmax(shown, axis=1)  # (n, k) → (n,)
    pairs = zip(predicted, shown, strict=True)
    texts = [f"{_class(class_names, index)} ({row[index]:.2f})" for index, row in pairs]
    title = f"The first {len(pictures)} images and their predictions"
    if labels is None:
        return image_grid(pictures, texts, title, columns=5)
    truth = as_labels(labels, table.shape[1], len(table))[: len(pictures)]
    right = predicted == truth
    captions = [
        f"✓ {text}\n" if hit else f"✗ {text}\ntrue {_class(class_names, true)}"
        for text, hit, true in zip(texts, right, truth, strict=True)
    ]
    return image_grid(pictures, captions, title, columns=5, colours=[BLUE if hit else RED for hit in right])


def as_pictures(
    images: ArrayLike,
    count: int | None = None,
    places: NDArray[np.integer] | Sequence[int] | slice = slice(None),
) -> NDArray[Any]:
    """Bring some of ``count`` images of any order of axes into the form to draw, their type as it was.

    Returns (n, h, w), or (n, h, w, 3 or 4).
    """
    pictures = np.asarray(images)
    if pictures.ndim not in (3, 4):
        hint = "A single image x becomes x[None]."
        raise UsageError(expected_got("images of shape (n, h, w, c)", pictures.shape, hint))
    if count is not None and len(pictures) != count:
        raise UsageError(expected_got(f"{count} images, one for each row of probabilities", len(pictures)))
    pictures = pictures[places]
    if pictures.ndim == 3:
        return pictures
    if pictures.shape[3] not in CHANNEL_COUNTS and pictures.shape[1] in CHANNEL_COUNTS:
        pictures = np.moveaxis(pictures, 1, 3)  # (n, c, h, w) → (n, h, w, c)
    if pictures.shape[3] in COLOUR_CHANNELS:
        return pictures
    if pictures.shape[3] == 1:
        return pictures[..., 0]
    # (n, h, w, c) → (n, h, w); the eye sees no two channels
    grey: NDArray[Any] = pictures.mean(axis=3).astype(pictures.dtype)
    return grey


def image_grid(
    pictures: NDArray[Any],
    captions: Sequence[str],
    title: str,
    columns: int,
    *,
    below: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
) -> Figure:
    """Draw pictures, as of `as_pictures`, side by side: captions above, names small below."""
    columns = max(1, min(columns, len(pictures)))
    rows = max(1, -(-len(pictures) // columns))
    lines = [line for caption in captions for line in caption.split("\n")]
    wide = max(1.6, 0.4 + 0.085 * max(map(len, lines), default=0))  # inches for one caption at 9 points
    high = 1.6 + 0.2 * len(lines) / max(1, len(captions)) + 0.3 * (below is not None)
    gap = 0.06 if below is not None else 0.02
    with new_figure(max(3.4, wide * columns), 0.5 + rows * high, gap) as figure:
        figure.suptitle(title, wrap=True)
        for index, picture in enumerate(pictures):
            axes = figure.add_subplot(rows, columns, index + 1)
            draw_picture(axes, picture)
            axes.set_title(captions[index], fontsize=9, color=BLACK if colours is None else colours[index])
            if below is not None:
                axes.set_xlabel(below[index], fontsize=7, color=GREY)
    return figure


def draw_picture(axes: Axes, picture: NDArray[Any]) -> None:
    """Draw one picture without ticks, grey from black to white.

    uint8 goes from 0 to 255, floating point from 0 to 1, or between its own ends where it leaves that range.
    """
    axes.imshow(_in_unit_range(picture), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    hide_frame(axes)


def stretched(picture: NDArray[Any]) -> NDArray[np.float64]:
    """Bring the smallest value of a picture to 0 and its largest to 1."""
    values = np.asarray(picture, dtype=np.float64)
    low, high = values.min(), values.max()
    scaled: NDArray[np.float64] = (values - low) / ((high - low) or 1)
    return scaled


def _in_unit_range(picture: NDArray[Any]) -> NDArray[np.float64]:
    if picture.dtype.kind in "iub":
        full = {"uint16": 65535, "bool": 1}.get(picture.dtype.name, 255)
        return np.clip(picture / full, 0, 1)
    values = np.nan_to_num(picture.astype(np.float64))
    low, high = values.min(initial=0), values.max(initial=0)
    if low >= -1e-6 and high <= 1 + 1e-6:
        return np.clip(values, 0, 1)
    return values / 255 if low >= 0 and high <= 255 else stretched(values)


def message_figure(title: str, message: str) -> Figure:
    """Make a figure that says in words that there is nothing to draw."""
    with new_figure(5, 1.4) as figure:
        axes = figure.subplots()
        hide_axes(axes)
        axes.set_title(title)
        axes.text(0.5, 0.5, plain(message), ha="center", va="center", transform=axes.transAxes)
    return figure


def _class(class_names: Sequence[str] | None, index: int) -> str:
    return str(index) if class_names is None else shorten(class_names[index], 14)


def names_below(names: Sequence[str] | None, chosen: Iterable[int], count: int) -> list[str] | None:
    """Shorten the names of the chosen ones of `count` images to what fits below them; None without names."""
    if names is None:
        return None
    if len(names) != count:
        raise UsageError(expected_got(f"{count} image names", len(names)))
    return [shorten(names[index], 30, keep_end=True) for index in chosen]


MOST_ROWS = 20


def plot_label_issues(images: ArrayLike, result: Evaluation, count: int = 24) -> Figure:
    """Draw the images, (n, h, w, c), (n, c, h, w) or (n, h, w), whose labels are most likely wrong.

    The network must not have been trained on them. The figure says so when no label is suspect, or when the
    network is too often wrong to tell.
    """
    check = result.label_check
    if check.suspects is None:
        why = f"The network is right for {result.accuracy:.1%}: most of what it contradicts is its own error."
        return message_figure("Which labels are wrong cannot be told", why)
    chosen = check.ranking[: min(count, check.suspects)]
    if not chosen.size:
        return message_figure("No label looks wrong", f"{result.images:,} labels were checked.")
    names = result.class_names
    captions = [
        f"labelled {_class(names, result.labels[index])}\n"
        f"looks like {_class(names, result.predictions[index])} ({result.probabilities[index].max():.2f})"
        for index in chosen
    ]
    title = f"{chosen.size} of {check.suspects} labels that may be wrong, the likeliest first"
    below = [shorten(result.name_of(int(index)), 26, keep_end=True) for index in chosen]
    return image_grid(as_pictures(images, result.images, chosen), captions, title, 6, below=below)


def plot_examples(
    images: ArrayLike, result: Evaluation, classes: Sequence[int] | None = None, count: int = 4
) -> Figure:
    """Draw the hardest and the easiest images of each class, a row each, under the true class's probability.

    ``images`` are (n, h, w, c), (n, c, h, w) or (n, h, w); without ``classes`` the first twenty that have
    any.
    """
    present = [int(index) for index in np.flatnonzero(result.support)[:MOST_ROWS]]
    rows = present if classes is None else list(classes)
    if not rows or count < 1:
        expected = "at least one class and one image of each kind"
        raise UsageError(expected_got(expected, f"{len(rows)} and {count}"))
    pictures = as_pictures(images, result.images)
    with new_figure(1.0 + 2 * count * 1.05, 0.7 + 1.25 * len(rows)) as figure:
        title = "Hardest (left) and easiest (right) images of each class, probability of that class"
        figure.suptitle(title, wrap=True)
        for row, index in enumerate(rows):
            hard, easy = result.hardest(index, count), result.easiest(index, count)[::-1]
            places = [*enumerate(hard), *((2 * count - easy.size + n, image) for n, image in enumerate(easy))]
            for column, image in places:
                axes = figure.add_subplot(len(rows), 2 * count, 1 + row * 2 * count + column)
                draw_picture(axes, pictures[image])
                axes.set_title(_probability(result, int(image)), fontsize=8)
                if column == 0:
                    axes.set_ylabel(_class(result.class_names, index), rotation=0, ha="right", va="center")
    return figure


def plot_contact_sheet(sheet: ContactSheet) -> Figure:
    """Draw images of a dataset class by class, a row for each."""
    classes, columns = sheet.images.shape[:2]
    with new_figure(1.2 + 1.1 * columns, 0.5 + 1.25 * classes) as figure:
        figure.suptitle("A random choice of the images of each class", wrap=True)
        for row in range(classes):
            for column in range(columns):
                axes = figure.add_subplot(classes, columns, 1 + row * columns + column)
                draw_picture(axes, as_pictures(sheet.images[row, column][None])[0])
                axes.set_title(shorten(sheet.captions[row][column], 16, keep_end=True), fontsize=6)
                if column == 0:
                    axes.set_ylabel(shorten(sheet.class_names[row], 16), rotation=0, ha="right", va="center")
    return figure


def _probability(result: Evaluation, index: int) -> str:
    """Write the probability of the true class, and what the image was taken for."""
    true, predicted = int(result.labels[index]), int(result.predictions[index])
    text = f"{result.probabilities[index, true]:.2f}"
    return text if predicted == true else f"{_class(result.class_names, predicted)}? {text}"


COLOURS = (BLUE, RED, GREEN, ORANGE, SKY, PINK, BLACK, GREY)
MARKERS = "os^Dv*PX<>ph"
MOST_NAMED = 30


def plot_neighbours(
    queries: ArrayLike,
    known: ArrayLike,
    found: Neighbours,
    *,
    query_labels: Sequence[str] | None = None,
    known_labels: Sequence[str] | None = None,
    searched: str = "training images",
) -> Figure:
    """Draw images and, beside each, the known images most like it.

    Parameters
    ----------
    queries : array-like of shape (q, h, w, c), (q, c, h, w) or (q, h, w)
        The images asked about.
    known : array-like of the same form
        The images searched, usually those of the training.
    found : Neighbours
        From ``convscope.inspection.nearest``.
    query_labels, known_labels : sequence of str, optional
        What to write above the images.
    searched : str
        What the known images are.

    Returns
    -------
    Figure
        A row for each query, with the cosine similarity below each neighbour.

    Raises
    ------
    UsageError
        When there are not as many queries as rows of neighbours.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> found = SimpleNamespace(indices=np.array([[2, 0]]), similarities=np.array([[0.9, 0.8]]))
    >>> len(plot_neighbours(np.zeros((1, 8, 8)), np.zeros((3, 8, 8)), found).axes)
    3
    """
    asked, pictures = as_pictures(queries), as_pictures(known)
    rows, count = found.indices.shape
    if len(asked) != rows:
        raise UsageError(expected_got(f"{rows} queries, one for each row of neighbours", len(asked)))
    with new_figure(1.25 * (count + 1) + 0.3, 0.6 + 1.6 * rows) as figure:
        grid = figure.subplots(rows, count + 1, squeeze=False)
        figure.suptitle(
            f"Left: the image asked about; then the {searched} most like it, with cosine similarity",
            wrap=True,
        )
        for row in range(rows):
            _draw(grid[row, 0], asked[row], "?" if query_labels is None else query_labels[row], BLACK)
            for place in range(count):
                index = int(found.indices[row, place])
                label = f"number {index}" if known_labels is None else known_labels[index]
                _draw(grid[row, place + 1], pictures[index], label, GREY)
                grid[row, place + 1].set_xlabel(f"{found.similarities[row, place]:.3f}", fontsize=8)
    return figure


def _draw(axes: Axes, picture: NDArray[np.generic], label: str, colour: str) -> None:
    draw_picture(axes, picture)
    axes.set_title(shorten(label, 16), fontsize=8, color=colour)


def plot_embedding_map(
    found: EmbeddingMap, labels: ArrayLike, class_names: Sequence[str] | None = None
) -> Figure:
    """Draw where images lie in the map of the last hidden layer, coloured by their class.

    Parameters
    ----------
    found : EmbeddingMap
        From ``convscope.inspection.embedding_map``.
    labels : array-like of shape (n,)
        The class of each image.
    class_names : sequence of str, optional

    Returns
    -------
    Figure
        Colour and marker tell the classes apart, and up to thirty have their name at their middle.

    Raises
    ------
    UsageError
        When there are not as many labels as points.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> points = SimpleNamespace(points=np.eye(4)[:, :2], method="pca", explained=0.8, seed=0)
    >>> plot_embedding_map(points, [0, 0, 1, 1]).axes[0].get_title()
    'Last hidden layer, PCA (80 % of the variance)'
    """
    classes = int(np.max(labels)) + 1 if class_names is None else len(class_names)
    truth = as_labels(labels, max(classes, 2), len(found.points))
    present = np.unique(truth)
    with new_figure(7.5, 6) as figure:
        axes = figure.subplots()
        for index in present:
            points = found.points[truth == index]
            name = f"class {index}" if class_names is None else shorten(class_names[index], 16)
            axes.scatter(
                points[:, 0],
                points[:, 1],
                s=14,
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[(index // len(COLOURS) + index % len(COLOURS)) % len(MARKERS)],
                alpha=0.6,
                linewidths=0,
                label=name,
            )
            if present.size <= MOST_NAMED:
                _name_middle(axes, points, name)
        axes.set_title(f"Last hidden layer, {_method(found)}")
        axes.set(xticks=[], yticks=[], xlabel="near: alike for the network; directions have no meaning")
        if present.size <= MOST_NAMED:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.6)
    return figure


def _name_middle(axes: Axes, points: NDArray[np.float32], name: str) -> None:
    middle = np.median(points, axis=0)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5}
    axes.text(middle[0], middle[1], name, ha="center", va="center", fontsize=9, weight="bold", bbox=box)


def _method(found: EmbeddingMap) -> str:
    if found.method != "pca":
        return "t-SNE"
    return "PCA" if found.explained is None else f"PCA ({100 * found.explained:.0f} % of the variance)"
