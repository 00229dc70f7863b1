"""What training images look like, in a few numbers, so that an input that looks unlike them is noticed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import DataError, expected_got

FloatArray = NDArray[np.float64]

# Enough for the quantiles below; they are spread evenly over the training images.
SAMPLE = 5_000
CHUNK = 256
# Percentiles of an image of more pixels than this are those of some of them.
RANKED = 16_384
# One training image in a thousand lies below the first of these, and one above the last.
QUANTILES = (0.001, 0.5, 0.999)
# How far beyond those an input may lie, as a fraction of the distance between them.
MARGIN = 0.15
# What is never noticed, whatever the training images: in grey levels, and as a fraction of the image.
LEVELS, SHARES = 3.0, 0.02
# An image of one grey level, give or take what a JPEG adds.
FLAT = 0.1
# Of the brightness that nearly every training image reaches: below this, the numbers have another range.
FAR_TOO_DARK = 0.5

FEATURES = {
    "brightness": LEVELS,  # mean grey level
    "contrast": LEVELS,  # standard deviation of the grey levels
    "darkest": LEVELS,  # 2nd percentile
    "brightest": LEVELS,  # 98th percentile
    "border": LEVELS,  # mean of the outermost pixels
    "sharpness": LEVELS,  # mean difference of neighbouring pixels
    "row": SHARES,  # centre of what stands out from the border, from 0 (top) to 1
    "column": SHARES,  # the same, from 0 (left) to 1
    "spread": SHARES,  # root mean square distance from that centre, as a fraction of the image's size
    "colour": LEVELS,  # mean range over the channels
}
_NAMES = tuple(FEATURES)
_TONES = ("brightness", "darkest", "brightest", "border")


@dataclass(frozen=True)
class TrainingStatistics:
    """The range of each of a few features over the training images."""

    images: int
    ranges: Mapping[str, tuple[float, float, float]]  # of each of FEATURES the values at QUANTILES

    @classmethod
    def fit(cls, images: NDArray[np.uint8]) -> TrainingStatistics:
        """Measure training images (n, h, w, c) in the size of the network's input, or an even sample."""
        if len(images) == 0:
            raise DataError(expected_got("at least one training image", "none"))
        chosen = np.unique(np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).astype(np.int64))
        parts = [measure(images[chosen[start : start + CHUNK]]) for start in range(0, len(chosen), CHUNK)]
        values = {name: np.concatenate([part[name] for part in parts]) for name in _NAMES}
        ranges = {name: _quantiles(column) for name, column in values.items()}
        return cls(len(images), ranges)

    def drift_warnings(self, images: NDArray[np.uint8]) -> list[tuple[str, ...]]:
        """Say what about each image (n, h, w, c) is unlike the training images.

        A tuple for each: sentences without a full stop, the most telling first; empty for one like any other.
        """
        measured = {name: values.astype(np.float64) for name, values in measure(images).items()}
        odd = measured["brightest"] < FAR_TOO_DARK * self.ranges["brightest"][0]
        for name in _NAMES:
            low, high = self._bounds(name)
            odd |= (measured[name] < low) | (measured[name] > high)
        found: list[tuple[str, ...]] = [()] * len(images)
        for index in np.flatnonzero(odd).tolist():  # most are not, and one at a time takes long
            found[index] = self._judge({name: float(measured[name][index]) for name in _NAMES}, images[index])
        return found

    def to_json(self) -> dict[str, Any]:
        """Give the statistics as JSON values."""
        return {"images": self.images, "ranges": {name: list(values) for name, values in self.ranges.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainingStatistics:
        """Read what ``to_json`` gave; refuse what is missing or impossible."""
        try:
            images = int(value["images"])
            ranges = {name: tuple(float(bound) for bound in value["ranges"][name]) for name in _NAMES}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(expected_got("statistics of training images", repr(error))) from error
        for name, bounds in ranges.items():
            if len(bounds) != len(QUANTILES) or not np.isfinite(bounds).all():
                raise DataError(expected_got(f"three bounds for {name} in the training statistics", bounds))
        return cls(images, {name: (low, mid, high) for name, (low, mid, high) in ranges.items()})

    def _bounds(self, name: str) -> tuple[float, float]:
        """Give the values between which an input looks like a training image."""
        low, _, high = self.ranges[name]
        margin = MARGIN * (high - low) + FEATURES[name]
        return low - margin, high + margin

    def _side(self, name: str, values: Mapping[str, float]) -> int:
        """Tell whether a value is too low (−1), too high (1) or neither."""
        low, high = self._bounds(name)
        return int(values[name] > high) - int(values[name] < low)

    def _judge(self, values: Mapping[str, float], image: NDArray[np.uint8]) -> tuple[str, ...]:
        """Name what is odd about one image (h, w, c); one cause is named once."""
        if self._side("border", values) and self._fits_inverted(image):
            return (f"inverted: {self._compare('border', values)}; it would fit as 255 − pixel",)
        if self._side("contrast", values) < 0 and values["contrast"] < FLAT:
            return (f"empty: {self._compare('contrast', values)}",)
        if values["brightest"] < FAR_TOO_DARK * self.ranges["brightest"][0]:
            return (f"wrong range: {self._compare('brightest', values)}; scale its pixels to 0 … 255",)
        sides = {name: self._side(name, values) for name in _NAMES}
        found = []
        if sides["row"] or sides["column"]:
            name = "row" if sides["row"] else "column"
            found.append(f"off-centre: {self._compare(name, values)}")
        for name, (below, above) in _WORDS.items():
            if sides[name]:
                found.append(f"{below if sides[name] < 0 else above}: {self._compare(name, values)}")
        return tuple(found)

    def _fits_inverted(self, image: NDArray[np.uint8]) -> bool:
        """Tell whether the tones of 255 − image are those of training images."""
        inverted = measure(255 - image[None])
        return not any(self._side(name, {name: float(inverted[name][0])}) for name in _TONES)

    def _compare(self, name: str, values: Mapping[str, float]) -> str:
        """Hold a value of the image against those of training images."""
        low, _, high = self.ranges[name]
        scale, unit = (1, "") if FEATURES[name] == LEVELS else (100, " %")
        subject = _SUBJECTS[name]
        numbers = [f"{value * scale:.0f}{unit}" for value in (values[name], low, high)]
        return f"{subject} {numbers[0]}, that of training images at {numbers[1]} to {numbers[2]}"


# What is said when a feature is too low, and when it is too high; the first ones are the most telling.
_WORDS = {
    "spread": ("small", "large or scattered"),
    "colour": ("colourless", "colourful"),
    "brightness": ("dark", "bright"),
    "border": ("dark border", "bright border"),
    "darkest": ("deep shadows", "washed out"),
    "brightest": ("dim", "glaring"),
    "contrast": ("low contrast", "high contrast"),
    "sharpness": ("blurred", "rough"),
}
_SUBJECTS = {
    "brightness": "its mean is at grey level",
    "contrast": "the standard deviation of its grey levels is",
    "darkest": "its darkest part is at grey level",
    "brightest": "its brightest part is at grey level",
    "border": "its border is at grey level",
    "sharpness": "the mean difference of its neighbouring pixels is",
    "row": "its content is centred at a height of",
    "column": "its content is centred at a width of",
    "spread": "the spread of its content is",
    "colour": "the mean difference between its channels is",
}


def measure(images: NDArray[np.uint8]) -> dict[str, FloatArray]:
    """Measure the features of images (n, h, w, c): a column (n,) for each of ``FEATURES``."""
    # Channel by channel, which is several times faster than a reduction of the last axis.
    channels = [images[..., channel] for channel in range(images.shape[3])]
    grey = reduce(np.add, channels, np.zeros(images.shape[:3], np.float32)) / np.float32(len(channels))
    flat = grey.reshape(len(grey), -1)  # (n, h·w)
    some = flat[:, :: flat.shape[1] // RANKED * 2 + 1]  # an odd step, so that it takes every column
    last = some.shape[1] - 1
    low, high = round(0.02 * last), round(0.98 * last)
    ordered = np.partition(some, (low, high), axis=1)
    border = _border(grey)
    row, column, spread = _place(grey, np.median(border, axis=1))
    # (n, h, w); no overflow: the maximum is not below
    colour = reduce(np.maximum, channels) - reduce(np.minimum, channels)
    columns = {
        "brightness": flat.mean(axis=1),
        "contrast": flat.std(axis=1),
        "darkest": ordered[:, low],
        "brightest": ordered[:, high],
        "border": border.mean(axis=1),
        "sharpness": _sharpness(grey),
        "row": row,
        "column": column,
        "spread": spread,
        "colour": colour.mean(axis=(1, 2)),
    }
    return {name: np.asarray(values, np.float64) for name, values in columns.items()}


def _border(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the outermost pixels, (n, h, w) → (n, pixels)."""
    edges = (grey[:, 0], grey[:, -1], grey[:, 1:-1, 0], grey[:, 1:-1, -1])
    return np.concatenate(edges, axis=1)  # (n, 2·w + 2·(h − 2))


def _sharpness(grey: NDArray[np.float32]) -> FloatArray:
    """Average the absolute difference of neighbours, down and across."""
    down, across = np.abs(np.diff(grey, axis=1)), np.abs(np.diff(grey, axis=2))
    means = [part.mean(axis=(1, 2)) if part.size else np.zeros(len(grey)) for part in (down, across)]
    return np.asarray(means[0] + means[1], np.float64)


def _place(grey: NDArray[np.float32], ground: NDArray[np.float32]) -> tuple[FloatArray, ...]:
    """Find centre (row, column) and spread of what differs from the ground, as fractions of the size."""
    weights = np.abs(grey - ground[:, None, None]).astype(np.float64)  # (n, h, w)
    total = weights.sum(axis=(1, 2))
    rows, columns = (_positions(length) for length in grey.shape[1:])
    by_row, by_column = weights.sum(axis=2), weights.sum(axis=1)  # (n, h), (n, w)
    safe = np.where(total > 0, total, 1)
    row, column = by_row @ rows / safe, by_column @ columns / safe  # (n,), (n,)
    square = by_row @ rows**2 / safe - row**2 + by_column @ columns**2 / safe - column**2
    spread = np.sqrt(np.maximum(square, 0))
    # An image of one grey level has its centre in the middle.
    return np.where(total > 0, row, 0.5), np.where(total > 0, column, 0.5), spread


def _positions(length: int) -> FloatArray:
    """Give the centre of each pixel between 0 and 1."""
    return (np.arange(length) + 0.5) / length


def _quantiles(values: FloatArray) -> tuple[float, float, float]:
    low, middle, high = (round(float(value), 4) for value in np.quantile(values, QUANTILES))
    return low, middle, high
