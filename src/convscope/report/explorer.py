"""The walk through the network: what every layer makes of a few test images, and the numbers that it needs.

The page recomputes a single activation from real numbers: so it carries, as float32, the images, the weights,
and the values of small layers. Large layers are computed by the page itself, and held against the network's
own largest value of each channel. What is too large for both is left out, and the page says so.
"""

from __future__ import annotations

import base64
import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.arithmetic.activations import ACTIVATIONS
from convscope.arithmetic.formulas import same_margins
from convscope.arithmetic.layers import LAYERS
from convscope.contents import Contents
from convscope.evaluation import Evaluation
from convscope.inspection import Recomputation
from convscope.inspection.forward import find_activation
from convscope.inspection.representations import FeatureMaps, feature_maps
from convscope.lowering.graph import Call, Graph, read_graph
from convscope.report.formatting import name
from convscope.report.media import Album

FloatArray = NDArray[np.float32]

IMAGES = 6
# How much the page carries: numbers for one image and in one kernel, characters for all images.
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
# What ``arithmetic.js`` computes.
KINDS = ("same", "max", "average", "activation", "normalization", "convolution", "depthwise", "dense")
WEIGHTED = ("convolution", "depthwise", "dense", "normalization")
# The functions that ``arithmetic.js`` computes for single numbers.
PAGE_ACTIVATIONS = ("linear", "relu", "relu6", "sigmoid", "tanh", "elu", "silu", "softplus")


@dataclass(frozen=True)
class Stage:
    """One layer of the walk.

    Parameters
    ----------
    call : Call
        The layer where it is used.
    parent : int
        The stage whose output enters it, −1 for the image; None where several arrays enter.
    kind : str
        Which arithmetic the page does for it; ``other`` for none.
    """

    call: Call
    parent: int | None
    kind: str


def walk(contents: Contents, evaluation: Evaluation) -> dict[str, Any] | None:
    """Gather what the page needs for walking through the network.

    Gives ``layers``, ``weights``, ``images``; None when the run's images are not at hand.
    """
    if contents.images is None:
        return None
    model, preprocess = contents.bundle.model, contents.bundle.preprocess
    graph = read_graph(model)
    stages = _stages(graph)
    chosen = chosen_images(evaluation, IMAGES)
    inputs = preprocess.apply(contents.images[chosen])
    maps = [feature_maps(model, image) for image in inputs]
    units = _units(evaluation, chosen)
    weights, places = _weights(stages, units)
    supply = _supply(stages, maps[0], places, graph)
    carried = [place for place, how in supply.items() if how == "carried" and place >= 0]
    album = Album(contents.images)
    images: list[dict[str, Any]] = []
    room = ALL_IMAGES
    for index, image, layers in zip(chosen, inputs, maps, strict=True):
        first = np.moveaxis(image, 0, -1) if graph.channels_first else image  # (h, w, c)
        values = pack([first, *(layers[place].values for place in carried), *_checks(layers, supply)])
        if images and len(values) > room:
            break
        room -= len(values)
        described = _image(evaluation, index, album)
        images.append({**described, "values": values, "logits": _logits(stages, layers)})
    layers_json = [
        _layer(place, stage, maps[0][place], supply.get(place), places.get(place), graph)
        for place, stage in enumerate(stages)
    ]
    return {
        "input": list(np.moveaxis(inputs[0], 0, -1).shape if graph.channels_first else inputs[0].shape),
        "layers": layers_json,
        "weights": pack(weights) if weights else None,
        "images": images,
        "classes": [name(label) for label in evaluation.class_names],
    }


def chosen_images(evaluation: Evaluation, most: int) -> list[int]:
    """Choose test images worth a closer look: the worst errors of different classes, and sure right answers.

    Examples
    --------
    >>> chosen_images(Evaluation.from_probabilities([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], [0, 1, 1]), 2)
    [1, 0]
    """
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


