"""A run → a folder that can be used elsewhere, written whole, and only if it does what the run does."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.environment import require_package, versions
from convscope.errors import ExportError, RunError, UsageError, expected_got, unknown_name
from convscope.export.bundle import Bundle, Forward
from convscope.export.bundle_files import (
    BUNDLE_FILE,
    BUNDLE_VERSION,
    NOVELTY_FILE,
    STATISTICS_FILE,
    load_bundle,
)
from convscope.export.checking import (
    CheckImages,
    compare,
    find_images,
    measure_latency,
    require_agreement,
    require_same_resizing,
)
from convscope.export.formats import FORMATS, ExportFormat
from convscope.export.onnx_graph import INPUT, OUTPUT
from convscope.model_files.models import CONFIG, WEIGHTS_FILE, write_weights
from convscope.runs import RUN_FILE, RunDirectory, create_run, open_run

_PROGRESS = logging.getLogger("convscope.progress")

GUIDE_FILE = "README.md"
SOURCE = "the run"
# How far apart two measurements of an image's distance from the training images may be, which is up to 2.
FARTHEST = 1e-3


@dataclass(frozen=True)
class Measured:
    """One network of an export, by its file's name, or its source; the times are those of a batch size."""

    name: str
    size: int
    accuracy: float | None
    same_labels: float
    largest_difference: float
    milliseconds: dict[int, float]


