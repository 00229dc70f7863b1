"""An experiment from top to bottom: configuration → data → training → evaluation → run directory.

- ``running``: the recipe, top-down; begin here.
- ``config``: what decides the outcome.
- ``preparation``: data and network of a training; ``model`` builds and adapts the network.
- ``trials``: what is tried on copies of the network before it is trained.
- ``fitting``: the training: schedule, stops, checkpoints, orderly ends.
- ``several``: more than one of them, one after the other or side by side in ``workers``.
- ``together``: one of them on several processes.
- ``cross_validation``: a network for each fold of the images, and one evaluation of all.
- ``sweep``: trials with settings out of a ``space``, which a ``study`` hands out.
- ``results``: evaluations, figures and files; ``convscope.evaluate`` in a notebook.

The names below are loaded on first use, so that a configuration is checked before Keras is loaded for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# public name → the module that holds it
_PUBLIC = {
    "Assessment": "results",
    "CrossValidation": "cross_validation",
    "ExperimentConfig": "config",
    "Prepared": "preparation",
    "Result": "running",
    "Trained": "running",
    "build_model": "model",
    "cross_validate": "cross_validation",
    "draw_figures": "results",
    "evaluate": "results",
    "evaluate_parts": "results",
    "prepare": "preparation",
    "resume_experiment": "running",
    "resume_together": "together",
    "run_experiment": "running",
    "run_several": "several",
    "run_trial": "running",
    "spread": "several",
    "evaluate_on_test": "running",
    "train": "fitting",
    "train_together": "together",
}

if TYPE_CHECKING:
    from convscope.experiment.config import ExperimentConfig
    from convscope.experiment.cross_validation import CrossValidation, cross_validate
    from convscope.experiment.fitting import train
    from convscope.experiment.model import build_model
    from convscope.experiment.preparation import Prepared, prepare
    from convscope.experiment.results import Assessment, draw_figures, evaluate, evaluate_parts
    from convscope.experiment.running import (
        Result,
        Trained,
        evaluate_on_test,
        resume_experiment,
        run_experiment,
        run_trial,
    )
    from convscope.experiment.several import run_several, spread
    from convscope.experiment.together import resume_together, train_together

__all__ = [
    "Assessment",
    "CrossValidation",
    "ExperimentConfig",
    "Prepared",
    "Result",
    "Trained",
    "build_model",
    "cross_validate",
    "draw_figures",
    "evaluate",
    "evaluate_on_test",
    "evaluate_parts",
    "prepare",
    "resume_experiment",
    "resume_together",
    "run_experiment",
    "run_several",
    "run_trial",
    "spread",
    "train",
    "train_together",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value
