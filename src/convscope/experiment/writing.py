"""What an experiment writes into its run directory."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope import plotting
from convscope.data.catalog import Split
from convscope.data.statistics import TrainingStatistics
from convscope.evaluation import Calibration, Evaluation
from convscope.experiment.assessment import draw_figures
from convscope.export import CALIBRATION_FILE, STATISTICS_FILE
from convscope.model_files import WEIGHTS_FILE, write_weights
from convscope.preprocessing import Preprocess
from convscope.runs import RunDirectory

if TYPE_CHECKING:
    import keras

HISTORY_FILE = "history.csv"


def write_training(
    run: RunDirectory, model: keras.Model, preprocess: Preprocess, history: dict[str, list[float]]
) -> None:
    """Write the network, its preprocessing and the history of its training.

    Parameters
    ----------
    run : RunDirectory
        To write into.
    model : keras.Model
        Trained.
    preprocess : Preprocess
        What the model's input must go through.
    history : dict of lists
        A value for each epoch.
    """
    with tempfile.TemporaryDirectory() as scratch:  # Keras saves to a path only
        file = Path(scratch) / "model.keras"
        model.save(file)
        run.write_bytes("model.keras", file.read_bytes())
    run.write_bytes(WEIGHTS_FILE, write_weights(model))
    for name, content in preprocess.to_files().items():
        run.write_bytes(name, content)
    epochs = max((len(values) for values in history.values()), default=0)
    run.write_table(HISTORY_FILE, {"epoch": range(1, epochs + 1), **history})


def write_statistics(run: RunDirectory, train: Split) -> None:
    """Write what training images look like, so that prediction can warn of inputs that look otherwise.

    Parameters
    ----------
    run : RunDirectory
        To write into.
    train : Split
        The images that were trained on, in the size that the network takes.
    """
    run.write_json(STATISTICS_FILE, TrainingStatistics.fit(train.images).to_json())


def calibrate(evaluations: Mapping[str, Evaluation]) -> tuple[Calibration, dict[str, Evaluation]]:
    """Decide by the validation images about a temperature, and evaluate every part with it."""
    validation = evaluations.get("validation")
    calibration = Calibration.fit(validation) if validation else Calibration()
    return calibration, {part: one.calibrated(calibration.temperature) for part, one in evaluations.items()}


def write_evaluation(run: RunDirectory, evaluations: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """Write the network's predictions, the temperature that calibrates them, and what they are then worth.

    Parameters
    ----------
    run : RunDirectory
        To write into.
    evaluations : mapping of str to Evaluation
        Of each part, by its name: of the network's own probabilities.

    Returns
    -------
    dict of str to Evaluation
        The same, calibrated as every prediction from this run will be.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for part, evaluation in evaluations.items():
        arrays[f"{part}_probabilities"] = evaluation.probabilities.astype(np.float32)
        arrays[f"{part}_labels"] = evaluation.labels
        arrays[f"{part}_names"] = np.array(evaluation.names)
    run.write_arrays("predictions.npz", arrays)
    calibration, calibrated = calibrate(evaluations)
    if "validation" in evaluations:
        run.write_json(CALIBRATION_FILE, calibration.to_json())
    run.write_json("evaluation.json", {part: one.to_json() for part, one in calibrated.items()})
    return calibrated


def write_figures(
    run: RunDirectory, test: Evaluation, part: Split, history: dict[str, list[float]], subject: str
) -> None:
    """Draw and write the exercise's figures.

    Parameters
    ----------
    run : RunDirectory
        To write into, under ``figures/``.
    test : Evaluation
        Of the test images.
    part : Split
        The test images.
    history : dict of lists
        A value for each epoch.
    subject : str
        What the figures are about, e.g. ``deep on mnist``; stands in every title.
    """
    for name, figure in draw_figures(test, part.images, history).items():
        own = figure.get_suptitle()
        figure.suptitle(f"{subject}: {own}" if own else subject)
        run.write_bytes(f"figures/{name}.png", plotting.png_bytes(figure))
