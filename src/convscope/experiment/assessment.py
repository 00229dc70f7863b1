"""A model held against labelled images, as a notebook shows it: every number, and the exercise's figures."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from convscope import plotting
from convscope.errors import RunError
from convscope.evaluation import Evaluation, test_set_log
from convscope.model_files import run_of
from convscope.preprocessing import Preprocess

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure

# Two answers of a network to the same image differ by rounding alone, in the logarithms of a few classes.
_SMALLEST, _COLUMNS, _SAME = np.finfo(np.float32).tiny, 8, 1e-4


def draw_figures(
    evaluation: Evaluation, images: NDArray[Any], history: dict[str, list[float]] | None = None
) -> dict[str, Figure]:
    """Draw the figures of the exercise.

    Parameters
    ----------
    evaluation : Evaluation
        Of the images.
    images : ndarray of shape (n, h, w, c)
        In the evaluation's order.
    history : dict of lists, optional
        A value for each epoch.

    Returns
    -------
    dict of str to Figure
        In the exercise's order.
    """
    probabilities, labels, names = evaluation.probabilities, evaluation.labels, evaluation.class_names
    figures = {
        "probability": plotting.plot_probability(probabilities, labels, class_names=names),
        "confusion_matrix": plotting.plot_confusion_matrix(evaluation.confusion, names),
        "worst_errors": plotting.plot_errors(images, labels, probabilities, names, names=evaluation.names),
        "predictions": plotting.plot_predictions(images, probabilities, labels, names),
    }
    return figures if history is None else {"history": plotting.plot_history(history), **figures}


@dataclass(frozen=True, eq=False)
class Assessment:
    """An evaluation and its figures, as a notebook shows them.

    Attributes
    ----------
    evaluation : Evaluation
        Every number.
    figures : dict of str to Figure
        Probability histogram, confusion matrix, worst errors, first predictions.
    uncounted : RunError or None
        Why the use of a run's test set could not be counted.
    """

    evaluation: Evaluation
    figures: dict[str, Figure] = field(repr=False)
    uncounted: RunError | None = None

    def __str__(self) -> str:
        return f"{self.evaluation}\n\n{self.uncounted}" if self.uncounted else str(self.evaluation)

    def _repr_html_(self) -> str:
        """Show report and figures in a notebook."""
        pictures = "".join(_picture(figure, name) for name, figure in self.figures.items())
        # Pages made of notebooks set tables in a proportional type otherwise.
        report = f'<pre style="font-family:monospace">{html.escape(str(self))}</pre>'
        return f"{report}{pictures}"


def _picture(figure: Figure, name: str) -> str:
    """Embed a figure in HTML."""
    content = base64.b64encode(plotting.png_bytes(figure)).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{content}">'


def evaluate(
    model: keras.Model,
    x: NDArray[Any],
    y: NDArray[Any],
    class_names: Sequence[str] | None = None,
    *,
    preprocess: Preprocess | None = None,
    names: Sequence[str] | None = None,
) -> Assessment:
    """Evaluate a model on labelled images: loss, accuracy, report, and the exercise's four figures.

    Where the model was loaded from a run and the images are that run's test images, or some of them, this is
    counted as a use of its test set.

    Parameters
    ----------
    model : keras.Model
        Ends in probabilities.
    x : ndarray
        Preprocessed float32 images in the model's input shape, or uint8 images with ``preprocess``.
    y : ndarray of shape (n,) or (n, k)
        Labels as numbers or one-hot.
    class_names : sequence of str, optional
        The name of each class; its number when left out.
    preprocess : Preprocess, optional
        Applied to ``x`` first.
    names : sequence of n str, optional
        A name for each image.

    Returns
    -------
    Assessment
        Prints as the report; a notebook shows the figures too.

    Examples
    --------
    >>> import convscope, numpy as np
    >>> model = convscope.build("simple", (8, 8, 1), classes=3)
    >>> images = np.zeros((5, 8, 8, 1), np.float32)
    >>> assessment = evaluate(model, images, np.array([0, 1, 2, 0, 1]))
    >>> sorted(assessment.figures)
    ['confusion_matrix', 'predictions', 'probability', 'worst_errors']
    """
    from convscope.training.api import predict

    probabilities = predict(model, x, preprocess=preprocess)
    uncounted = _count_use(model, probabilities)
    evaluation = Evaluation.from_probabilities(probabilities, y, class_names, names)
    with plotting.embedded():
        return Assessment(evaluation, draw_figures(evaluation, x), uncounted)


def _count_use(model: keras.Model, probabilities: NDArray[np.float32]) -> RunError | None:
    """Count a look at a run's test images, which are known by the answers that its network gave them."""
    run = run_of(model)
    if run is None or not (run.path / "predictions.npz").is_file():
        return None
    stored = run.read_arrays("predictions.npz").get("test_probabilities")
    if stored is None or stored.shape[1:] != probabilities.shape[1:]:
        return None
    known, asked = (np.log(np.maximum(table, _SMALLEST))[:, :_COLUMNS] for table in (stored, probabilities))
    distances, _ = KDTree(known).query(asked, p=np.inf, distance_upper_bound=_SAME)
    if np.isfinite(distances).mean() < 0.5:
        return None
    return test_set_log.try_to_log_use(run, "error analysis", by="convscope.evaluate")
