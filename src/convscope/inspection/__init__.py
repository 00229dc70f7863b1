"""A look inside a network: shapes and arithmetic, activations, attribution, health. Arrays, no drawing.

- ``graph``, ``running``: a Keras model as a list of calls, and how to run it.
- ``layers``, ``layouts``: shapes, weights, costs and their arithmetic.
- ``recomputation``: one activation recomputed by hand.
- ``activations``, ``neighbours``: filters, feature maps, embeddings; images that the network finds alike.
- ``attribution``, ``faithfulness``: which pixels speak for a class, and whether that is true.
- ``synthesis``: what a filter or a class responds to most.
- ``health``: scales, dead units, curves and confidence, with verdicts in words.
"""

from convscope.arithmetic.recomputed import Recomputed
from convscope.inspection.activations import FILTERED, FeatureMaps, Filters, embeddings, feature_maps, filters
from convscope.inspection.attribution import (
    Attribution,
    Completeness,
    grad_cam,
    grad_cam_plus_plus,
    integrated_gradients,
    occlusion,
)
from convscope.inspection.faithfulness import FaithfulnessCurve, check_attributions, deletion, insertion
from convscope.inspection.health import (
    LayerHealth,
    TrainingHealth,
    Verdict,
    judge_confidence,
    judge_curves,
    judge_layers,
    layer_health,
    training_health,
)
from convscope.inspection.layers import LayerDescription, NetworkDescription, describe
from convscope.inspection.layouts import explain_kernel_layouts
from convscope.inspection.neighbours import EmbeddingMap, Neighbours, embedding_map, nearest
from convscope.inspection.recomputation import Recomputation, recompute
from convscope.inspection.synthesis import Synthesis, maximise_class, maximise_filter

__all__ = [
    "FILTERED",
    "Attribution",
    "Completeness",
    "EmbeddingMap",
    "FaithfulnessCurve",
    "FeatureMaps",
    "Filters",
    "LayerDescription",
    "LayerHealth",
    "Neighbours",
    "NetworkDescription",
    "Recomputation",
    "Recomputed",
    "Synthesis",
    "TrainingHealth",
    "Verdict",
    "check_attributions",
    "deletion",
    "describe",
    "embedding_map",
    "embeddings",
    "explain_kernel_layouts",
    "feature_maps",
    "filters",
    "grad_cam",
    "grad_cam_plus_plus",
    "insertion",
    "integrated_gradients",
    "judge_confidence",
    "judge_curves",
    "judge_layers",
    "layer_health",
    "maximise_class",
    "maximise_filter",
    "nearest",
    "occlusion",
    "recompute",
    "training_health",
]
