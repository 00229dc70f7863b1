"""Whether the network's probabilities can be believed, and what it gains by abstaining."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from convscope.evaluation import Evaluation, Reliability, TemperatureScaling, scale_temperature
from convscope.report.charts import Chart, as_percent, padded, thin
from convscope.report.source import Contents
from convscope.report.words import THIN, number, percent

# Bins with fewer images are drawn pale: their accuracy is mostly luck.
FEW = 10
TARGETS = (0.95, 0.99, 0.995, 0.999)
# Below these shares of answers, accuracy is mostly luck, and a network that abstains so often is no use.
LEAST_DRAWN, LEAST_ANSWERED = 0.02, 0.05


def certainty(contents: Contents, evaluation: Evaluation) -> dict[str, Any]:
    """Compare confidence with accuracy, before and after temperature scaling, and accuracy with coverage.

    Parameters
    ----------
    contents : Contents
        The run; the temperature is fitted on its validation images.
    evaluation : Evaluation
        On the part of the data that the report is about.

    Returns
    -------
    dict
        ``charts`` (title, svg, caption), ``rows`` before and after, ``sentences``, ``abstaining``.
    """
    before = evaluation.reliability
    scaled = _scaled(contents, evaluation)
    charts = [{"title": "Confidence against accuracy", "svg": _diagram(before)}]
    rows = [("as predicted", before.expected_error, before.largest_error, evaluation.loss)]
    if scaled is not None:
        temperature, after = scaled.temperature, scaled.after
        charts.append(
            {"title": "The same after temperature scaling", "svg": _diagram(after.reliability, temperature)}
        )
        what = f"after temperature scaling (T = {temperature:.3f})"
        rows.append((what, after.reliability.expected_error, after.reliability.largest_error, after.loss))
    return {
        "charts": charts,
        "rows": rows,
        "sentences": _sentences(before, evaluation),
        "coverage": _coverage_chart(evaluation) if evaluation.errors else None,
        "abstaining": _abstaining(evaluation),
        "scaling": scaled.sentence().replace("%", f"{THIN}%") if scaled else "",
    }


def _scaled(contents: Contents, evaluation: Evaluation) -> TemperatureScaling | None:
    """Fit a temperature on validation images and apply it to the others, where there are both."""
    validation = contents.evaluations.get("validation")
    return (
        None if validation is None or validation is evaluation else scale_temperature(validation, evaluation)
    )


def _diagram(found: Reliability, temperature: float | None = None) -> Markup:
    chart = Chart((0, 1), (0, 1), "confidence", "accuracy", as_percent, as_percent)
    enough = found.counts >= FEW
    chart.bars(found.edges.tolist(), np.where(enough, found.accuracy, np.nan).tolist(), "series-1")
    chart.bars(found.edges.tolist(), np.where(enough, np.nan, found.accuracy).tolist(), "few")
    chart.rule((0, 0), (1, 1))
    notes = [
        f"{percent(low, 0)} to {percent(high, 0)}: {count:,} images, {percent(accuracy, 1)} right"
        for low, high, count, accuracy in zip(
            found.edges[:-1], found.edges[1:], found.counts, found.accuracy, strict=True
        )
    ]
    chart.markers(found.confidence.tolist(), found.accuracy.tolist(), "series-2", notes)
    what = "Confidence against accuracy" + (f" at temperature {temperature:.3f}" if temperature else "")
    return chart.svg(
        what,
        f"The expected calibration error is {percent(found.expected_error)}, the largest gap of a bin "
        f"{percent(found.largest_error)}.",
    )


def _sentences(found: Reliability, evaluation: Evaluation) -> list[str]:
    confidence = float(np.clip(evaluation.probabilities.max(axis=1), 0, 1).mean())
    gap = confidence - evaluation.accuracy
    how = (
        "about as sure as it is right"
        if abs(gap) < 0.005
        else "too sure of itself"
        if gap > 0
        else "less sure than it could be"
    )
    return [
        f"On average the network gives its answers {percent(confidence)} and is right for "
        f"{percent(evaluation.accuracy)}: it is {how}. Its confidence is off by "
        f"{percent(found.expected_error)} on average (expected calibration error, 15 bins)."
    ]


def _coverage_chart(evaluation: Evaluation) -> Markup:
    curve = evaluation.coverage
    drawn = curve.coverage >= LEAST_DRAWN
    xs, ys = thin(curve.coverage[drawn].tolist(), curve.accuracy[drawn].tolist(), 0.002)
    low, high = padded(ys)
    chart = Chart(
        x_range=(0, 1),
        y_range=(max(0.0, low), min(1.0, high)),
        x_label="share answered",
        y_label="accuracy of the answers",
        x_format=as_percent,
        y_format=as_percent,
    )
    chart.line(xs, ys, "series-1")
    return chart.svg(
        "Accuracy against coverage",
        f"Answering everything gives {percent(evaluation.accuracy)}; answering only the surest half gives "
        f"{percent(curve.for_coverage(0.5).accuracy)}.",
    )


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
