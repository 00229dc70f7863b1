"""One activation recomputed by hand, in float64, from what enters its layer and the layer's weights."""

from convscope.inspection.recomputation.recompute import Recomputation, recompute
from convscope.inspection.recomputation.site import Recomputed

__all__ = ["Recomputation", "Recomputed", "recompute"]
