"""Is the training healthy: measured in each layer, and judged in words with the number and the threshold.

Measured are scales of activations and gradients, and units that never speak. Judged are the layers, the
curves (overfitting, underfitting, instability) and confidence (saturated and overconfident answers).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

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
    logits,
    run,
    scores,
    to_batch,
    to_float64,
    to_numpy,
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
    for start, part in zip(range(0, len(images), size), torch.split(images, size), strict=True):
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
    found = logits(graph, values)
    if found.shape[1] == 1:
        return torch.nn.functional.binary_cross_entropy_with_logits(
            found[:, 0], targets.float(), reduction="sum"
        )
    if int(targets.max()) >= found.shape[1]:
        raise UsageError(expected_got(f"labels below {found.shape[1]}", int(targets.max())))
    return torch.nn.functional.cross_entropy(found, targets, reduction="sum")


def _targets(labels: npt.ArrayLike, count: int) -> torch.Tensor:
    array = _class_indices(labels)
    if array.shape != (count,) or count == 0:
        raise UsageError(expected_got(f"a label for each of {count} images, at least one", f"{array.shape}"))
    return torch.tensor(array)


def _class_indices(labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
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


Level = Literal["good", "note", "warning"]

# Where a threshold is no published one, it is named as ours.
OURS = "convscope's own threshold"

# From the first number on a note, from the second on a warning.
DEAD = 0.1, 0.4
DEAD_SOURCE = (
    "Stanford CS231n, notes on neural networks: 40 % can die when the learning rate is too high; "
    f"the 10 % for a note is {OURS}"
)
SPREAD = 100.0, 10_000.0
# Prechelt's generalisation loss, in percent, at which his criterion GL₅ stops.
LOSS = 5.0, 50.0
GAP = 0.05, 0.15
PROGRESS = 1.0, 20.0
RISES = 1 / 3, 1 / 2
MISSED = 0.5, 0.9
# A softmax is taken as saturated above this probability: the loss's gradient is below 1 − it.
SATURATED, SURE = 0.9999, 0.99
SATURATION = 0.99, 1.0
MISTAKES = 0.25, 0.5
OVERCONFIDENCE = 0.05, 0.15


@dataclass(frozen=True)
class Verdict:
    """A judgement in words, with the number that it rests on.

    The text says in one or two sentences what was found, with the number in it, and what to do; from the
    threshold on the number is no longer good, and ``source`` says where the threshold comes from.
    """

    subject: str
    level: Level
    text: str
    number: float
    threshold: float
    source: str

    def to_json(self) -> dict[str, Any]:
        """Give the verdict as plain numbers and strings; a number that is not finite as None."""
        return as_json(self)


def _verdict(
    subject: str, number: float, limits: tuple[float, float], text: str, advice: str, source: str
) -> Verdict:
    """Grade a number by two limits (one that is not a number is a warning); give advice unless it is good."""
    note, warning = limits
    level: Level = "warning" if not number <= warning else "note" if number > note else "good"
    return Verdict(subject, level, text if level == "good" else f"{text} {advice}", number, note, source)


@dataclass(frozen=True)
class TrainingHealth:
    """The state of a trained network: measurements, and judgements, the worst first, on some images."""

    layers: tuple[LayerHealth, ...]
    verdicts: tuple[Verdict, ...]
    images: int

    def to_json(self) -> dict[str, Any]:
        """Give everything as plain lists, numbers and strings."""
        return as_json(self)


def training_health(
    model: keras.Model,
    images: npt.ArrayLike,
    labels: npt.ArrayLike,
    history: Mapping[str, Sequence[float]] | None = None,
) -> TrainingHealth:
    """Measure a trained network on images that it was not trained on, and judge it.

    Parameters
    ----------
    model : keras.Model
        A built classifier.
    images : array of shape (n, height, width, channels), float32
        Preprocessed validation images, some hundred of them.
    labels : array of shape (n,) of int, or (n, classes) one-hot
        Their classes.
    history : mapping of str to sequence of float, optional
        Losses and accuracies, one for each epoch, as in Keras's ``History.history``.

    Returns
    -------
    TrainingHealth
        Measurements of each layer and verdicts in words.

    Raises
    ------
    UsageError
        When there are no images, or labels or history do not fit.

    Examples
    --------
    >>> from convscope.networks import build
    >>> images = np.random.default_rng(0).uniform(size=(8, 28, 28, 1))
    >>> health = training_health(build("simple"), images, np.arange(8), {"loss": [2.3, 2.2]})
    >>> next(verdict.level for verdict in health.verdicts if verdict.subject == "stability")
    'good'
    """
    layers = layer_health(model, images, labels)
    probabilities = _probabilities(model, images)
    verdicts = [*judge_layers(layers), *judge_confidence(probabilities, labels)]
    if history is not None:
        classes = _class_indices(labels)
        verdicts += judge_curves(history, chance=float(np.bincount(classes).max() / len(classes)))
    order = ("warning", "note", "good")
    return TrainingHealth(
        layers=layers,
        verdicts=tuple(sorted(verdicts, key=lambda verdict: order.index(verdict.level))),
        images=len(probabilities),
    )


def _probabilities(model: keras.Model, images: npt.ArrayLike) -> npt.NDArray[np.float32]:
    graph = read_graph(model)
    with torch.no_grad():
        parts = torch.split(to_batch(graph, images), fitting_batch(graph, 256))
        found = torch.cat([scores(graph, part) for part in parts])
    return to_numpy(found.sigmoid() if found.shape[1] == 1 else found.softmax(1))


def judge_layers(layers: Sequence[LayerHealth]) -> tuple[Verdict, ...]:
    """Judge dead units, and whether activations and gradients keep their scale from layer to layer."""
    relative = {layer.layer: layer.relative_gradient for layer in layers}
    ours = f"the factor of {SPREAD[0]:g} is {OURS}"
    return (
        _judge_dead(layers),
        _judge_spread(
            "activations",
            {layer.layer: layer.activation_std for layer in layers[:-1] or layers},
            "The standard deviation of activations",
            "Normalise between layers (BatchNormalization), or begin with he_normal weights.",
            f"He et al. (2015), section 2.2: a signal should neither grow nor fade with depth; {ours}",
        ),
        _judge_spread(
            "gradients",
            {name: scale for name, scale in relative.items() if scale is not None},
            "The gradient, as a share of the weights,",
            "Layers with small gradients hardly learn: try BatchNormalization, ReLU, or fewer layers.",
            f"Glorot and Bengio (2010), section 4.2: gradients of all layers should have one scale; {ours}",
        ),
    )


def _judge_dead(layers: Sequence[LayerHealth]) -> Verdict:
    rectified = [layer for layer in layers if layer.dead is not None]
    worst = max(rectified, key=lambda layer: len(layer.dead or ()) / layer.units, default=None)
    share = 0.0 if worst is None else len(worst.dead or ()) / worst.units
    if worst is None:
        text = "No layer has a ReLU, so no unit can be dead."
    elif share == 0:
        text = f"Every one of the {sum(layer.units for layer in rectified)} ReLU units speaks on some image."
    else:
        text = (
            f"{len(worst.dead or ())} of {worst.units} units of {worst.layer} ({share:.0%}) gave 0 on every "
            "image: they are dead, or wait for something that these images do not show."
        )
    advice = "A lower learning rate, or he_normal weights, keeps more of them alive."
    return _verdict("dead units", share, DEAD, text, advice, DEAD_SOURCE)


def _judge_spread(subject: str, scales: dict[str, float], what: str, advice: str, source: str) -> Verdict:
    """Judge by how much a scale differs between layers."""
    unfit = [name for name, scale in scales.items() if not math.isfinite(scale)]
    if unfit:
        number, advice = math.nan, "Lower the learning rate."
        text = f"{what} of {unfit[0]} is not a finite number: training has diverged."
    elif len(scales) < 2:
        number, text = 1.0, f"{what} cannot be compared: there are not two layers."
    else:
        smallest, largest = min(scales, key=scales.__getitem__), max(scales, key=scales.__getitem__)
        number = scales[largest] / scales[smallest] if scales[smallest] else math.inf
        text = (
            f"{what} differs by a factor of {number:.3g} between {smallest} ({scales[smallest]:.2g}) "
            f"and {largest} ({scales[largest]:.2g})."
        )
        if not scales[smallest]:
            text = f"{what} of {smallest} is 0: nothing passes through it."
    return _verdict(subject, number, SPREAD, text, advice, source)


def judge_curves(history: Mapping[str, Sequence[float]], chance: float | None = None) -> tuple[Verdict, ...]:
    """Judge the curves of a training, given as Keras's ``History.history``.

    On stability always; on overfitting, underfitting, the gap between training and validation, and learning
    (against ``chance``, the accuracy of always guessing the most frequent class) where the history allows it.
    """
    columns = {name: [float(number) for number in column] for name, column in history.items()}
    _check(columns)
    diverged = next((epoch for epoch, loss in enumerate(columns["loss"], 1) if not math.isfinite(loss)), None)
    if diverged is not None:
        text = f"The loss is not a finite number from epoch {diverged} on: training has diverged."
        return (_verdict("stability", math.nan, RISES, text, "Lower the rate.", OURS),)
    verdicts = [_judge_stability(columns["loss"])]
    if _usable(columns, "val_loss"):
        verdicts += [_judge_overfitting(columns["val_loss"]), _judge_underfitting(columns["val_loss"])]
    if _usable(columns, "accuracy") and _usable(columns, "val_accuracy"):
        verdicts.append(_judge_gap(columns["accuracy"][-1], columns["val_accuracy"][-1]))
    accuracy = columns.get("val_accuracy") or columns.get("accuracy")
    if chance is not None and accuracy and math.isfinite(accuracy[-1]):
        verdicts.append(_judge_learning(accuracy[-1], chance))
    return tuple(verdicts)


def _check(columns: dict[str, list[float]]) -> None:
    if not columns.get("loss"):
        expected = "a history with a loss for each epoch"
        raise UsageError(expected_got(expected, ", ".join(columns) or "an empty one"))
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UsageError(expected_got("columns of one length", shown))


def _usable(columns: dict[str, list[float]], name: str) -> bool:
    return bool(columns.get(name)) and all(math.isfinite(number) for number in columns[name])


def _judge_stability(losses: list[float]) -> Verdict:
    steps = len(losses) - 1
    rises = sum(later > earlier for earlier, later in itertools.pairwise(losses))
    share = rises / steps if steps else 0.0
    text = f"The training loss rose in {rises} of {steps} epochs after the first."
    advice = "A lower learning rate makes it fall more steadily."
    source = f"Bengio (2012), section 3.1.1: too high a rate makes the loss rise; the third is {OURS}"
    return _verdict("stability", share, RISES, text, advice, source)


def _judge_overfitting(losses: list[float]) -> Verdict:
    """Measure Prechelt's generalisation loss: how far validation has risen above its lowest."""
    best = min(losses)
    epoch = losses.index(best) + 1
    rise = 100 * (losses[-1] / best - 1) if best > 0 else 0.0
    if epoch == len(losses):
        text = f"The validation loss is at its lowest, {best:.4g}, in the last epoch."
    else:
        where = f"{best:.4g} in epoch {epoch} of {len(losses)}"
        text = f"The validation loss ends {rise:.1f} % above its lowest, {where}."
    advice = "Stop there (early stopping that restores the best weights), or add dropout or images."
    source = 'Prechelt (1998), "Early stopping — but when?", criterion GL with α = 5 %'
    return _verdict("overfitting", rise, LOSS, text, advice, source)