def pack(arrays: Sequence[FloatArray]) -> str:
    """Put arrays behind each other as float32, compressed, as text.

    The bytes are sorted by their significance first (all lowest bytes, then all second ones, …), which
    compresses better.

    Examples
    --------
    >>> values = np.arange(3, dtype=np.float32)
    >>> planes = np.frombuffer(gzip.decompress(base64.b64decode(pack([values]))), np.uint8).reshape(4, -1)
    >>> planes.T.copy().view("<f4").ravel().tolist()
    [0.0, 1.0, 2.0]
    """
    flat = np.concatenate([np.asarray(array, "<f4").ravel() for array in arrays])
    planes = flat.view(np.uint8).reshape(-1, 4).T  # (4, n)
    return base64.b64encode(gzip.compress(planes.tobytes(), 9, mtime=0)).decode()


def _stages(graph: Graph) -> list[Stage]:
    """Put each call into its place: what enters it, and which arithmetic it has."""
    makers = {graph.inputs[0]: -1}
    stages = []
    for place, call in enumerate(graph.calls):
        parent = makers.get(call.inputs[0]) if len(call.inputs) == 1 else None
        stages.append(Stage(call, parent, "other" if parent is None else _kind(call, graph)))
        makers.update(dict.fromkeys(call.outputs, place))
    return stages


def _kind(call: Call, graph: Graph) -> str:
    order = getattr(call.operation, "data_format", None)
    # The page has all axes in the network's order; a layer may take them in another. Flatten and Dense
    # have an arithmetic here only where that order is the page's own, and for a row of numbers.
    foreign = order is not None and (order == "channels_first") != graph.channels_first
    turned = call.type in ("Flatten", "Reshape") and graph.channels_first
    rows = call.type == "Dense" and len(call.input_shapes[0]) != 1
    # A batch normalization along another axis than the channels' is none that the page knows.
    across = call.type == "BatchNormalization" and call.operation.axis not in _channel_axes(call, graph)
    kind = LAYERS.get(call.type)
    known = kind is not None and not (foreign or turned or rows or across)
    return kind.page if kind is not None and kind.page in KINDS and known else "other"


def _channel_axes(call: Call, graph: Graph) -> tuple[int, int]:
    """Name the channel axis of what enters a layer as Keras does, from 0 (the batch) and from −1."""
    rank = len(call.input_shapes[0]) + 1
    axis = 1 if graph.channels_first else rank - 1
    return axis, axis - rank


def _supply(
    stages: Sequence[Stage], maps: Sequence[FeatureMaps], weights: Mapping[int, Any], graph: Graph
) -> dict[int, str]:
    """Choose how the page gets each layer's values: carried, computed there, or the same as what enters.

    Small layers are carried, so that the network's own numbers stand behind most of the page; large ones
    are computed by the page from the image and the weights, which are smaller; a layer without either is
    left out.
    """
    supply = {-1: "carried"}
    room, products = VALUES_OF_AN_IMAGE, 0
    for place, stage in enumerate(stages):
        size = maps[place].values.size
        entered = stage.parent in supply
        cost = _products(stage, size, graph) if entered and _computable(stage, weights.get(place)) else None
        if stage.kind == "same" and entered:
            supply[place] = "same"
        elif size <= min(SMALL, room):
            supply[place] = "carried"
            room -= size
        elif cost is not None and products + cost <= MOST_PRODUCTS:
            supply[place] = "computed"
            products += cost
        elif size <= room:
            supply[place] = "carried"
            room -= size
    return supply


def _computable(stage: Stage, weights: Any) -> bool:
    """Say whether the page can compute every value of a layer from what enters it."""
    if stage.kind in ("convolution", "depthwise", "dense"):
        whole = weights is not None and weights["units"] is None
        return whole and _activation(stage.call) in PAGE_ACTIVATIONS
    if stage.kind == "activation":
        return _activation(stage.call) in PAGE_ACTIVATIONS
    return stage.kind in ("normalization", "max", "average")


