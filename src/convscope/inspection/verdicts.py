"""Is the training healthy: verdicts in words, each with the number and the threshold behind it.

On the layers (dead units, scales), on the curves (overfitting, underfitting, instability) and on confidence
(saturated and overconfident answers).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from convscope.errors import UsageError, expected_got
from convscope.inspection.forward import fitting_batch, in_batches, scores, to_batch, to_numpy
from convscope.inspection.layer_health import LayerHealth, class_indices, layer_health
from convscope.lowering.graph import read_graph
from convscope.runs import as_json

if TYPE_CHECKING:
    import keras

Level = Literal["good", "note", "warning"]

# Where a threshold is no published one, it is named as ours.
OURS = "convscope's own threshold"

DEAD_NOTE, DEAD_WARNING = 0.1, 0.4
DEAD_SOURCE = (
    "Stanford CS231n, notes on neural networks: 40 % can die when the learning rate is too high; "
    f"the 10 % for a note is {OURS}"
)
SPREAD_NOTE, SPREAD_WARNING = 100.0, 10_000.0

# Prechelt's generalisation loss, in percent, at which his criterion GL₅ stops.
LOSS_NOTE, LOSS_WARNING = 5.0, 50.0
GAP_NOTE, GAP_WARNING = 0.05, 0.15
PROGRESS_NOTE, PROGRESS_WARNING = 1.0, 20.0
RISES_NOTE, RISES_WARNING = 1 / 3, 1 / 2

# A softmax is taken as saturated above this probability: the loss's gradient is below 1 − it.
SATURATED = 0.9999
SURE = 0.99
SATURATED_NOTE, SATURATED_WARNING = 0.99, 1.0
WRONG_NOTE, WRONG_WARNING = 0.25, 0.5
OVERCONFIDENCE_NOTE, OVERCONFIDENCE_WARNING = 0.05, 0.15


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


def level_of(number: float, note: float, warning: float) -> Level:
    """Grade a number by two thresholds; one that is not a number is a warning."""
    if not number <= warning:
        return "warning"
    return "note" if number > note else "good"


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
        classes = class_indices(labels)
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
        found = torch.cat(
            [scores(graph, part) for part in in_batches(to_batch(graph, images), fitting_batch(graph, 256))]
        )
    return to_numpy(found.sigmoid() if found.shape[1] == 1 else found.softmax(1))


def judge_layers(layers: Sequence[LayerHealth]) -> tuple[Verdict, ...]:
    """Judge dead units, and whether activations and gradients keep their scale from layer to layer."""
    relative = {layer.layer: layer.relative_gradient for layer in layers}
    ours = f"the factor of {SPREAD_NOTE:g} is {OURS}"
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
    return Verdict("dead units", level, text, share, DEAD_NOTE, DEAD_SOURCE)


def _judge_spread(subject: str, scales: dict[str, float], what: str, advice: str, source: str) -> Verdict:
    """Judge by how much a scale differs between layers."""
    unfit = [name for name, scale in scales.items() if not math.isfinite(scale)]
    level: Level = "warning"
    if unfit:
        number = math.nan
        text = f"{what} of {unfit[0]} is not a finite number: training has diverged. Lower the learning rate."
    elif len(scales) < 2:
        level, number, text = "good", 1.0, f"{what} cannot be compared: there are not two layers."
    else:
        smallest, largest = min(scales, key=scales.__getitem__), max(scales, key=scales.__getitem__)
        number = scales[largest] / scales[smallest] if scales[smallest] else math.inf
        level = level_of(number, SPREAD_NOTE, SPREAD_WARNING)
        text = (
            f"{what} differs by a factor of {number:.3g} between {smallest} ({scales[smallest]:.2g}) "
            f"and {largest} ({scales[largest]:.2g})."
        )
        if not scales[smallest]:
            text = f"{what} of {smallest} is 0: nothing passes through it."
        if level != "good":
            text += f" {advice}"
    return Verdict(subject, level, text, number, SPREAD_NOTE, source)


def judge_curves(history: Mapping[str, Sequence[float]], chance: float | None = None) -> tuple[Verdict, ...]:
    """Judge the curves of a training, given as Keras's ``History.history``.

    On stability always; on overfitting, underfitting, the gap between training and validation, and learning
    (against ``chance``, the accuracy of always guessing the most frequent class) where the history allows it.
    """
    columns = {name: [float(number) for number in column] for name, column in history.items()}
    _check(columns)
    diverged = next((epoch for epoch, loss in enumerate(columns["loss"], 1) if not math.isfinite(loss)), None)
    if diverged is not None:
        found = f"The loss is not a finite number from epoch {diverged} on: training has diverged."
        return (Verdict("stability", "warning", f"{found} Lower the rate.", math.nan, RISES_NOTE, OURS),)
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
    level = level_of(share, RISES_NOTE, RISES_WARNING)
    text = f"The training loss rose in {rises} of {steps} epochs after the first."
    if level != "good":
        text += " A lower learning rate makes it fall more steadily."
    source = f"Bengio (2012), section 3.1.1: too high a rate makes the loss rise; the third is {OURS}"
    return Verdict("stability", level, text, share, RISES_NOTE, source)


def _judge_overfitting(losses: list[float]) -> Verdict:
    """Measure Prechelt's generalisation loss: how far validation has risen above its lowest."""
    best = min(losses)
    epoch = losses.index(best) + 1
    rise = 100 * (losses[-1] / best - 1) if best > 0 else 0.0
    level = level_of(rise, LOSS_NOTE, LOSS_WARNING)
    if epoch == len(losses):
        text = f"The validation loss is at its lowest, {best:.4g}, in the last epoch."
    else:
        where = f"{best:.4g} in epoch {epoch} of {len(losses)}"
        text = f"The validation loss ends {rise:.1f} % above its lowest, {where}."
    if level != "good":
        text += " Stop there (early stopping that restores the best weights), or add dropout or images."
    source = 'Prechelt (1998), "Early stopping — but when?", criterion GL with α = 5 %'
    return Verdict("overfitting", level, text, rise, LOSS_NOTE, source)