def _judge_underfitting(losses: list[float]) -> Verdict:
    """Measure by how much the last epoch beat the best one before it."""
    before = min(losses[:-1], default=math.inf)
    gain = 100 * (1 - losses[-1] / before) if losses[-1] < before < math.inf else 0.0
    source = f"{OURS}: 1 % in one epoch"
    if len(losses) < 2:
        text = "One epoch does not show whether more would help."
        return Verdict("underfitting", "note", text, 0.0, PROGRESS[0], source)
    lowered = f"lowered the best validation loss by {gain:.1f} %"
    text = f"The last epoch {lowered}: more epochs would add little."
    if gain > PROGRESS[0]:
        text = f"The last epoch still {lowered}: training ended early."
    advice = "More epochs, or a higher learning rate, should help."
    return _verdict("underfitting", gain, PROGRESS, text, advice, source)


def _judge_gap(training: float, validation: float) -> Verdict:
    gap = training - validation
    text = (
        f"Accuracy is {training:.2%} in training and {validation:.2%} in validation, "
        f"a gap of {100 * gap:.1f} points."
    ).replace("-", "−")
    if gap < 0:
        text += " Training numbers are means over an epoch, with dropout at work, and so may look worse."
    advice = "The network knows its training images better than others: more images, or dropout."
    return _verdict("generalisation gap", gap, GAP, text, advice, f"{OURS}: 5 points")


