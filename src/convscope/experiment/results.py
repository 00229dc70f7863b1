"""What an experiment finds out: evaluations, the exercise's figures, and the files of a run."""

from __future__ import annotations

import base64
import html
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope import plotting
from convscope.data.dataset import Split
from convscope.data.drift import TrainingStatistics
from convscope.environment import beside
from convscope.errors import LoweringError, RunError
from convscope.evaluation import Calibration, Evaluation, test_set_log
from convscope.evaluation.novelty import SAMPLE, Novelty, reduce
from convscope.experiment.preparation import Prepared
from convscope.export import CALIBRATION_FILE, NOVELTY_FILE, STATISTICS_FILE
from convscope.model_files import WEIGHTS_FILE, run_of, write_weights
from convscope.plotting.exercise import LARGE_FIGURES, SMALL_FIGURES, draw_figures, draw_png_files, png_files
from convscope.preprocessing import Preprocess
from convscope.runs import RunDirectory, write_history

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure

_LOG = logging.getLogger(__name__)
# Images that are predicted at a time: what the predictor takes, so that their features, which may be long,
# need not be put together.
STRETCH = 128
# Images whose distances are measured at a time. The libraries behind torch and NumPy keep their threads awake
# for a while, in each other's way: the fewer turns they take, the better.
BLOCK = 32 * STRETCH
# Two answers of a network to the same image differ by rounding alone, in the logarithms of a few classes.
_SMALLEST, _COLUMNS, _SAME = np.finfo(np.float32).tiny, 8, 1e-4


def evaluate_parts(
    model: keras.Model, prepared: Prepared, parts: Sequence[str] = ("validation", "test")
) -> dict[str, Evaluation]:
    """Evaluate a trained model on ``test``, and on ``validation`` where there is one."""
    from convscope.training.api import predict

    evaluations = {}
    for name, part in prepared.parts.items():
        if name in parts:
            probabilities = predict(model, part.images, preprocess=prepared.preprocess)
            evaluations[name] = Evaluation.from_probabilities(
                probabilities, part.labels, prepared.class_names, part.names
            )
    return evaluations


def examine_parts(
    model: keras.Model,
    prepared: Prepared,
    statistics: TrainingStatistics | None,
    train_features: NDArray[np.float32] | None = None,
) -> tuple[dict[str, Evaluation], dict[str, NDArray[np.float32]], Novelty | None]:
    """Evaluate as `evaluate_parts`; measure in the same pass how far each image is from the training images.

    The distances are by part, (n,). There is no `Novelty` without validation images, which set its limit, or
    for a network that gives no features. Those of the training images (n, d) are computed unless known.
    """
    if prepared.validation is None:
        return evaluate_parts(model, prepared), {}, None
    train, validation = prepared.train.images, prepared.validation.images
    places = np.unique(np.linspace(0, len(train) - 1, min(SAMPLE, len(train))).astype(np.int64))
    evaluations, distances = {}, {}
    try:
        seen = _stretches(model, train, prepared.preprocess, places)
        rows, length = [], 0
        for features in (one for _, one in seen) if train_features is None else [train_features[places]]:
            rows.append(reduce(features).astype(np.float16))
            length = features.shape[1]
        novelty = Novelty(np.concatenate(rows), length)
        for name, part in prepared.parts.items():
            if name != "train":
                answers: list[NDArray[np.float32]] = []
                far: list[NDArray[np.float32]] = []
                for start in range(0, len(part), BLOCK):
                    reduced = []
                    block = part.images[start : start + BLOCK]
                    for probabilities, features in _stretches(model, block, prepared.preprocess):
                        answers.append(probabilities)
                        reduced.append(reduce(features))
                    far.append(novelty.distances_of_reduced(np.concatenate(reduced)))
                distances[name] = np.concatenate(far)
                evaluations[name] = Evaluation.from_probabilities(
                    np.concatenate(answers), part.labels, prepared.class_names, part.names
                )
    except LoweringError as error:
        _LOG.info("The network's features are not looked at. %s", error)
        return evaluate_parts(model, prepared), {}, None
    odd = np.zeros(len(validation), bool)
    if statistics is not None:
        for start in range(0, len(validation), STRETCH):
            some = slice(start, start + STRETCH)
            odd[some] = [bool(found) for found in statistics.drift_warnings(validation[some])]
    novelty = novelty.calibrated(distances["validation"], odd)
    return evaluations, distances, novelty if novelty.validation else None


