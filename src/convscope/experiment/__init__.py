"""An experiment from top to bottom: configuration → data → training → evaluation → run directory.

- ``running``: the recipe, top-down; begin here.
- ``config``: what decides the outcome.
- ``session``: data and network of a training; ``preparation`` and ``model`` make them.
- ``fitting``: training and evaluating; ``keeping``: checkpoints and orderly ends.
- ``writing``: the files of a run.
- ``assessment``: ``convscope.evaluate`` in a notebook.
"""

from convscope.experiment.assessment import Assessment, draw_figures, evaluate
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.fitting import evaluate_parts, train
from convscope.experiment.model import build_model
from convscope.experiment.preparation import Prepared, prepare
from convscope.experiment.running import Result, resume_experiment, run_experiment
from convscope.training.events import Listener

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
    "resume_experiment",
    "run_experiment",
    "train",
]
