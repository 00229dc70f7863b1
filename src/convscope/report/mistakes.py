"""Where the network is wrong: the confusion matrix with the images behind its cells, and the worst errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from markupsafe import Markup

from convscope.environment import missing
from convscope.evaluation import Evaluation
from convscope.evaluation.label_check import LEAST_ACCURACY
from convscope.report.formatting import Album, name

# With more classes a table of numbers can no longer be read, and is drawn instead.
LARGEST_TABLE = 25
LEVELS = 8
PAIRS = 12
PAIR_PICTURES = 8
CELL_PICTURES = 24
# Of all cells together; each costs some hundred bytes even without a picture.
MOST_EXAMPLES = 2500
DIAGONAL_PICTURES = 8
# With this many classes, pictures of right answers would fill the page.
DIAGONAL_CLASSES = 12


def confusion(evaluation: Evaluation, album: Album) -> dict[str, Any]:
    """Lay out the confusion matrix: rows of cells or, of many classes, an SVG; and the frequent pairs."""
    few = evaluation.classes <= LARGEST_TABLE
    pairs = _pairs(evaluation, album)
    return {
        "table": _table(evaluation) if few else None,
        "drawing": None if few else _drawing(evaluation),
        "pairs": pairs,
        "pictures": any(one["picture"] for pair in pairs for one in pair["examples"]),
    }


def cells(evaluation: Evaluation, album: Album) -> dict[str, Any]:
    """Gather the images behind the cells, for the page's script, by ``true,predicted``."""
    counts, images, room = {}, {}, MOST_EXAMPLES
    for true, predicted in np.argwhere(evaluation.confusion).tolist():
        key = f"{true},{predicted}"
        counts[key] = int(evaluation.confusion[true, predicted])
    for key in sorted(counts, key=lambda cell: _priority(cell, counts)):
        true, predicted = map(int, key.split(","))
        examples = _examples(evaluation, true, predicted)[:room]
        images[key] = [_example(evaluation, index, album) for index in examples]
        room -= len(examples)
    return {
        "classes": [name(label) for label in evaluation.class_names],
        "support": evaluation.support.tolist(),
        "counts": counts,
        "images": images,
    }


def _priority(cell: str, counts: dict[str, int]) -> tuple[bool, int]:
    """Put errors before right answers, and frequent errors before rare ones."""
    true, predicted = cell.split(",")
    return true == predicted, -counts[cell]


def _examples(evaluation: Evaluation, true: int, predicted: int) -> list[int]:
    """Choose images of a cell: the surest errors, or the least sure right answers."""
    inside = np.flatnonzero((evaluation.labels == true) & (evaluation.predictions == predicted))
    right = true == predicted
    if right and evaluation.classes > DIAGONAL_CLASSES:
        return []
    sureness = evaluation.probabilities[inside, predicted]
    order = np.argsort(sureness if right else -sureness, kind="stable")
    most = DIAGONAL_PICTURES if right else CELL_PICTURES
    return [int(index) for index in inside[order][:most]]


def _example(evaluation: Evaluation, index: int, album: Album) -> list[Any]:
    """Describe one image: its name, the probabilities of the predicted and the true class, its picture."""
    true, predicted = int(evaluation.labels[index]), int(evaluation.predictions[index])
    return [
        name(evaluation.name_of(index)),
        round(float(evaluation.probabilities[index, predicted]), 6),
        round(float(evaluation.probabilities[index, true]), 6),
        album.picture(index),
    ]


def _table(evaluation: Evaluation) -> list[dict[str, Any]]:
    matrix = evaluation.confusion
    largest = _largest_error(matrix)
    return [
        {
            "name": evaluation.class_names[true],
            "support": int(evaluation.support[true]),
            "cells": [
                {
                    "count": int(matrix[true, predicted]),
                    "true": true,
                    "predicted": predicted,
                    "style": _style(int(matrix[true, predicted]), true == predicted, largest),
                }
                for predicted in range(evaluation.classes)
            ],
        }
        for true in range(evaluation.classes)
    ]


def _style(count: int, diagonal: bool, largest: int) -> str:
    if count == 0:
        return "none"
    return "hit" if diagonal else f"level-{_level(count, largest)}"


