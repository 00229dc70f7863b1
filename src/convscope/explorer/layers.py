"""A network's layers → what ``page/network.js`` computes them from; axes are (height, width, channels)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.arithmetic.formulas import same_margins
from convscope.arithmetic.layers import LAYERS
from convscope.lowering.graph import Call, Graph, is_altered, is_of_a_library
from convscope.lowering.layers.elementwise import KERAS_FUNCTIONS

Array = NDArray[Any]
# Weights by their names in Keras → by their names on the page.
WEIGHTS = {"moving_mean": "mean", "moving_variance": "variance", "depthwise_kernel": "depthwise"}
WEIGHTS |= {"pointwise_kernel": "pointwise"}


class _NotLive(Exception):  # noqa: N818  no error: it says why a layer is shown and not computed
    """Carries the reason, a key of the page's texts."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One use of a layer, as the page computes it; ``reason`` says why it does not, by a key of its texts."""

    call: Call
    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    kind: str = "unknown"
    activation: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Array] = field(default_factory=dict)
    reason: str = ""
    shares: int | None = None


def read_layers(graph: Graph) -> list[Layer]:
    """Describe each call of a network with one input, in the graph's order."""
    makers = {graph.inputs[0]: -1}
    first_uses: dict[int, int] = {}
    layers = []
    for index, call in enumerate(graph.calls):
        inputs = tuple(makers[number] for number in call.inputs)
        shape = channels_last(call.output_shapes[0], graph)
        shares = None if call.first_use else first_uses.get(id(call.operation))
        first_uses.setdefault(id(call.operation), index)
        layers.append(_read(call, graph, shape, inputs, shares))
        makers.update(dict.fromkeys(call.outputs, index))
    return layers


def _read(
    call: Call, graph: Graph, shape: tuple[int, ...], inputs: tuple[int, ...], shares: int | None
) -> Layer:
    try:
        kind = _kind(call, graph)
        activation, settings = _activation(call)
        settings |= _settings(call, kind, graph)
        weights = _weights(call, kind)
        _require(len(call.outputs) == 1 and all(shape) and all(map(all, call.input_shapes)), "reason_setting")
    except _NotLive as reason:
        return Layer(call, shape, inputs, reason=str(reason), shares=shares)
    return Layer(call, shape, inputs, kind, activation, settings, weights, shares=shares)


def _require(holds: object, reason: str) -> None:
    if not holds:
        raise _NotLive(reason)


def _kind(call: Call, graph: Graph) -> str:
    operation = call.operation
    kind: Any = type(operation)
    known = LAYERS.get(call.type)
    is_own = is_of_a_library(kind) and not is_altered(operation)
    _require(is_own and hasattr(operation, "get_weights"), "reason_own_code")
    _require(known is not None and known.page is not None, "reason_unknown_layer")
    assert known is not None and known.page is not None  # noqa: S101  for mypy
    order = getattr(operation, "data_format", None)
    # Flatten brings the channels behind the places where it is told that they come first.
    if call.type != "Flatten" and len(call.input_shapes[0]) == 3:
        _require(order is None or (order == "channels_first") == graph.channels_first, "reason_axis_order")
    return known.page


def _activation(call: Call) -> tuple[str | None, dict[str, Any]]:
    """Name the function behind a layer's sum, and its settings."""
    layer = call.operation
    if call.type == "ReLU":
        given = {name: getattr(layer, name) for name in ("negative_slope", "max_value", "threshold")}
        return "relu", {name: float(value) for name, value in given.items() if value is not None}
    if call.type == "LeakyReLU":
        return "leaky_relu", {"negative_slope": float(layer.negative_slope)}
    if call.type == "ELU":
        return "elu", {"alpha": float(layer.alpha)}
    if call.type == "Softmax":
        _require(isinstance(layer.axis, int), "reason_axis_order")
        _require(layer.axis in (-1, len(call.output_shapes[0])), "reason_axis_order")
        return "softmax", {}
    function = getattr(layer, "activation", None)
    if function is None:
        return None, {}
    try:
        name = KERAS_FUNCTIONS.get(function)
    except TypeError:  # not hashable: an object of somebody's own
        name = None
    _require(name is not None, "reason_unknown_activation")
    return (None if name == "linear" else name), {}


