"""Is the training healthy: numbers for each layer, and verdicts in words with the number behind each.

- ``layers``: scales of activations and gradients, dead filters and units; verdicts on them.
- ``curves``: overfitting, underfitting and instability, read off the history.
- ``confidence``: saturated and overconfident answers.
- ``verdicts``: the form of a verdict, and all of them together.
"""

from convscope.inspection.health.confidence import judge_confidence
from convscope.inspection.health.curves import judge_curves
from convscope.inspection.health.layers import LayerHealth, judge_layers, layer_health
from convscope.inspection.health.together import TrainingHealth, training_health
from convscope.inspection.health.verdicts import Level, Verdict

__all__ = [
    "LayerHealth",
    "Level",
    "TrainingHealth",
    "Verdict",
    "judge_confidence",
    "judge_curves",
    "judge_layers",
    "layer_health",
    "training_health",
]
