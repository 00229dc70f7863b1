"""Keras's random rotations, zooms, shears and translations of images, a whole batch at once.

Keras draws one transformation for each image and then moves image by image, which takes half of a small
network's step. Here Keras's layer draws, from its own generator, and the images are moved together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import torch

from convscope.lowering.layers.base import Tensor
from convscope.lowering.layers.keras_call import KerasRunner

_MOVING = ("RandomRotation", "RandomShear", "RandomTranslation", "RandomZoom")


def moves_images(layer: Any) -> bool:
    """Say whether this is one of Keras's layers that move images, between pixels."""
    kinds = tuple(getattr(keras.layers, name) for name in _MOVING)
    return type(layer) in kinds and layer.interpolation == "bilinear"


class MovingRunner(KerasRunner):
    """Calls a layer that moves images; for the time of the call it finds another function for that."""

    def run(self, tensors: Mapping[str, Any], training: bool, seed: int) -> tuple[list[Any], list[Any]]:
        """Call the layer."""
        attributes = vars(self.operation)
        backend = attributes["backend"]
        attributes["backend"] = _With(backend, image=_With(backend.image, affine_transform=move_images))
        try:
            return super().run(tensors, training, seed)
        finally:
            attributes["backend"] = backend


class _With:
    """Something with a few attributes of its own, and else with those of another."""

    def __init__(self, other: Any, **own: Any) -> None:
        self.__dict__.update(own)
        self._other = other

    def __getattr__(self, name: str) -> Any:
        """Look at the other."""
        return getattr(self._other, name)


def move_images(
    images: Tensor,
    transform: Tensor,
    interpolation: str = "bilinear",
    fill_mode: str = "constant",
    fill_value: float = 0.0,
    data_format: str | None = None,
) -> Tensor:
    """Take each pixel (x, y) of a batch from (a0·x + a1·y + a2, b0·x + b1·y + b2), between four pixels.

    ``transform`` is (n, 8): a0, a1, a2, b0, b1, b2 and two that only a perspective uses.
    """
    del interpolation  # bilinear: `moves_images` has looked
    first = (data_format or keras.config.image_data_format()) == "channels_first"
    images = images.movedim(1, -1) if first else images
    count, height, width, channels = images.shape  # (n, h, w, c)
    y = torch.arange(height, device=images.device, dtype=transform.dtype)[:, None]
    x = torch.arange(width, device=images.device, dtype=transform.dtype)
    a0, a1, a2, b0, b1, b2 = transform[:, :6].t()[..., None, None]
    pixels = images.reshape(-1, channels)
    begin = torch.arange(count, device=images.device)[:, None, None] * (height * width)
    moved: Tensor | float = 0.0
    for row, row_weight in _neighbours(b0 * x + b1 * y + b2):
        for column, column_weight in _neighbours(a0 * x + a1 * y + a2):
            place = begin + _INSIDE[fill_mode](row, height) * width + _INSIDE[fill_mode](column, width)
            found = pixels[place]  # (n, h, w, c)
            if fill_mode == "constant":
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                found = torch.where(inside[..., None], found, fill_value)
            moved = moved + (row_weight * column_weight)[..., None] * found
    result = torch.as_tensor(moved)
    return result.movedim(-1, 1) if first else result


def _neighbours(place: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the two whole numbers around each place, with their weights."""
    below = torch.floor(place)
    weight = place - below
    index = below.to(torch.int64)
    return [(index, 1.0 - weight), (index + 1, weight)]


def _reflected(index: Tensor, size: int) -> Tensor:
    rest = torch.remainder(index, 2 * size)
    return torch.minimum(rest, 2 * size - 1 - rest)


# Which pixel stands for one outside of the image.
_INSIDE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "constant": lambda index, size: index.clamp(0, size - 1),
    "nearest": lambda index, size: index.clamp(0, size - 1),
    "reflect": _reflected,
    "wrap": torch.remainder,
}
