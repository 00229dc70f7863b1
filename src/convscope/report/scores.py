"""Evaluation: single numbers, the scores of each class, and the curves of the weakest ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from convscope.evaluation import Evaluation, wilson_interval
from convscope.glossary import GLOSSARY
from convscope.plotting import plot_intervals, plot_precision_recall, plot_roc
from convscope.report.formatting import name, number, percent
from convscope.report.media import chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The table of classes opens with the weakest ones when there are more than this.
SHORT_TABLE = 20
WEAKEST = 10
CURVES = 3


def scores(evaluation: Evaluation) -> dict[str, Any]:
    """Gather the numbers of an evaluation.

    Gives ``summary`` (name, value, meaning), ``classes`` (rows, the weakest first where there are many),
    ``charts`` (title, svg).
    """
    order = np.argsort(evaluation.f1, kind="stable")
    many = evaluation.classes > SHORT_TABLE
    rows = [_class_row(evaluation, int(index)) for index in (order if many else range(evaluation.classes))]
    shown = rows[:WEAKEST] if many else rows
    weakest = [int(index) for index in order if 0 < evaluation.support[index] < evaluation.images][:CURVES]
    return {
        "summary": _summary(evaluation),
        "classes": shown,
        "other_classes": rows[WEAKEST:] if many else [],
        "charts": [_recalls(shown, evaluation.classes), *_curves(evaluation, weakest)],
    }


def _summary(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    rows = [
        ("accuracy", percent(evaluation.accuracy), "share of images whose class is predicted"),
        *(
            (f"top {k}", percent(share), f"the true class is among the {k} most probable")
            for k, share in evaluation.top_k.items()
            if k > 1
        ),
        ("balanced accuracy", percent(evaluation.balanced_accuracy), GLOSSARY["balanced accuracy"]),
        ("Cohen’s kappa", number(evaluation.kappa), GLOSSARY["Cohen's kappa"]),
        ("loss", number(evaluation.loss), f"cross-entropy as Keras computes it: {GLOSSARY['cross-entropy']}"),
        ("log loss", number(evaluation.log_loss), GLOSSARY["log loss"]),
        ("Brier score", number(evaluation.brier_score), GLOSSARY["Brier score"]),
    ]
    areas = evaluation.areas
    for what, values in (("ROC area", areas.roc), ("average precision", areas.average_precision)):
        defined = values[np.isfinite(values)]
        if defined.size:
            meaning = f"over all classes, each against the rest: {GLOSSARY[what]}"
            rows.append((f"mean {what}", number(float(defined.mean())), meaning))
    return rows


def _class_row(evaluation: Evaluation, index: int) -> dict[str, Any]:
    support = int(evaluation.support[index])
    hits = int(evaluation.confusion[index, index])
    low, high = wilson_interval(hits, support)
    recall = float(evaluation.recall[index])
    return {
        "name": evaluation.class_names[index],
        "support": support,
        "precision": float(evaluation.precision[index]),
        "recall": recall if support else None,
        "interval": (low, high) if support else None,
        "f1": float(evaluation.f1[index]),
        "roc": float(evaluation.areas.roc[index]),
        "average_precision": float(evaluation.areas.average_precision[index]),
    }


def _recalls(rows: list[dict[str, Any]], classes: int) -> dict[str, Any]:
    """Draw the recall of each class with its interval, on one scale with guessing."""
    present = [row for row in rows if row["interval"]]
    names, shares, intervals = ([row[key] for row in present] for key in ("name", "recall", "interval"))
    figure = plot_intervals(names, shares, intervals, ("guessing", 1 / classes), "recall")
    lowest = min(present, key=lambda row: row["recall"])
    described = f"The lowest is that of {name(lowest['name'])}, {percent(lowest['recall'])}."
    title = "Recall of each class"
    return {"title": title, "svg": chart(figure, title, described, figure.axes)}


def _curves(evaluation: Evaluation, classes: list[int]) -> list[dict[str, Any]]:
    """Draw ROC and precision–recall curves of some classes, whole and the corner that tells them apart."""
    if not classes:
        return []
    areas = evaluation.areas
    return [
        *_panels(plot_roc(evaluation, classes), evaluation, classes, areas.roc),
        *_panels(plot_precision_recall(evaluation, classes), evaluation, classes, areas.average_precision),
    ]


def _panels(
    figure: Figure, evaluation: Evaluation, classes: list[int], areas: Any
) -> list[dict[str, str | Markup]]:
    described = ", ".join(
        f"{name(evaluation.class_names[index])} {number(areas[index])}" for index in classes
    )
    whole, corner = figure.axes
    drawn = [(whole, whole.get_title())]
    if corner.get_xlim() != whole.get_xlim():
        drawn.append((corner, corner.get_title()))
    return [
        {"title": title, "svg": chart(figure, title, f"Areas under the curves: {described}.", [axes])}
        for axes, title in drawn
    ]
