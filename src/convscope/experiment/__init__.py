"""An experiment from top to bottom: configuration → data → training → evaluation → run directory.

- ``running``: the recipe, top-down; begin here.
- ``config``: what decides the outcome.
- ``preparation``: data and network of a training.
- ``planning``: what is found out first, on copies of the network: does it learn, at which rate, in what time?
- ``fitting``: the training: schedule, stops, checkpoints, orderly ends.
- ``several``: more than one of them, one after the other or side by side in ``workers``; one for each fold.
- ``together``: one of them on several processes.
- ``sweep``: trials with settings out of a ``space``, which a ``study`` hands out.
- ``results``: evaluations, figures and files; ``convscope.evaluate`` in a notebook.

What users call is loaded on first use, so that a configuration is checked before Keras is loaded for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# public name → the module that holds it
_PUBLIC = {"ExperimentConfig": "config", "run_experiment": "running"}

__all__ = ["ExperimentConfig", "run_experiment"]

if TYPE_CHECKING:
    from convscope.experiment.config import ExperimentConfig
    from convscope.experiment.running import run_experiment


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value
