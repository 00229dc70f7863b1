"""The compiled metrics of a model, kept in Keras's own metric objects.

Loss and accuracies are sums of plain numbers: they are added to Keras's own variables without its checks and
conversions, which would cost more than the numbers. Any other metric is updated through Keras.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import torch

Matches = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class _Mean:
    """The sum and the count of a Keras Mean, added to in place."""

    def __init__(self, metric: Any) -> None:
        self._total, self._count = metric.total.value, metric.count.value

    def add(self, total: torch.Tensor, count: torch.Tensor | int) -> None:
        """Add values that are summed up already, and how many they were."""
        self._total.add_(total)
        self._count.add_(count)


@dataclass(frozen=True)
class _Counter:
    """An accuracy: a share of the examples, as Keras's Mean keeps it."""

    mean: _Mean
    matches: Matches
    weighted: bool

    def update(self, y: torch.Tensor, scores: torch.Tensor, weight: torch.Tensor | None) -> None:
        hits = self.matches(y, scores)  # (n,)
        if self.weighted and weight is not None:
            flat = weight.reshape(-1).to(torch.float32)
            self.mean.add((hits * flat).sum(), flat.sum())
        else:
            self.mean.add(hits.sum(), len(hits))


class MetricsPlan:
    """Updates every metric of a compiled model, the mean loss included.

    Parameters
    ----------
    model : keras.Model
        Compiled, its metrics built.
    from_logits : bool
        Whether the scores handed to :meth:`update` come before the final softmax or sigmoid.
    """

    def __init__(self, model: keras.Model, from_logits: bool) -> None:
        self._compiled = model._compile_metrics
        self._loss = _Mean(model._loss_tracker)
        self._counters: list[_Counter] | None = _find_counters(model, from_logits)

    @property
    def needs_outputs(self) -> bool:
        """Whether a metric has to see the network's outputs, not only its logits."""
        return self._counters is None

    @torch.no_grad()
    def update_loss(self, loss: torch.Tensor, rows: int) -> None:
        """Add the loss of a batch to the mean loss, weighted by its rows as Keras does."""
        self._loss.add(loss.detach() * rows, rows)

    @torch.no_grad()
    def update(self, y: Any, scores: Any, weight: Any) -> None:
        """Add a batch to the metrics.

        Parameters
        ----------
        y : tensor or structure of tensors
            Targets.
        scores : tensor or structure of tensors
            Logits, or outputs where :attr:`needs_outputs`.
        weight : tensor, structure of tensors or None
            Sample weights.
        """
        if self._counters is None:
            self._compiled.update_state(y, scores, sample_weight=weight)
            return
        for counter in self._counters:
            counter.update(y, scores, weight)


def _find_counters(model: keras.Model, from_logits: bool) -> list[_Counter] | None:
    """Find the accuracies among the metrics; None where another metric needs Keras."""
    if model._compile_metrics is None:
        return []
    if len(model.outputs) != 1 or len(model.outputs[0].shape) != 2:
        return None
    counters = []
    for lists, weighted in (
        (model._compile_metrics._flat_metrics, False),
        (model._compile_metrics._flat_weighted_metrics, True),
    ):
        for metric in [metric for group in lists if group is not None for metric in group.metrics]:
            matches = _matches(metric, from_logits, model.outputs[0].shape[-1])
            if matches is None:
                return None
            counters.append(_Counter(_Mean(metric), matches, weighted))
    return counters


def _matches(metric: Any, from_logits: bool, classes: int) -> Matches | None:
    """Choose the comparison of an accuracy; None for any other metric."""
    if metric.dtype != "float32":
        return None
    if type(metric) is keras.metrics.CategoricalAccuracy:
        return lambda y, scores: y.argmax(dim=-1) == scores.argmax(dim=-1)
    if type(metric) is keras.metrics.SparseCategoricalAccuracy:
        return lambda y, scores: y.reshape(-1) == scores.argmax(dim=-1)
    if type(metric) is keras.metrics.BinaryAccuracy and classes == 1:
        threshold = metric._fn_kwargs["threshold"]
        if from_logits:
            threshold = _logit(threshold)
        return lambda y, scores: y.reshape(-1) == (scores.reshape(-1) > threshold)
    return None


def _logit(probability: float) -> float:
    """Invert the sigmoid, ends included."""
    if probability <= 0:
        return -math.inf
    return math.inf if probability >= 1 else math.log(probability / (1 - probability))
