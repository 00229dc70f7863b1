"""Evaluation: single numbers, the scores of each class, and the curves of the weakest ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from convscope.evaluation import Curve, Evaluation, wilson_interval
from convscope.glossary import GLOSSARY
from convscope.report.charts import Chart, as_percent, interval_bar, thin
from convscope.report.words import name, number, percent

# The table of classes opens with the weakest ones when there are more than this.
SHORT_TABLE = 20
WEAKEST = 10
CURVES = 3

FloatArray = NDArray[np.float64]


def scores(evaluation: Evaluation) -> dict[str, Any]:
    """Gather the numbers of an evaluation.

    Parameters
    ----------
    evaluation : Evaluation
        On the part of the data that the report is about.

    Returns
    -------
    dict
        ``summary`` (name, value, meaning), ``classes`` (rows, the weakest first where there are many),
        ``curves`` (title, svg) with their ``legend``.
    """
    order = np.argsort(evaluation.f1, kind="stable")
    many = evaluation.classes > SHORT_TABLE
    bounds = (_lowest(evaluation), 1.0)
    rows = [
        _class_row(evaluation, int(index), bounds) for index in (order if many else range(evaluation.classes))
    ]
    weakest = [int(index) for index in order if 0 < evaluation.support[index] < evaluation.images][:CURVES]
    return {
        "summary": _summary(evaluation),
        "classes": rows[:WEAKEST] if many else rows,
        "other_classes": rows[WEAKEST:] if many else [],
        "curves": _curves(evaluation, weakest),
        "legend": [name(evaluation.class_names[index]) for index in weakest],
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


def _class_row(evaluation: Evaluation, index: int, bounds: tuple[float, float]) -> dict[str, Any]:
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
        "bar": interval_bar(low, recall, high, bounds) if support else "",
        "f1": float(evaluation.f1[index]),
        "roc": float(evaluation.areas.roc[index]),
        "average_precision": float(evaluation.areas.average_precision[index]),
    }


def _lowest(evaluation: Evaluation) -> float:
    """Choose where the bars of recall begin: a round share below the lowest interval."""
    present = evaluation.support > 0
    low = min(
        wilson_interval(int(hits), int(support)).low
        for hits, support in zip(
            np.diagonal(evaluation.confusion)[present], evaluation.support[present], strict=True
        )
    )
    return next((edge for edge in (0.98, 0.95, 0.9, 0.8, 0.5) if low >= edge), 0.0)


def _curves(evaluation: Evaluation, classes: list[int]) -> list[dict[str, Any]]:
    """Draw ROC and precision–recall curves of some classes, the corner that tells them apart."""
    if not classes:
        return []
    curves = [evaluation.curve(index) for index in classes]
    side = min(_corner(curve) for curve in curves)
    roc = Chart((0, 1 - side), (side, 1), "false positive rate", "recall", as_percent, as_percent)
    precision = Chart((side, 1), (side, 1), "recall", "precision", as_percent, as_percent)
    if side == 0:
        roc.rule((0, 0), (1, 1))
    for place, curve in enumerate(curves):
        style = f"series-{place + 1}"
        roc.line(*_within(roc, curve.false_positive_rate, curve.recall), style)
        precision.line(*_within(precision, curve.recall, curve.precision), style)
    areas = evaluation.areas
    return [
        _curve_panel("ROC, weakest classes", roc, evaluation, classes, areas.roc),
        _curve_panel(
            "Precision–recall, weakest classes", precision, evaluation, classes, areas.average_precision
        ),
    ]


def _corner(curve: Curve) -> float:
    """Find where the corner begins in which something is to be seen of both curves of a class."""
    for edge in (0.95, 0.9, 0.8, 0.5):
        middle = (1 + edge) / 2
        near = (curve.recall >= middle) & (curve.false_positive_rate <= 1 - middle)
        if near.any() and curve.precision[curve.recall >= middle].max() >= middle:
            return edge
    return 0.0


def _within(chart: Chart, xs: FloatArray, ys: FloatArray) -> tuple[list[float], list[float]]:
    """Keep the part of a curve that lies in a chart, without points that nobody tells apart."""
    low_x, high_x = chart.x_range
    low_y, high_y = chart.y_range
    inside = (xs >= low_x) & (xs <= high_x) & (ys >= low_y) & (ys <= high_y)
    return thin(xs[inside].tolist(), ys[inside].tolist(), 0.004 * (high_x - low_x))


def _curve_panel(
    title: str, chart: Chart, evaluation: Evaluation, classes: list[int], areas: Any
) -> dict[str, str | Markup]:
    described = ", ".join(
        f"{name(evaluation.class_names[index])} {number(areas[index])}" for index in classes
    )
    return {"title": title, "svg": chart.svg(title, f"Areas under the curves: {described}.")}
