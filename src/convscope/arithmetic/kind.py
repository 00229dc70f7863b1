"""What is known of a kind of layer: one record, from which every package takes its part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from convscope.arithmetic.context import LayerArithmetic, LayerContext
from convscope.arithmetic.recomputed import ActivationContext, Recomputed

# Which arithmetic the report's page does for a layer: a function of its script.
PageArithmetic = Literal["same", "max", "average", "activation", "convolution", "depthwise", "dense"]


@dataclass(frozen=True)
class LayerKind:
    """A kind of Keras layer. Foreign files may name every kind that has a record, and no other.

    Parameters
    ----------
    name : str
        The name of the Keras class.
    analyse : callable, optional
        Its arithmetic: output shape, weights, costs, receptive field.
    recompute : callable, optional
        One of its activations, by hand.
    page : str, optional
        Which arithmetic the report's page does for it.
    """

    name: str
    analyse: Callable[[LayerContext], LayerArithmetic] | None = None
    recompute: Callable[[ActivationContext], Recomputed] | None = None
    page: PageArithmetic | None = None
