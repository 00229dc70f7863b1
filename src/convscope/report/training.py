"""How the training went, epoch by epoch, and its health: verdicts, and the scales of every layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convscope.contents import Contents
from convscope.evaluation import Evaluation
from convscope.inspection import (
    LayerHealth,
    Verdict,
    describe,
    judge_confidence,
    judge_curves,
    judge_layers,
    layer_health,
)
from convscope.plotting import plot_history
from convscope.report.formatting import chart, number, percent, plural


def learning(contents: Contents) -> dict[str, Any]:
    """Draw the history of the training, list all its numbers, and say what they mean."""
    history = contents.history
    epochs = max((len(values) for values in history.values()), default=0)
    rows = [
        [
            str(epoch + 1),
            *(number(values[epoch]) if epoch < len(values) else number(None) for values in history.values()),
        ]
        for epoch in range(epochs)
    ]
    stages = contents.record.get("stages", [])
    # The last row then is no epoch after the others.
    averaged = any(stage["name"] == "average" and stage["kept"] for stage in stages)
    return {
        "charts": _charts(history),
        "columns": ["epoch", *(_title(column) for column in history)],
        "rows": rows,
        "sentences": [
            *_stages(stages),
            *([] if averaged else _sentences(history, epochs, contents.record.get("kept_epoch"))),
        ],
    }


def _charts(history: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Draw loss and accuracy, each as a chart of its own, where they were recorded."""
    if not history.get("loss"):
        return []
    figure = plot_history(history)
    drawn = [(axes, axes.get_title()) for axes in figure.axes if axes.lines]
    charts = []
    for axes, title in drawn:
        name = title.lower()
        write = percent if name == "accuracy" else number
        described = _described(history.get(name, []), history.get(f"val_{name}", []), name, write)
        heading = f"{title} after each epoch"
        charts.append({"title": heading, "svg": chart(figure, heading, described, [axes])})
    return charts


def _described(training: list[float], validation: list[float], title: str, write: Any) -> str:
    parts = [
        f"{what} {title} goes from {write(values[0])} to {write(values[-1])}"
        if len(values) > 1
        else f"{what} {title} is {write(values[0])}"
        for values, what in ((training, "training"), (validation, "validation"))
        if values
    ]
    return "; ".join(parts).capitalize() + "."


def _title(column: str) -> str:
    """Write a column's name as a person would: val_loss → validation loss."""
    words = column.replace("_", " ")
    return f"validation {words[4:]}" if words.startswith("val ") else words


def _stages(stages: list[dict[str, Any]]) -> list[str]:
    """Say what the stages of a training on a pretrained network brought."""
    sentences = []
    for stage in stages:
        accuracy = stage.get("val_accuracy")
        reached = "" if accuracy is None else f", {percent(accuracy)} right on the validation images"
        if stage["name"] == "head":
            sentences.append(
                "Epoch 1 is the head alone, fitted on the features of the pretrained network by logistic "
                f"regression{reached}."
            )
        elif stage["name"] == "average":
            sentences.append(f"The average of the weights before and after fine-tuning{reached}.")
        else:
            sentences.append(f"Then {plural(stage['epochs'], 'epoch')} of fine-tuning{reached}.")
    if len(stages) > 1 and "val_accuracy" in stages[-1]:
        kept = next((stage["name"] for stage in stages[1:] if stage["kept"]), "head")
        sentences.append(f"Kept is {_KEPT[kept]}.")
    return sentences


_KEPT = {
    "head": "the head alone",
    "fine-tuning": "the fine-tuned network",
    "average": "the average, the last row",
}


def _sentences(history: dict[str, list[float]], epochs: int, kept: object) -> list[str]:
    if not epochs:
        return ["No epoch was finished, so there is no history."]
    if epochs == 1:
        return [
            "One epoch: the curves are single points, and say nothing about what more training would bring."
        ]
    losses = [value for value in history.get("val_loss", []) if math.isfinite(value)]
    if not losses:
        return []
    best = losses.index(min(losses)) + 1
    if best == epochs:
        return [
            f"The validation loss was lowest after the last of {plural(epochs, 'epoch')}: more might help."
        ]
    rise = losses[-1] - min(losses)
    sentences = [
        f"The validation loss was lowest after epoch {best} of {epochs}, at {number(min(losses))}, and has "
        f"risen by {number(rise)} since."
    ]
    if isinstance(kept, int):
        sentences.append(f"The network has the weights of epoch {kept}, the best on the validation images.")
    return sentences


# Enough images for means and dead units. Each costs a pass forward and back, layer by layer: of a large
# network they are as many as need so many multiply-accumulates forward, but some.
IMAGES, LEAST_IMAGES, MOST_MACS = 128, 16, 2_500_000_000
LEVELS = ("warning", "note", "good")
SEED = 0


def health(contents: Contents) -> dict[str, Any] | None:
    """Judge the training of a run, the worst verdict first; None when there is nothing to judge by."""
    judged = contents.judged
    usable = contents.history if contents.history.get("loss") else None
    if judged is None:
        return _shown(judge_curves(usable), (), 0) if usable else None
    evaluation = contents.uncalibrated[judged[0]]  # the network's own probabilities: they show the training
    chance = float(evaluation.support.max() / evaluation.images)
    curves = judge_curves(usable, chance) if usable else ()
    verdicts = (*judge_confidence(evaluation.probabilities, evaluation.labels), *curves)
    if contents.images is None:
        return _shown(verdicts, (), 0)
    bundle = contents.bundle
    affordable = MOST_MACS // max(describe(bundle.model).macs or 0, 1)
    chosen = _some(evaluation, min(max(affordable, LEAST_IMAGES), IMAGES))
    images = bundle.preprocess.apply(contents.images[chosen])
    layers = layer_health(bundle.model, images, evaluation.labels[chosen])
    return _shown((*judge_layers(layers), *verdicts), layers, len(chosen))


def _some(evaluation: Evaluation, count: int) -> Any:
    """Choose some images at random, always the same ones."""
    generator = np.random.default_rng(SEED)
    return np.sort(generator.permutation(evaluation.images)[:count])


def _shown(verdicts: tuple[Verdict, ...], layers: tuple[LayerHealth, ...], images: int) -> dict[str, Any]:
    counts = {level: sum(verdict.level == level for verdict in verdicts) for level in LEVELS}
    ordered = sorted(verdicts, key=lambda verdict: LEVELS.index(verdict.level))
    return {
        "raised": [verdict for verdict in ordered if verdict.level != "good"],
        "good": [verdict for verdict in ordered if verdict.level == "good"],
        "counts": counts,
        "layers": layers,
        "images": images,
    }
