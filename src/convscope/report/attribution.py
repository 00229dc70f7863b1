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
from convscope.plotting import attribution_picture
from convscope.plotting.attributions import METHOD_NAMES
from convscope.report.explorer import chosen_images
from convscope.report.media import Album, data_address
from convscope.report.mistakes import image as describe_image

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
