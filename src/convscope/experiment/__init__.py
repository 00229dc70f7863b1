"""An experiment from top to bottom: configuration → data → training → evaluation → run directory.

config.py       what decides the outcome          running.py     the recipe, top-down: begin here
preparation.py  split, preprocessing              writing.py     the files of a run
model.py        named network or file, compiled   assessment.py  ``convscope.evaluate`` in a notebook
"""

from convscope.experiment.assessment import Assessment, draw_figures, evaluate
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.model import build_model
from convscope.experiment.preparation import Prepared, prepare
from convscope.experiment.running import Listener, Result, evaluate_parts, run_experiment, train

__all__ = [
    "Assessment",
    "ExperimentConfig",
    "Listener",
    "Prepared",
    "Result",
    "build_model",
    "draw_figures",
    "evaluate",
    "evaluate_parts",
    "prepare",
    "run_experiment",
    "train",
]