def _products(stage: Stage, size: int, graph: Graph) -> int:
    """Count the steps in which the page computes a layer of so many values."""
    if stage.kind in ("convolution", "depthwise", "dense"):
        kernel = tuple(map(int, stage.call.operation.get_weights()[0].shape))
        depth = 1 if stage.kind == "depthwise" else kernel[-2]
        return size * depth * math.prod(kernel[:-2])
    return size * (math.prod(_window_size(stage, graph)) if stage.kind in ("max", "average") else 1)


def _checks(maps: Sequence[FeatureMaps], supply: Mapping[int, str]) -> list[FloatArray]:
    """Take the largest value of each channel of the computed layers, and where it stands.

    The page holds what it computes against these numbers of the network's own.
    """
    arrays: list[FloatArray] = []
    for place, how in supply.items():
        if how != "computed":
            continue
        values = maps[place].values
        channels = values.reshape(-1, values.shape[-1])  # (places, channels)
        flat = channels.argmax(axis=0) * channels.shape[1] + np.arange(channels.shape[1])
        arrays.extend((flat.astype(np.float32), values.ravel()[flat]))
    return arrays


def _units(evaluation: Evaluation, chosen: Sequence[int]) -> list[int]:
    """Choose the outputs whose weights matter most: predicted and true classes of the chosen images."""
    labels = np.stack([evaluation.predictions[chosen], evaluation.labels[chosen]], axis=1)
    return list(dict.fromkeys(labels.ravel().tolist()))


def _weights(stages: Sequence[Stage], units: Sequence[int]) -> tuple[list[FloatArray], dict[int, Any]]:
    """Collect the weights that are carried: small kernels whole, of large ones those of a few units."""
    own = {place: _kernel_and_bias(stage) for place, stage in enumerate(stages) if stage.kind in WEIGHTED}
    room = WEIGHT_VALUES
    whole = set()
    for place in sorted(own, key=lambda place: own[place][0].size):
        if own[place][0].size <= min(KERNEL_VALUES, room):
            room -= own[place][0].size
            whole.add(place)
    arrays: list[FloatArray] = []
    places: dict[int, Any] = {}
    position = 0
    for place, (kernel, bias) in own.items():
        columns = None
        carried = kernel, bias
        if place not in whole:
            columns = _columns(stages[place] is stages[-1], kernel, units, room)
            if stages[place].kind == "depthwise" or not columns:
                continue
            carried = kernel[..., columns], bias[columns]
            room -= carried[0].size
        places[place] = {"start": position, "kernel": list(carried[0].shape), "units": columns}
        places[place]["bias"] = len(stages[place].call.operation.get_weights()) > 1
        arrays.extend(carried)
        position += sum(array.size for array in carried)
    return arrays, places


