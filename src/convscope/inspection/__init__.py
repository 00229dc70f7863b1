"""A look inside a network: shapes and arithmetic, activations, attribution, health. Arrays, no drawing."""

from convscope.inspection.layers import LayerDescription, NetworkDescription, describe
from convscope.inspection.layouts import explain_kernel_layouts

__all__ = [
    "LayerDescription",
    "NetworkDescription",
    "describe",
    "explain_kernel_layouts",
]
