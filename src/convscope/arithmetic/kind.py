"""What is known of a kind of layer: one record, from which every package takes its part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from convscope.arithmetic.context import LayerArithmetic, LayerContext
from convscope.arithmetic.recomputed import ActivationContext, Recomputed

# Which arithmetic the report's page does for a layer: a function of its script.
PageArithmetic = Literal[
    "same", "max", "average", "activation", "normalization", "convolution", "depthwise", "dense"
]


@dataclass(frozen=True)
class LayerKind:
    """A kind of Keras layer: the name of its class, its arithmetic, how an activation is recomputed.

    ``page`` names what the report's script computes for it. Foreign files may name every kind that has a
    record.
    """

    name: str
    analyse: Callable[[LayerContext], LayerArithmetic] | None = None
    recompute: Callable[[ActivationContext], Recomputed] | None = None
    page: PageArithmetic | None = None
