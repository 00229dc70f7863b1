"""Draw images that a network finds alike: nearest neighbours, and a map of its last hidden layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from convscope.errors import UsageError, expected_got
from convscope.evaluation import as_labels
from convscope.plotting.images import as_pictures, draw_picture
from convscope.plotting.style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, new_figure, shorten

if TYPE_CHECKING:
    # Inspection loads torch and Keras; drawing needs only the arrays that it gives.
    from convscope.inspection import EmbeddingMap, Neighbours

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
