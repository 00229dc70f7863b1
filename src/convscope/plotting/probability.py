"""Draw the predicted probabilities of one class as a histogram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from convscope.errors import UsageError, sentence
from convscope.evaluation import as_labels, as_probabilities
from convscope.plotting.style import BLUE, RED, new_figure, shorten


def plot_probability(
    probabilities: ArrayLike,
    labels: ArrayLike,
    class_index: int = 0,
    class_names: Sequence[str] | None = None,
    bins: int = 10,
) -> Figure:
    """Draw the histogram of the predicted probability of one class: its own images red, all others blue.

    Parameters
    ----------
    probabilities : array-like of shape (n, k)
    labels : array-like of shape (n,) or (n, k)
        Class indices or one-hot.
    class_index : int
        Which class, from 0 to k − 1.
    class_names : sequence of k str, optional
    bins : int
        Of equal width between 0 and 1.

    Returns
    -------
    Figure
        With logarithmic counts.

    Raises
    ------
    UsageError
        When the class does not exist, or shapes do not fit.
    DataError
        When probabilities or labels hold impossible values.

    Examples
    --------
    >>> figure = plot_probability([[0.9, 0.1], [0.2, 0.8]], [0, 1], class_names=["cat", "dog"])
    >>> figure.axes[0].get_xlabel()
    'predicted probability of cat'
    """
    table = as_probabilities(probabilities)  # (n, k)
    images, classes = table.shape
    own = as_labels(labels, classes, images) == class_index
    if not 0 <= class_index < classes:
        raise UsageError(sentence(f"a class from 0 to {classes - 1}", class_index))
    if bins < 1:
        raise UsageError(sentence("at least one bin", bins))
    name = shorten(class_names[class_index]) if class_names is not None else f"class {class_index}"
    column = np.clip(table[:, class_index], 0, 1)
    with new_figure(7, 4) as figure:
        axes = figure.subplots()
        axes.hist(
            [column[own], column[~own]],
            bins=np.linspace(0, 1, bins + 1).tolist(),
            color=[RED, BLUE],
            label=[f"truly {name} ({own.sum()})", f"others ({(~own).sum()})"],
        )
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(bottom=0.5)  # a bar for a single image is visible
        axes.set_xlim(0, 1)
        axes.grid(visible=True, axis="y")
        axes.set(xlabel=f"predicted probability of {name}", ylabel="images (logarithmic)")
        axes.set_title(f"Predicted probability of {name}")
        figure.legend(loc="outside lower center", ncols=2)
    return figure