def _columns(last: bool, kernel: FloatArray, units: Sequence[int], room: int) -> list[int]:
    """Choose units of a large layer: those of the classes at the end, the first few elsewhere."""
    wanted = list(units) if last else list(range(min(MOST_UNITS, kernel.shape[-1])))
    return sorted(wanted[: room // math.prod(kernel.shape[:-1])])


def _kernel_and_bias(stage: Stage) -> tuple[FloatArray, FloatArray]:
    """Read a layer's weights; one without biases gets zeros, a normalization its four rows as a kernel."""
    if stage.kind == "normalization":
        return _normalization(stage.call.operation), np.zeros(0, np.float32)
    kernel, *rest = stage.call.operation.get_weights()
    # A depthwise kernel is (h, w, channels, multiplier): each channel has filters of its own.
    outputs = kernel.shape[-1] * (kernel.shape[2] if stage.kind == "depthwise" else 1)
    return kernel, rest[0] if rest else np.zeros(outputs, np.float32)


def _normalization(layer: Any) -> FloatArray:
    """Read gamma, beta, mean and variance of a batch normalization: (4, channels)."""
    mean, variance = (np.asarray(value, np.float32) for value in layer.get_weights()[-2:])
    learned = iter(layer.get_weights()[:-2])
    gamma = next(learned) if layer.scale else np.ones_like(mean)
    beta = next(learned) if layer.center else np.zeros_like(mean)
    return np.stack([gamma, beta, mean, variance]).astype(np.float32)


def _logits(stages: Sequence[Stage], layers: Sequence[FeatureMaps]) -> list[float] | None:
    """Compute the sums that enter a softmax at the end, in float64; the page shows one of them in detail."""
    last = stages[-1]
    if last.kind != "dense" or _activation(last.call) != "softmax" or last.parent is None or last.parent < 0:
        return None
    kernel, bias = _kernel_and_bias(last)
    entering = layers[last.parent].values.ravel().astype(np.float64)
    sums = entering @ kernel.astype(np.float64) + bias
    return [float(value) for value in sums]


def _activation(call: Call) -> str:
    """Name the function behind a layer's sum; unknown where the page's function of that name is another."""
    found = find_activation(call.operation)
    known = ACTIVATIONS.get(found.name)
    is_another = known is not None and known.apply is not None and known is not found
    return "unknown" if is_another else found.name


def _layer(
    place: int, stage: Stage, maps: FeatureMaps, supply: str | None, weights: Any, graph: Graph
) -> dict[str, Any]:
    """Describe a layer for the page."""
    described: dict[str, Any] = {
        "name": name(stage.call.name),
        "type": stage.call.type,
        "shape": list(maps.values.shape),
        "parent": stage.parent,
        "kind": stage.kind,
        "supply": supply,
        "place": place,
    }
    if stage.kind in ("convolution", "depthwise", "dense"):
        described |= {"activation": _activation(stage.call), "weights": weights}
    elif stage.kind == "activation":
        described |= {"activation": _activation(stage.call)}
    elif stage.kind == "normalization":
        described |= {"weights": weights, "epsilon": float(stage.call.operation.epsilon)}
    if stage.kind in ("convolution", "depthwise", "max", "average"):
        described |= _window(stage, graph)
    return described


def _window(stage: Stage, graph: Graph) -> dict[str, Any]:
    """Say where a window begins for each output: size, strides, dilation, padding above and left."""
    operation = stage.call.operation
    height, width = _spatial(stage.call.input_shapes[0], graph)
    size = _window_size(stage, graph)
    if stage.call.type.startswith("Global"):
        strides, dilation, padding = (1, 1), (1, 1), "valid"
    else:
        strides = operation.strides
        dilation = getattr(operation, "dilation_rate", (1, 1))
        padding = operation.padding
    above = [
        same_margins(length, window, step, gap)[0] if padding == "same" else 0
        for length, window, step, gap in zip((height, width), size, strides, dilation, strict=True)
    ]
    return {
        "window": list(size),
        "strides": list(strides),
        "dilation": list(dilation),
        "padding": above,
        "groups": int(getattr(operation, "groups", 1) or 1),
        "multiplier": int(getattr(operation, "depth_multiplier", 1) or 1),
    }


def _window_size(stage: Stage, graph: Graph) -> tuple[int, ...]:
    """Read how many places a window covers down and across."""
    if stage.call.type.startswith("Global"):
        return _spatial(stage.call.input_shapes[0], graph)
    operation = stage.call.operation
    return tuple(operation.kernel_size if "Conv" in stage.call.type else operation.pool_size)


def _spatial(shape: tuple[int | None, ...], graph: Graph) -> tuple[int, int]:
    height, width = shape[1:] if graph.channels_first else shape[:2]
    return int(height or 0), int(width or 0)


def _image(evaluation: Evaluation, index: int, album: Album) -> dict[str, Any]:
    true, predicted = int(evaluation.labels[index]), int(evaluation.predictions[index])
    return {
        "name": name(evaluation.name_of(index)),
        "true": true,
        "predicted": predicted,
        "picture": album.picture(index),
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
