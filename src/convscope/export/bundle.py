"""A trained network with what it needs to be used: preprocessing, class names, calibration."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.statistics import TrainingStatistics
from convscope.errors import ConvscopeError, DataError, RunError, UsageError, sentence
from convscope.evaluation import Calibration, Evaluation, apply_temperature
from convscope.export.onnx_session import open_session
from convscope.model_files.archive import read_arrays, reason
from convscope.model_files.models import load_run_model
from convscope.preprocessing import DATA_FORMATS, RESIZES, SCALINGS, Preprocess
from convscope.runs import RUN_FILE, RunDirectory, open_run

if TYPE_CHECKING:
    import keras

BUNDLE_FILE = "bundle.json"
BUNDLE_VERSION = 1
ONNX_FILE, INT8_FILE = "model.onnx", "model-int8.onnx"
CALIBRATION_FILE = "calibration.json"
STATISTICS_FILE = "statistics.json"
PREPROCESS_FILES = ("preprocess.json", "preprocess.npz")
FORMATS = ("onnx", "keras", "torch")

LARGEST_SIDE = 16_384

Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Bundle:
    """A network, the preprocessing that it was trained with, the names of its classes, its calibration.

    Attributes
    ----------
    preprocess : Preprocess
        What every image goes through.
    class_names : tuple of str
        By position in the output.
    temperature : float
        What the probabilities are calibrated with; 1 leaves them as they are.
    statistics : TrainingStatistics or None
        What training images look like; None for runs that did not record it.
    forward : callable
        uint8 images ``(n, height, width, channels)`` of the right size → calibrated probabilities.
    network : keras.Model or None
        None where the network runs outside Keras.

    Examples
    --------
    >>> import convscope
    >>> images = np.zeros((2, 8, 8, 1), np.uint8)
    >>> model = convscope.build("simple", (8, 8, 1), classes=3)
    >>> bundle = Bundle.from_model(model, Preprocess.fit(images), ("a", "b", "c"))
    >>> bundle.predict(images).shape
    (2, 3)
    """

    preprocess: Preprocess
    class_names: tuple[str, ...]
    temperature: float = 1.0
    statistics: TrainingStatistics | None = field(default=None, repr=False)
    forward: Forward = field(kw_only=True, repr=False)
    network: keras.Model | None = field(default=None, kw_only=True, repr=False)

    @classmethod
    def from_model(
        cls,
        model: keras.Model,
        preprocess: Preprocess,
        class_names: Sequence[str],
        temperature: float = 1.0,
        statistics: TrainingStatistics | None = None,
    ) -> Bundle:
        """Put a Keras model together with what it needs.

        Raises
        ------
        DataError
            If input, output and class names do not fit together.
        """
        expected_shapes = ((None, *preprocess.input_shape), (None, len(class_names)))
        if (model.input_shape, model.output_shape) != expected_shapes:
            expected = "a network from {} to {}".format(*expected_shapes)
            raise DataError(sentence(expected, f"one from {model.input_shape} to {model.output_shape}"))

        def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            from convscope.training.api import predict

            return calibrate(predict(model, pixels, preprocess=preprocess), temperature)

        return cls(preprocess, tuple(class_names), temperature, statistics, forward=forward, network=model)

    @property
    def model(self) -> keras.Model:
        """The Keras model.

        Raises
        ------
        UsageError
            If the bundle is an ONNX export, which has none.
        """
        if self.network is None:
            raise UsageError(sentence("a run or a Keras export", "an ONNX export", "It can only predict."))
        return self.network

    def predict(self, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Compute calibrated probabilities for raw images.

        Parameters
        ----------
        images : ndarray of shape (n, h, w, c), uint8, or a sequence of (h, w, c) arrays
            Pixels as they were read, of any size, grey or RGB.

        Returns
        -------
        ndarray of shape (n, classes), float32

        Raises
        ------
        DataError
            If the images are not uint8, or the network computes NaN.
        """
        pixels = self.preprocess.conform(images)
        if len(pixels) == 0:
            return np.empty((0, len(self.class_names)), np.float32)
        probabilities = self.forward(pixels)
        if not np.isfinite(probabilities).all():
            raise DataError(
                sentence("probabilities", "NaN", "The weights are damaged; train or export again.")
            )
        return probabilities


def calibrate(probabilities: NDArray[Any], temperature: float) -> NDArray[np.float32]:
    """Apply a temperature in float64; at 1 the probabilities stay as they are, to the last bit.

    Examples
    --------
    >>> calibrate(np.array([[0.8, 0.2]], np.float32), 2.0).round(4).tolist()
    [[0.666700005531311, 0.33329999446868896]]
    """
    if temperature == 1:
        return np.asarray(probabilities, np.float32)
    return apply_temperature(np.asarray(probabilities, np.float64), temperature).astype(np.float32)


def load_bundle(path: str | Path, *, int8: bool = False) -> Bundle:
    """Load the network of a run or of an export with all that it needs to predict.

    Weights come from safetensors or ONNX, settings from JSON; nothing in the files is run.

    Parameters
    ----------
    path : str or Path
        A run directory, or a folder that ``convscope export`` wrote.
    int8 : bool
        Of an ONNX export, the quantised network.

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
        If the quantised network is asked for where there is none, or ONNX Runtime is not installed.
    """
    folder = Path(path)
    if (folder / BUNDLE_FILE).is_file():
        return _load_export(RunDirectory(folder), int8)
    run = open_run(folder)
    if int8:
        raise UsageError(sentence("an ONNX export with int8", f"the run {path}", "Export it first."))
    model = load_run_model(run)
    preprocess = load_preprocess(run)
    return Bundle.from_model(
        model, preprocess, load_class_names(run), load_calibration(run).temperature, load_statistics(run)
    )


