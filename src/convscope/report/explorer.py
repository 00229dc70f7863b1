"""The walk through the network: what every layer makes of a few test images, and the numbers that it needs.

The walk is the explorer's own. The report carries less than the explorer does: as float32, a few images,
the values of small layers, and weights. Large layers are computed by the page, and held against the network's
own largest value of each channel. What is too large for both is left out, and the page says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.contents import Contents
from convscope.evaluation import Evaluation
from convscope.explorer.layers import Layer, read_layers
from convscope.explorer.page import describe_layer, pack, pack_weights
from convscope.inspection import describe
from convscope.inspection.representations import FeatureMaps, feature_maps
from convscope.lowering.graph import read_graph
from convscope.report.formatting import Album, name

FloatArray = NDArray[np.float32]

IMAGES = 6
# How much the page carries: numbers for one image and in one layer's weights, characters for all images.
VALUES_OF_AN_IMAGE = 150_000
KERNEL_VALUES = 80_000
WEIGHT_VALUES = 120_000
ALL_IMAGES = 900_000
# A layer with so few values is carried even where the page could compute it.
SMALL = 2500
# Products that a browser adds up for all layers of an image in about a second.
MOST_PRODUCTS = 300_000_000
# Of a kernel that is too large, so many units at most.
MOST_UNITS = 8


@dataclass(frozen=True)
class Carried:
    """The weights of a layer that the page carries: all, those of some units, or none of some."""

    weights: Mapping[str, FloatArray] = field(default_factory=dict)
    units: list[int] | None = None
    missing: bool = False

    @property
    def whole(self) -> bool:
        """Whether the page can compute with them."""
        return self.units is None and not self.missing


def walk(contents: Contents, evaluation: Evaluation) -> dict[str, Any] | None:
    """Gather what the page needs for walking through the network; None when the images are not at hand."""
    if contents.images is None:
        return None
    model, preprocess = contents.bundle.model, contents.bundle.preprocess
    graph = read_graph(model)
    layers, described = read_layers(graph), describe(model).layers
    chosen = chosen_images(evaluation, IMAGES)
    inputs = preprocess.apply(contents.images[chosen])
    maps = [feature_maps(model, image) for image in inputs]
    weights = _weights(layers, _units(evaluation, chosen))
    costs = [one.macs or 0 for one in described]
    supply = _supply(layers, costs, maps[0], weights)
    carried = [index for index, how in supply.items() if how == "carried" and index >= 0]
    album = Album(contents.images)
    images: list[dict[str, Any]] = []
    room = ALL_IMAGES
    for place, image, made in zip(chosen, inputs, maps, strict=True):
        first = np.moveaxis(image, 0, -1) if graph.channels_first else image  # (h, w, c)
        arrays = [first, *(made[index].values for index in carried), *_checks(made, supply)]
        values = pack(np.concatenate([array.ravel() for array in arrays]).astype(np.float32))
        if images and len(values["data"]) > room:
            break
        room -= len(values["data"])
        described_image = _image(evaluation, place, album)
        images.append({**described_image, "values": values, "scores": _scores(layers, made)})
    entries, packed = pack_weights(layers, [one.weights for one in weights])
    shape = np.moveaxis(inputs[0], 0, -1).shape if graph.channels_first else inputs[0].shape
    return {
        "network": {
            "input": list(shape),
            "layers": [
                _layer(describe_layer(index, layer, entry, one), weights[index], supply.get(index))
                for index, (layer, entry, one) in enumerate(zip(layers, entries, described, strict=True))
            ],
        },
        "weights": packed,
        "images": images,
        "classes": [name(label) for label in evaluation.class_names],
    }


def chosen_images(evaluation: Evaluation, most: int) -> list[int]:
    """Choose test images worth a closer look: the worst errors, of different classes, and sure answers."""
    wrong: dict[int, int] = {}
    for index in evaluation.worst_errors(evaluation.images).tolist():
        wrong.setdefault(int(evaluation.labels[index]), index)
    by_class = sorted(
        (int(label) for label in np.flatnonzero(evaluation.support)),
        key=lambda label: (label in wrong, label),
    )
    surest = [int(evaluation.easiest(label, 1)[0]) for label in by_class]
    right = [index for index in surest if evaluation.predictions[index] == evaluation.labels[index]]
    errors = list(wrong.values())[: max(most // 2, most - len(right))]
    return [*errors, *right[: most - len(errors)]]


def _supply(
    layers: Sequence[Layer], costs: Sequence[int], maps: Sequence[FeatureMaps], weights: Sequence[Carried]
) -> dict[int, str]:
    """Choose how the page gets each layer's values: carried, computed there, or the same as what enters.

    Small layers are carried, so that the network's own numbers stand behind most of the page; large ones
    are computed by the page from the image and the weights, which are smaller; a layer without either is
    left out.
    """
    supply = {-1: "carried"}
    room, products = VALUES_OF_AN_IMAGE, 0
    for index, layer in enumerate(layers):
        size = maps[index].values.size
        cost = costs[index] or size * math.prod(layer.settings.get("window", ()))
        computable = not layer.reason and weights[index].whole and all(one in supply for one in layer.inputs)
        if computable and layer.kind == "same":
            supply[index] = "same"
        elif size <= min(SMALL, room):
            supply[index] = "carried"
            room -= size
        elif computable and products + cost <= MOST_PRODUCTS:
            supply[index] = "computed"
            products += cost
        elif size <= room:
            supply[index] = "carried"
            room -= size
    return supply


def _checks(maps: Sequence[FeatureMaps], supply: Mapping[int, str]) -> list[FloatArray]:
    """Take the largest value of each channel of the computed layers, and where it stands.

    The page holds what it computes against these numbers of the network's own.
    """
    arrays: list[FloatArray] = []
    for index, how in supply.items():
        if how != "computed":
            continue
        values = maps[index].values
        channels = values.reshape(-1, values.shape[-1])  # (places, channels)
        flat = channels.argmax(axis=0) * channels.shape[1] + np.arange(channels.shape[1])
        arrays.extend((flat.astype(np.float32), values.ravel()[flat]))
    return arrays


def _units(evaluation: Evaluation, chosen: Sequence[int]) -> list[int]:
    """Choose the outputs whose weights matter most: predicted and true classes of the chosen images."""
    labels = np.stack([evaluation.predictions[chosen], evaluation.labels[chosen]], axis=1)
    return list(dict.fromkeys(labels.ravel().tolist()))


def _weights(layers: Sequence[Layer], units: Sequence[int]) -> list[Carried]:
    """Choose the weights that are carried: small layers' whole, of large ones those of a few units."""
    sizes = {
        index: sum(array.size for array in layer.weights.values())
        for index, layer in enumerate(layers)
        if layer.shares is None
    }
    room = WEIGHT_VALUES
    whole = set()
    for index in sorted(sizes, key=lambda index: sizes[index]):
        if sizes[index] <= min(KERNEL_VALUES, room):
            room -= sizes[index]
            whole.add(index)
    carried: list[Carried] = []
    for index, layer in enumerate(layers):
        if layer.shares is not None:
            carried.append(carried[layer.shares])
        elif index in whole:
            carried.append(Carried(layer.weights))
        elif layer.kind not in ("convolution", "dense"):
            carried.append(Carried(missing=True))
        else:
            kernel = layer.weights["kernel"]
            last = index == len(layers) - 1
            wanted = list(units) if last else list(range(min(MOST_UNITS, kernel.shape[-1])))
            columns = sorted(wanted[: room // math.prod(kernel.shape[:-1])])
            own = {key: array[..., columns] for key, array in layer.weights.items()} if columns else {}
            room -= sum(array.size for array in own.values())
            carried.append(Carried(own, columns, missing=not columns))
    return carried


def _scores(layers: Sequence[Layer], maps: Sequence[FeatureMaps]) -> list[float] | None:
    """Compute the sums that enter a softmax at the end, in float64; the page shows one of them in detail."""
    last = layers[-1]
    if last.kind != "dense" or last.activation != "softmax" or last.inputs[0] < 0:
        return None
    entering = maps[last.inputs[0]].values.ravel().astype(np.float64)
    sums = entering @ last.weights["kernel"].astype(np.float64) + last.weights.get("bias", 0.0)
    return [float(value) for value in sums]


def _layer(described: dict[str, Any], carried: Carried, supply: str | None) -> dict[str, Any]:
    """Describe a layer for the page, with what the page has of it."""
    settings = dict(described["settings"])
    if carried.units:
        settings["units"] = carried.units
    if carried.missing:
        settings["missing"] = True
    return described | {
        "name": name(described["name"]),
        "supply": supply,
        "live": supply in {"computed", "same"},
        "settings": {
            key: value for key, value in settings.items() if value is not None and value is not False
        },
    }


def _image(evaluation: Evaluation, index: int, album: Album) -> dict[str, Any]:
    true, predicted = int(evaluation.labels[index]), int(evaluation.predictions[index])
    return {
        "name": name(evaluation.name_of(index)),
        "true": true,
        "predicted": predicted,
        "picture": album.picture(index),
    }