def _judge_underfitting(losses: list[float]) -> Verdict:
    """Measure by how much the last epoch beat the best one before it."""
    before = min(losses[:-1], default=math.inf)
    gain = 100 * (1 - losses[-1] / before) if losses[-1] < before < math.inf else 0.0
    source = f"{OURS}: 1 % in one epoch"
    if len(losses) < 2:
        text = "One epoch does not show whether more would help."
        return Verdict("underfitting", "note", text, 0.0, PROGRESS_NOTE, source)
    level = level_of(gain, PROGRESS_NOTE, PROGRESS_WARNING)
    lowered = f"lowered the best validation loss by {gain:.1f} %"
    text = f"The last epoch {lowered}: more epochs would add little."
    if level != "good":
        early = "training ended early. More epochs, or a higher learning rate, should help."
        text = f"The last epoch still {lowered}: {early}"
    return Verdict("underfitting", level, text, gain, PROGRESS_NOTE, source)


def _judge_gap(training: float, validation: float) -> Verdict:
    gap = training - validation
    level = level_of(gap, GAP_NOTE, GAP_WARNING)
    text = (
        f"Accuracy is {training:.2%} in training and {validation:.2%} in validation, "
        f"a gap of {100 * gap:.1f} points."
    )
    if gap < 0:
        text += " Training numbers are means over an epoch, with dropout at work, and so may look worse."
    elif level != "good":
        text += " The network knows its training images better than others: more images, or dropout."
    return Verdict("generalisation gap", level, text.replace("-", "−"), gap, GAP_NOTE, f"{OURS}: 5 points")


def _judge_learning(accuracy: float, chance: float) -> Verdict:
    """Compare with guessing: how much of the way from chance to perfection is done."""
    ratio = (accuracy - chance) / (1 - chance) if chance < 1 else 1.0
    missed = 1 - ratio
    level = level_of(missed, 0.5, 0.9)
    text = f"Accuracy is {accuracy:.2%}, where always guessing the most frequent class gives {chance:.2%}."
    if level != "good":
        text += " The network has hardly learned: check labels, learning rate and the range of the pixels."
    return Verdict("learning", level, text, accuracy, chance + 0.5 * (1 - chance), f"{OURS}: half the way")


def judge_confidence(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Verdict, ...]:
    """Judge how sure a network is of its answers, on images that it was not trained on.

    Takes probabilities (n, classes) and labels, indices or one-hot: on saturation, sure mistakes and
    overconfidence.
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    truth = class_indices(labels)
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
    level = level_of(share, SATURATED_NOTE, SATURATED_WARNING)
    text = f"The softmax is saturated (a probability above {SATURATED:.2%}) on {share:.1%} of the images."
    if level != "good":
        text += " Hardly any gradient is left to learn from: label smoothing or weight decay keep it alive."
    source = (
        "Goodfellow, Bengio and Courville (2016), section 6.2.2.3, on saturation; "
        f"the 99 % of images is {OURS}"
    )
    return Verdict("saturated softmax", level, text, share, SATURATED_NOTE, source)


def _judge_mistakes(confidence: npt.NDArray[np.float64]) -> Verdict:
    count, sure = len(confidence), int((confidence > SURE).sum())
    share = sure / count if count else 0.0
    level = level_of(share, WRONG_NOTE, WRONG_WARNING)
    text = f"{sure} of {count} wrong answers ({share:.0%}) were given with a probability above {SURE:.0%}."
    if count == 0:
        text = "No answer is wrong."
    if level != "good":
        text += " Look at them: labels may be wrong; temperature scaling or label smoothing lower the rest."
    return Verdict("sure mistakes", level, text, share, WRONG_NOTE, f"{OURS}: a quarter")


def _judge_overconfidence(confidence: float, accuracy: float) -> Verdict:
    gap = confidence - accuracy
    level = level_of(gap, OVERCONFIDENCE_NOTE, OVERCONFIDENCE_WARNING)
    text = f"The mean probability of the answers is {confidence:.2%}, and {accuracy:.2%} of them are right."
    if level != "good":
        text += " Probabilities promise too much; a temperature fitted on validation data corrects that."
    source = f"Guo et al. (2017), section 2, on calibration; the 5 points are {OURS}"
    return Verdict("overconfidence", level, text, gap, OVERCONFIDENCE_NOTE, source)