def _settings(call: Call, kind: str, graph: Graph) -> dict[str, Any]:
    """Read what else decides about a layer's values; refuse an order of axes that the page does not have."""
    over_row = call.type == "Softmax" or getattr(call.operation, "activation", None) in _OVER_ROW
    _require(not (over_row and _is_first(call, graph)), "reason_axis_order")
    read = _READERS.get(kind)
    return {} if read is None else read(call, graph)


def _is_first(call: Call, graph: Graph) -> bool:
    """Say whether images enter whose channels come first."""
    return graph.channels_first and len(call.input_shapes[0]) == 3


def _images_last(call: Call, graph: Graph) -> dict[str, Any]:
    _require(not _is_first(call, graph), "reason_axis_order")
    return {}


def _normalization(call: Call, graph: Graph) -> dict[str, Any]:
    layer = call.operation
    axis = _axis(layer.axis, len(call.output_shapes[0]), graph)
    return {"axis": axis, "epsilon": float(layer.epsilon)}


def _layer_normalization(call: Call, graph: Graph) -> dict[str, Any]:
    layer, rank = call.operation, len(call.output_shapes[0])
    axes = (layer.axis,) if isinstance(layer.axis, int) else tuple(layer.axis)
    turned = sorted(_axis(axis, rank, graph) for axis in axes)
    _require(turned == list(range(rank - len(axes), rank)), "reason_axis_order")
    _require(not (_is_first(call, graph) and len(axes) > 1), "reason_axis_order")
    shape = channels_last(call.output_shapes[0], graph)
    return {"rows": math.prod(shape[axis] for axis in turned), "epsilon": float(layer.epsilon)}


def _group_normalization(call: Call, graph: Graph) -> dict[str, Any]:
    layer, rank = call.operation, len(call.output_shapes[0])
    _require(_axis(layer.axis, rank, graph) == rank - 1, "reason_axis_order")
    channels = channels_last(call.output_shapes[0], graph)[-1]
    groups = channels if layer.groups == -1 else int(layer.groups)
    return {"groups": groups, "epsilon": float(layer.epsilon)}


def _same(call: Call, graph: Graph) -> dict[str, Any]:
    if call.type == "Reshape":
        _require(not graph.channels_first, "reason_axis_order")
    if call.type != "Flatten":
        return {}
    moved = call.operation.data_format == "channels_first"
    _require(graph.channels_first or not moved or len(call.input_shapes[0]) < 3, "reason_axis_order")
    return {"channelsFirst": True} if _is_first(call, graph) and not moved else {}


def _scale(call: Call, graph: Graph) -> dict[str, Any]:
    scale, offset = _scaling(call)
    _require(not (_is_first(call, graph) and max(len(scale), len(offset)) > 1), "reason_axis_order")
    return {"scale": scale, "offset": offset}


def _merge(call: Call, _graph: Graph) -> dict[str, Any]:
    _require(len({len(shape) for shape in call.input_shapes}) == 1, "reason_axis_order")
    return {}


def _concatenate(call: Call, graph: Graph) -> dict[str, Any]:
    return {"axis": _axis(call.operation.axis, len(call.output_shapes[0]), graph)}


def _margins(call: Call, _graph: Graph) -> dict[str, Any]:
    layer = call.operation
    margins = layer.padding if call.type == "ZeroPadding2D" else layer.cropping
    return {"margins": [int(side[0]) for side in margins]}


def _upsampling(call: Call, _graph: Graph) -> dict[str, Any]:
    _require(call.operation.interpolation == "nearest", "reason_setting")
    return {"size": [int(length) for length in call.operation.size]}


_OVER_ROW = tuple(
    function for function, name in KERAS_FUNCTIONS.items() if name in ("softmax", "log_softmax")
)


