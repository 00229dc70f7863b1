"""What is known of a kind of layer: one record, from which every package takes its part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from convscope.arithmetic.context import LayerArithmetic, LayerContext
from convscope.arithmetic.recomputed import ActivationContext, Recomputed

# Which arithmetic a page does for a layer: a function of ``explorer/page/network.js``.
PageArithmetic = Literal[
    "convolution", "depthwise", "separable", "dense", "max", "average",
    "normalization", "layer_normalization", "group_normalization", "activation", "prelu", "scale",
    "same", "zero_padding", "cropping", "upsampling", "concatenate",
    "add", "subtract", "multiply", "mean", "maximum", "minimum",
]  # fmt: skip


@dataclass(frozen=True)
class LayerKind:
    """A kind of Keras layer: the name of its class, its arithmetic, how an activation is recomputed.

    ``page`` names what a page's script computes for it. Foreign files may name every kind that has a
    record.
    """

    name: str
    analyse: Callable[[LayerContext], LayerArithmetic] | None = None
    recompute: Callable[[ActivationContext], Recomputed] | None = None
    page: PageArithmetic | None = None
