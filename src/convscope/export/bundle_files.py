"""A run or an export → a Bundle, every value in its files checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from convscope.data.drift import TrainingStatistics
from convscope.errors import ConvscopeError, DataError, RunError, UsageError, expected_got, reason
from convscope.evaluation import Calibration, Evaluation
from convscope.evaluation.novelty import Novelty
from convscope.export.bundle import Bundle
from convscope.export.formats import FORMATS
from convscope.model_files.models import load_run_model, read_arrays
from convscope.preprocessing import DATA_FORMATS, RESIZES, SCALINGS, Preprocess
from convscope.runs import RUN_FILE, RunDirectory, open_run

BUNDLE_FILE = "bundle.json"
BUNDLE_VERSION = 1
CALIBRATION_FILE = "calibration.json"
STATISTICS_FILE = "statistics.json"
NOVELTY_FILE = "novelty.npz"
PREPROCESS_FILES = ("preprocess.json", "preprocess.npz")

LARGEST_SIDE = 16_384
# Whatever of a run or an export decides what is predicted.
_DECISIVE = (BUNDLE_FILE, "weights.safetensors", *PREPROCESS_FILES, CALIBRATION_FILE)


def load_bundle(path: str | Path, *, int8: bool = False) -> Bundle:
    """Load the network of a run or of an export with all that it needs to predict.

    Weights come from safetensors or ONNX, settings from JSON; nothing in the files is run.

    Parameters
    ----------
    path : str or Path
        A run directory, or a folder that ``convscope export`` wrote.
    int8 : bool
        Of an ONNX export that holds two networks, the one in 8 bits.

    Returns
    -------
    Bundle

    Raises
    ------
    RunError
        If it is neither.
    DataError
        If one of its files is damaged.
    UsageError
        If the network in 8 bits is asked for where there is none, or ONNX Runtime is not installed.
    """
    folder = Path(path)
    if (folder / BUNDLE_FILE).is_file():
        return _load_export(RunDirectory(folder), int8)
    run = open_run(folder)
    if int8:
        raise UsageError(expected_got("an ONNX export with int8", f"the run {path}", "Export it first."))
    model = load_run_model(run)
    preprocess = load_preprocess(run)
    names, temperature = load_class_names(run), load_calibration(run).temperature
    return Bundle.from_model(model, preprocess, names, temperature, load_statistics(run), load_novelty(run))


def digest_of_network(path: str | Path) -> str:
    """Give a SHA-256 over what decides the predictions of a run or an export."""
    digest = hashlib.sha256()
    for name in _DECISIVE:
        if (file := Path(path) / name).is_file():
            digest.update(name.encode() + file.read_bytes())
    return digest.hexdigest()


def load_preprocess(run: RunDirectory) -> Preprocess:
    """Load the preprocessing of a run, every value checked."""
    files = {name: run.read_bytes(name) for name in PREPROCESS_FILES}
    read_arrays(files["preprocess.npz"], str(run.path / "preprocess.npz"))
    try:
        preprocess = Preprocess.from_files(files)
        _require_possible(preprocess)
    except ConvscopeError:
        raise
    except Exception as error:  # a damaged value of any type fails in the comparison that meets it first
        raise DataError(expected_got(f"the preprocessing of {run.path}", reason(error))) from error
    return preprocess


def _require_possible(preprocess: Preprocess) -> None:
    """Refuse settings that no training could have produced."""
    shape, limits = preprocess.image_shape, preprocess.limits or (0.0, 1.0)
    # Each check is made only where those before it hold.
    checks: dict[str, Callable[[], object]] = {
        f"a size of up to {LARGEST_SIDE:,}": lambda: all(
            type(length) is int and 0 < length <= LARGEST_SIDE for length in shape
        ),
        "1 or 3 channels": lambda: preprocess.channels in (1, 3),
        "a known scaling": lambda: preprocess.scaling in SCALINGS,
        "a known data format": lambda: preprocess.data_format in DATA_FORMATS,
        "a known way to resize": lambda: preprocess.resize in RESIZES,
        "a depth from 8 to 32 bits": lambda: type(preprocess.depth) is int and 8 <= preprocess.depth <= 32,
        "two limits": lambda: np.isfinite(np.array(limits, float)).sum() == 2 == len(limits),
        "finite scale and offset of its size": lambda: all(
            np.isfinite(values).all() and np.broadcast_shapes(values.shape, shape) == shape
            for values in (preprocess.scale, preprocess.offset)
        ),
    }
    for expected, holds in checks.items():
        if not holds():
            raise DataError(expected_got(f"preprocessing with {expected}", "another value"))


def load_class_names(run: RunDirectory) -> tuple[str, ...]:
    """Load the names of the classes out of a run's record."""
    data = run.read_json(RUN_FILE).get("data")
    names = data.get("class_names") if isinstance(data, dict) else None
    return _checked_names(names, run.path / RUN_FILE)


