"""Pictures of one's own digits, and stand-ins for those who have none yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convscope.data.catalog import Dataset
from convscope.data.decode import read_image
from convscope.errors import DataError, sentence
from convscope.teaching.grading import photograph

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
            raise DataError(sentence("a picture's name to begin with its digit", file.name, hint))
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
