"""Photographs of digits as a telephone would take them, made from images of a dataset."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]


def photograph(image: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
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
    paper = _paper(height, width, generator)
    picture = paper * (1 - cover) + generator.uniform(20, 60) * cover
    noisy = picture + generator.normal(0, 3, picture.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def cut_out(image: Array) -> Array:
    """Cut away the black around a digit."""
    rows, columns = (np.flatnonzero((image > 0).any(axis=axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else image


def _paper(height: int, width: int, generator: np.random.Generator) -> Array:
    """Light paper, brighter towards one side."""
    slope = generator.uniform(-20, 20, size=2)
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    paper: Array = generator.uniform(195, 225) + slope[0] * down + slope[1] * across
    return paper