def load_calibration(run: RunDirectory) -> Calibration:
    """Load a run's decision about its temperature; where none was recorded, make it from the predictions."""
    file = run.path / CALIBRATION_FILE
    if file.is_file():
        record = run.read_json(CALIBRATION_FILE)
        return replace(Calibration.from_json(record), temperature=_checked_temperature(record, file))
    if not (run.path / "predictions.npz").is_file():
        return Calibration()
    source = str(run.path / "predictions.npz")
    arrays = read_arrays(run.read_bytes("predictions.npz"), source)
    if not {"validation_probabilities", "validation_labels"} <= set(arrays):
        return Calibration()
    try:
        validation = Evaluation.from_probabilities(
            arrays["validation_probabilities"], arrays["validation_labels"]
        )
    except (ConvscopeError, ValueError, TypeError, IndexError) as error:
        raise DataError(expected_got(f"predictions in {source}", reason(error))) from error
    return Calibration.fit(validation)


def load_statistics(run: RunDirectory) -> TrainingStatistics | None:
    """Load what training images look like, where it was recorded."""
    if not (run.path / STATISTICS_FILE).is_file():
        return None
    return TrainingStatistics.from_json(run.read_json(STATISTICS_FILE))


def load_novelty(run: RunDirectory) -> Novelty | None:
    """Load by what a run knows images unlike its training images, where it was recorded."""
    if not (run.path / NOVELTY_FILE).is_file():
        return None
    return Novelty.from_arrays(read_arrays(run.read_bytes(NOVELTY_FILE), str(run.path / NOVELTY_FILE)))


def _load_export(folder: RunDirectory, int8: bool) -> Bundle:
    """Load a folder that ``convscope export`` wrote, every file checked against its hash."""
    record = folder.read_json(BUNDLE_FILE)
    where = folder.path / BUNDLE_FILE
    if record.get("version") != BUNDLE_VERSION or record.get("format") not in FORMATS:
        raise RunError(expected_got(f"an export of version {BUNDLE_VERSION} in {where}", "another one"))
    names = _checked_names(record.get("class_names"), where)
    temperature = _checked_temperature(record, where)
    _verify_files(folder, record.get("files"))
    preprocess, statistics = load_preprocess(folder), load_statistics(folder)
    form, novelty = FORMATS[record["format"]], load_novelty(folder)
    if int8 and record["format"] == "onnx":
        form = FORMATS["int8"]
    if int8 and form is not FORMATS["int8"]:
        raise UsageError(expected_got("an ONNX export with int8", f"a {record['format']} export"))
    if form.open is None:
        return Bundle.from_model(load_run_model(folder), preprocess, names, temperature, statistics, novelty)
    file = folder.path / form.files[0]
    if not file.is_file():
        hint = "Export it with --int8." if int8 else ""
        raise UsageError(expected_got(f"{file.name} in {folder.path}", "no such file", hint))
    session = form.open(file, preprocess.image_shape, len(names))
    if int8 or not session.gives_features:  # in 8 bits features are others
        return Bundle(preprocess, names, temperature, statistics, forward=session)
    others = preprocess, names, temperature, statistics, novelty
    return Bundle(*others, forward=session, examine=session.examine)


def _verify_files(folder: RunDirectory, files: object) -> None:
    """Hold every file of an export against the hash that was written last."""
    if not isinstance(files, Mapping) or not all(isinstance(name, str) for name in files):
        raise RunError(expected_got(f"a list of files in {folder.path / BUNDLE_FILE}", "none"))
    for name, digest in files.items():
        if Path(name).name != name:
            raise RunError(expected_got(f"files inside {folder.path}", repr(name)))
        if hashlib.sha256(folder.read_bytes(name)).hexdigest() != digest:
            expected = f"{folder.path / name} as it was exported"
            raise DataError(expected_got(expected, "other bytes", "Export it again."))


def _checked_names(names: object, source: Path) -> tuple[str, ...]:
    """Require a list of at least two names."""
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise RunError(expected_got(f"the names of the classes in {source}", "none"))
    return tuple(names)


def _checked_temperature(record: Mapping[str, Any], source: Path) -> float:
    """Require a temperature that can be divided by."""
    value = record.get("temperature")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.01 <= value <= 100:
        raise RunError(expected_got(f"a temperature between 0.01 and 100 in {source}", value))
    return float(value)