def load_preprocess(run: RunDirectory) -> Preprocess:
    """Load the preprocessing of a run, every value checked.

    Raises
    ------
    ConvscopeError
        If a file is missing, damaged or holds impossible values.
    """
    files = {name: run.read_bytes(name) for name in PREPROCESS_FILES}
    read_arrays(files["preprocess.npz"], str(run.path / "preprocess.npz"))
    try:
        preprocess = Preprocess.from_files(files)
        _require_possible(preprocess)
    except ConvscopeError:
        raise
    except Exception as error:  # a damaged value of any type fails in the comparison that meets it first
        raise DataError(sentence(f"the preprocessing of {run.path}", reason(error))) from error
    return preprocess


def _require_possible(preprocess: Preprocess) -> None:
    """Refuse settings that no training could have produced."""
    shape = (preprocess.height, preprocess.width, preprocess.channels)
    limits = preprocess.limits or (0.0, 1.0)
    # Each check is made only where those before it hold.
    checks: dict[str, Callable[[], object]] = {
        f"a size of up to {LARGEST_SIDE:,}": lambda: all(_is_side(length) for length in shape),
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
            raise DataError(sentence(f"preprocessing with {expected}", "another value"))


def _is_side(length: object) -> bool:
    """Tell whether a value is a number of pixels."""
    return type(length) is int and 0 < length <= LARGEST_SIDE


def load_class_names(run: RunDirectory) -> tuple[str, ...]:
    """Load the names of the classes out of a run's record.

    Raises
    ------
    RunError
        If they are not there.
    """
    data = run.read_json(RUN_FILE).get("data")
    names = data.get("class_names") if isinstance(data, dict) else None
    return _checked_names(names, run.path / RUN_FILE)


def load_calibration(run: RunDirectory) -> Calibration:
    """Load a run's decision about its temperature; where none was recorded, make it from the predictions.

    Parameters
    ----------
    run : RunDirectory
        Holds ``calibration.json`` or ``predictions.npz``, or neither.

    Returns
    -------
    Calibration

    Raises
    ------
    ConvscopeError
        If a file is damaged.
    """
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
        raise DataError(sentence(f"predictions in {source}", reason(error))) from error
    return Calibration.fit(validation)


def load_statistics(run: RunDirectory) -> TrainingStatistics | None:
    """Load what training images look like, where it was recorded.

    Raises
    ------
    ConvscopeError
        If the file is damaged.
    """
    if not (run.path / STATISTICS_FILE).is_file():
        return None
    return TrainingStatistics.from_json(run.read_json(STATISTICS_FILE))


def _load_export(folder: RunDirectory, int8: bool) -> Bundle:
    """Load a folder that ``convscope export`` wrote, every file checked against its hash."""
    record = folder.read_json(BUNDLE_FILE)
    where = folder.path / BUNDLE_FILE
    if record.get("version") != BUNDLE_VERSION or record.get("format") not in FORMATS:
        raise RunError(sentence(f"an export of version {BUNDLE_VERSION} in {where}", "another one"))
    names = _checked_names(record.get("class_names"), where)
    temperature = _checked_temperature(record, where)
    _verify_files(folder, record.get("files"))
    preprocess, statistics = load_preprocess(folder), load_statistics(folder)
    if record["format"] != "onnx":
        if int8:
            raise UsageError(sentence("an ONNX export with int8", f"a {record['format']} export"))
        return Bundle.from_model(load_run_model(folder), preprocess, names, temperature, statistics)
    file = folder.path / (INT8_FILE if int8 else ONNX_FILE)
    if not file.is_file():
        hint = "Export it with --int8." if int8 else ""
        raise UsageError(sentence(f"{file.name} in {folder.path}", "no such file", hint))
    shape = (preprocess.height, preprocess.width, preprocess.channels)
    forward = open_session(file, shape, len(names))
    return Bundle(preprocess, names, temperature, statistics, forward=forward)


def _verify_files(folder: RunDirectory, files: object) -> None:
    """Hold every file of an export against the hash that was written last."""
    if not isinstance(files, Mapping) or not all(isinstance(name, str) for name in files):
        raise RunError(sentence(f"a list of files in {folder.path / BUNDLE_FILE}", "none"))
    for name, digest in files.items():
        if Path(name).name != name:
            raise RunError(sentence(f"files inside {folder.path}", repr(name)))
        if hashlib.sha256(folder.read_bytes(name)).hexdigest() != digest:
            raise DataError(
                sentence(f"{folder.path / name} as it was exported", "other bytes", "Export it again.")
            )


def _checked_names(names: object, source: Path) -> tuple[str, ...]:
    """Require a list of at least two names."""
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise RunError(sentence(f"the names of the classes in {source}", "none"))
    return tuple(names)


def _checked_temperature(record: Mapping[str, Any], source: Path) -> float:
    """Require a temperature that can be divided by."""
    value = record.get("temperature")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.01 <= value <= 100:
        raise RunError(sentence(f"a temperature between 0.01 and 100 in {source}", value))
    return float(value)
