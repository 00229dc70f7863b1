"""Overfitting, underfitting and instability, read off the curves of a training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from convscope.errors import UsageError, sentence
from convscope.inspection.health.verdicts import OURS, Verdict, level_of

# Prechelt's generalisation loss, in percent, at which his criterion GL₅ stops.
LOSS_NOTE, LOSS_WARNING = 5.0, 50.0
GAP_NOTE, GAP_WARNING = 0.05, 0.15
PROGRESS_NOTE, PROGRESS_WARNING = 1.0, 20.0
RISES_NOTE, RISES_WARNING = 1 / 3, 1 / 2


def judge_curves(history: Mapping[str, Sequence[float]], chance: float | None = None) -> tuple[Verdict, ...]:
    """Judge the curves of a training.

    Parameters
    ----------
    history : mapping of str to sequence of float
        ``loss`` and, where there are any, ``accuracy``, ``val_loss`` and ``val_accuracy``: one number for
        each epoch, as in Keras's ``History.history``.
    chance : float, optional
        The accuracy of always guessing the most frequent class.

    Returns
    -------
    tuple of Verdict
        On stability always; on overfitting, the gap between training and validation, underfitting and
        learning where the history allows it.

    Raises
    ------
    UsageError
        When there is no loss, or columns differ in length.

    Examples
    --------
    >>> history = {"loss": [1.0, 0.5, 0.2, 0.1], "val_loss": [1.1, 0.6, 0.7, 0.9]}
    >>> for verdict in judge_curves(history):
    ...     print(verdict.level, verdict.subject, round(verdict.number, 2))
    good stability 0.0
    note overfitting 50.0
    good underfitting 0.0
    """
    columns = {name: [float(number) for number in column] for name, column in history.items()}
    _check(columns)
    if not all(math.isfinite(loss) for loss in columns["loss"]):
        return (_diverged(columns["loss"]),)
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
        raise UsageError(
            sentence("a history with a loss for each epoch", ", ".join(columns) or "an empty one")
        )
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UsageError(sentence("columns of one length", shown))


def _usable(columns: dict[str, list[float]], name: str) -> bool:
    return bool(columns.get(name)) and all(math.isfinite(number) for number in columns[name])


def _diverged(losses: list[float]) -> Verdict:
    epoch = next(number for number, loss in enumerate(losses, 1) if not math.isfinite(loss))
    text = f"The loss is not a finite number from epoch {epoch} on: training has diverged. Lower the rate."
    return Verdict("stability", "warning", text, math.nan, RISES_NOTE, OURS)


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
        text = (
            f"The validation loss ends {rise:.1f} % above its lowest, "
            f"{best:.4g} in epoch {epoch} of {len(losses)}."
        )
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
    if level == "good":
        text = (
            f"The last epoch lowered the best validation loss by {gain:.1f} %: more epochs would add little."
        )
    else:
        text = (
            f"The last epoch still lowered the best validation loss by {gain:.1f} %: "
            "training ended early. More epochs, or a higher learning rate, should help."
        )
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
