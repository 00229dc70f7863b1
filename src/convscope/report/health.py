"""Training health: verdicts in words, and the scales of every layer behind them."""

from __future__ import annotations

from typing import Any

import numpy as np

from convscope.evaluation import Evaluation
from convscope.inspection import (
    LayerHealth,
    Verdict,
    judge_confidence,
    judge_curves,
    judge_layers,
    layer_health,
)
from convscope.report.source import Contents

# Enough images for means and dead units; each costs a pass forward and back.
IMAGES = 128
LEVELS = ("warning", "note", "good")
SEED = 0


def health(contents: Contents) -> dict[str, Any] | None:
    """Judge the training of a run.

    Parameters
    ----------
    contents : Contents
        The run; with its images, every layer is measured too.

    Returns
    -------
    dict or None
        ``raised`` (the worst first) and ``good`` verdicts, ``layers`` and on how many ``images``; None when
        there is nothing to judge by.

    Raises
    ------
    ConvscopeError
        When the network cannot be loaded or measured.
    """
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
    chosen = _some(evaluation)
    bundle = contents.bundle
    images = bundle.preprocess.apply(contents.images[chosen])
    layers = layer_health(bundle.model, images, evaluation.labels[chosen])
    return _shown((*judge_layers(layers), *verdicts), layers, len(chosen))


def _some(evaluation: Evaluation) -> Any:
    """Choose some images at random, always the same ones."""
    generator = np.random.default_rng(SEED)
    return np.sort(generator.permutation(evaluation.images)[:IMAGES])


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
