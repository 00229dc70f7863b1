"""Keras's layers that change images at random in training, a whole batch at once.

Their numbers are a function of seed, step and row, as dropout's masks are. A layer with a seed of its own
draws as Keras does, from its own generator; where it moves images, they are moved together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import torch

from convscope import _keras_internals as internals
from convscope.augmentation import warp
from convscope.lowering.ir import DataFormat, Elementwise, Value
from convscope.lowering.layers.base import ProgramBuilder, Runner, Step, Tensor, WeightSource, reads, runs
from convscope.lowering.layers.keras_call import KerasRunner
from convscope.lowering.layers.operations import Random, draw_evenly

_MOVING = ("RandomRotation", "RandomShear", "RandomTranslation", "RandomZoom")
Ranges = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Augment(Elementwise, Random):
    """Changes each image in training, by a number drawn for it from each of ``ranges``."""

    ranges: Ranges
    data_format: DataFormat

    def change(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Change images, float32, by numbers (n, k)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Flip(Augment):
    """Mirrors every second image, along ``axes`` together."""

    axes: tuple[int, ...]

    def change(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Mirror."""
        return torch.where(_each(numbers <= 0.5), images.flip(self.axes), images)


@dataclass(frozen=True, kw_only=True)
class Move(Augment):
    """Rotates, shears, shifts or zooms, as Keras's layer of this ``way`` does with the numbers it draws."""

    way: str
    interpolation: str
    fill_mode: str
    fill_value: float

    def change(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Move."""
        height, width = images.shape[-2:] if self.data_format == "channels_first" else images.shape[1:3]
        a0, a1, a2, b0, b1, b2 = _centred(self.way, numbers, height, width)
        ones = torch.ones_like(numbers[:, 0])
        right, down = (a0, a1 * height / width, 2 * a2 / width), (b0 * width / height, b1, 2 * b2 / height)
        maps = torch.stack([one * ones for one in (*right, *down)], dim=1).view(-1, 2, 3)
        return _warped(images, maps, self.data_format, self.fill_mode, self.fill_value, self.interpolation)


@dataclass(frozen=True, kw_only=True)
class Contrast(Augment):
    """Multiplies what differs from an image's mean in each channel."""

    value_range: tuple[float, float]

    def change(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Multiply."""
        axes = (2, 3) if self.data_format == "channels_first" else (1, 2)
        mean = images.mean(dim=axes, keepdim=True)
        return ((images - mean) * _each(numbers) + mean).clamp(*self.value_range)


@dataclass(frozen=True, kw_only=True)
class Brightness(Augment):
    """Adds the same to all of an image, a share of the range of values."""

    value_range: tuple[float, float]

    def change(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Add."""
        low, high = self.value_range
        return (images + _each(numbers) * (high - low)).clamp(low, high)


def _each(numbers: Tensor) -> Tensor:
    """View one number for each image so that it meets all its pixels, (n, 1, 1, 1)."""
    return numbers[:, 0, None, None, None]


def _centred(way: str, numbers: Tensor, height: int, width: int) -> tuple[Tensor | float, ...]:
    """Return a0, a1, a2, b0, b1, b2: (x, y), from the middle, is (a0·x + a1·y + a2, b0·x + b1·y + b2)."""
    drawn = numbers.unbind(1)
    if way == "rotation":
        angle = torch.deg2rad(drawn[0])
        cosine, sine = torch.cos(angle), torch.sin(angle)
        return cosine, -sine, 0.0, sine, cosine, 0.0
    if way == "zoom":  # a single factor is for both
        return drawn[-1], 0.0, 0.0, 0.0, drawn[0], 0.0
    if way == "translation":
        return 1.0, 0.0, -drawn[1] * width, 0.0, 1.0, -drawn[0] * height
    sign = torch.where(drawn[0] > 0.5, -1.0, 1.0)
    x, y = drawn[2] * sign, drawn[1] * sign  # Keras's shear leaves the first row and column where they are
    return 1.0, x, x * (height - 1) / 2, y, 1.0, y * (width - 1) / 2


@reads("RandomFlip")
def _read_flip(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value | None:
    vertical, horizontal = (2, 3) if layer.data_format == "channels_first" else (1, 2)
    axes = {"horizontal": (horizontal,), "vertical": (vertical,)}.get(layer.mode, (horizontal, vertical))
    return _read(builder, layer, inputs, Flip, ((0.0, 1.0),), axes=axes)


@reads("RandomRotation")
def _read_rotation(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value | None:
    low, high = layer.factor
    return _read_move(builder, layer, inputs, "rotation", ((low * 360.0, high * 360.0),))


@reads("RandomZoom")
def _read_zoom(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value | None:
    ranges: Ranges = ((1.0 + layer.height_lower, 1.0 + layer.height_upper),)
    if layer.width_factor is not None:
        ranges = (*ranges, (1.0 + layer.width_lower, 1.0 + layer.width_upper))
    return _read_move(builder, layer, inputs, "zoom", ranges)


@reads("RandomTranslation")
def _read_translation(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value | None:
    ranges = (layer.height_lower, layer.height_upper), (layer.width_lower, layer.width_upper)
    return _read_move(builder, layer, inputs, "translation", ranges)


@reads("RandomShear")
def _read_shear(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value | None:
    ranges = (0.0, 1.0), tuple(layer.y_factor), tuple(layer.x_factor)
    return _read_move(builder, layer, inputs, "shear", ranges)


def _read_move(
    builder: ProgramBuilder, layer: Any, inputs: Sequence[Value], way: str, ranges: Ranges
) -> Value | None:
    fill = {"fill_mode": layer.fill_mode, "fill_value": float(layer.fill_value)}
    return _read(builder, layer, inputs, Move, ranges, way=way, interpolation=layer.interpolation, **fill)


@reads("RandomContrast")
def _read_contrast(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value | None:
    less, more = layer.factor
    limits = tuple(map(float, layer.value_range))
    return _read_color(builder, layer, inputs, Contrast, ((1.0 - less, 1.0 + more),), value_range=limits)


@reads("RandomBrightness")
def _read_brightness(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value | None:
    limits = tuple(map(float, layer.value_range))
    return _read_color(builder, layer, inputs, Brightness, (tuple(layer.factor),), value_range=limits)


def _read_color(
    builder: ProgramBuilder, layer: Any, inputs: Sequence[Value], *how: Any, **settings: Any
) -> Value | None:
    # Keras leaves whole numbers what they are, and overflows.
    return _read(builder, layer, inputs, *how, **settings) if inputs[0].dtype == "float32" else None


def _read(
    builder: ProgramBuilder,
    layer: Any,
    inputs: Sequence[Value],
    kind: type[Augment],
    ranges: Ranges,
    **settings: Any,
) -> Value | None:
    if inputs[0].rank != 4 or not internals.is_unseeded(layer.generator):
        return None
    settings = {"ranges": ranges, "data_format": layer.data_format, **settings}
    return builder.add(kind, layer, inputs, stream=builder.next_stream(), **settings)


@runs(Flip)
@runs(Move)
@runs(Contrast)
@runs(Brightness)
def _run_augment(op: Augment, _network: WeightSource) -> Runner:
    def run(step: Step, images: Tensor) -> Tensor:
        if not step.training:
            return images if images.is_floating_point() else images.float()
        numbers = draw_evenly(step, op.stream, (len(images), len(op.ranges)), images.device)
        spread = [
            one * (high - low) + low for one, (low, high) in zip(numbers.unbind(1), op.ranges, strict=True)
        ]
        return op.change(images.float(), torch.stack(spread, dim=1))

    return run


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
    data_format: DataFormat | None = None,
) -> Tensor:
    """Take each pixel (x, y) of a batch from (a0·x + a1·y + a2, b0·x + b1·y + b2), as Keras's function does.

    ``transform`` is (n, 8): a0, a1, a2, b0, b1, b2 and two that only a perspective uses.
    """
    data_format = data_format or keras.config.image_data_format()
    height, width = images.shape[-2:] if data_format == "channels_first" else images.shape[1:3]
    middle = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=images.device)
    size = torch.tensor([width, height], device=images.device)
    parts = transform[:, :6].reshape(-1, 2, 3)
    matrix, shift = parts[..., :2], parts[..., 2]
    shift = shift + matrix @ middle - middle  # (n, 2), counted from the middle
    maps = torch.cat([matrix * size / size[:, None], (2 * shift / size)[..., None]], dim=2)
    return _warped(images, maps, data_format, fill_mode, fill_value, interpolation)


def _warped(
    images: Tensor,
    maps: Tensor,
    data_format: DataFormat,
    fill_mode: str,
    fill_value: float,
    interpolation: str,
) -> Tensor:
    """Move images by maps (n, 2, 3) in coordinates from -1 to 1."""
    if data_format == "channels_first":
        return warp(images, maps, fill_mode, fill_value, interpolation)
    moved = warp(images.permute(0, 3, 1, 2), maps, fill_mode, fill_value, interpolation)  # (n, c, h, w)
    return moved.permute(0, 2, 3, 1)  # (n, h, w, c)
