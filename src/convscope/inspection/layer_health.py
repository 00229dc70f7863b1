"""Scales of activations and gradients in each layer, and units that never speak, measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from convscope import _torch_internals as torch_internals
from convscope.errors import UsageError, expected_got
from convscope.inspection.forward import (
    Values,
    channels_last,
    find_activation,
    fitting_batch,
    in_batches,
    logits,
    run,
    to_batch,
    to_float64,
)
from convscope.lowering.graph import Call, Graph, read_graph
from convscope.runs import as_json

if TYPE_CHECKING:
    import keras

_BATCH = 64


@dataclass(frozen=True)
class LayerHealth:
    """How a layer with weights, or an activation, behaves on some images.

    Means and deviations are over all its outputs, ``zero_share`` of which are exactly 0. ``dead`` are the
    numbers of its ``units`` (or filters) that gave 0 everywhere on every image; None for a layer without a
    ReLU. ``weight_scale`` and ``gradient_scale`` are root mean squares of its kernel and of the loss's
    gradient with respect to it; None without a kernel, or where it is not trained.
    """

    layer: str
    type: str
    activation_mean: float
    activation_std: float
    zero_share: float
    units: int
    dead: tuple[int, ...] | None
    weight_scale: float | None
    gradient_scale: float | None

    @property
    def relative_gradient(self) -> float | None:
        """The gradient's scale as a share of the weights'."""
        if self.gradient_scale is None or not self.weight_scale:
            return None
        return self.gradient_scale / self.weight_scale

    def to_json(self) -> dict[str, Any]:
        """Give everything as plain numbers and strings; a number that is not finite as None."""
        return as_json(self)


@dataclass
class _Tally:
    """Sums over batches of one layer's output."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    zeros: int = 0
    spoken: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def add(self, output: torch.Tensor) -> None:
        """Take in a batch of outputs, channels last."""
        flat = output.detach().cpu().reshape(-1, output.shape[-1])  # (n · positions, units)
        wide, spoken = flat.double().ravel(), flat.count_nonzero(0).numpy()  # (units,)
        self.count += flat.numel()
        self.total += float(wide.sum())
        self.squares += float(wide @ wide)
        self.zeros += flat.numel() - int(spoken.sum())
        self.spoken = spoken > 0 if self.spoken.size == 0 else self.spoken | (spoken > 0)


def layer_health(model: keras.Model, images: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[LayerHealth, ...]:
    """Measure activations and gradients in every layer with weights and every activation layer, in order.

    Takes preprocessed images, some hundred of them, and their classes; layers behave as at inference.
    """
    graph = read_graph(model)
    batch = to_batch(graph, images)
    targets = _targets(labels, len(batch)).to(batch.device)
    watched = [call for call in graph.calls if _kernels(call) or _is_rectifier(call)]
    kernels = {call.name: _kernels(call) for call in watched if call.first_use}
    tallies = {call.name: _Tally() for call in watched}
    gradients = _measure(graph, batch, targets, kernels, tallies)
    return tuple(_summary(call, tallies[call.name], gradients.get(call.name)) for call in watched)


def _measure(
    graph: Graph,
    images: torch.Tensor,
    targets: torch.Tensor,
    kernels: dict[str, list[torch.Tensor]],
    tallies: dict[str, _Tally],
) -> dict[str, float]:
    """Run forward and backward; fill the tallies, return each kernel's gradient scale."""
    wanted = [kernel for group in kernels.values() for kernel in group if kernel.requires_grad]
    sums = [torch.zeros_like(kernel) for kernel in wanted]
    size = fitting_batch(graph, _BATCH)
    for start, part in zip(range(0, len(images), size), in_batches(images, size), strict=True):
        values = run(graph, part)
        loss = _loss(graph, values, targets[start : start + size])
        if wanted:
            torch_internals.foreach_add_(sums, torch.autograd.grad(loss, wanted, materialize_grads=True))
        for call in graph.calls:
            if call.name in tallies:
                tallies[call.name].add(channels_last(graph, values[call.outputs[0]]))
    found = {id(kernel): total / len(images) for kernel, total in zip(wanted, sums, strict=True)}
    return {
        name: _scale([found[id(kernel)] for kernel in group if id(kernel) in found])
        for name, group in kernels.items()
        if any(id(kernel) in found for kernel in group)
    }


def _loss(graph: Graph, values: Values, targets: torch.Tensor) -> torch.Tensor:
    """Sum the cross-entropies of a batch."""
    scores = logits(graph, values)
    if scores.shape[1] == 1:
        return torch.nn.functional.binary_cross_entropy_with_logits(
            scores[:, 0], targets.float(), reduction="sum"
        )
    if int(targets.max()) >= scores.shape[1]:
        raise UsageError(expected_got(f"labels below {scores.shape[1]}", int(targets.max())))
    return torch.nn.functional.cross_entropy(scores, targets, reduction="sum")


def _targets(labels: npt.ArrayLike, count: int) -> torch.Tensor:
    array = class_indices(labels)
    if array.shape != (count,) or count == 0:
        raise UsageError(expected_got(f"a label for each of {count} images, at least one", f"{array.shape}"))
    return torch.tensor(array)


def class_indices(labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Turn labels, indices (n,) or (n, 1) or one-hot rows, into indices (n,)."""
    array = np.asarray(labels)
    one_hot = array.ndim == 2 and array.shape[1] > 1
    indices: npt.NDArray[np.int64] = (array.argmax(1) if one_hot else array.reshape(-1)).astype(np.int64)
    return indices


def _kernels(call: Call) -> list[torch.Tensor]:
    """Take the weights that multiply, not those that are added."""
    weights = getattr(call.operation, "weights", [])
    return [weight.value for weight in weights if len(weight.shape) >= 2]


def _is_rectifier(call: Call) -> bool:
    return find_activation(call.operation).name in ("relu", "relu6")


def _summary(call: Call, tally: _Tally, gradient: float | None) -> LayerHealth:
    mean = tally.total / tally.count
    variance = max(0.0, tally.squares / tally.count - mean**2) if math.isfinite(tally.squares) else math.nan
    dead = tuple(np.flatnonzero(~tally.spoken).tolist()) if _is_rectifier(call) else None
    kernels = _kernels(call)
    return LayerHealth(
        layer=call.name,
        type=call.type,
        activation_mean=mean,
        activation_std=math.sqrt(variance),
        zero_share=tally.zeros / tally.count,
        units=tally.spoken.size,
        dead=dead,
        weight_scale=_scale(kernels) if kernels else None,
        gradient_scale=gradient,
    )


def _scale(tensors: list[torch.Tensor]) -> float:
    """Take the root mean square over all numbers in all tensors."""
    squares = sum(float(to_float64(tensor).square().sum()) for tensor in tensors)
    return math.sqrt(squares / sum(tensor.numel() for tensor in tensors))
