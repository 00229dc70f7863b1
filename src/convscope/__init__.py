"""convscope: convolutional image classifiers, trained fast, measured honestly, opened up.

The public names below are loaded on first use, so that ``import convscope`` loads neither torch nor Keras.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

# Keras reads its back end once, when it is first imported; a user's own choice wins.
os.environ.setdefault("KERAS_BACKEND", "torch")
if sys.platform == "darwin":
    # Torch reads this once, too: what Apple's mps cannot compute, the processor does.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

# What is logged is seen by those who ask for it.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.1.0"

# public name → the module that holds it
_PUBLIC = {
    "load": "data.loading",
    "Dataset": "data.dataset",
    "Split": "data.dataset",
    "Preprocess": "preprocessing",
    "build": "networks",
    "fit": "training.api",
    "predict": "training.api",
    "evaluate": "experiment.results",
    "load_bundle": "export",
    "Evaluation": "evaluation",
    "describe": "inspection",
    "check": "teaching.grading",
    "plot_history": "plotting",
    "plot_confusion_matrix": "plotting",
    "plot_errors": "plotting",
    "plot_probability": "plotting",
    "plot_predictions": "plotting",
    "ConvscopeError": "errors",
}

__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from convscope.data.dataset import Dataset, Split
    from convscope.data.loading import load
    from convscope.errors import ConvscopeError
    from convscope.evaluation import Evaluation
    from convscope.experiment.results import evaluate
    from convscope.export import load_bundle
    from convscope.inspection import describe
    from convscope.networks import build
    from convscope.plotting import (
        plot_confusion_matrix,
        plot_errors,
        plot_history,
        plot_predictions,
        plot_probability,
    )
    from convscope.preprocessing import Preprocess
    from convscope.teaching.grading import check
    from convscope.training.api import fit, predict


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
