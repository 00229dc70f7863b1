"""One activation, recomputed when the report is made: what a reader without JavaScript gets to see."""

from __future__ import annotations

from typing import Any

import numpy as np

from convscope.evaluation import Evaluation
from convscope.inspection import Recomputation
from convscope.report.source import Contents
from convscope.report.walk import chosen_images

# A larger window makes no table that anybody reads.
LARGEST_WINDOW = 7


def example(contents: Contents, evaluation: Evaluation) -> dict[str, Any] | None:
    """Recompute the strongest activation of the first convolution for one test image.

    Parameters
    ----------
    contents : Contents
        The run.
    evaluation : Evaluation
        Of its test images.

    Returns
    -------
    dict or None
        ``grids`` (patch, kernel, products of the input channel that adds most) and the sums; None without
        images, or for a network without a convolution.

    Raises
    ------
    ConvscopeError
        When the network cannot be loaded or recomputed.
    """
    if contents.images is None:
        return None
    index = chosen_images(evaluation, 1)[0]
    image = contents.bundle.preprocess.apply(contents.images[[index]])[0]
    found = Recomputation(contents.bundle.model, image).strongest()
    if (
        found.position is None
        or found.weights is None
        or found.inputs.ndim != 3
        or max(found.inputs.shape[:2]) > LARGEST_WINDOW
    ):
        return None
    products = found.inputs * found.weights  # (h, w, channels)
    strongest = int(np.abs(products.sum(axis=(0, 1))).argmax())
    return {
        "found": found,
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
