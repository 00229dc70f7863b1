"""Raw numbers → uint8 images: which axis is which, and what range the values have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import DataError, sentence

AXES = "images as (n, h, w), (n, h, w, c), (n, c, h, w) or flat squares, 1 or 3 channels"


@dataclass
class ValueRange:
    """The smallest and the largest value of all images of a data set: one rule brings all to 8 bits.

    Examples
    --------
    >>> values = ValueRange()
    >>> values.add(np.array([0, 4095], np.uint16))
    >>> values.high, values.depth
    (4095.0, 12)
    """

    low: float = np.inf
    high: float = -np.inf

    def add(self, values: NDArray[Any]) -> None:
        """Take in some values; NaN stays."""
        if values.size:  # NumPy's minimum keeps NaN, Python's loses it
            self.low = float(np.minimum(self.low, values.min()))
            self.high = float(np.maximum(self.high, values.max()))

    @property
    def depth(self) -> int:
        """How many bits whole numbers of this range take, at least 8."""
        return max(8, int(self.high).bit_length())


@dataclass(frozen=True)
class Layout:
    """How rows of numbers become images.

    Attributes
    ----------
    shape : tuple of int
        Height, width and channels of an image.
    channels_first : bool
        Whether the numbers come plane by plane.
    factor : float
        What the values are multiplied by to reach 0 … 255.
    depth : int
        The bits that whole numbers take; of more than 8 the upper 8 are kept.

    Examples
    --------
    >>> Layout((2, 2, 1), False, 255.0).images(np.array([[0, 1, 0.5, 0]]))[0, ..., 0].tolist()
    [[0, 255], [128, 0]]
    """

    shape: tuple[int, int, int]
    channels_first: bool
    factor: float
    depth: int = 8

    def images(self, rows: NDArray[Any]) -> NDArray[np.uint8]:
        """Turn rows, however they are shaped, into images.

        Parameters
        ----------
        rows : ndarray of shape (k, ...)
            Numbers in the range that was found.

        Returns
        -------
        ndarray of shape (k, h, w, c), uint8
        """
        if self.depth > 8:
            values = rows >> (self.depth - 8)
        else:
            values = np.rint(rows * self.factor) if rows.dtype.kind == "f" or self.factor != 1 else rows
        if not self.channels_first:
            return values.astype(np.uint8, copy=False).reshape(len(rows), *self.shape)  # (k, h, w, c)
        height, width, channels = self.shape
        planes = values.astype(np.uint8, copy=False).reshape(len(rows), channels, height, width)
        return planes.transpose(0, 2, 3, 1)  # (k, h, w, c)

    def describe(self) -> str:
        """Say in words what was assumed."""
        height, width, channels = self.shape
        order = ", plane by plane" if self.channels_first and channels > 1 else ""
        scale = "" if self.factor == 1 else f", values times {self.factor:g}"
        if self.depth > 8:
            scale = f", of {self.depth} bits the upper 8"
        return f"The numbers were read as images of {height}×{width}×{channels}{order}{scale}."


def find_layout(sample: NDArray[Any], value_range: ValueRange, source: str) -> Layout:
    """Find out how rows of numbers become images.

    Parameters
    ----------
    sample : ndarray of shape (k, ...)
        Some rows, as they come.
    value_range : ValueRange
        Of all rows of all parts.
    source : str
        For messages.

    Returns
    -------
    Layout
        Flat colour images are taken plane by plane, or pixel by pixel, whichever looks smoother.

    Raises
    ------
    DataError
        If shape or range are not those of images.

    Examples
    --------
    >>> find_layout(np.zeros((5, 784)), ValueRange(0, 255), "numbers").shape
    (28, 28, 1)
    """
    shape, channels_first = _shape(sample, source)
    factor, depth = _factor(sample.dtype, value_range, source)
    return Layout(shape, channels_first, factor, depth)


def _shape(sample: NDArray[Any], source: str) -> tuple[tuple[int, int, int], bool]:
    """Tell height, width and channels, and whether the channels come first."""
    sizes = sample.shape[1:]
    if len(sizes) == 1 and (found := _flat_shape(sample)):
        return found
    if len(sizes) == 2 and min(sizes) > 0:
        return (sizes[0], sizes[1], 1), False
    if len(sizes) == 3 and min(sizes) > 0:
        if sizes[2] in {1, 3}:
            return (sizes[0], sizes[1], sizes[2]), False
        if sizes[0] in {1, 3}:
            return (sizes[1], sizes[2], sizes[0]), True
    raise DataError(sentence(f"{source} to hold {AXES}", f"shape {sample.shape}"))


def _flat_shape(sample: NDArray[Any]) -> tuple[tuple[int, int, int], bool] | None:
    """Tell the shape of square images that were written as one row each."""
    length = sample.shape[1]
    side = math.isqrt(length)
    if side * side == length and length > 0:
        return (side, side, 1), False
    side = math.isqrt(length // 3)
    if 3 * side * side != length or length == 0:
        return None
    values = sample.astype(np.float64)
    by_pixel = values.reshape(-1, side, side, 3)
    by_plane = values.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    return (side, side, 3), _roughness(by_plane) < _roughness(by_pixel)


def _roughness(images: NDArray[np.float64]) -> float:
    """Average the differences between each pixel and the one below it.

    Beside each other lie, where the order is mistaken, the channels of one pixel, and these are much alike.
    """
    return float(np.abs(np.diff(images, axis=1)).mean())


def _factor(dtype: np.dtype[Any], values: ValueRange, source: str) -> tuple[float, int]:
    """Tell what brings the values to 0 … 255: a factor, and the bits of which the upper 8 are kept."""
    if dtype.kind == "b":
        return 255.0, 8
    if not 0 <= values.low <= values.high <= (2**32 if dtype.kind in "iu" else 255):  # NaN neither
        found = f"{values.low:g} to {values.high:g}"
        raise DataError(sentence(f"pixels of {source} from 0 to 255, or from 0 to 1", found, "Rescale them."))
    return (255.0, 8) if values.high <= 1 else (1.0, values.depth)
