"""Scales of activations and gradients in each layer, and units that never speak."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from convscope import _torch_internals as torch_internals
from convscope.errors import UsageError, sentence
from convscope.inspection.health.verdicts import OURS, Verdict, level_of
from convscope.inspection.running import (
    Values,
    channels_last,
    find_activation,
    in_batches,
    logits,
    run,
    to_batch,
    to_float64,
)
from convscope.lowering.graph import Call, Graph, read_graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    import keras

DEAD_NOTE, DEAD_WARNING = 0.1, 0.4
SPREAD_NOTE, SPREAD_WARNING = 100.0, 10_000.0
_BATCH = 64


@dataclass(frozen=True)
class LayerHealth:
    """How a layer with weights, or an activation, behaves on some images.

    Parameters
    ----------
    layer, type : str
        The layer's name, and the name of its class.
    activation_mean, activation_std : float
        Over all its outputs.
    zero_share : float
        Share of its outputs that are exactly 0.
    units : int
        Its filters or units.
    dead : tuple of int or None
        Numbers of those that gave 0 everywhere on every image; None for a layer without a ReLU.
    weight_scale : float or None
        Root mean square of its kernel; None without one.
    gradient_scale : float or None
        Root mean square of the loss's gradient with respect to the kernel; None where it is not trained.
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
        numbers = {
            "activation_mean": self.activation_mean,
            "activation_std": self.activation_std,
            "zero_share": self.zero_share,
            "weight_scale": self.weight_scale,
            "gradient_scale": self.gradient_scale,
        }
        return {
            "layer": self.layer,
            "type": self.type,
            "units": self.units,
            "dead": None if self.dead is None else list(self.dead),
            **{name: n if n is not None and math.isfinite(n) else None for name, n in numbers.items()},
        }


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
        flat = to_float64(output).reshape(-1, output.shape[-1])  # (n · positions, units)
        self.count += flat.numel()
        self.total += float(flat.sum())
        self.squares += float(flat.square().sum())
        self.zeros += int((flat == 0).sum())
        spoken = (flat != 0).any(0).numpy()
        self.spoken = spoken if self.spoken.size == 0 else self.spoken | spoken


