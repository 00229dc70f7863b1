"""The shape that each op gives, computed from its settings: the specification that check.py enforces."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from convscope.arithmetic.formulas import window_positions
from convscope.lowering import ir as ops
from convscope.lowering.ir import DataFormat, Pair, Shape

_Spec = Callable[..., Shape]
_T = TypeVar("_T", bound=_Spec)
_RULES: dict[type[ops.Op], _Spec] = {}


class ShapeError(ValueError):
    """An op's settings do not fit the shapes it reads; the message says what does not fit."""


def output_shape(op: ops.Op, shapes: Sequence[Shape]) -> Shape:
    """Compute the shape of what an op writes.

    Parameters
    ----------
    op : Op
        Any op but KerasCall and ActivityLoss, whose outputs are not computed from settings.
    shapes : sequence of shapes
        The shapes of its inputs; the batch axis first, ``None`` where unknown.

    Returns
    -------
    tuple
        The output's shape.

    Raises
    ------
    ShapeError
        When the settings do not fit the inputs.

    Examples
    --------
    >>> conv = ops.Conv2D(name="c", layer="c", inputs=("x",), output="y", kernel="c/kernel",
    ...                   kernel_shape=(3, 3, 1, 32))
    >>> output_shape(conv, [(None, 28, 28, 1)])
    (None, 26, 26, 32)
    """
    rule = _RULES.get(type(op))
    if rule is None:
        raise ShapeError(f"no shape rule for {op.kind}")
    return rule(op, *shapes)


def spatial_axes(data_format: DataFormat) -> tuple[int, int]:
    """Return the axes of height and width in a batch of images.

    Examples
    --------
    >>> spatial_axes("channels_last")
    (1, 2)
    """
    return (1, 2) if data_format == "channels_last" else (2, 3)


