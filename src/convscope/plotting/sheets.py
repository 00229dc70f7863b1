"""Draw contact sheets: likely wrong labels, and the hardest and easiest images of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from convscope.data.quality import ContactSheet
from convscope.errors import UsageError, sentence
from convscope.evaluation import Evaluation
from convscope.plotting.images import as_pictures, draw_picture, image_grid, message_figure
from convscope.plotting.style import new_figure, shorten

MOST_ROWS = 20


def plot_label_issues(images: ArrayLike, result: Evaluation, count: int = 24) -> Figure:
    """Draw the images whose labels are most likely wrong, as they are labelled and as they are predicted.

    Parameters
    ----------
    images : array-like of shape (n, h, w, c), (n, c, h, w) or (n, h, w)
    result : Evaluation
        Of images that the network was not trained on.
    count : int
        How many to show at most; no more than are suspect.

    Returns
    -------
    Figure
        A figure that says so when no label is suspect, or when the network is too often wrong to tell.

    Examples
    --------
    >>> result = Evaluation.from_probabilities([[0.9, 0.1]] * 9 + [[0.1, 0.9]] * 9, [0] * 9 + [1] * 9)
    >>> plot_label_issues(np.zeros((18, 8, 8)), result).axes[0].get_title()
    'No label looks wrong'
    """
    check = result.label_check
    if check.suspects is None:
        why = f"The network is right for {result.accuracy:.1%}: most of what it contradicts is its own error."
        return message_figure("Which labels are wrong cannot be told", why)
    chosen = check.ranking[: min(count, check.suspects)]
    if not chosen.size:
        return message_figure("No label looks wrong", f"{result.images:,} labels were checked.")
    captions = [
        f"labelled {_name(result, result.labels[index])}\n"
        f"looks like {_name(result, result.predictions[index])} ({result.probabilities[index].max():.2f})"
        for index in chosen
    ]
    title = f"{chosen.size} of {check.suspects} labels that may be wrong, the likeliest first"
    below = [shorten(result.name_of(int(index)), 26, keep_end=True) for index in chosen]
    return image_grid(as_pictures(images, result.images)[chosen], captions, title, 6, below=below)


def plot_examples(
    images: ArrayLike, result: Evaluation, classes: Sequence[int] | None = None, count: int = 4
) -> Figure:
    """Draw the hardest and the easiest images of each class, a row for each class.

    Parameters
    ----------
    images : array-like of shape (n, h, w, c), (n, c, h, w) or (n, h, w)
    result : Evaluation
    classes : sequence of int, optional
        Which classes; the first twenty that have images unless given.
    count : int
        How many of each kind.

    Returns
    -------
    Figure
        The probability of the true class stands above each image.

    Raises
    ------
    UsageError
        When there is no such class, or nothing to draw.

    Examples
    --------
    >>> result = Evaluation.from_probabilities([[0.9, 0.1], [0.4, 0.6]], [0, 0], ["cat", "dog"])
    >>> figure = plot_examples(np.zeros((2, 8, 8)), result, count=1)
    >>> [axes.get_title() for axes in figure.axes]
    ['dog? 0.40', '0.90']
    """
    present = [int(index) for index in np.flatnonzero(result.support)[:MOST_ROWS]]
    rows = present if classes is None else list(classes)
    if not rows or count < 1:
        raise UsageError(
            sentence("at least one class and one image of each kind", f"{len(rows)} and {count}")
        )
    pictures = as_pictures(images, result.images)
    with new_figure(1.0 + 2 * count * 1.05, 0.7 + 1.25 * len(rows)) as figure:
        figure.suptitle("Hardest (left) and easiest (right) images of each class, probability of that class")
        for row, index in enumerate(rows):
            hard, easy = result.hardest(index, count), result.easiest(index, count)[::-1]
            places = [*enumerate(hard), *((2 * count - easy.size + n, image) for n, image in enumerate(easy))]
            for column, image in places:
                axes = figure.add_subplot(len(rows), 2 * count, 1 + row * 2 * count + column)
                draw_picture(axes, pictures[image])
                axes.set_title(_probability(result, int(image)), fontsize=8)
                if column == 0:
                    axes.set_ylabel(_name(result, index), rotation=0, ha="right", va="center")
    return figure


def plot_contact_sheet(sheet: ContactSheet, title: str = "") -> Figure:
    """Draw images of a data set class by class, a row for each.

    Parameters
    ----------
    sheet : ContactSheet
        Images and their names.
    title : str
        Above the sheet.

    Returns
    -------
    Figure

    Examples
    --------
    >>> from convscope.data.quality import ContactSheet
    >>> sheet = ContactSheet(np.zeros((1, 2, 8, 8, 1), np.uint8), (("a.png", "b.png"),), ("cat",))
    >>> [axes.get_title() for axes in plot_contact_sheet(sheet).axes]
    ['a.png', 'b.png']
    """
    classes, columns = sheet.images.shape[:2]
    with new_figure(1.2 + 1.1 * columns, 0.5 + 1.25 * classes) as figure:
        figure.suptitle(title or "A random choice of the images of each class")
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
    return text if predicted == true else f"{_name(result, predicted)}? {text}"


def _name(result: Evaluation, index: int) -> str:
    return shorten(result.class_names[index], 14)
