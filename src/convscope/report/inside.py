"""Inside the network: layers with their arithmetic, filters, one activation by hand, what it looks at."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import numpy as np

from convscope.contents import Contents
from convscope.environment import missing
from convscope.errors import UsageError
from convscope.evaluation import Evaluation
from convscope.inspection import Recomputation, describe, explain_kernel_layouts, filters
from convscope.inspection.attribution import Attribution, grad_cam, integrated_gradients
from convscope.lowering.graph import read_graph
from convscope.plotting import attribution_picture, filter_pictures
from convscope.plotting.inspection import METHOD_NAMES
from convscope.report.explorer import chosen_images
from convscope.report.formatting import Album, count, data_address, layer_cells, shape
from convscope.report.mistakes import image as describe_image

# A longer table is folded.
LONG = 24


def architecture(contents: Contents) -> dict[str, Any]:
    """Describe the network of a run: its layers, its totals, the layouts of its kernels."""
    network = describe(contents.bundle.model)
    layers = [{**layer_cells(layer), "arithmetic": layer.arithmetic} for layer in network.layers]
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
    """Draw the kernels of the first convolution, averaged over its input channels; None without one."""
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
    """Recompute the strongest activation of the first convolution for one test image; None without either."""
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


IMAGES = 4
# A large network is slow to look into; after so long, the images so far must do.
SECONDS = 6.0
# Integrated gradients are left out for a network that takes more for one image.
MOST_MACS = 30_000_000
# Where even the least of a map is above this share of its largest, it looks the same everywhere.
EVEN = 0.5


def attribution(contents: Contents, evaluation: Evaluation) -> dict[str, Any] | None:
    """Show what the network looks at in a few test images; None when the run's images are not at hand."""
    if contents.images is None:
        return None
    model, preprocess = contents.bundle.model, contents.bundle.preprocess
    macs = describe(model).macs or 0
    lacking = missing("captum", "attribution")
    if not lacking and macs > MOST_MACS:  # asked for its gradient at up to a thousand points
        lacking = (
            f"with {macs / 1e6:,.0f} million multiply-accumulates for an image, they would take minutes."
        )
    album = Album(contents.images)
    rows: list[dict[str, Any]] = []
    begin = time.perf_counter()
    chosen = chosen_images(evaluation, IMAGES)
    for index in chosen:
        if rows and time.perf_counter() - begin > SECONDS:
            break
        pixels = preprocess.resize_to_input(contents.images[[index]])[0]  # (h, w, c)
        array = preprocess.apply(pixels[None])[0]
        predicted, true = int(evaluation.predictions[index]), int(evaluation.labels[index])
        classes = [] if lacking else [predicted] if true == predicted else [predicted, true]
        maps = [_map(pixels, integrated_gradients(model, array, one), evaluation) for one in classes]
        with suppress(UsageError):  # a network without feature maps has no Grad-CAM
            maps.insert(0, _map(pixels, grad_cam(model, array, predicted), evaluation))
        rows.append({**describe_image(evaluation, index, album), "maps": maps})
    return {
        "images": rows,
        "left_out": len(chosen) - len(rows),
        "seconds": SECONDS,
        "lacking": lacking,
        "complete": all(entry["holds"] for row in rows for entry in row["maps"]),
    }


def _map(pixels: Any, found: Attribution, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "method": METHOD_NAMES[found.method],
        "class": evaluation.class_names[found.class_index],
        "picture": data_address(attribution_picture(pixels, found), drawn=True),
        "error": found.completeness.error if found.completeness else None,
        "empty": not found.values.any(),
        "flat": bool(found.values.any() and np.ptp(found.values) == 0),
        "even": bool(found.values.min() > EVEN * found.values.max()),
        "holds": found.completeness.holds if found.completeness else True,
    }