def _level(count: int, largest: int) -> int:
    """Shade errors by the root of their number, so that rare ones still show."""
    return max(1, round(LEVELS * math.sqrt(count / largest)))


def _largest_error(matrix: np.ndarray[Any, np.dtype[np.int64]]) -> int:
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    return max(int(errors.max()), 1)


def _drawing(evaluation: Evaluation) -> Markup:
    """Draw all cells that are not empty, one path for each shade."""
    matrix = evaluation.confusion
    largest = _largest_error(matrix)
    paths: dict[str, list[str]] = {}
    for true, predicted in np.argwhere(matrix).tolist():
        style = _style(int(matrix[true, predicted]), true == predicted, largest)
        paths.setdefault(style, []).append(f"M{predicted} {true}h1v1h-1z")
    drawn = Markup("").join(
        Markup('<path class="{}" d="{}"/>').format(style, "".join(parts))
        for style, parts in sorted(paths.items())
    )
    k = evaluation.classes
    return Markup(
        '<svg class="matrix" id="matrix-drawing" viewBox="0 0 {0} {0}" role="img" aria-label="Confusion '
        "matrix of {0} classes, rows are true classes, columns predicted ones. The most frequent confusions "
        'are listed below."><rect class="ground" width="{0}" height="{0}"/>{1}</svg>'
    ).format(k, drawn)


def _pairs(evaluation: Evaluation, album: Album) -> list[dict[str, Any]]:
    return [
        {
            "true": evaluation.class_names[pair.true],
            "predicted": evaluation.class_names[pair.predicted],
            "key": f"{pair.true},{pair.predicted}",
            "images": pair.images,
            "share": pair.share,
            "examples": [
                {"name": evaluation.name_of(index), "picture": album.picture(index)}
                for index in _examples(evaluation, pair.true, pair.predicted)[:PAIR_PICTURES]
            ],
        }
        for pair in evaluation.confused_pairs(PAIRS)
    ]


WORST = 18
EXAMPLES = 5
# With more classes, only the weakest ones are shown with their images.
CLASSES = 12


def mistakes(evaluation: Evaluation, album: Album) -> dict[str, Any]:
    """Gather the images that say where the network fails: the worst errors, and labels that may be wrong."""
    order = (
        np.argsort(evaluation.f1, kind="stable")
        if evaluation.classes > CLASSES
        else range(evaluation.classes)
    )
    unsearched = missing("cleanlab", "labels") if evaluation.errors else ""
    present = [int(index) for index in order if evaluation.support[index]]
    return {
        "errors": evaluation.errors,
        "worst": [image(evaluation, int(index), album) for index in evaluation.worst_errors(WORST)],
        "suspected": evaluation.label_check.suspects if evaluation.errors and not unsearched else 0,
        "unsearched": unsearched,
        "accuracy": evaluation.accuracy,
        "least_accuracy": LEAST_ACCURACY,
        "classes": [_extremes(evaluation, index, album) for index in present[:CLASSES]],
        "all_classes": len(present) <= CLASSES,
    }


def image(evaluation: Evaluation, index: int, album: Album) -> dict[str, Any]:
    """Describe one image and what the network says about it."""
    true, predicted = int(evaluation.labels[index]), int(evaluation.predictions[index])
    return {
        "index": index,
        "name": evaluation.name_of(index),
        "true": evaluation.class_names[true],
        "predicted": evaluation.class_names[predicted],
        "p_true": float(evaluation.probabilities[index, true]),
        "p_predicted": float(evaluation.probabilities[index, predicted]),
        "right": true == predicted,
        "picture": album.picture(index),
    }


def _extremes(evaluation: Evaluation, class_index: int, album: Album) -> dict[str, Any]:
    """Show the images of a class that the network finds hardest and easiest, none of them twice."""
    most = int(evaluation.support[class_index])
    hardest = evaluation.hardest(class_index, min(EXAMPLES, (most + 1) // 2))
    easiest = evaluation.easiest(class_index, min(EXAMPLES, most // 2))
    return {
        "name": evaluation.class_names[class_index],
        "hardest": [image(evaluation, int(index), album) for index in hardest],
        "easiest": [image(evaluation, int(index), album) for index in easiest],
    }
