"""A run → a folder in one of the formats, held against its source: what it computes, and how fast."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.dataset import Dataset, Split
from convscope.data.loading import load, load_again
from convscope.environment import require_package, versions
from convscope.errors import (
    ConvscopeError,
    DataError,
    ExportError,
    RunError,
    UsageError,
    expected_got,
    unknown_name,
)
from convscope.evaluation import test_set_log
from convscope.export.bundle import Bundle, Forward
from convscope.export.bundle_files import (
    BUNDLE_FILE,
    BUNDLE_VERSION,
    NOVELTY_FILE,
    STATISTICS_FILE,
    load_bundle,
)
from convscope.export.formats import FORMATS, ExportFormat
from convscope.export.onnx_files import INPUT, OUTPUT
from convscope.model_files.models import CONFIG, WEIGHTS_FILE, write_weights
from convscope.preprocessing import resize_to_input
from convscope.runs import RUN_FILE, RunDirectory, as_json, create_run, open_run

_PROGRESS = logging.getLogger("convscope.progress")

GUIDE_FILE = "README.md"
SOURCE = "the run"
# How far apart two measurements of an image's distance from the training images may be, which is up to 2.
FARTHEST = 1e-3
# Two classes closer than this count as equally probable: either may come out first.
TIE = 1e-4
TOLERANCE = 1e-4
BATCHES = (1, 7, 64)
# Images that go through one by one, and seven by seven; all of them go through by 64.
FEW = 70
MOST_IMAGES = 10_000
RANDOM_IMAGES = 256
CALIBRATION_IMAGES = 512
WARM_UP, REPEATS = 2, 15


@dataclass(frozen=True)
class Agreement:
    """How two sets of predictions for the same images compare; ties are no mismatches."""

    images: int
    mismatches: int
    largest_difference: float

    @property
    def holds(self) -> bool:
        """Whether they count as the same."""
        return self.mismatches == 0 and self.largest_difference <= TOLERANCE

    def __str__(self) -> str:
        return (
            f"{self.mismatches} of {self.images} labels that differ, "
            f"probabilities up to {self.largest_difference:.1e} apart"
        )


def compare(reference: NDArray[np.float32], predicted: NDArray[np.float32]) -> Agreement:
    """Compare predictions (n, classes) with those of their source.

    A label that differs counts unless the source finds both classes equally probable, to 1e-4.
    """
    rows = np.arange(len(reference))
    gap = reference.max(axis=1) - reference[rows, predicted.argmax(axis=1)]
    difference = np.abs(reference.astype(np.float64) - predicted)
    largest = float(difference.max(initial=0)) if np.isfinite(difference).all() else float("inf")
    return Agreement(len(reference), int(np.count_nonzero(gap >= TIE)), largest)


@dataclass(frozen=True, eq=False)
class CheckImages:
    """What an export is run on, in the size that the network takes: pixels (n, h, w, c), uint8.

    Labels are None for pixels that were made up; ``origin`` says in words where they come from.
    ``training`` are training images, and ``judging`` others with their labels, ``judged_on`` in words, by
    which an export may be chosen or refused: the test images are not for that.
    """

    pixels: NDArray[np.uint8] = field(repr=False)
    labels: NDArray[np.int64] | None = field(repr=False)
    origin: str
    training: NDArray[np.uint8] | None = field(default=None, repr=False)
    judging: tuple[NDArray[np.uint8], NDArray[np.int64]] | None = field(default=None, repr=False)
    judged_on: str = ""
    uncounted: RunError | None = None

    def accuracy(self, probabilities: NDArray[np.float32]) -> float | None:
        """Give the share of right labels, where labels are known."""
        return None if self.labels is None else float(np.mean(probabilities.argmax(axis=1) == self.labels))


def find_images(run: RunDirectory, bundle: Bundle, data: str | None = None) -> CheckImages:
    """Find the images that a run was tested on; where they are gone, make some up and say so.

    ``data`` names them instead of what the run recorded, and must be what it was trained on. The
    export's accuracy on test images is one more use of them, which is counted.
    """
    recorded = run.read_json(RUN_FILE).get("data")
    recorded = recorded if isinstance(recorded, Mapping) else {}
    try:
        dataset = _load_verified(data, recorded) if data else load_again(recorded)
        if dataset.class_names != bundle.class_names:
            raise DataError(expected_got("the classes of the run", ", ".join(dataset.class_names[:5])))
    # A damaged record can make any argument of ``load`` impossible.
    except (ConvscopeError, TypeError, ValueError, KeyError, AttributeError) as error:
        if data:
            raise
        return _made_up(bundle, error)
    uncounted = test_set_log.try_to_log_use(run, "export", by="export")
    test = _some(dataset.test, MOST_IMAGES)
    training, validation = _parts(run, dataset)
    judged_on = "validation images" if len(validation) else "training images"
    judging = _some(validation if len(validation) else training, MOST_IMAGES)
    resize = bundle.preprocess.resize_to_input
    return CheckImages(
        resize(test.images),
        test.labels,
        f"{len(test):,} test images of {dataset.name}",
        resize(_some(training, CALIBRATION_IMAGES).images),
        (resize(judging.images), judging.labels),
        judged_on,
        uncounted,
    )


def _parts(run: RunDirectory, dataset: Dataset) -> tuple[Split, Split]:
    """Divide the training images as the run did, by the names of those that it validated on."""
    if dataset.validation is not None:
        return dataset.train, dataset.validation
    recorded = run.read_arrays("predictions.npz") if (run.path / "predictions.npz").is_file() else {}
    held_back = np.isin(np.array(dataset.train.names), recorded.get("validation_names", np.array([], str)))
    return dataset.train.take(np.flatnonzero(~held_back)), dataset.train.take(np.flatnonzero(held_back))


def _load_verified(data: str, recorded: Mapping[str, Any]) -> Dataset:
    """Load the data that a person names, if they are those of the run."""
    reading = recorded.get("reading", {})
    dataset = load(data, **reading if isinstance(reading, dict) else {})
    if dataset.fingerprint != recorded.get("fingerprint"):
        hint = "Name the data that it was trained on."
        raise DataError(expected_got("the data of the run", f"another fingerprint for {data}", hint))
    return dataset


def _some(split: Split, most: int) -> Split:
    """Choose images evenly, all of them where there are few."""
    chosen = np.unique(np.linspace(0, len(split) - 1, min(most, len(split))).astype(np.int64))
    return split.take(chosen)


def _made_up(bundle: Bundle, error: Exception) -> CheckImages:
    """Make images: noise, fine and coarse, so that every part of a network has something to do."""
    generator = np.random.default_rng(0)
    settings = bundle.preprocess
    fine = generator.integers(0, 256, (RANDOM_IMAGES, *settings.image_shape), np.uint8)
    coarse = [
        generator.integers(0, 256, (*generator.integers(2, 8, 2), settings.channels), np.uint8)
        for _ in range(RANDOM_IMAGES)
    ]
    pixels = np.concatenate([fine, settings.resize_to_input(coarse)])
    origin = f"{len(pixels)} images of random pixels, for want of the data ({error})"
    return CheckImages(pixels, None, origin)


def require_agreement(
    forward: Forward, pixels: NDArray[np.uint8], reference: NDArray[np.float32], name: str
) -> Agreement:
    """Run an export by 1, 7 and 64 images and refuse it where it disagrees with its source."""
    largest = 0.0
    for batch in BATCHES:
        count = len(pixels) if batch == max(BATCHES) else min(FEW, len(pixels))
        agreement = compare(reference[:count], run_in_batches(forward, pixels[:count], batch))
        if not agreement.holds:
            expected = f"{name} to agree with its source, {batch} images at a time"
            raise ExportError(expected_got(expected, agreement, "Nothing was written."))
        largest = max(largest, agreement.largest_difference)
    return replace(agreement, largest_difference=largest)


def require_same_resizing(forward: Forward, bundle: Bundle, pixels: NDArray[np.uint8], name: str) -> str:
    """Run an export on images of other sizes, which it resizes itself; refuse it or say how close it is."""
    settings, largest = bundle.preprocess, 0.0
    for height, width in ((2 * settings.height + 1, settings.width), (settings.height // 2 + 1, 401)):
        sizes = ((height, width), settings.channels, "stretch")
        images = np.stack([resize_to_input(image, *sizes) for image in pixels[:FEW]])
        largest = max(largest, compare(bundle.predict(images), forward(images)).largest_difference)
    if largest > TOLERANCE:
        expected = f"{name} to resize images as its source does"
        found = f"probabilities up to {largest:.1e} apart"
        raise ExportError(expected_got(expected, found, "Nothing was written."))
    return f"{name} takes images of any size; resized by it, they get probabilities up to {largest:.1e} apart"


def run_in_batches(forward: Forward, pixels: NDArray[np.uint8], batch: int) -> NDArray[np.float32]:
    """Run a network by so many images, the last batch as short as it comes."""
    parts = [forward(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
    return np.concatenate(parts)


def measure_latency(
    networks: Mapping[str, Forward], pixels: NDArray[np.uint8]
) -> dict[str, dict[int, float]]:
    """Measure median milliseconds of a prediction of 1 and of 64 images, by network and batch.

    They take turns, so that whatever else happens hits all alike.
    """
    medians: dict[str, dict[int, float]] = {name: {} for name in networks}
    for batch in (1, 64):
        images = np.ascontiguousarray(np.resize(pixels, (batch, *pixels.shape[1:])))
        times: dict[str, list[float]] = {name: [] for name in networks}
        for turn in range(WARM_UP + REPEATS):
            for name, forward in networks.items():
                begin = time.perf_counter()
                forward(images)
                if turn >= WARM_UP:
                    times[name].append(time.perf_counter() - begin)
        for name, values in times.items():
            medians[name][batch] = 1000 * float(np.median(values))
    return medians


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
        found = as_json(replace(self, uncounted=None))
        del found["uncounted"]
        return found


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
    forward = first.write(bundle, *(scratch.path / one for one in first.files))
    _PROGRESS.info("Holding %s against the run", name)
    reference = bundle.predict(images.pixels)
    checked = str(require_agreement(forward, images.pixels, reference, name))
    forwards: dict[str, Forward] = {SOURCE: bundle.forward, name: forward}
    notes = [require_same_resizing(forward, bundle, images.pixels, form.files[0])] if form.resizes else []
    if eight.quantize and (int8 or form is eight):
        _PROGRESS.info("Quantizing it, and holding %s against the run", eight.files[0])
        small = scratch.path / eight.files[0]
        forwards[small.name], note = eight.quantize(scratch.path / name, small, bundle, images)
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
    networks = []
    for one, forward in forwards.items():
        predicted = reference if one == SOURCE else forward(images.pixels)
        same = float(np.mean(predicted.argmax(axis=1) == reference.argmax(axis=1)))
        apart = compare(reference, predicted).largest_difference
        networks.append(Measured(one, sizes[one], images.accuracy(predicted), same, apart, latency[one]))
    return ExportReport(folder, format, images.origin, tuple(networks), tuple(notes), images.uncounted)


def _require_same_distances(bundle: Bundle, exported: Bundle, pixels: NDArray[np.uint8]) -> None:
    """Refuse an export whose features are not those of its source."""
    (_, own), (_, theirs) = (one.predict_with_distances(pixels) for one in (bundle, exported))
    if own is not None and theirs is not None:
        apart = float(np.abs(own - theirs).max(initial=0))
        if not apart <= FARTHEST:
            expected = "an export with the features of its source"
            raise ExportError(expected_got(expected, f"distances up to {apart:.1e} apart"))


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