def _stretches(
    model: keras.Model,
    images: NDArray[np.uint8],
    preprocess: Preprocess,
    places: NDArray[np.int64] | None = None,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Predict images some at a time, those in some places or all: give probabilities and features."""
    from convscope.training.api import predict_with_features

    count = len(images) if places is None else len(places)
    for start in range(0, count, STRETCH):
        some = slice(start, start + STRETCH)
        yield predict_with_features(model, images[some if places is None else places[some]], preprocess)


def calibrate(evaluations: Mapping[str, Evaluation]) -> tuple[Calibration, dict[str, Evaluation]]:
    """Decide by the validation images about a temperature, and evaluate every part with it."""
    validation = evaluations.get("validation")
    calibration = Calibration()
    if validation:
        calibration = beside(Calibration.fit, validation, size=validation.probabilities.nbytes)()
    return calibration, {part: one.calibrated(calibration.temperature) for part, one in evaluations.items()}


def write_training(
    run: RunDirectory, model: keras.Model, preprocess: Preprocess, history: dict[str, list[float]]
) -> None:
    """Write the network, its preprocessing and the history of its training."""
    with tempfile.TemporaryDirectory() as scratch:  # Keras saves to a path only
        file = Path(scratch) / "model.keras"
        model.save(file)
        run.write_bytes("model.keras", file.read_bytes())
    run.write_bytes(WEIGHTS_FILE, write_weights(model))
    for name, content in preprocess.to_files().items():
        run.write_bytes(name, content)
    write_history(run, history)


def write_statistics(run: RunDirectory, train: Split) -> None:
    """Write what training images look like, so that prediction can warn of inputs that look otherwise."""
    run.write_json(STATISTICS_FILE, TrainingStatistics.fit(train.images).to_json())


def write_novelty(run: RunDirectory, novelty: Novelty | None) -> None:
    """Write by what prediction will know images that the network has never seen the like of."""
    if novelty is not None:
        run.write_arrays(NOVELTY_FILE, novelty.to_arrays())


def write_evaluation(
    run: RunDirectory,
    evaluations: Mapping[str, Evaluation],
    distances: Mapping[str, NDArray[np.float32]] = MappingProxyType({}),
) -> dict[str, Evaluation]:
    """Write predictions, their temperature, and what they are then worth; give that back.

    The evaluations are of the network's own probabilities; those given back, of what ``predict`` will answer.
    Beside them stand the distances from the training images, where they were measured.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for part, evaluation in evaluations.items():
        arrays[f"{part}_probabilities"] = evaluation.probabilities.astype(np.float32)
        arrays[f"{part}_labels"] = evaluation.labels
        arrays[f"{part}_names"] = np.array(evaluation.names)
        if part in distances:
            arrays[f"{part}_distances"] = distances[part]
    run.write_arrays("predictions.npz", arrays)
    calibration, calibrated = calibrate(evaluations)
    if "validation" in evaluations:
        run.write_json(CALIBRATION_FILE, calibration.to_json())
    run.write_json("evaluation.json", {part: one.to_json() for part, one in calibrated.items()})
    return calibrated


def write_figures(run: RunDirectory, figures: Mapping[str, Figure], subject: str) -> None:
    """Write figures, with the subject (such as ``deep on mnist``) in every title."""
    for name, content in png_files(figures, subject).items():
        run.write_bytes(f"figures/{name}.png", content)


def write_figures_of(
    run: RunDirectory,
    evaluation: Evaluation,
    images: NDArray[np.uint8],
    history: dict[str, list[float]],
    subject: str,
) -> None:
    """Draw and write the exercise's figures of an evaluation, half of them in a helper where there is one."""
    facts = evaluation, images, history, subject
    others = beside(draw_png_files, LARGE_FIGURES, *facts, size=images.nbytes)
    drawn = draw_png_files(SMALL_FIGURES, *facts)
    for name, content in (drawn | others()).items():
        run.write_bytes(f"figures/{name}.png", content)


@dataclass(frozen=True, eq=False)
class Assessment:
    """An evaluation and its figures, as a notebook shows them.

    ``uncounted`` is why the use of a run's test set could not be counted.
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
        Ends in probabilities, in logits where its compiled loss takes these, or in one number for the second
        of two classes.
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

    probabilities = _as_probabilities(model, predict(model, x, preprocess=preprocess))
    uncounted = _count_use(model, probabilities)
    evaluation = Evaluation.from_probabilities(probabilities, y, class_names, names)
    with plotting.embedded():
        return Assessment(evaluation, draw_figures(evaluation, x), uncounted)


def _as_probabilities(model: keras.Model, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn logits, which the compiled loss says they are, and the one number of a sigmoid, into (n, k)."""
    from scipy.special import expit, softmax

    from convscope import _keras_internals as internals
    from convscope.training.request import loss_name

    loss = getattr(model, "loss", None)
    if loss is not None and outputs.ndim == 2 and internals.settings_of(loss).get("from_logits"):
        outputs = expit(outputs) if loss_name(model) == "binary_crossentropy" else softmax(outputs, axis=1)
    if outputs.ndim == 2 and outputs.shape[1] == 1:
        outputs = np.column_stack([1 - outputs, outputs])
    return outputs


def _count_use(model: keras.Model, probabilities: NDArray[np.float32]) -> RunError | None:
    """Count a look at a run's test images, which are known by the answers that its network gave them."""
    run = run_of(model)
    if run is None or not (run.path / "predictions.npz").is_file():
        return None
    stored = run.read_arrays("predictions.npz").get("test_probabilities")
    if stored is None or stored.shape[1:] != probabilities.shape[1:]:
        return None
    from scipy.spatial import KDTree  # half a second that a training does not need

    known, asked = (np.log(np.maximum(table, _SMALLEST))[:, :_COLUMNS] for table in (stored, probabilities))
    distances, _ = KDTree(known).query(asked, p=np.inf, distance_upper_bound=_SAME)
    if np.isfinite(distances).mean() < 0.5:
        return None
    return test_set_log.try_to_log_use(run, "error analysis", by="convscope.evaluate")
