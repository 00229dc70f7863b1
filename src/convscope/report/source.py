"""What lies in a run, read once: the record, the history, the predictions, the network, the images."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.bundle import Bundle, load_bundle
from convscope.data.catalog import Dataset, load
from convscope.errors import ConvscopeError, DataError, RunError, sentence
from convscope.evaluation import Evaluation
from convscope.runs import RUN_FILE, RunDirectory, open_run

PARTS = ("test", "validation")
# How often the test set was consulted, and why; the form is that of ``evaluation.test_door``.
CONSULTATIONS = "test_consultations.json"
# What decides how a person's own images are read, where the run records it.
READ_OPTIONS = ("size", "channels", "resize", "seed")


@dataclass(frozen=True)
class Contents:
    """A run, as the report needs it.

    Parameters
    ----------
    path : Path
        The run's directory.
    record : dict
        What ``run.json`` says.
    history : dict of str to list of float
        A value for each finished epoch; empty when there is none.
    evaluations : dict of str to Evaluation
        For ``test`` and ``validation``, where the run has predictions for them.
    images : ndarray of shape (n, h, w, c), uint8, or None
        The test images, in the order of the predictions.
    images_missing : str
        Why there are no images, a sentence; empty when there are.
    consultations : dict or None
        The record of the test set's consultations, where the run has one.
    """

    path: Path
    record: dict[str, Any]
    history: dict[str, list[float]]
    evaluations: dict[str, Evaluation]
    images: NDArray[np.uint8] | None = field(default=None, repr=False)
    images_missing: str = ""
    consultations: dict[str, Any] | None = None

    @cached_property
    def bundle(self) -> Bundle:
        """The network with its preprocessing; raises a ConvscopeError when it cannot be loaded."""
        return load_bundle(self.path)

    @property
    def test(self) -> Evaluation | None:
        """The evaluation on the test images, if there is one."""
        return self.evaluations.get("test")

    @property
    def judged(self) -> tuple[str, Evaluation] | None:
        """The part of the data that the report's numbers are about, and its evaluation: the test images."""
        return next(((part, self.evaluations[part]) for part in PARTS if part in self.evaluations), None)

    @property
    def data_name(self) -> str:
        """What the data are called."""
        return str(self.record.get("data", {}).get("name", "unknown data"))

    @property
    def network_name(self) -> str:
        """What the network is called."""
        return str(self.record.get("network", {}).get("name", "the network"))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        return tuple(self.record.get("data", {}).get("class_names", ()))


def read_contents(run_path: str | Path, dataset: Dataset | None = None) -> Contents:
    """Read a run and find its test images again.

    Parameters
    ----------
    run_path : str or Path
        The run's directory.
    dataset : Dataset, optional
        The data of the run, where they are at hand; without it they are loaded by the name in the run.

    Returns
    -------
    Contents

    Raises
    ------
    RunError
        If there is no run, or one of its files is damaged.
    """
    run = open_run(run_path)
    record = run.read_json(RUN_FILE)
    names = tuple(record.get("data", {}).get("class_names", ()))
    evaluations = _evaluations(run, names)
    images, missing = _test_images(record, evaluations.get("test"), dataset)
    consultations = run.read_json(CONSULTATIONS) if (run.path / CONSULTATIONS).is_file() else None
    return Contents(run.path, record, _history(run), evaluations, images, missing, consultations)


def _history(run: RunDirectory) -> dict[str, list[float]]:
    if not (run.path / "history.csv").is_file():
        return {}
    columns = run.read_table("history.csv")
    return {name: values for name, values in columns.items() if name != "epoch" and values}


def _evaluations(run: RunDirectory, class_names: tuple[str, ...]) -> dict[str, Evaluation]:
    """Evaluate the predictions again: every number in the report then comes from the same arrays."""
    if not (run.path / "predictions.npz").is_file():
        return {}
    arrays = run.read_arrays("predictions.npz")
    found = {}
    for part in PARTS:
        if f"{part}_probabilities" not in arrays:
            continue
        try:
            found[part] = Evaluation.from_probabilities(
                arrays[f"{part}_probabilities"],
                arrays[f"{part}_labels"],
                class_names or None,
                arrays[f"{part}_names"].tolist() if f"{part}_names" in arrays else None,
            )
        except (KeyError, ConvscopeError) as error:
            raise RunError(sentence(f"predictions.npz in {run.path} to be whole", error)) from error
    return found


def _test_images(
    record: dict[str, Any], test: Evaluation | None, dataset: Dataset | None
) -> tuple[NDArray[np.uint8] | None, str]:
    """Find the test images, or the reason why they cannot be shown."""
    if test is None:
        return None, "The run has no predictions for test images."
    try:
        return _checked_images(record, test, dataset or _load_again(record)), ""
    except ConvscopeError as error:
        return None, str(error)


def _load_again(record: dict[str, Any]) -> Dataset:
    """Load the data that the run names; a report never downloads anything."""
    config = record.get("config", {})
    reading = config.get("reading", {}).items()
    options = {option: _as_option(value) for option, value in reading if option in READ_OPTIONS}
    name = config.get("data") or record.get("data", {}).get("name", "")
    return load(str(name), download=False, **options)


def _as_option(value: Any) -> Any:
    """Undo what JSON did to a pair."""
    return tuple(value) if isinstance(value, list) else value


def _checked_images(record: dict[str, Any], test: Evaluation, dataset: Dataset) -> NDArray[np.uint8]:
    """Return the dataset's test images if they are the ones that were predicted."""
    expected = str(record.get("data", {}).get("fingerprint", ""))
    if dataset.fingerprint != expected:
        raise DataError(
            sentence(
                f"the data with fingerprint {expected[:12]}",
                f"{dataset.name} with fingerprint {dataset.fingerprint[:12]}",
                "The data have changed since the run.",
            )
        )
    same = len(dataset.test) == test.images and np.array_equal(dataset.test.labels, test.labels)
    if not same:
        raise DataError(sentence(f"{test.images} test images in the order of the run", "others"))
    return dataset.test.images