def _judge_learning(accuracy: float, chance: float) -> Verdict:
    """Compare with guessing: how much of the way from chance to perfection is done."""
    missed = 1 - (accuracy - chance) / (1 - chance) if chance < 1 else 0.0
    text = f"Accuracy is {accuracy:.2%}, where always guessing the most frequent class gives {chance:.2%}."
    advice = "The network has hardly learned: check labels, learning rate and the range of the pixels."
    found = _verdict("learning", missed, MISSED, text, advice, f"{OURS}: half the way")
    return replace(found, number=accuracy, threshold=chance + MISSED[0] * (1 - chance))


def judge_confidence(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Verdict, ...]:
    """Judge how sure a network is of its answers, on images that it was not trained on.

    Takes probabilities (n, classes) and labels, indices or one-hot: on saturation, sure mistakes and
    overconfidence.
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    truth = _class_indices(labels)
    if scores.ndim != 2 or len(scores) == 0 or truth.shape != (len(scores),):
        expected = "probabilities of shape (n, classes) and n labels"
        raise UsageError(expected_got(expected, f"{scores.shape} and {truth.shape}"))
    if scores.shape[1] == 1:
        scores = np.column_stack([1 - scores[:, 0], scores[:, 0]])  # one sigmoid: the second class
    confidence, correct = scores.max(1), scores.argmax(1) == truth
    return (
        _judge_saturation(confidence),
        _judge_mistakes(confidence[~correct]),
        _judge_overconfidence(float(confidence.mean()), float(correct.mean())),
    )


def _judge_saturation(confidence: npt.NDArray[np.float64]) -> Verdict:
    share = float((confidence > SATURATED).mean())
    text = f"The softmax is saturated (a probability above {SATURATED:.2%}) on {share:.1%} of the images."
    advice = "Hardly any gradient is left to learn from: label smoothing or weight decay keep it alive."
    source = (
        "Goodfellow, Bengio and Courville (2016), section 6.2.2.3, on saturation; "
        f"the 99 % of images is {OURS}"
    )
    return _verdict("saturated softmax", share, SATURATION, text, advice, source)


def _judge_mistakes(confidence: npt.NDArray[np.float64]) -> Verdict:
    count, sure = len(confidence), int((confidence > SURE).sum())
    share = sure / count if count else 0.0
    text = f"{sure} of {count} wrong answers ({share:.0%}) were given with a probability above {SURE:.0%}."
    if count == 0:
        text = "No answer is wrong."
    advice = "Look at them: labels may be wrong; temperature scaling or label smoothing lower the rest."
    return _verdict("sure mistakes", share, MISTAKES, text, advice, f"{OURS}: a quarter")


def _judge_overconfidence(confidence: float, accuracy: float) -> Verdict:
    text = f"The mean probability of the answers is {confidence:.2%}, and {accuracy:.2%} of them are right."
    advice = "Probabilities promise too much; a temperature fitted on validation data corrects that."
    source = f"Guo et al. (2017), section 2, on calibration; the 5 points are {OURS}"
    return _verdict("overconfidence", confidence - accuracy, OVERCONFIDENCE, text, advice, source)
