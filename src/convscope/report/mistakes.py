"""The errors with their images: the worst ones, and each class's hardest and easiest."""

from __future__ import annotations

from typing import Any

import numpy as np

from convscope.environment import missing
from convscope.evaluation import Evaluation
from convscope.evaluation.label_check import LEAST_ACCURACY
from convscope.report.pictures import Album

WORST = 18
EXAMPLES = 5
# With more classes, only the weakest ones are shown with their images.
CLASSES = 12


def mistakes(evaluation: Evaluation, album: Album) -> dict[str, Any]:
    """Gather the images that say where the network fails.

    Parameters
    ----------
    evaluation : Evaluation
        On the part of the data that the report is about.
    album : Album
        Its images.

    Returns
    -------
    dict
        ``errors``, ``worst``, ``suspected`` (a number of labels; None where it would mean nothing),
        ``unsearched`` (why they were not looked for), ``accuracy``, ``classes``; see `image` for what is
        known of each image.
    """
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
    """Describe one image and what the network says about it.

    Parameters
    ----------
    evaluation : Evaluation
        Knows its name, label and probabilities.
    index : int
        Its place.
    album : Album
        Has its picture.

    Returns
    -------
    dict
        ``name``, ``true``, ``predicted``, ``p_true``, ``p_predicted``, ``right``, ``picture``.
    """
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
