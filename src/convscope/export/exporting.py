"""A run → a folder that can be used elsewhere, written whole, and only if it does what the run does."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.environment import versions
from convscope.errors import RunError, UsageError, sentence, unknown_name
from convscope.export.bundle import (
    BUNDLE_FILE,
    BUNDLE_VERSION,
    FORMATS,
    INT8_FILE,
    ONNX_FILE,
    STATISTICS_FILE,
    Bundle,
    Forward,
    load_bundle,
)
from convscope.export.checking import CheckImages, compare, find_images, measure_latency, require_agreement
from convscope.export.guide import guide
from convscope.export.onnx_session import INPUT, OUTPUT, open_session, require_packages
from convscope.model_files.archive import CONFIG
from convscope.model_files.models import MODEL_FILE, WEIGHTS_FILE, load_model, write_weights
from convscope.runs import RUN_FILE, RunDirectory, create_run, open_run

TORCH_FILE = "model.pt2"
GUIDE_FILE = "README.md"
FILES = {"onnx": ONNX_FILE, "keras": MODEL_FILE, "torch": TORCH_FILE}
SOURCE = "the run"


@dataclass(frozen=True)
class Measured:
    """One network of an export, or its source.

    Attributes
    ----------
    name : str
        A file's name, or ``the run``.
    size : int
        Bytes.
    accuracy : float or None
        Share of right labels; None where no labels are known.
    same_labels : float
        Share of images with the source's label.
    largest_difference : float
        Between its probabilities and the source's.
    milliseconds : dict of int to float
        Median time of a prediction, by the number of images in it.
    """

    name: str
    size: int
    accuracy: float | None
    same_labels: float
    largest_difference: float
    milliseconds: dict[int, float]


@dataclass(frozen=True)
class ExportReport:
    """What an export is worth.

    Attributes
    ----------
    path : Path
        The folder.
    format : str
        One of ``onnx``, ``keras``, ``torch``.
    images : str
        What it was checked on, in words.
    networks : tuple of Measured
        The source first.
    notes : tuple of str
        What else there is to know.
    uncounted : RunError or None
        What to raise behind the answer where the disk refused to keep the count of the test set's use.
    """

    path: Path
    format: str
    images: str
    networks: tuple[Measured, ...]
    notes: tuple[str, ...] = ()
    uncounted: RunError | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        networks = [
            {**vars(one), "milliseconds": {str(batch): time for batch, time in one.milliseconds.items()}}
            for one in self.networks
        ]
        return {
            "path": str(self.path),
            "format": self.format,
            "images": self.images,
            "networks": networks,
            "notes": list(self.notes),
        }


def export_run(
    path: str | Path,
    format: str,  # the word that everybody uses for it
    target: Path | None = None,
    *,
    int8: bool = False,
    data: str | None = None,
) -> ExportReport:
    """Export a run and hold the export against it, image by image.

    Parameters
    ----------
    path : str or Path
        A run directory.
    format : {"onnx", "keras", "torch"}
        ``onnx`` and ``torch`` (a ``torch.export`` program) take raw uint8 pixels, so that preprocessing
        cannot be forgotten; ``keras`` is the network alone, with the preprocessing beside it.
    target : Path, optional
        The folder to make; beside the run and named after it when left out.
    int8 : bool
        For ``onnx``: a quantised network too, with its accuracy beside float32's.
    data : str, optional
        Where the run's data are now.

    Returns
    -------
    ExportReport
        Sizes, accuracies, latencies.

    Raises
    ------
    UsageError
        If the format does not exist, cannot be had in 8 bits, or needs packages that are not installed.
    RunError
        If there is no run, or the target exists or cannot be written.
    ExportError
        If the export disagrees with the run; then nothing is left of it.
    """
    _require_possible(format, int8)
    run = open_run(path)
    folder = target or run.path.resolve().with_name(f"{run.path.resolve().name}-{format}")
    if folder.exists():
        raise RunError(sentence(f"a new folder {folder}", "one that is there", "Choose another --out."))
    bundle = load_bundle(path)
    images = find_images(run, bundle, data)
    with create_run(folder) as scratch:
        return _write(run, bundle, images, scratch, folder, format, int8)


def _require_possible(format: str, int8: bool) -> None:
    """Refuse wrong arguments before any work is done."""
    if format not in FORMATS:
        raise unknown_name("export format", format, FORMATS)
    if int8 and format != "onnx":
        raise UsageError(sentence("--format onnx with --int8", format, "ONNX Runtime does the quantising."))
    if format == "onnx":
        require_packages("onnx", "onnxscript", "onnxruntime")


def _write(
    run: RunDirectory,
    bundle: Bundle,
    images: CheckImages,
    scratch: RunDirectory,
    folder: Path,
    format: str,
    int8: bool,
) -> ExportReport:
    """Write an export into a scratch folder, and check it there."""
    forward = _WRITERS[format](bundle, scratch)
    reference = bundle.predict(images.pixels)
    agreement = require_agreement(forward, images.pixels, reference, FILES[format])
    forwards: dict[str, Forward] = {SOURCE: bundle.forward, FILES[format]: forward}
    notes = []
    if int8:
        how, forwards[INT8_FILE] = _write_int8(bundle, scratch, images.calibration)
        notes.append(f"{INT8_FILE}: {how} quantisation; what it costs is in its line above")
    _write_companions(run, bundle, scratch, format, images.origin, str(agreement))
    # What others will load, once more, through the door that they will use.
    sample = images.pixels[:64]
    require_agreement(load_bundle(scratch.path).predict, sample, reference[:64], "the bundle")
    latency = measure_latency(forwards, images.pixels[:64])
    sizes = {SOURCE: run.path / WEIGHTS_FILE} | {
        name: scratch.path / name for name in forwards if name != SOURCE
    }
    networks = [
        _measure(name, sizes[name], forward, images, reference, latency[name])
        for name, forward in forwards.items()
    ]
    return ExportReport(folder, format, images.origin, tuple(networks), tuple(notes), images.uncounted)


def _measure(
    name: str,
    file: Path,
    forward: Forward,
    images: CheckImages,
    reference: NDArray[np.float32],
    milliseconds: dict[int, float],
) -> Measured:
    """Sum one network up."""
    predicted = reference if name == SOURCE else forward(images.pixels)
    same = float(np.mean(predicted.argmax(axis=1) == reference.argmax(axis=1)))
    difference = compare(reference, predicted).largest_difference
    accuracy = images.accuracy(predicted)
    return Measured(name, file.stat().st_size, accuracy, same, difference, milliseconds)


def _write_onnx(bundle: Bundle, scratch: RunDirectory) -> Forward:
    """Write the ONNX file; return what it computes."""
    from convscope.export import graph

    graph.write_onnx(graph.trace(bundle), bundle, scratch.path / ONNX_FILE)
    return _open_onnx(bundle, scratch.path / ONNX_FILE)


def _write_torch(bundle: Bundle, scratch: RunDirectory) -> Forward:
    """Write the torch program; return what it computes."""
    from convscope.export import graph

    graph.write_torch(graph.trace(bundle), scratch.path / TORCH_FILE)
    _write_source(bundle, scratch)
    return graph.read_torch(scratch.path / TORCH_FILE)


def _write_keras(bundle: Bundle, scratch: RunDirectory) -> Forward:
    """Write the Keras file; return what it computes."""
    bundle.model.save(scratch.path / MODEL_FILE)
    _write_source(bundle, scratch)
    model = load_model(scratch.path / MODEL_FILE)
    return Bundle.from_model(model, bundle.preprocess, bundle.class_names, bundle.temperature).forward


_WRITERS: dict[str, Callable[[Bundle, RunDirectory], Forward]] = {
    "onnx": _write_onnx,
    "keras": _write_keras,
    "torch": _write_torch,
}


def _write_source(bundle: Bundle, scratch: RunDirectory) -> None:
    """Write what convscope itself loads: the configuration as JSON, the weights as safetensors."""
    scratch.write_bytes(CONFIG, bundle.model.to_json().encode())
    scratch.write_bytes(WEIGHTS_FILE, write_weights(bundle.model))


def _write_int8(
    bundle: Bundle, scratch: RunDirectory, calibration: NDArray[np.uint8] | None
) -> tuple[str, Forward]:
    """Quantise the ONNX file that is already there."""
    from convscope.export import graph

    with tempfile.TemporaryDirectory() as folder:
        how = graph.write_int8(
            scratch.path / ONNX_FILE, scratch.path / INT8_FILE, calibration, Path(folder) / ONNX_FILE
        )
    return how, _open_onnx(bundle, scratch.path / INT8_FILE)


def _open_onnx(bundle: Bundle, file: Path) -> Forward:
    """Open an ONNX file that takes and gives what a bundle does."""
    settings = bundle.preprocess
    shape = (settings.height, settings.width, settings.channels)
    return open_session(file, shape, len(bundle.class_names))


def _write_companions(
    run: RunDirectory, bundle: Bundle, scratch: RunDirectory, format: str, images: str, agreement: str
) -> None:
    """Write what stands beside a network, and last the list of all files with their hashes."""
    for name, content in bundle.preprocess.to_files().items():
        scratch.write_bytes(name, content)
    if bundle.statistics:
        scratch.write_json(STATISTICS_FILE, bundle.statistics.to_json())
    scratch.write_bytes(GUIDE_FILE, guide(bundle, format).encode())
    settings, record = bundle.preprocess, run.read_json(RUN_FILE)
    files = sorted(file for file in scratch.path.iterdir() if file.is_file())
    scratch.write_json(
        BUNDLE_FILE,
        {
            "version": BUNDLE_VERSION,
            "format": format,
            "class_names": list(bundle.class_names),
            "temperature": bundle.temperature,
            "input": {
                "name": INPUT,
                "dtype": "uint8",
                "shape": ["n", settings.height, settings.width, settings.channels],
            },
            "output": {"name": OUTPUT, "dtype": "float32", "shape": ["n", len(bundle.class_names)]},
            "checked": {"images": images, "result": agreement},
            "source": {
                "run": run.path.resolve().name,
                "network": record.get("network"),
                "data": _data(record),
            },
            "versions": versions(),
            "files": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        },
    )


def _data(record: dict[str, Any]) -> dict[str, Any]:
    """Say what a run was trained on, without the paths of the machine that did it."""
    data = record.get("data")
    return (
        {key: data[key] for key in ("name", "fingerprint") if key in data} if isinstance(data, dict) else {}
    )
