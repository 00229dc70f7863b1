"""What it takes to run an op: a registry of emitters, and what one pass through the network knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses

from convscope.arithmetic.formulas import same_margins
from convscope.lowering import ir as ops
from convscope.lowering.ir import DataFormat, Pair
from convscope.lowering.shapes import spatial_axes

Tensor = torch.Tensor
Prepared = tuple[Tensor, Tensor | None]
Runner = Callable[..., Any]


@dataclass
class Step:
    """What one pass through the network knows: its mode, its random numbers, the losses it met."""

    training: bool
    seed: int = 0
    number: int = 0
    losses: list[Tensor] = field(default_factory=list)


class WeightSource(Protocol):
    """What an emitter may ask of the network that it works for."""

    def tensor(self, path: str) -> Tensor:
        """Return a weight or a state by its path."""

    def on_device(self, constant: Tensor) -> Tensor:
        """Return a constant on the network's device."""

    def prepared(self, op: ops.Op, prepare: Callable[[], Prepared]) -> Prepared:
        """Return an op's weights as it computes with them."""


_EMITTERS: dict[type[ops.Op], Callable[[Any, Any], Runner]] = {}
_T = TypeVar("_T", bound=Callable[..., Runner])


def emits(kind: type[ops.Op]) -> Callable[[_T], _T]:
    """Register the function that turns ops of one type into callables."""

    def register(function: _T) -> _T:
        _EMITTERS[kind] = function
        return function

    return register


def runner_of(op: ops.Op, network: WeightSource) -> Runner:
    """Return a callable ``(step, *tensors) → tensor`` that computes the op on a network's weights."""
    return _EMITTERS[type(op)](op, network)


def to_torch_order(x: Tensor, data_format: DataFormat) -> Tensor:
    """View images in torch's axis order."""
    return x if data_format == "channels_first" else x.permute(0, 3, 1, 2)  # (n, c, h, w)


def to_keras_order(x: Tensor, data_format: DataFormat) -> Tensor:
    """View images that are in torch's axis order in the model's."""
    return x if data_format == "channels_first" else x.permute(0, 2, 3, 1)  # (n, h, w, c)


def padding_of(
    images: Tensor, op: ops.Conv2D | ops.Pool2D, window: Pair, dilation: Pair = (1, 1)
) -> tuple[Pair, Pair]:
    """Compute what padding adds before and after the rows and columns of images in the model's order."""
    if op.padding == "valid":
        return (0, 0), (0, 0)
    rows, columns = (
        same_margins(images.shape[axis], size, stride, step)
        for axis, size, stride, step in zip(
            spatial_axes(op.data_format), window, op.strides, dilation, strict=True
        )
    )
    return rows, columns


def is_lopsided(rows: Pair, columns: Pair) -> bool:
    """Say whether padding adds unequal amounts before and after, which no operation of torch takes."""
    return rows[0] != rows[1] or columns[0] != columns[1]


def padded(images: Tensor, rows: Pair, columns: Pair, data_format: DataFormat) -> Tensor:
    """Add zeros around images in the model's order."""
    amounts = (0, 0, *columns, *rows) if data_format == "channels_last" else (*columns, *rows)
    return F.pad(images, amounts)