@dataclass(frozen=True)
class ExportReport:
    """What an export is worth: where it is, what it was checked on, its networks (the source first).

    ``uncounted`` is to be raised behind the answer where the disk refused to count the test set's use.
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
    """Export a run and hold the export against it, image by image; where they disagree, nothing is left.

    ``format`` is one of ``FORMATS``; ``target`` is the folder to make, beside the run unless given; ``int8``
    adds the network in 8 bits to an ONNX export; ``data`` says where the run's data are now.
    """
    _require_possible(format, int8)
    run = open_run(path)
    folder = target or run.path.resolve().with_name(f"{run.path.resolve().name}-{format}")
    if folder.exists():
        raise RunError(expected_got(f"a new folder {folder}", "one that is there", "Choose another --out."))
    _PROGRESS.info("Loading %s", path)
    bundle = load_bundle(path)
    images = find_images(run, bundle, data)
    with create_run(folder) as scratch:
        return _write(run, bundle, images, scratch, folder, format, int8)


def _require_possible(format: str, int8: bool) -> None:
    """Refuse wrong arguments before any work is done."""
    if format not in FORMATS:
        raise unknown_name("export format", format, FORMATS)
    if int8 and format not in ("onnx", "int8"):
        hint = "ONNX Runtime does the quantizing."
        raise UsageError(expected_got("--format onnx with --int8", format, hint))
    for package in FORMATS[format].packages:
        require_package(package, "onnx")


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
    form, eight = FORMATS[format], FORMATS["int8"]
    first = FORMATS["onnx"] if form is eight else form
    name = first.files[0]
    _PROGRESS.info("Writing %s", name)
    forward = first.write(bundle, scratch.path)
    _PROGRESS.info("Holding %s against the run", name)
    reference = bundle.predict(images.pixels)
    checked = str(require_agreement(forward, images.pixels, reference, name))
    forwards: dict[str, Forward] = {SOURCE: bundle.forward, name: forward}
    notes = [require_same_resizing(forward, bundle, images.pixels, form.files[0])] if form.resizes else []
    if eight.quantize and (int8 or form is eight):
        _PROGRESS.info("Quantizing it, and holding %s against the run", eight.files[0])
        forwards[eight.files[0]], note = eight.quantize(bundle, scratch.path, images)
        notes.append(note)
    sizes = {one: (scratch.path / one).stat().st_size for one in forwards if one != SOURCE}
    if form is eight:
        (scratch.path / name).unlink()
        checked = notes[-1]
        notes.append(f"{name} was made for the comparison and is not part of the export")
    _write_companions(run, bundle, scratch, format, images.origin, checked)
    # What others will load, once more, through the door that they will use.
    sample = images.pixels[:64]
    expected = forwards[form.files[0]](sample) if form is eight else reference[:64]
    require_agreement(load_bundle(scratch.path).predict, sample, expected, "the bundle")
    _require_same_distances(bundle, load_bundle(scratch.path), sample)
    latency = measure_latency(forwards, images.pixels[:64])
    sizes[SOURCE] = (run.path / WEIGHTS_FILE).stat().st_size
    networks = [
        _measure(name, sizes[name], forward, images, reference, latency[name])
        for name, forward in forwards.items()
    ]
    return ExportReport(folder, format, images.origin, tuple(networks), tuple(notes), images.uncounted)


def _require_same_distances(bundle: Bundle, exported: Bundle, pixels: NDArray[np.uint8]) -> None:
    """Refuse an export whose features are not those of its source."""
    (_, own), (_, theirs) = (one.predict_with_distances(pixels) for one in (bundle, exported))
    if own is not None and theirs is not None:
        apart = float(np.abs(own - theirs).max(initial=0))
        if not apart <= FARTHEST:
            expected = "an export with the features of its source"
            raise ExportError(expected_got(expected, f"distances up to {apart:.1e} apart"))


def _measure(
    name: str,
    size: int,
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
    return Measured(name, size, accuracy, same, difference, milliseconds)


def _write_companions(
    run: RunDirectory, bundle: Bundle, scratch: RunDirectory, format: str, images: str, agreement: str
) -> None:
    """Write what stands beside a network, and last the list of all files with their hashes."""
    if FORMATS[format].open is None:  # what convscope itself loads
        scratch.write_bytes(CONFIG, bundle.model.to_json().encode())
        scratch.write_bytes(WEIGHTS_FILE, write_weights(bundle.model))
    if bundle.novelty and FORMATS[format] is not FORMATS["int8"]:  # whose features are others
        scratch.write_arrays(NOVELTY_FILE, bundle.novelty.to_arrays())
    for name, content in bundle.preprocess.to_files().items():
        scratch.write_bytes(name, content)
    if bundle.statistics:
        scratch.write_json(STATISTICS_FILE, bundle.statistics.to_json())
    form, small = FORMATS[format], FORMATS["int8"].files[0]
    also = f"`{small}` is used alike: in 8 bits, smaller and less exact.\n"
    both = small not in form.files and (scratch.path / small).is_file()
    scratch.write_bytes(GUIDE_FILE, _page(bundle, form, also if both else "").encode())
    record = run.read_json(RUN_FILE)
    data = record.get("data")
    known = data if isinstance(data, dict) else {}
    files = sorted(file for file in scratch.path.iterdir() if file.is_file())
    scratch.write_json(
        BUNDLE_FILE,
        {
            "version": BUNDLE_VERSION,
            "format": format,
            "class_names": list(bundle.class_names),
            "temperature": bundle.temperature,
            "input": {"name": INPUT, "dtype": "uint8", "shape": ["n", *bundle.preprocess.image_shape]},
            "output": {"name": OUTPUT, "dtype": "float32", "shape": ["n", len(bundle.class_names)]},
            "checked": {"images": images, "result": agreement},
            "source": {
                "run": run.path.resolve().name,
                "network": record.get("network"),
                # Without the paths of the machine that trained it.
                "data": {key: known[key] for key in ("name", "fingerprint") if key in known},
            },
            "versions": versions(),
            "files": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        },
    )


def _page(bundle: Bundle, form: ExportFormat, also: str) -> str:
    """Write the page that an export carries: what its files are, and the lines of code that use it."""
    settings, classes = bundle.preprocess, len(bundle.class_names)
    code = form.example.format(
        height=settings.height, width=settings.width, channels=settings.channels, classes=classes
    )
    steps = "\n".join(f"- {step}" for step in settings.describe())
    alone = ""
    if form.without_convscope:
        words = "Without convscope (which also reads transparency, and files of more than 8 bits):"
        alone = f"{words}\n\n```python\n{form.without_convscope(bundle)}```\n\n"
    return (
        f"# An image classifier with {classes} classes\n\n"
        f"{form.holds}\n{also}The names of the classes, in the order of the probabilities, stand in "
        f"`bundle.json`; so do the temperature ({bundle.temperature:g}) and the hash of every file.\n\n"
        f"```python\n{code}```\n\n{alone}"
        f"What is done to an image:\n\n{steps}\n"
    )
