"""Whether an export does what its source does, on real images, and how fast."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.dataset import Dataset, Split
from convscope.data.loading import load, load_again
from convscope.errors import ConvscopeError, DataError, ExportError, RunError, expected_got
from convscope.evaluation import test_set_log
from convscope.export.bundle import Bundle, Forward
from convscope.preprocessing import resize_to_input
from convscope.runs import RUN_FILE, RunDirectory

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
