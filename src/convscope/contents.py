"""What lies in a run, read once: the record, the history, the predictions, the network, the images."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.dataset import Dataset
from convscope.data.loading import load_again
from convscope.errors import ConvscopeError, DataError, RunError, expected_got
from convscope.evaluation import Calibration, Evaluation
from convscope.evaluation.test_set_log import TEST_SET_LOG
from convscope.export import Bundle, load_bundle, load_calibration
from convscope.runs import HISTORY_FILE, RUN_FILE, RunDirectory, open_run

_LOG = logging.getLogger(__name__)
PARTS = ("test", "validation")
# Parts of the record that sections read from.
RECORDED = ("data", "network", "config", "device", "versions")


@dataclass(frozen=True, eq=False)
class Contents:
    """A run, as the report needs it; evaluations are those of the parts that it has predictions for."""

    path: Path
    record: dict[str, Any]  # what run.json says
    history: dict[str, list[float]]  # a value for each finished epoch
    evaluations: dict[str, Evaluation]  # calibrated, as what predict and exports answer is
    uncalibrated: dict[str, Evaluation]  # of the network's own probabilities
    calibration: Calibration  # between the two
    images: NDArray[np.uint8] | None = field(default=None, repr=False)  # (n, h, w, c), the test images
    images_missing: str = ""  # why there are none
    test_set_uses: dict[str, Any] | None = None

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
        return str(self.record["data"].get("name", "unknown data"))

    @property
    def network_name(self) -> str:
        """What the network is called."""
        return str(self.record["network"].get("name", "the network"))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        return tuple(self.record["data"].get("class_names", ()))


def read_contents(
    run_path: str | Path, dataset: Dataset | None = None, data: str | Path | None = None
) -> Contents:
    """Read a run and find its test images again."""
    contents = read_record(run_path)
    recorded = contents.record["data"]
    if contents.test is None:
        return replace(contents, images_missing="The run has no predictions for test images.")
    try:
        found = _load(recorded, data) if dataset is None else _same(recorded, dataset)
        if not np.array_equal(found.test.labels, contents.test.labels):
            raise DataError(
                expected_got(f"the run's {contents.test.images} test images, in its order", "others")
            )
        return replace(contents, images=found.test.images)
    except ConvscopeError as error:
        return replace(contents, images_missing=str(error))
    except (KeyError, TypeError, ValueError) as error:  # somebody edited the record
        _LOG.warning("The run's images could not be found again.", exc_info=error)
        got = f"{type(error).__name__}: {error}"
        return replace(contents, images_missing=expected_got(f"a record of the data in {RUN_FILE}", got))


def read_record(run_path: str | Path) -> Contents:
    """Read what a run recorded and predicted, without looking for its images."""
    run = open_run(run_path)
    record = _record(run)
    own = _evaluations(run, tuple(record["data"].get("class_names", ())))
    calibration = load_calibration(run) if own else Calibration()
    calibrated = {part: one.calibrated(calibration.temperature) for part, one in own.items()}
    test_set_uses = run.read_json(TEST_SET_LOG) if (run.path / TEST_SET_LOG).is_file() else None
    return Contents(
        run.path, record, _history(run), calibrated, own, calibration, test_set_uses=test_set_uses
    )


def _record(run: RunDirectory) -> dict[str, Any]:
    """Read what the run says about itself; parts that it does not have are empty."""
    record = run.read_json(RUN_FILE)
    for part in RECORDED:
        if not isinstance(record.setdefault(part, {}), dict):
            expected = f"an object under {part!r} in {RUN_FILE} of {run.path}"
            raise RunError(expected_got(expected, type(record[part]).__name__))
    return record


def _history(run: RunDirectory) -> dict[str, list[float]]:
    if not (run.path / HISTORY_FILE).is_file():
        return {}
    columns = run.read_table(HISTORY_FILE)
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
            raise RunError(expected_got(f"predictions.npz in {run.path} to be whole", error)) from error
    return found


def _load(recorded: dict[str, Any], data: str | Path | None) -> Dataset:
    """Load the data as the run did, and make sure that they are the same; a report never downloads any."""
    reading = {**recorded.get("reading", {}), "download": False}
    moved = {} if data is None else {"source": str(data)}
    return load_again({**recorded, **moved, "reading": reading})


def _same(recorded: dict[str, Any], dataset: Dataset) -> Dataset:
    """Return a dataset if it is the one that the run used."""
    if dataset.fingerprint != recorded.get("fingerprint"):
        expected = f"the run's data with the fingerprint {str(recorded.get('fingerprint'))[:12]}…"
        raise DataError(expected_got(expected, f"{dataset.fingerprint[:12]}…"))
    return dataset
