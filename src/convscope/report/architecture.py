"""The network: its layers with their shapes, weights and costs, and the arithmetic that gives them."""

from __future__ import annotations

from typing import Any

from convscope.contents import Contents
from convscope.inspection import describe, explain_kernel_layouts
from convscope.report.formatting import count, shape

# A longer table is folded.
LONG = 24


def architecture(contents: Contents) -> dict[str, Any]:
    """Describe the network of a run.

    Gives ``layers``, ``parameters``, ``macs``, ``layouts`` and whether the table is ``long``.
    """
    network = describe(contents.bundle.model)
    layers = [
        {
            "name": layer.name,
            "type": layer.type,
            "input": shape(layer.input_shape),
            "output": shape(layer.output_shape),
            "weights": ", ".join(shape(weights) for weights in layer.weight_shapes) or "–",
            "parameters": count(layer.parameters),
            "macs": "?" if layer.macs is None else count(layer.macs),
            "sees": shape(layer.receptive_field) if layer.receptive_field else "–",
            "arithmetic": layer.arithmetic,
        }
        for layer in network.layers
    ]
    return {
        "layers": layers,
        "input": shape(network.input_shape),
        "parameters": count(network.parameters),
        "trainable": count(network.trainable_parameters),
        "macs": None if network.macs is None else count(network.macs),
        "layouts": explain_kernel_layouts(network),
        "long": len(layers) > LONG,
    }
