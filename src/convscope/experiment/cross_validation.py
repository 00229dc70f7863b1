"""Cross-validation: as many networks as folds, each tested on the images that it never saw.

Where a test part of fifty images says little, every image is in some network's test part this way. The runs
are ordinary ones; what they answer together is one evaluation of the settings, not of a single network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convscope import plotting
from convscope.data.dataset import Dataset
from convscope.data.loading import take_fold
from convscope.errors import UsageError, expected_got
from convscope.evaluation import Evaluation
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.results import write_figures
from convscope.experiment.running import Result
from convscope.experiment.several import run_several
from convscope.runs import RunDirectory

PREDICTIONS_FILE, SUMMARY_FILE = "out_of_fold.npz", "cross_validation.json"


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """The runs of all folds, what they say together about every image, and the folder that holds both."""

    folder: Path
    results: Sequence[Result]
    evaluation: Evaluation

    def to_json(self) -> dict[str, Any]:
        """Give the evaluation of the out-of-fold predictions, and each fold's accuracy, as JSON values."""
        return {
            "folds": [
                {"run": result.run.name, "images": result.test.images, "accuracy": result.test.accuracy}
                for result in self.results
            ],
            "evaluation": self.evaluation.to_json(),
        }


def cross_validate(
    config: ExperimentConfig, dataset: Dataset, folds: int, out: Path, **options: Any
) -> CrossValidation:
    """Train one network for each fold, and evaluate what each answers for the images of its fold.

    A part of the other folds' images is held back for the choice of the epoch, as in any training, so that
    nothing is chosen by the images that are counted. ``options`` are those of ``run_several``. Fewer than two
    folds, and a class with fewer different images than there are folds, are refused.
    """
    if folds < 2:
        raise UsageError(expected_got("at least 2 folds", folds))
    seed = config.training.seed
    take_fold(dataset, 1, folds, seed)  # too few images are refused before a folder is made
    configs = {
        f"{config.folder_name}-fold-{number}": replace(
            config, reading={**config.reading, "fold": [number, folds, seed]}
        )
        for number in range(1, folds + 1)
    }
    results = run_several(configs, dataset, out, "folds", **options)
    evaluations = [result.test for result in results]
    evaluation = Evaluation.from_probabilities(
        np.concatenate([one.probabilities for one in evaluations]),
        np.concatenate([one.labels for one in evaluations]),
        dataset.class_names,
        [one.name_of(row) for one in evaluations for row in range(one.images)],
    )
    # Probabilities are those that `predict` answers; the loss is the networks' own, as in each fold.
    loss = np.average([one.loss for one in evaluations], weights=[one.images for one in evaluations])
    evaluation = replace(evaluation, loss=float(loss))
    found = CrossValidation(results[0].run.parent, results, evaluation)
    _write(found, f"{config.network_name} on {dataset.name}, {folds} folds")
    return found


def _write(found: CrossValidation, subject: str) -> None:
    """Write predictions, numbers and figures beside the runs."""
    evaluation, files = found.evaluation, RunDirectory(found.folder)
    files.write_arrays(
        PREDICTIONS_FILE,
        {
            "probabilities": evaluation.probabilities.astype(np.float32),
            "labels": evaluation.labels,
            "names": np.array([evaluation.name_of(row) for row in range(evaluation.images)]),
        },
    )
    files.write_json(SUMMARY_FILE, found.to_json())
    figures = {
        "confusion_matrix": plotting.plot_confusion_matrix(evaluation.confusion, evaluation.class_names),
        "reliability": plotting.plot_reliability(evaluation.reliability),
    }
    write_figures(files, figures, subject)
