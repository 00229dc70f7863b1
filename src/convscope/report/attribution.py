"""What the network looks at: its first filters, and the pixels that speak for its answers."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import numpy as np

from convscope.contents import Contents
from convscope.environment import missing
from convscope.errors import UsageError
from convscope.evaluation import Evaluation
from convscope.inspection import describe
from convscope.inspection.attribution import Attribution, grad_cam, integrated_gradients
from convscope.inspection.representations import filters
from convscope.plotting import attribution_picture, filter_pictures
from convscope.report.errors import image as describe_image
from convscope.report.explorer import chosen_images
from convscope.report.media import Album, data_address

IMAGES = 4
# A large network is slow to look into; after so long, the images so far must do.
SECONDS = 6.0
# Integrated gradients are left out for a network that takes more for one image.
MOST_MACS = 30_000_000
# Where even the least of a map is above this share of its largest, it looks the same everywhere.
EVEN = 0.5


def attribution(contents: Contents, evaluation: Evaluation) -> dict[str, Any] | None:
    """Show what the network looks at in a few test images.

    Gives ``images`` with their ``maps``, ``left_out`` (how many more were not looked into, for lack of time),
    ``lacking`` (what to install for more of them); None when the run's images are not at hand.
    """
    if contents.images is None:
        return None
    model, preprocess = contents.bundle.model, contents.bundle.preprocess
    lacking = missing("captum", "attribution") or _why_too_large(describe(model).macs or 0)
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


def _why_too_large(macs: int) -> str | None:
    """Say why a network of this cost is not asked for its gradient at up to a thousand points."""
    if macs <= MOST_MACS:
        return None
    return f"with {macs / 1e6:,.0f} million multiply-accumulates for an image, they would take minutes."


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


def _map(pixels: Any, found: Attribution, evaluation: Evaluation) -> dict[str, Any]:
    method = {"grad_cam": "Grad-CAM", "integrated_gradients": "integrated gradients"}[found.method]
    return {
        "method": method,
        "class": evaluation.class_names[found.class_index],
        "picture": data_address(attribution_picture(pixels, found), drawn=True),
        "error": found.completeness.error if found.completeness else None,
        "empty": not found.values.any(),
        "flat": bool(found.values.any() and np.ptp(found.values) == 0),
        "even": bool(found.values.min() > EVEN * found.values.max()),
        "holds": found.completeness.holds if found.completeness else True,
    }