def _scaling(call: Call) -> tuple[list[float], list[float]]:
    """Read scale and offset of the last axis: one number, or one for each channel."""
    layer = call.operation
    if call.type == "Rescaling":
        pair = (np.asarray(value, np.float64) for value in (layer.scale, layer.offset))
    else:
        mean, variance = (np.asarray(value, np.float64) for value in _numbers(layer))
        scale = 1 / np.maximum(np.sqrt(variance), 1e-7)
        pair = (one for one in (scale, -mean * scale))
    arrays = list(pair)
    channels = call.input_shapes[0][-1]
    _require(all(array.size in (1, array.shape[-1:] and channels) for array in arrays), "reason_axis_order")
    first, second = ([float(value) for value in array.ravel()] for array in arrays)
    return first, second


def _numbers(layer: Any) -> tuple[Any, Any]:
    """Read mean and variance of a Normalization that was adapted or told them."""
    own = dict(zip((one.name for one in layer.weights), layer.get_weights(), strict=True))
    if "mean" in own:
        return own["mean"], own["variance"]
    _require(layer.input_mean is not None and not getattr(layer, "invert", False), "reason_setting")
    return layer.input_mean, layer.input_variance


def _weights(call: Call, kind: str) -> dict[str, Array]:
    """Read a layer's weights by the page's names."""
    layer = call.operation
    if kind == "scale" or not layer.weights:
        return {}
    found = zip((one.name for one in layer.weights), layer.get_weights(), strict=True)
    named = {WEIGHTS.get(name, name): np.asarray(value, np.float32) for name, value in found}
    known = ("kernel", "bias", "gamma", "beta", "mean", "variance", "depthwise", "pointwise", "alpha")
    if kind == "same":  # what is random in training keeps the state of its generator
        return {}
    _require(set(named) <= set(known), "reason_setting")
    return named


def _window(call: Call, graph: Graph) -> dict[str, Any]:
    """Say where a window begins for each output: size, strides, dilation, padding above and left."""
    layer = call.operation
    height, width, _ = channels_last(call.input_shapes[0], graph)
    if call.type.startswith("Global"):
        return {"window": [height, width], "strides": [1, 1], "padding": [0, 0], "dilation": [1, 1]}
    window = [int(length) for length in getattr(layer, "kernel_size", None) or layer.pool_size]
    strides = [int(step) for step in layer.strides]
    dilation = [int(gap) for gap in getattr(layer, "dilation_rate", (1, 1))]
    padding = [
        same_margins(length, size, step, gap)[0] if layer.padding == "same" else 0
        for length, size, step, gap in zip((height, width), window, strides, dilation, strict=True)
    ]
    groups = int(getattr(layer, "groups", 1) or 1)
    return {
        "window": window,
        "strides": strides,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }


_READERS: Mapping[str, Callable[[Call, Graph], dict[str, Any]]] = {
    **dict.fromkeys(("convolution", "depthwise", "separable", "max", "average"), _window),
    **dict.fromkeys(("add", "subtract", "multiply", "mean", "maximum", "minimum"), _merge),
    **dict.fromkeys(("dense", "prelu"), _images_last),
    **dict.fromkeys(("zero_padding", "cropping"), _margins),
    "normalization": _normalization,
    "layer_normalization": _layer_normalization,
    "group_normalization": _group_normalization,
    "same": _same,
    "scale": _scale,
    "concatenate": _concatenate,
    "upsampling": _upsampling,
}


def channels_last(shape: Sequence[int | None], graph: Graph) -> tuple[int, ...]:
    """Bring a shape without the batch axis into the page's order."""
    lengths = [int(length or 0) for length in shape]
    if graph.channels_first and len(lengths) == 3:
        lengths = [*lengths[1:], lengths[0]]
    return tuple(lengths)


def _axis(axis: int, rank: int, graph: Graph) -> int:
    """Bring an axis, which Keras counts with the batch, into the page's order."""
    own = axis % (rank + 1) - 1
    return (own - 1) % 3 if graph.channels_first and rank == 3 else own