def channel_axis(data_format: DataFormat) -> int:
    """Return the axis of the channels in a batch of images."""
    return 3 if data_format == "channels_last" else 1


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Compute the shape of an element-wise combination; ranks are made equal behind the batch axis.

    Examples
    --------
    >>> broadcast([(None, 7, 7, 8), (None, 1, 1, 8)])
    (None, 7, 7, 8)
    """
    rank = max(len(shape) for shape in shapes)
    aligned = [(shape[0], *(1,) * (rank - len(shape)), *shape[1:]) for shape in shapes]
    merged: list[int | None] = []
    for sizes in zip(*aligned, strict=True):
        distinct = {size for size in sizes if size not in (1, None)}
        if len(distinct) > 1:
            raise ShapeError(f"the shapes {', '.join(map(str, shapes))} cannot be combined")
        merged.append(distinct.pop() if distinct else (None if None in sizes else 1))
    return tuple(merged)


def _rule(kind: type[ops.Op]) -> Callable[[_T], _T]:
    def register(function: _T) -> _T:
        _RULES[kind] = function
        return function

    return register


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ShapeError(message)


def _with_axes(shape: Shape, data_format: DataFormat, sizes: Sequence[int | None]) -> Shape:
    changed = list(shape)
    for axis, size in zip(spatial_axes(data_format), sizes, strict=True):
        changed[axis] = size
    return tuple(changed)


def _image(op: ops.Op, shape: Shape) -> None:
    _require(len(shape) == 4, f"{op.kind} needs images of rank 4, got the shape {shape}")


@_rule(ops.Conv2D)
def _conv2d(op: ops.Conv2D, shape: Shape) -> Shape:
    _image(op, shape)
    height, width, inner, _ = op.kernel_shape
    channels = shape[channel_axis(op.data_format)]
    expected = inner if op.depthwise else inner * op.groups
    _require(channels == expected, f"the kernel {op.kernel_shape} reads {expected} channels, got {channels}")
    _require(op.filters % op.groups == 0, f"{op.filters} filters cannot be shared by {op.groups} groups")
    sizes = [
        window_positions(shape[axis], window, stride, op.padding, dilation)
        for axis, window, stride, dilation in zip(
            spatial_axes(op.data_format), (height, width), op.strides, op.dilation, strict=True
        )
    ]
    _require(
        all(size is None or size > 0 for size in sizes), f"the kernel {height}×{width} is larger than {shape}"
    )
    result = list(_with_axes(shape, op.data_format, sizes))
    result[channel_axis(op.data_format)] = op.filters
    return tuple(result)


@_rule(ops.Dense)
def _dense(op: ops.Dense, shape: Shape) -> Shape:
    _require(
        shape[-1] == op.kernel_shape[0], f"the kernel {op.kernel_shape} does not fit the last axis of {shape}"
    )
    return (*shape[:-1], op.kernel_shape[1])


@_rule(ops.Pool2D)
def _pool2d(op: ops.Pool2D, shape: Shape) -> Shape:
    _image(op, shape)
    sizes = [
        window_positions(shape[axis], window, stride, op.padding)
        for axis, window, stride in zip(spatial_axes(op.data_format), op.pool, op.strides, strict=True)
    ]
    _require(all(size is None or size > 0 for size in sizes), f"the pool {op.pool} is larger than {shape}")
    return _with_axes(shape, op.data_format, sizes)


@_rule(ops.GlobalPool2D)
def _global_pool2d(op: ops.GlobalPool2D, shape: Shape) -> Shape:
    _image(op, shape)
    if op.keepdims:
        return _with_axes(shape, op.data_format, (1, 1))
    return (shape[0], shape[channel_axis(op.data_format)])


@_rule(ops.Flatten)
def _flatten(_op: ops.Flatten, shape: Shape) -> Shape:
    rest = shape[1:]
    return (shape[0], None if None in rest else math.prod(size for size in rest if size is not None))


@_rule(ops.Reshape)
def _reshape(op: ops.Reshape, shape: Shape) -> Shape:
    rest = shape[1:]
    if None in rest:
        return (shape[0], *(None if size == -1 else size for size in op.target))
    total = math.prod(size for size in rest if size is not None)
    known = math.prod(size for size in op.target if size != -1)
    _require(known != 0 and total % known == 0, f"{rest} cannot be reshaped to {op.target}")
    _require(-1 in op.target or total == known, f"{rest} has {total} elements, {op.target} has {known}")
    return (shape[0], *(total // known if size == -1 else size for size in op.target))


@_rule(ops.ZeroPad2D)
def _zero_pad(op: ops.ZeroPad2D, shape: Shape) -> Shape:
    _image(op, shape)
    return _bordered(op.amounts, op.data_format, shape, sign=1)


@_rule(ops.Crop2D)
def _crop(op: ops.Crop2D, shape: Shape) -> Shape:
    _image(op, shape)
    return _bordered(op.amounts, op.data_format, shape, sign=-1)


def _bordered(amounts: tuple[Pair, Pair], data_format: DataFormat, shape: Shape, sign: int) -> Shape:
    sizes = [shape[axis] for axis in spatial_axes(data_format)]
    changed = [
        None if size is None else size + sign * sum(border)
        for size, border in zip(sizes, amounts, strict=True)
    ]
    _require(all(size is None or size > 0 for size in changed), f"nothing is left of {shape} after {amounts}")
    return _with_axes(shape, data_format, changed)


@_rule(ops.UpSample2D)
def _upsample(op: ops.UpSample2D, shape: Shape) -> Shape:
    _image(op, shape)
    sizes = [shape[axis] for axis in spatial_axes(op.data_format)]
    enlarged = [None if size is None else size * factor for size, factor in zip(sizes, op.size, strict=True)]
    return _with_axes(shape, op.data_format, enlarged)


@_rule(ops.Merge)
def _merge(op: ops.Merge, *shapes: Shape) -> Shape:
    _require(op.mode != "subtract" or len(shapes) == 2, f"subtract needs two inputs, got {len(shapes)}")
    return broadcast(shapes)


@_rule(ops.Concatenate)
def _concatenate(op: ops.Concatenate, *shapes: Shape) -> Shape:
    first = shapes[0]
    for shape in shapes[1:]:
        fits = len(shape) == len(first) and all(
            axis == op.axis or None in (one, other) or one == other
            for axis, (one, other) in enumerate(zip(first, shape, strict=False))
        )
        _require(fits, f"the shapes {first} and {shape} differ outside axis {op.axis}")
    along = [shape[op.axis] for shape in shapes]
    total = None if None in along else sum(size for size in along if size is not None)
    return (*first[: op.axis], total, *first[op.axis + 1 :])


@_rule(ops.BatchNormalization)
def _batch_normalization(op: ops.BatchNormalization, shape: Shape) -> Shape:
    _require(0 < op.axis < len(shape), f"axis {op.axis} does not exist in {shape}")
    return shape


@_rule(ops.LayerNormalization)
def _layer_normalization(op: ops.LayerNormalization, shape: Shape) -> Shape:
    _require(all(0 < axis < len(shape) for axis in op.axes), f"axes {op.axes} do not exist in {shape}")
    return shape


@_rule(ops.Affine)
def _affine(op: ops.Affine, shape: Shape) -> Shape:
    return broadcast([shape, (None, *op.constant_shape[1:])]) if op.constant_shape else shape


@_rule(ops.Dropout)
@_rule(ops.Activate)
@_rule(ops.PRelu)
def _unchanged(_op: ops.Op, shape: Shape) -> Shape:
    return shape
