"""Layers that move elements: flattening, margins, enlarging."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import keras
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses

from convscope.lowering.convolutions import to_keras_order, to_torch_order
from convscope.lowering.ir import (
    DataFormat,
    Op,
    Pair,
    Shape,
    Value,
    require,
    require_image,
    spatial_axes,
    with_axes,
)
from convscope.lowering.layers.base import ProgramBuilder, Runner, Step, Tensor, WeightSource, reads, runs


@dataclass(frozen=True, kw_only=True)
class Flatten(Op):
    """All axes but the batch into one; ``channels_first`` images are put in channels_last order before."""

    data_format: DataFormat = "channels_last"

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        rest = shape[1:]
        return (shape[0], None if None in rest else math.prod(size for size in rest if size is not None))


@dataclass(frozen=True, kw_only=True)
class Reshape(Op):
    """Another shape for the axes behind the batch; -1 stands for what is left."""

    target: tuple[int, ...]

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        rest = shape[1:]
        if None in rest:
            return (shape[0], *(None if size == -1 else size for size in self.target))
        total = math.prod(size for size in rest if size is not None)
        known = math.prod(size for size in self.target if size != -1)
        require(known != 0 and total % known == 0, f"{rest} cannot be reshaped to {self.target}")
        require(
            -1 in self.target or total == known, f"{rest} has {total} elements, {self.target} has {known}"
        )
        return (shape[0], *(total // known if size == -1 else size for size in self.target))


@dataclass(frozen=True, kw_only=True)
class Border2D(Op):
    """What adds or takes the border of an image: ``((top, bottom), (left, right))``."""

    sign: ClassVar[int]
    amounts: tuple[Pair, Pair]
    data_format: DataFormat = "channels_last"

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        require_image(self, shape)
        sizes = [shape[axis] for axis in spatial_axes(self.data_format)]
        changed = [
            None if size is None else size + self.sign * sum(border)
            for size, border in zip(sizes, self.amounts, strict=True)
        ]
        is_left = all(size is None or size > 0 for size in changed)
        require(is_left, f"nothing is left of {shape} after {self.amounts}")
        return with_axes(shape, self.data_format, changed)


class ZeroPad2D(Border2D):
    """Zeros around an image."""

    sign = 1


class Crop2D(Border2D):
    """An image without its border."""

    sign = -1


@dataclass(frozen=True, kw_only=True)
class UpSample2D(Op):
    """An image enlarged by whole factors."""

    size: Pair
    interpolation: Literal["nearest", "bilinear"] = "nearest"
    data_format: DataFormat = "channels_last"

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        require_image(self, shape)
        sizes = [shape[axis] for axis in spatial_axes(self.data_format)]
        enlarged = [
            None if size is None else size * factor for size, factor in zip(sizes, self.size, strict=True)
        ]
        return with_axes(shape, self.data_format, enlarged)


@dataclass(frozen=True, kw_only=True)
class Resize(Op):
    """An image brought to another size, by Keras's own function of tensors."""

    size: Pair
    interpolation: str
    crop_to_aspect_ratio: bool
    pad_to_aspect_ratio: bool
    fill_value: float
    antialias: bool
    data_format: DataFormat

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        require_image(self, shape)
        return with_axes(shape, self.data_format, list(self.size))


@reads("Flatten")
def _read_flatten(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    return builder.add(Flatten, layer, inputs, data_format=layer.data_format)


@reads("Reshape")
def _read_reshape(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    target = tuple(-1 if size is None else int(size) for size in layer.target_shape)
    return builder.add(Reshape, layer, inputs, target=target)


@reads("ZeroPadding2D")
def _read_zero_padding2d(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    amounts = tuple(map(tuple, layer.padding))
    return builder.add(ZeroPad2D, layer, inputs, amounts=amounts, data_format=layer.data_format)


@reads("Cropping2D")
def _read_cropping2d(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    amounts = tuple(map(tuple, layer.cropping))
    return builder.add(Crop2D, layer, inputs, amounts=amounts, data_format=layer.data_format)


@reads("CenterCrop")
def _read_center_crop(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value | None:
    axes = spatial_axes(layer.data_format)
    known = inputs[0].rank == 4 and inputs[0].dtype == "float32"  # Keras casts others
    sizes = [inputs[0].shape[axis] for axis in axes] if known else [None]
    wanted, over = (layer.height, layer.width), []
    for size, length in zip(sizes, wanted, strict=False):
        if size is None or size < length:
            return None  # Keras enlarges what is too small
        over.append(((size - length) // 2, size - length - (size - length) // 2))
    return builder.add(Crop2D, layer, inputs, amounts=tuple(over), data_format=layer.data_format)


@reads("Resizing")
def _read_resizing(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value | None:
    if inputs[0].rank != 4 or inputs[0].dtype != "float32" or layer.fill_mode != "constant":
        return None  # Keras rounds whole numbers
    names = ("interpolation", "crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias", "data_format")
    settings = {name: getattr(layer, name) for name in names}
    settings["fill_value"] = float(layer.fill_value)
    return builder.add(Resize, layer, inputs, size=(layer.height, layer.width), **settings)


@reads("UpSampling2D")
def _read_up_sampling2d(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    return builder.add(
        UpSample2D,
        layer,
        inputs,
        size=tuple(layer.size),
        interpolation=layer.interpolation,
        data_format=layer.data_format,
    )


@runs(Flatten)
def _run_flatten(op: Flatten, _network: WeightSource) -> Runner:

    def run(_step: Step, x: Tensor) -> Tensor:
        if op.data_format == "channels_first" and x.dim() > 2:
            x = x.movedim(1, -1)
        return x.reshape(x.shape[0], -1)

    return run


@runs(Reshape)
def _run_reshape(op: Reshape, _network: WeightSource) -> Runner:
    return lambda _step, x: x.reshape(x.shape[0], *op.target)


@runs(ZeroPad2D)
def _run_zero_pad2d(op: ZeroPad2D, _network: WeightSource) -> Runner:
    rows, columns = op.amounts
    amounts = (0, 0, *columns, *rows) if op.data_format == "channels_last" else (*columns, *rows)
    return lambda _step, x: F.pad(x, amounts)


@runs(Crop2D)
def _run_crop2d(op: Crop2D, _network: WeightSource) -> Runner:
    (top, bottom), (left, right) = op.amounts

    def run(_step: Step, x: Tensor) -> Tensor:
        image = to_torch_order(x, op.data_format)
        height, width = image.shape[2:]
        return to_keras_order(image[:, :, top : height - bottom, left : width - right], op.data_format)

    return run


@runs(UpSample2D)
def _run_up_sample2d(op: UpSample2D, _network: WeightSource) -> Runner:
    settings: dict[str, Any] = {"mode": op.interpolation}
    if op.interpolation == "bilinear":
        settings["align_corners"] = False

    def run(_step: Step, x: Tensor) -> Tensor:
        image = to_torch_order(x, op.data_format)
        size = [length * factor for length, factor in zip(image.shape[2:], op.size, strict=True)]
        return to_keras_order(F.interpolate(image, size=size, **settings), op.data_format)

    return run


@runs(Resize)
def _run_resize(op: Resize, _network: WeightSource) -> Runner:
    settings = op.settings()
    return lambda _step, x: keras.ops.image.resize(x.float(), **settings)
