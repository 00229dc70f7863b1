"""A look inside a network: shapes and arithmetic, activations, attribution, health. Arrays, no drawing.

- ``forward``: a network run layer by layer, every value at hand.
- ``description``: shapes, weights, costs and their arithmetic; how kernels are laid out.
- ``recomputation``: one activation recomputed by hand.
- ``representations``: filters, feature maps, embeddings; images that the network finds alike.
- ``attribution``: which pixels speak for a class, and whether that is true.
- ``synthesis``: what a filter or a class responds to most.
- ``health``: scales and dead units measured; layers, curves and confidence judged in words.
"""

from convscope.arithmetic.kind import Recomputed
from convscope.inspection.attribution import (
    Attribution,
    Completeness,
    FaithfulnessCurve,
    check_attributions,
    deletion,
    grad_cam,
    grad_cam_plus_plus,
    insertion,
    integrated_gradients,
    occlusion,
)
from convscope.inspection.description import (
    LayerDescription,
    NetworkDescription,
    describe,
    explain_kernel_layouts,
)
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
from convscope.inspection.recomputation import Recomputation, recompute
from convscope.inspection.representations import (
    FILTERED,
    EmbeddingMap,
    FeatureMaps,
    Filters,
    Neighbours,
    embedding_map,
    embeddings,
    feature_maps,
    filters,
    nearest,
)
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
