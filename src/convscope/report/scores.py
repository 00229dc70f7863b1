"""Evaluation: numbers, the scores of each class, whether probabilities can be believed, and abstaining."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from convscope.contents import Contents
from convscope.evaluation import Evaluation, Reliability, wilson_interval
from convscope.glossary import GLOSSARY
from convscope.plotting import (
    plot_coverage,
    plot_intervals,
    plot_precision_recall,
    plot_reliability,
    plot_roc,
)
from convscope.plotting.evaluation import LEAST_ANSWERED
from convscope.report.formatting import chart, count, name, number, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# The table of classes opens with the weakest ones when there are more than this.
SHORT_TABLE = 20
WEAKEST = 10
CURVES = 3


def scores(evaluation: Evaluation) -> dict[str, Any]:
    """Gather single numbers with their meaning, those of each class (the weakest first), and curves."""
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


TARGETS = (0.95, 0.99, 0.995, 0.999)


def calibration(contents: Contents, part: str, evaluation: Evaluation) -> dict[str, Any]:
    """Compare confidence with accuracy, before and after temperature scaling, and accuracy with coverage."""
    own = contents.uncalibrated.get(part, evaluation)
    charts = [_reliability("Confidence against accuracy", own.reliability)]
    rows = [_row("as predicted", own)]
    if contents.calibration.used:
        temperature = contents.calibration.temperature
        charts.append(_reliability("The same after temperature scaling", evaluation.reliability, temperature))
        rows.append(_row(f"after temperature scaling (T = {temperature:.3f})", evaluation))
    return {
        "charts": charts,
        "rows": rows,
        "sentences": [_confidence(own), *_scaling(contents, part, own, evaluation)],
        "coverage": _coverage_chart(evaluation) if evaluation.errors else None,
        "abstaining": _abstaining(evaluation),
    }


def _row(what: str, evaluation: Evaluation) -> tuple[str, float, float, float]:
    found = evaluation.reliability
    return what, found.expected_error, found.largest_error, evaluation.log_loss


def _scaling(contents: Contents, part: str, own: Evaluation, scaled: Evaluation) -> list[str]:
    """Say which temperature the run uses and what it does to the images that the report is about."""
    sentences = [contents.calibration.sentence()]
    if not contents.calibration.used:
        return sentences
    before, after = own.reliability.expected_error, scaled.reliability.expected_error
    sentences.append(
        f"On the {part} images the expected calibration error goes from {percent(before)} to "
        f"{percent(after)}, and the log loss from {own.log_loss:.4f} to {scaled.log_loss:.4f}."
    )
    if part == "test" and after > before:
        sentences.append(
            "So it did not help on these images. It stays all the same: the test images judge the choice, "
            "they do not make it."
        )
    sentences.append(
        "The probabilities of single images on this page are scaled, as those of convscope predict and "
        "of exports are; the loss and the walk inside are the network’s own."
    )
    return sentences


def _reliability(title: str, found: Reliability, temperature: float | None = None) -> dict[str, Any]:
    """Draw the bins of confidence, and list those that hold images."""
    what = "Confidence against accuracy" + (f" at temperature {temperature:.3f}" if temperature else "")
    figure = plot_reliability(found)
    described = (
        f"The expected calibration error is {percent(found.expected_error)}, the largest gap of a bin "
        f"{percent(found.largest_error)}."
    )
    bins = [
        (
            f"{percent(low, 1)} – {percent(high, 1)}",
            count(int(images)),
            percent(confidence),
            percent(accuracy),
        )
        for low, high, images, confidence, accuracy in zip(
            found.edges[:-1], found.edges[1:], found.counts, found.confidence, found.accuracy, strict=True
        )
        if images
    ]
    return {"title": title, "svg": chart(figure, what, described, figure.axes), "bins": bins}


def _confidence(own: Evaluation) -> str:
    """Say whether the network is as sure as it is right: within the interval it may well be."""
    confidence = float(np.clip(own.probabilities.max(axis=1), 0, 1).mean())
    low, high = own.accuracy_interval
    how = (
        "too sure of itself"
        if confidence > high
        else "less sure than it could be"
        if confidence < low
        else "about as sure as it is right"
    )
    return (
        f"On average the network gives its answers {percent(confidence)} and is right for "
        f"{percent(own.accuracy)}: it is {how}. Its confidence is off by "
        f"{percent(own.reliability.expected_error)} on average (expected calibration error, 15 bins)."
    )


def _coverage_chart(evaluation: Evaluation) -> Markup:
    figure = plot_coverage(evaluation.coverage)
    described = (
        f"Answering everything gives {percent(evaluation.accuracy)}; answering only the surest half gives "
        f"{percent(evaluation.coverage.for_coverage(0.5).accuracy)}."
    )
    return chart(figure, "Accuracy against coverage", described, figure.axes)


def _abstaining(evaluation: Evaluation) -> list[dict[str, str]]:
    """List what accuracy the network reaches when it leaves out the images it is least sure of."""
    rows = []
    for target in TARGETS:
        point = evaluation.coverage.for_accuracy(target)
        if target <= evaluation.accuracy or point is None or point.coverage < LEAST_ANSWERED:
            continue
        rows.append(
            {
                "target": percent(target, 1),
                "threshold": number(point.threshold),
                "coverage": percent(point.coverage),
                "left_out": f"{round((1 - point.coverage) * evaluation.images):,}",
            }
        )
    return rows
