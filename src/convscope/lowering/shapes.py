"""What the shape rules of the ops are made of."""

from __future__ import annotations

from collections.abc import Sequence

from convscope.lowering.ir import DataFormat, Op, Shape, ShapeError


def spatial_axes(data_format: DataFormat) -> tuple[int, int]:
    """Return the axes of height and width in a batch of images."""
    return (1, 2) if data_format == "channels_last" else (2, 3)


def channel_axis(data_format: DataFormat) -> int:
    """Return the axis of the channels in a batch of images."""
    return 3 if data_format == "channels_last" else 1


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Compute the shape of an element-wise combination; ranks are made equal behind the batch axis."""
    rank = max(len(shape) for shape in shapes)
    aligned = [(shape[0], *(1,) * (rank - len(shape)), *shape[1:]) for shape in shapes]
    merged: list[int | None] = []
    for sizes in zip(*aligned, strict=True):
        distinct = {size for size in sizes if size not in (1, None)}
        if len(distinct) > 1:
            raise ShapeError(f"the shapes {', '.join(map(str, shapes))} cannot be combined")
        merged.append(distinct.pop() if distinct else (None if None in sizes else 1))
    return tuple(merged)


def require(condition: bool, message: str) -> None:
    """Raise a ShapeError unless a condition holds."""
    if not condition:
        raise ShapeError(message)


def require_image(op: Op, shape: Shape) -> None:
    """Raise a ShapeError unless a shape is that of a batch of images."""
    require(len(shape) == 4, f"{op.kind} needs images of rank 4, got the shape {shape}")


def with_axes(shape: Shape, data_format: DataFormat, sizes: Sequence[int | None]) -> Shape:
    """Replace height and width in the shape of a batch of images."""
    changed = list(shape)
    for axis, size in zip(spatial_axes(data_format), sizes, strict=True):
        changed[axis] = size
    return tuple(changed)
