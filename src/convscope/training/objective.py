"""The compiled loss on a lowered network: a stable one on logits where that is the same function.

A softmax (or sigmoid) followed by the logarithm in a cross-entropy loses digits; from the logits both are one
function without the loss of digits (log-sum-exp). Keras clips the probabilities at 1e-7 in between, so that a
saturated output has no gradient there; here it has one, and what is reported is clipped as in Keras. Every
other loss runs through Keras's own loss object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import torch
from torch.nn import functional

from convscope import _keras_internals as internals
from convscope.errors import UsageError, expected_got
from convscope.lowering.graph import is_altered
from convscope.training.inputs import first_leaf
from convscope.training.update_rules import Tensors

_BINARY = keras.losses.binary_crossentropy
_CATEGORICAL = keras.losses.categorical_crossentropy
_SPARSE = keras.losses.sparse_categorical_crossentropy
_ACTIVATIONS = {_BINARY: "sigmoid", _CATEGORICAL: "softmax", _SPARSE: "softmax"}
_WRAPPER: Any = type(keras.losses.CategoricalCrossentropy()).__mro__[1]  # calls a plain function
_LOSSES = (
    _WRAPPER,
    keras.losses.BinaryCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
)
_MEANS = ("sum_over_batch_size", "mean")
_WEIGHTED_MEAN = "mean_with_sample_weight"
_NO_CLASS = -100  # what torch ignores unless told otherwise


@dataclass(frozen=True)
class CrossEntropy:
    """A cross-entropy, with what Keras's loss object says about it."""

    kind: Callable[..., Any]  # Keras's function
    folded: bool = True  # whether it is given logits in place of the network's outputs
    from_logits: bool = False  # whether Keras's loss takes the network's outputs as logits
    label_smoothing: float = 0.0
    ignore_class: int | None = None
    axis: int = 1  # of the classes, at least 1
    reduction: str = "mean"  # Keras's word for how the elements' losses become one
    weight: float = 1.0  # the compiled loss weight

    def takes(self, scores: torch.Tensor, y: torch.Tensor, sample_weight: torch.Tensor | None) -> bool:
        """Say whether these shapes are the usual ones; others are left to Keras's own loss object."""
        shape = tuple(scores.shape)
        elements = shape[: self.axis] + shape[self.axis + 1 :]  # of the losses, such as (n,) or (n, h, w)
        if self.kind is _SPARSE:
            column = (*shape[: self.axis], 1, *shape[self.axis + 1 :])
            fits = tuple(y.shape) in (elements, column)
        else:
            fits = tuple(y.shape) == shape or (y.ndim == 1 and shape == (len(y), 1))
        return fits and (
            sample_weight is None
            or sample_weight.numel() == math.prod(elements)
            or sample_weight.ndim == len(elements)
        )

    def __call__(
        self, scores: torch.Tensor, y: torch.Tensor, sample_weight: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the loss of a batch."""
        if self.kind is _CATEGORICAL and self.folded and scores.ndim == 2 and sample_weight is None:
            return self._of_rows(scores.float(), y)
        losses, reported = self._elements(scores.float(), y)
        valid = None if self.ignore_class is None else y.reshape(losses.shape) != self.ignore_class
        loss = self._reduce(losses, sample_weight, valid)
        if reported is losses:
            return loss, loss.detach()
        return loss, self._reduce(reported, sample_weight, valid)

    def _of_rows(self, logits: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the usual case, one-hot rows without weights, in few operations."""
        log_p = functional.log_softmax(logits, 1)  # (n, classes)
        y = self._smoothed(y.to(logits.dtype)).reshape(-1)
        low, high = (math.log(p) for p in _bounds())
        clipped = log_p.detach().clamp(low, high)
        factor = -self.weight if self.reduction == "sum" else -self.weight / len(logits)
        return log_p.reshape(-1).dot(y) * factor, clipped.reshape(-1).dot(y) * factor

    def _smoothed(self, y: torch.Tensor) -> torch.Tensor:
        return (
            y * (1 - self.label_smoothing) + self.label_smoothing / y.shape[-1] if self.label_smoothing else y
        )

    def _elements(self, scores: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute each element's loss, to be differentiated and as Keras reports it; shape (n, ...)."""
        if self.kind is _BINARY:
            return self._binary(scores, y.to(scores.dtype).reshape(scores.shape))
        if self.folded or self.from_logits:
            log_p = functional.log_softmax(scores, self.axis)
        else:
            log_p = _clipped(scores / scores.sum(self.axis, keepdim=True)).log()
        losses = self._pick(log_p, y)
        if not self.folded:
            return losses, losses
        low, high = (math.log(p) for p in _bounds())
        if self.kind is _SPARSE and self.ignore_class is None:
            return losses, losses.detach().clamp(-high, -low)
        return losses, self._pick(log_p.detach().clamp(low, high), y)

    def _binary(self, scores: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.label_smoothing:
            y = y * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        losses = functional.binary_cross_entropy_with_logits(scores, y, reduction="none").mean(self.axis)
        if not self.folded:
            return losses, losses
        p = _clipped(scores.detach().sigmoid())
        return losses, functional.binary_cross_entropy(p, y, reduction="none").mean(self.axis)

    def _pick(self, log_p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Weigh the logarithms by the targets; shape (n, ...)."""
        if self.kind is _SPARSE:
            ignored = _NO_CLASS if self.ignore_class is None else self.ignore_class
            if log_p.ndim > 2:
                log_p = log_p.movedim(self.axis, -1)  # (n, ..., classes)
            rows = log_p.reshape(-1, log_p.shape[-1]) if log_p.ndim > 2 else log_p
            labels = y.reshape(-1).long()
            try:
                losses = functional.nll_loss(rows, labels, reduction="none", ignore_index=ignored)
            except IndexError:  # in a batch of a stream; arrays are looked at beforehand
                expected = f"class numbers from 0 to {rows.shape[1] - 1}, one for each output"
                found = f"{int(labels.min())} to {int(labels.max())}"
                raise UsageError(expected_got(expected, found)) from None
            return losses.reshape(log_p.shape[:-1]) if log_p.ndim > 2 else losses
        return -(self._smoothed(y.to(log_p.dtype)) * log_p).sum(self.axis)

    def _reduce(
        self, losses: torch.Tensor, sample_weight: torch.Tensor | None, valid: torch.Tensor | None
    ) -> torch.Tensor:
        """Make one number of the elements' losses as Keras does; the ignored ones are 0 already."""
        if sample_weight is not None:
            sample_weight = sample_weight.to(losses.dtype)
            if sample_weight.numel() == losses.numel():
                sample_weight = sample_weight.reshape(losses.shape)
            losses = losses * sample_weight
        if self.reduction == "sum":
            loss = losses.sum()
        elif self.reduction == _WEIGHTED_MEAN and sample_weight is not None:
            counted = sample_weight if valid is None else sample_weight * valid
            loss = _ratio(losses.sum(), counted.sum())
        elif valid is not None:
            loss = _ratio(losses.sum(), valid.sum())
        else:
            loss = losses.mean()
        return loss if self.weight == 1 else loss * self.weight


def find_cross_entropy(
    model: keras.Model,
    output_shapes: Sequence[tuple[int | None, ...]],
    output_activation: str | None,
    strict: bool = False,
) -> CrossEntropy | None:
    """Recognise a compiled loss that can be computed from the logits of a network."""
    losses = internals.losses_of(model)
    if len(output_shapes) != 1 or len(losses) != 1:
        return None
    (loss, weight), shape = losses[0], output_shapes[0]
    if not _is_as_in_keras(loss) or is_altered(internals.compiled_loss(model)):
        return None
    settings = dict(internals.settings_of(loss))
    from_logits = bool(settings.pop("from_logits", False))
    smoothing = float(settings.pop("label_smoothing", 0.0))
    ignored = settings.pop("ignore_class", None)
    axis = settings.pop("axis", -1) % len(shape)
    if settings or axis == 0 or loss.reduction not in (*_MEANS, _WEIGHTED_MEAN, "sum"):
        return None
    last = axis == len(shape) - 1
    folded = not strict and not from_logits and last and output_activation == _ACTIVATIONS[loss.fn]
    plain = from_logits and output_activation is None
    images = loss.fn is _SPARSE and len(shape) > 2  # Keras on torch cannot differentiate these at all
    if not (folded or plain or images):
        return None
    if loss.fn is not _BINARY and shape[axis] == 1 and len(shape) == 2:
        return None  # Keras warns about a softmax over one class; let it
    return CrossEntropy(
        loss.fn,
        folded=folded,
        from_logits=from_logits,
        label_smoothing=smoothing,
        ignore_class=None if ignored is None else int(ignored),
        axis=axis,
        reduction=loss.reduction,
        weight=1.0 if weight is None else float(weight),
    )


def _is_as_in_keras(loss: Any) -> bool:
    known = type(loss) in _LOSSES and not is_altered(loss)
    return known and loss.fn in _ACTIVATIONS and loss.dtype == "float32"


def _bounds() -> tuple[float, float]:
    """Between which probabilities Keras takes the logarithm, as float32 holds them."""
    epsilon = keras.config.epsilon()
    return epsilon, float(np.float32(1.0 - epsilon))


def _clipped(probabilities: torch.Tensor) -> torch.Tensor:
    epsilon = keras.config.epsilon()
    return probabilities.clip(epsilon, 1.0 - epsilon)


def _ratio(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Divide; nothing by nothing is 0, as in Keras."""
    return total / count.masked_fill(count == 0, 1) * (count != 0)


class Penalties:
    """The weight regularizers of a model, as one term of the loss."""

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
    known = type(regularizer) in (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)
    if known and not is_altered(regularizer):
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


_ACCURACIES = {
    keras.metrics.BinaryAccuracy: keras.metrics.binary_accuracy,
    keras.metrics.CategoricalAccuracy: keras.metrics.categorical_accuracy,
    keras.metrics.SparseCategoricalAccuracy: keras.metrics.sparse_categorical_accuracy,
}


class _Mean:
    """The sum and the count of a Keras Mean, added to in place."""

    def __init__(self, metric: Any) -> None:
        self._total, self._count = metric.total.value, metric.count.value

    def add(self, total: torch.Tensor, count: torch.Tensor | int) -> None:
        """Add values that are summed up already, and how many they were."""
        # A model may have been compiled for another device than the one its weights were made on.
        self._total.add_(total.to(self._total.device))
        self._count.add_(count.to(self._count.device) if isinstance(count, torch.Tensor) else count)


@dataclass(frozen=True)
class _Metric:
    """A metric of the only output, and whether it heeds the examples' weights."""

    metric: Any
    weighted: bool

    def update(self, y: torch.Tensor, outputs: torch.Tensor, weight: torch.Tensor | None) -> bool:
        """Add a batch; say whether Keras had to do it."""
        weight = weight if self.weighted else None
        hits = _hits(self.metric, y, outputs)  # (n,)
        if hits is None or (weight is not None and weight.numel() != len(hits)):
            self.metric.update_state(y, outputs, sample_weight=weight)
            return True
        if weight is None:
            _Mean(self.metric).add(hits.sum(), len(hits))
        else:
            flat = weight.reshape(-1).to(torch.float32)
            _Mean(self.metric).add((hits * flat).sum(), flat.sum())
        return False


class MetricsPlan:
    """Updates every metric of a compiled model, the mean loss included."""

    def __init__(self, model: keras.Model, outputs: int) -> None:
        self._compiled = internals.compiled_metrics(model)
        self._loss = _Mean(internals.mean_loss(model))
        # Where there are several outputs to tell apart, Keras does it.
        self._metrics = None if outputs != 1 else _metrics_of_the_only_output(model)
        self.by_keras: str | None = None  # which metric Keras had to compute

    def settings(self) -> list[Any]:
        """Give what an update depends on."""
        found = [
            (id(one.metric), one.weighted, internals.settings_of(one.metric)) for one in self._metrics or ()
        ]
        return [id(self._compiled), *found]

    def __bool__(self) -> bool:
        """Whether there is a metric beside the loss."""
        return self._compiled is not None

    @torch.no_grad()
    def update_loss(self, loss: torch.Tensor, rows: int) -> None:
        """Add the loss of a batch to the mean loss, weighted by its rows as Keras does."""
        self._loss.add(loss.detach() * rows, rows)

    @torch.no_grad()
    def update(self, y: Any, outputs: Any, weight: Any) -> None:
        """Add a batch to the metrics."""
        if self._metrics is None:
            self._compiled.update_state(y, outputs, sample_weight=weight)
            self.by_keras = "those of several outputs"
            return
        y, outputs, weight = first_leaf(y), first_leaf(outputs), first_leaf(weight)
        for metric in self._metrics:
            if metric.update(y, outputs, weight):
                self.by_keras = str(metric.metric.name)


def _metrics_of_the_only_output(model: keras.Model) -> list[_Metric] | None:
    """List the metrics; None where somebody altered how they are kept."""
    compiled = internals.compiled_metrics(model)
    if compiled is None or is_altered(compiled):
        return None
    return [_Metric(metric, weighted) for metric, weighted in internals.metrics_of(compiled)]


def _hits(metric: Any, y: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor | None:
    """Say which examples an accuracy counts as right, shape (n,); None for what is left to Keras."""
    if (
        type(metric) not in _ACCURACIES
        or internals.function_of(metric) is not _ACCURACIES[type(metric)]
        or is_altered(metric)
        or metric.dtype != "float32"
        or outputs.ndim != 2
    ):
        return None
    rows, classes = outputs.shape
    if type(metric) is keras.metrics.CategoricalAccuracy:
        return y.argmax(dim=-1) == outputs.argmax(dim=-1) if y.shape == outputs.shape else None
    if y.numel() != rows:
        return None
    if type(metric) is keras.metrics.SparseCategoricalAccuracy:
        return y.reshape(-1) == outputs.argmax(dim=-1)
    if classes != 1:
        return None
    threshold: float = internals.settings_of(metric)["threshold"]
    return y.reshape(-1) == (outputs.reshape(-1) > threshold)
