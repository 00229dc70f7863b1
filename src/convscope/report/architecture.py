"""The network: its layers with the arithmetic behind them, its first filters, and one activation by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from convscope.contents import Contents
from convscope.errors import UsageError
from convscope.evaluation import Evaluation
from convscope.inspection import Recomputation, describe, explain_kernel_layouts, filters
from convscope.lowering.graph import read_graph
from convscope.plotting import filter_pictures
from convscope.report.explorer import chosen_images
from convscope.report.formatting import count, shape
from convscope.report.media import data_address

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


def first_filters(contents: Contents) -> dict[str, Any] | None:
    """Draw the kernels of the first convolution, averaged over its input channels.

    Gives ``layer``, ``shape``, ``kernels`` (pictures), ``all``; None for a network without a convolution.
    """
    try:
        found = filters(contents.bundle.model)
    except UsageError:
        return None
    kernels, largest = filter_pictures(found)
    return {
        "layer": found.layer,
        "size": kernels.shape[1:3],
        "channels": found.kernels.shape[-1],
        "count": len(found.kernels),
        "kernels": [data_address(kernel, drawn=True) for kernel in kernels],
        "largest": largest,
    }


# A larger window makes no table that anybody reads.
LARGEST_WINDOW = 7


def example(contents: Contents, evaluation: Evaluation) -> dict[str, Any] | None:
    """Recompute the strongest activation of the first convolution for one test image.

    Gives ``grids`` (patch, kernel, products of the input channel that adds most) and the sums; None without
    images, or for a network without a convolution.
    """
    if contents.images is None:
        return None
    index = chosen_images(evaluation, 1)[0]
    image = contents.bundle.preprocess.apply(contents.images[[index]])[0]
    found = Recomputation(contents.bundle.model, image).strongest()
    if found.position is None or found.weights is None or found.inputs.ndim != 3:
        return None
    if max(found.inputs.shape[:2]) > LARGEST_WINDOW:
        return None
    products = found.inputs * found.weights  # (h, w, channels)
    strongest = int(np.abs(products.sum(axis=(0, 1))).argmax())
    return {
        "found": found,
        "biased": getattr(read_graph(contents.bundle.model).call(found.layer).operation, "bias", None)
        is not None,
        "image": evaluation.name_of(index),
        "row": found.position[0],
        "column": found.position[1],
        "channels": products.shape[2],
        "input_channel": strongest,
        "grids": [
            (caption, values[:, :, strongest].tolist(), float(np.abs(values[:, :, strongest]).max()))
            for caption, values in (
                ("patch", found.inputs),
                ("kernel", found.weights),
                ("products", products),
            )
        ],
        "sum": float(products.sum()),
        "count": int(products.size),
    }
