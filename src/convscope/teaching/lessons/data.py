"""What the notebooks run on: MNIST or the digits, whole or shortened, and pictures of your own digits.

The environment variable ``CONVSCOPE_LESSONS`` holds words separated by commas: ``quick`` shortens data and
training for tests; ``mnist`` or ``digits`` chooses the data. Without it the lessons run on the whole of
MNIST, and on the digits where there is no MNIST.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convscope.data.dataset import Dataset, Split, fingerprint
from convscope.data.decode import read_image
from convscope.errors import DataError, UsageError, expected_got
from convscope.teaching.exercise import exercise_data

VARIABLE = "CONVSCOPE_LESSONS"
DATASETS = ("mnist", "digits")
QUICK_TRAIN, QUICK_TEST = 4_000, 1_000

# Passes over the training images: enough to learn what there is to learn, and no more.
_EPOCHS = {("mnist", False): 5, ("mnist", True): 3, ("digits", False): 20, ("digits", True): 10}


@dataclass(frozen=True)
class LessonSettings:
    """What the variable asks for; without a dataset it is MNIST where it is available, else the digits."""

    dataset: str | None = None
    quick: bool = False

    @classmethod
    def from_environment(cls) -> LessonSettings:
        """Read ``CONVSCOPE_LESSONS``."""
        words = [word.strip() for word in os.environ.get(VARIABLE, "").split(",") if word.strip()]
        known = (*DATASETS, "quick")
        unknown = [word for word in words if word not in known]
        if unknown:
            raise UsageError(expected_got(f"{VARIABLE} to hold {', '.join(known)}", repr(unknown[0])))
        chosen = [word for word in words if word in DATASETS]
        return cls(chosen[0] if chosen else None, "quick" in words)

    def to_environment(self) -> dict[str, str]:
        """Give the variable that asks for this."""
        words = [self.dataset or "", "quick" if self.quick else ""]
        return {VARIABLE: ",".join(word for word in words if word)}


def load_data() -> Dataset:
    """Load the lessons' data: MNIST where it is available, else scikit-learn's digits.

    Returns
    -------
    Dataset
        Its first images only, where ``CONVSCOPE_LESSONS`` says ``quick``.

    Raises
    ------
    DataError
        If files are damaged, or the dataset that ``CONVSCOPE_LESSONS`` names is not available.

    Examples
    --------
    >>> load_data().input_shape
    (28, 28, 1)
    """
    settings = LessonSettings.from_environment()
    dataset, _ = exercise_data(settings.dataset)
    if not settings.quick:
        return dataset
    train, test = _first(dataset.train, QUICK_TRAIN), _first(dataset.test, QUICK_TEST)
    print_ = fingerprint(train, test, class_names=dataset.class_names)
    return replace(dataset, train=train, test=test, fingerprint=print_)


def _first(part: Split, count: int) -> Split:
    """Take the first examples; both datasets come in random order."""
    return part if len(part) <= count else part.take(np.arange(count))


def epochs(data: Dataset) -> int:
    """Say how many passes over the training images a lesson makes.

    Parameters
    ----------
    data : Dataset
        What the lesson runs on.

    Returns
    -------
    int
        More for few images; fewer where ``CONVSCOPE_LESSONS`` says ``quick``.

    Examples
    --------
    >>> import convscope
    >>> epochs(convscope.load("digits")) >= 10
    True
    """
    quick = LessonSettings.from_environment().quick
    return _EPOCHS.get((data.name, quick), _EPOCHS["mnist", quick])


Picture = NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# A telephone's twelve million pixels say no more about a digit than these do.
LONGEST_SIDE = 640
SEED = 1338


def read_pictures(folder: str | Path) -> tuple[list[Picture], NDArray[np.int64]]:
    """Read pictures of digits from a folder.

    Parameters
    ----------
    folder : str or Path
        Holds image files whose names begin with the digit that is on them: ``7-with-a-dash.jpg``.

    Returns
    -------
    pictures : list of ndarray of shape (H, W), uint8
        Grey, as they are, the longest side at most 640 pixels. Empty when there is no such folder.
    digits : ndarray of shape (n,), int64
        The digit of each.

    Raises
    ------
    DataError
        When a name does not begin with a digit, or a file cannot be read as an image.

    Examples
    --------
    >>> read_pictures("no-such-folder")
    ([], array([], dtype=int64))
    """
    root = Path(folder)
    files = sorted(file for file in root.glob("*") if file.suffix.lower() in SUFFIXES)
    for file in files:
        if not file.name[0].isdecimal():
            hint = "Rename it, for example to 3.png or 3-drawn.png."
            raise DataError(expected_got("a picture's name to begin with its digit", file.name, hint))
    digits = np.array([int(file.name[0]) for file in files], np.int64)
    return [_grey(read_image(file)) for file in files], digits


def _grey(pixels: Picture) -> Picture:
    """Bring a picture to one grey value for each pixel, and to a manageable size."""
    picture = Image.fromarray(pixels.squeeze()).convert("L")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(picture)


def make_photographs(data: Dataset, count: int = 100) -> tuple[list[Picture], NDArray[np.int64]]:
    """Make pictures of test images as a telephone would take them: dark ink on light, uneven paper.

    Parameters
    ----------
    data : Dataset
        Bright digits on black.
    count : int
        How many to make, of the first test images.

    Returns
    -------
    pictures : list of ndarray of shape (H, W), uint8
        The same ones each time.
    digits : ndarray of shape (n,), int64
        The digit of each.

    Examples
    --------
    >>> import convscope
    >>> pictures, digits = make_photographs(convscope.load("digits"), count=3)
    >>> len(pictures), digits.shape
    (3, (3,))
    """
    generator = np.random.default_rng(SEED)
    pictures = [photograph(image, generator) for image in data.test.images[:count]]
    return pictures, data.test.labels[:count].copy()


def photograph(image: Picture, generator: np.random.Generator) -> Picture:
    """Make of a bright digit on black, uint8 (h, w), what a telephone would see, uint8 (H, W).

    That is dark ink somewhere on uneven, light paper, between 180 and 320 pixels a side.
    """
    ink = cut_out(image.reshape(image.shape[:2]))
    height, width = (int(side) for side in generator.integers(180, 320, size=2))
    factor = generator.uniform(0.4, 0.62) * min(height, width) / max(ink.shape)
    size = (max(1, round(ink.shape[1] * factor)), max(1, round(ink.shape[0] * factor)))
    enlarged = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BICUBIC), np.float64) / 255
    top = generator.integers(4, height - size[1] - 4)
    left = generator.integers(4, width - size[0] - 4)
    cover = np.zeros((height, width))
    cover[top : top + size[1], left : left + size[0]] = enlarged
    slope = generator.uniform(-20, 20, size=2)  # paper is brighter towards one side
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    paper: NDArray[np.float64] = generator.uniform(195, 225) + slope[0] * down + slope[1] * across
    picture = paper * (1 - cover) + generator.uniform(20, 60) * cover
    noisy = picture + generator.normal(0, 3, picture.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def cut_out(image: Picture) -> Picture:
    """Cut away the black around a digit."""
    rows, columns = (np.flatnonzero((image > 0).any(axis=axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else image