def layer_health(model: keras.Model, images: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[LayerHealth, ...]:
    """Measure activations and gradients in every layer with weights and every activation layer.

    Parameters
    ----------
    model : keras.Model
        A built classifier.
    images : array of shape (n, height, width, channels), float32
        Preprocessed images, some hundred of them; layers behave as at inference.
    labels : array of shape (n,) of int, or (n, classes) one-hot
        Their classes.

    Returns
    -------
    tuple of LayerHealth
        In order.

    Raises
    ------
    UsageError
        When there are no images, or labels do not fit them.

    Examples
    --------
    >>> import numpy as np
    >>> from convscope.networks import build
    >>> layers = layer_health(build("simple"), np.ones((2, 28, 28, 1)), [3, 5])
    >>> [(layer.layer, layer.units) for layer in layers]
    [('conv2d_1', 32), ('dense_1', 10)]
    """
    graph = read_graph(model)
    batch = to_batch(graph, images)
    targets = _targets(labels, len(batch)).to(batch.device)
    watched = [call for call in graph.calls if _kernels(call) or _is_rectifier(call)]
    kernels = {call.name: _kernels(call) for call in watched if call.first_use}
    tallies = {call.name: _Tally() for call in watched}
    gradients = _measure(graph, batch, targets, kernels, tallies)
    return tuple(_summary(call, tallies[call.name], gradients.get(call.name)) for call in watched)


def judge_layers(layers: Sequence[LayerHealth]) -> tuple[Verdict, ...]:
    """Judge dead units, and whether activations and gradients keep their scale from layer to layer.

    Parameters
    ----------
    layers : sequence of LayerHealth
        From `layer_health`.

    Returns
    -------
    tuple of Verdict
        On dead units, activations and gradients.

    Examples
    --------
    >>> import numpy as np
    >>> from convscope.networks import build
    >>> layers = layer_health(build("simple"), np.random.default_rng(0).uniform(size=(8, 28, 28, 1)), [1] * 8)
    >>> [verdict.subject for verdict in judge_layers(layers)]
    ['dead units', 'activations', 'gradients']
    """
    return _judge_dead(layers), _judge_activations(layers), _judge_gradients(layers)


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
    for start, part in zip(range(0, len(images), _BATCH), in_batches(images, _BATCH), strict=True):
        values = run(graph, part)
        loss = _loss(graph, values, targets[start : start + _BATCH])
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
        raise UsageError(sentence(f"labels below {scores.shape[1]}", int(targets.max())))
    return torch.nn.functional.cross_entropy(scores, targets, reduction="sum")


def _targets(labels: npt.ArrayLike, count: int) -> torch.Tensor:
    array = np.asarray(labels)
    if array.ndim == 2:
        array = array.argmax(1) if array.shape[1] > 1 else array[:, 0]
    if array.shape != (count,) or count == 0:
        raise UsageError(sentence(f"a label for each of {count} images, at least one", f"{array.shape}"))
    return torch.tensor(array.astype(np.int64))


def _kernels(call: Call) -> list[torch.Tensor]:
    """Take the weights that multiply, not those that are added."""
    weights = getattr(call.operation, "weights", [])
    return [weight.value for weight in weights if len(weight.shape) >= 2]


def _is_rectifier(call: Call) -> bool:
    return find_activation(call.operation).name == "relu"


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


def _judge_dead(layers: Sequence[LayerHealth]) -> Verdict:
    rectified = [layer for layer in layers if layer.dead is not None]
    worst = max(rectified, key=lambda layer: len(layer.dead or ()) / layer.units, default=None)
    share = 0.0 if worst is None else len(worst.dead or ()) / worst.units
    level = level_of(share, DEAD_NOTE, DEAD_WARNING)
    if worst is None:
        text = "No layer has a ReLU, so no unit can be dead."
    elif share == 0:
        text = f"Every one of the {sum(layer.units for layer in rectified)} ReLU units speaks on some image."
    else:
        text = (
            f"{len(worst.dead or ())} of {worst.units} units of {worst.layer} ({share:.0%}) gave 0 on every "
            "image: they are dead, or wait for something that these images do not show."
        )
        if level != "good":
            text += " A lower learning rate, or he_normal weights, keeps more of them alive."
    return Verdict("dead units", level, text, share, DEAD_NOTE, _DEAD_SOURCE)


def _judge_activations(layers: Sequence[LayerHealth]) -> Verdict:
    scales = {layer.layer: layer.activation_std for layer in layers[:-1] or layers}
    return _judge_spread(
        "activations",
        scales,
        "The standard deviation of activations",
        "Normalise between layers (BatchNormalization), or begin with he_normal weights.",
        "He et al. (2015), section 2.2: a signal should neither grow nor fade with depth; "
        f"the factor of {SPREAD_NOTE:g} is {OURS}",
    )


def _judge_gradients(layers: Sequence[LayerHealth]) -> Verdict:
    scales = {layer.layer: layer.relative_gradient for layer in layers if layer.relative_gradient is not None}
    return _judge_spread(
        "gradients",
        scales,
        "The gradient, as a share of the weights,",
        "Layers with small gradients hardly learn: try BatchNormalization, ReLU, or fewer layers.",
        "Glorot and Bengio (2010), section 4.2: gradients of all layers should have one scale; "
        f"the factor of {SPREAD_NOTE:g} is {OURS}",
    )


def _judge_spread(subject: str, scales: dict[str, float], what: str, advice: str, source: str) -> Verdict:
    """Judge by how much a scale differs between layers."""
    unfit = [name for name, scale in scales.items() if not math.isfinite(scale)]
    if unfit:
        text = f"{what} of {unfit[0]} is not a finite number: training has diverged. Lower the learning rate."
        return Verdict(subject, "warning", text, math.nan, SPREAD_NOTE, source)
    if len(scales) < 2:
        return Verdict(
            subject, "good", f"{what} cannot be compared: there are not two layers.", 1.0, SPREAD_NOTE, source
        )
    smallest, largest = min(scales, key=scales.__getitem__), max(scales, key=scales.__getitem__)
    if scales[smallest] == 0:
        text = f"{what} of {smallest} is 0: nothing passes through it. {advice}"
        return Verdict(subject, "warning", text, math.inf, SPREAD_NOTE, source)
    ratio = scales[largest] / scales[smallest]
    level = level_of(ratio, SPREAD_NOTE, SPREAD_WARNING)
    text = (
        f"{what} differs by a factor of {ratio:.3g} between {smallest} ({scales[smallest]:.2g}) "
        f"and {largest} ({scales[largest]:.2g})."
    )
    return Verdict(
        subject, level, text if level == "good" else f"{text} {advice}", ratio, SPREAD_NOTE, source
    )


_DEAD_SOURCE = (
    "Stanford CS231n, notes on neural networks: 40 % can die when the learning rate is too high; "
    f"the 10 % for a note is {OURS}"
)
