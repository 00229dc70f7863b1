"""The compiled loss on a lowered network: a stable one on logits where that is the same function.

A softmax (or sigmoid) followed by the logarithm in a cross-entropy loses digits; from the logits both are one
function without the loss of digits (log-sum-exp). Every other loss runs through Keras's own loss object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import torch
from torch.nn import functional

from convscope.training.updates import Tensors

_BINARY = keras.losses.binary_crossentropy
_CATEGORICAL = keras.losses.categorical_crossentropy
_SPARSE = keras.losses.sparse_categorical_crossentropy
_ACTIVATIONS = {_BINARY: "sigmoid", _CATEGORICAL: "softmax", _SPARSE: "softmax"}
_WRAPPER: Any = type(keras.losses.CategoricalCrossentropy()).__mro__[1]  # calls a plain function
_MEANS = ("sum_over_batch_size", "mean")


@dataclass(frozen=True)
class CrossEntropy:
    """A cross-entropy from logits, with what Keras's loss object says about it.

    Attributes
    ----------
    kind : function
        Keras's function of the same name.
    label_smoothing : float
        Share of the target that is spread evenly.
    weight : float
        The compiled loss weight.
    mean : bool
        Whether the batch is averaged; otherwise it is summed.
    """

    kind: Callable[..., Any]
    label_smoothing: float = 0.0
    weight: float = 1.0
    mean: bool = True

    def __call__(
        self, logits: torch.Tensor, y: torch.Tensor, sample_weight: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute the loss of a batch.

        Parameters
        ----------
        logits : tensor of shape (n, classes)
            Before softmax or sigmoid.
        y : tensor of shape (n, classes), or (n,) or (n, 1) for class numbers
            Targets.
        sample_weight : tensor of shape (n,) or (n, 1), or None
            A factor for each example's loss.

        Returns
        -------
        tensor of shape ()
            float32.
        """
        logits = logits.float()
        if sample_weight is None and self.mean:
            loss = self._compute(logits, y, "mean")
        else:
            values = self._compute(logits, y, "none")  # (n,)
            if sample_weight is not None:
                values = values * sample_weight.to(values.dtype).reshape(-1)
            loss = values.mean() if self.mean else values.sum()
        return loss if self.weight == 1 else loss * self.weight

    def _compute(self, logits: torch.Tensor, y: torch.Tensor, reduction: str) -> torch.Tensor:
        if self.kind is _SPARSE:
            return functional.cross_entropy(logits, y.reshape(-1).long(), reduction=reduction)
        y = y.to(logits.dtype)
        if self.kind is _CATEGORICAL:
            return functional.cross_entropy(
                logits, y, reduction=reduction, label_smoothing=self.label_smoothing
            )
        if self.label_smoothing:
            y = y * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        y = y.reshape(logits.shape)
        values = functional.binary_cross_entropy_with_logits(logits, y, reduction=reduction)
        return values if reduction == "mean" else values.mean(dim=-1)


def find_cross_entropy(model: keras.Model, output_activation: str | None) -> CrossEntropy | None:
    """Recognise a compiled loss that can be computed from the logits of a network.

    Parameters
    ----------
    model : keras.Model
        Compiled, its loss built.
    output_activation : str or None
        What the network ends with: ``softmax``, ``sigmoid`` or nothing.

    Returns
    -------
    CrossEntropy or None
        None where Keras's own loss object has to do it.

    Examples
    --------
    >>> import numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    >>> model.compile("sgd", "categorical_crossentropy")
    >>> model._symbolic_build(data_batch=(np.zeros((1, 4)), np.zeros((1, 2)), None))
    >>> find_cross_entropy(model, "softmax").label_smoothing
    0.0
    """
    losses = model._compile_loss._flat_losses
    if len(model.outputs) != 1 or len(losses) != 1 or len(model.outputs[0].shape) != 2:
        return None
    loss, weight = losses[0].loss, losses[0].loss_weights
    if type(loss).call is not _WRAPPER.call or loss.fn not in _ACTIVATIONS:
        return None
    settings = dict(loss._fn_kwargs)
    expected = None if settings.pop("from_logits", False) else _ACTIVATIONS[loss.fn]
    smoothing = settings.pop("label_smoothing", 0.0)
    if settings.pop("axis", -1) not in (-1, 1) or settings.pop("ignore_class", None) is not None or settings:
        return None
    if expected != output_activation or loss.reduction not in (*_MEANS, "sum"):
        return None
    if loss.fn is not _BINARY and model.outputs[0].shape[-1] == 1:
        return None  # Keras warns about a softmax over one class; let it
    weight = 1.0 if weight is None else float(weight)
    return CrossEntropy(loss.fn, float(smoothing), weight, loss.reduction in _MEANS)


class Penalties:
    """The weight regularizers of a model, as one term of the loss.

    Parameters
    ----------
    variables : sequence of keras.Variable
        The trainable variables.
    weights : list of tensors
        Their values in the network, in the same order.
    """

    def __init__(self, variables: Sequence[keras.Variable], weights: Tensors) -> None:
        self._terms = [
            (_native(variable.regularizer), weight)
            for variable, weight in zip(variables, weights, strict=True)
            if variable.regularizer is not None
        ]

    def __bool__(self) -> bool:
        return bool(self._terms)

    def __call__(self) -> torch.Tensor:
        """Add up the penalties; shape ()."""
        return torch.stack([penalty(weight).sum() for penalty, weight in self._terms]).sum()


def _native(regularizer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Compute Keras's own L1 and L2 with torch; any other runs as it is."""
    if type(regularizer) in (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2):
        first = float(getattr(regularizer, "l1", 0.0))
        second = float(getattr(regularizer, "l2", 0.0))
        return lambda weight: _l1_l2(weight, first, second)
    keep: Callable[[torch.Tensor], torch.Tensor] = regularizer
    return keep


def _l1_l2(weight: torch.Tensor, first: float, second: float) -> torch.Tensor:
    penalty = weight.new_zeros(())
    if first:
        penalty = penalty + first * weight.abs().sum()
    if second:
        penalty = penalty + second * weight.square().sum()
    return penalty
