"""The compiled metrics of a model, kept in Keras's own metric objects.

Loss and accuracies are sums of plain numbers: they are added to Keras's own variables without its checks and
conversions, which would cost more than the numbers. Any other metric is updated through Keras. All of them
see the network's outputs, never logits in their place: thresholds and ties are where Keras has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import torch

from convscope.lowering.read_layers import is_altered
from convscope.training.inputs import first_leaf

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

    def update(self, y: torch.Tensor, outputs: torch.Tensor, weight: torch.Tensor | None) -> None:
        weight = weight if self.weighted else None
        hits = _hits(self.metric, y, outputs)  # (n,)
        if hits is None or (weight is not None and weight.numel() != len(hits)):
            self.metric.update_state(y, outputs, sample_weight=weight)
        elif weight is None:
            _Mean(self.metric).add(hits.sum(), len(hits))
        else:
            flat = weight.reshape(-1).to(torch.float32)
            _Mean(self.metric).add((hits * flat).sum(), flat.sum())


class MetricsPlan:
    """Updates every metric of a compiled model, the mean loss included.

    Parameters
    ----------
    model : keras.Model
        Compiled, its metrics built.
    """

    def __init__(self, model: keras.Model) -> None:
        self._compiled = model._compile_metrics
        self._loss = _Mean(model._loss_tracker)
        self._metrics = _metrics_of_the_only_output(model)

    def __bool__(self) -> bool:
        """Whether there is a metric beside the loss."""
        return self._compiled is not None

    @torch.no_grad()
    def update_loss(self, loss: torch.Tensor, rows: int) -> None:
        """Add the loss of a batch to the mean loss, weighted by its rows as Keras does."""
        self._loss.add(loss.detach() * rows, rows)

    @torch.no_grad()
    def update(self, y: Any, outputs: Any, weight: Any) -> None:
        """Add a batch to the metrics.

        Parameters
        ----------
        y : tensor or structure of tensors
            Targets.
        outputs : tensor or structure of tensors
            What the network puts out.
        weight : tensor, structure of tensors or None
            Sample weights.
        """
        if self._metrics is None:
            self._compiled.update_state(y, outputs, sample_weight=weight)
            return
        y, outputs, weight = first_leaf(y), first_leaf(outputs), first_leaf(weight)
        for metric in self._metrics:
            metric.update(y, outputs, weight)


def _metrics_of_the_only_output(model: keras.Model) -> list[_Metric] | None:
    """List the metrics; None where there are several outputs to tell apart, which Keras does."""
    compiled = model._compile_metrics
    if compiled is None or len(model.outputs) != 1 or is_altered(compiled):
        return None
    lists = ((compiled._flat_metrics, False), (compiled._flat_weighted_metrics, True))
    return [
        _Metric(metric, weighted)
        for groups, weighted in lists
        for group in groups
        if group is not None
        for metric in group.metrics
    ]


def _hits(metric: Any, y: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor | None:
    """Say which examples an accuracy counts as right, shape (n,); None for what is left to Keras."""
    if (
        type(metric) not in _ACCURACIES
        or metric._fn is not _ACCURACIES[type(metric)]
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
    threshold: float = metric._fn_kwargs["threshold"]
    return y.reshape(-1) == (outputs.reshape(-1) > threshold)
