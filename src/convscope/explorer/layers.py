"""A network's layers → what ``page/kinds.js`` computes them from; axes are (height, width, channels)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.arithmetic.formulas import same_margins
from convscope.arithmetic.kind import PageArithmetic
from convscope.arithmetic.layers import LAYERS
from convscope.inspection.forward import call_alone, to_numpy
from convscope.lowering.graph import Call, Graph, is_altered, is_of_a_library
from convscope.lowering.layers.elementwise import KERAS_FUNCTIONS
from convscope.lowering.layers.operations import is_plain

Array = NDArray[Any]
# Weights by their names in Keras → by their names on the page.
WEIGHTS = {"moving_mean": "mean", "moving_variance": "variance", "depthwise_kernel": "depthwise"}
WEIGHTS |= {"pointwise_kernel": "pointwise", "scale": "gamma"}
# fmt: off
# Functions of ``keras.ops`` between layers, by the names of their classes.
_MERGES: Mapping[str, PageArithmetic] = {
    "Add": "add", "Subtract": "subtract", "Multiply": "multiply", "TrueDivide": "divide", "Divide": "divide",
    "Maximum": "maximum", "Minimum": "minimum",
}
_REDUCTIONS = {
    "Mean": "mean", "Sum": "sum", "Max": "max", "Amax": "max", "Min": "min", "Amin": "min",
    "GlobalAveragePooling1D": "mean", "GlobalMaxPooling1D": "max",
}
_FUNCTIONS = {
    "Relu": "relu", "Relu6": "relu6", "LeakyRelu": "leaky_relu", "Elu": "elu", "Selu": "selu", "Gelu": "gelu",
    "Silu": "silu", "Softplus": "softplus", "Softsign": "softsign", "Tanh": "tanh", "Sigmoid": "sigmoid",
    "HardSigmoid": "hard_sigmoid", "HardSilu": "hard_silu", "LogSigmoid": "log_sigmoid", "Exp": "exponential",
    "Softmax": "softmax", "LogSoftmax": "log_softmax", "Clip": "clip", "Square": "square", "Sqrt": "sqrt",
    "Rsqrt": "rsqrt", "Log": "log", "Negative": "negative", "Abs": "absolute", "Absolute": "absolute",
    "Power": "power",
}
_MOVES = (
    "BroadcastTo", "ExpandDims", "Flip", "GetItem", "Moveaxis", "Ravel", "Reshape", "Squeeze", "Swapaxes",
    "Transpose",
)
_PARTS_OF_ATTENTION = tuple(
    f"{part}_{name}" for part in ("query", "key", "value", "output") for name in ("kernel", "bias")
)
# fmt: on
# Settings of a function → by their names on the page.
_FUNCTION_SETTINGS = {"negative_slope": "negative_slope", "alpha": "alpha", "approximate": "approximate"}
_FUNCTION_SETTINGS |= {"x_min": "low", "x_max": "high"}
# A layer of more numbers is not looked at for how it moves them.
_MOST_MOVED = 2**22


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
        if is_plain(call.operation):
            kind: str
            kind, activation, settings = _function(call, graph)
            weights: dict[str, Array] = {}
        else:
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
    if call.type == "UpSampling2D" and operation.interpolation == "bilinear":
        return "resize"
    return known.page


def _function(call: Call, graph: Graph) -> tuple[PageArithmetic, str | None, dict[str, Any]]:
    """Read a function of ``keras.ops``: its kind, its activation, what else decides about its values."""
    name = call.type
    _require(not is_altered(call.operation), "reason_own_code")
    args, kwargs = call.arguments({number: _Entering(number) for number in call.inputs})
    if name in _MERGES:
        _require(len(args) == 2 and not kwargs, "reason_setting")
        if not all(isinstance(one, _Entering) for one in args):
            return _with_constant(call, _MERGES[name], *args, graph=graph)
        _require(tuple(one.number for one in args) == call.inputs, "reason_setting")
        return _MERGES[name], None, _merge(call, graph)
    if name in _FUNCTIONS:
        _require(not kwargs and len(args) == 1 + (name == "Power"), "reason_setting")
        return "activation", _FUNCTIONS[name], _function_settings(call, graph, *args[1:])
    kinds: dict[str, PageArithmetic] = {"Concatenate": "concatenate", "Resize": "resize"}
    kinds.update(dict.fromkeys(_REDUCTIONS, "reduce"), **dict.fromkeys(_MOVES, "strided"))
    _require(name in kinds, "reason_unknown_layer")
    return kinds[name], None, _READERS[kinds[name]](call, graph)


def _function_settings(call: Call, graph: Graph, *numbers: Any) -> dict[str, Any]:
    """Read the settings of a function of each number, or of each row of them."""
    own = vars(call.operation)
    if "axis" in own:
        last = own["axis"] in (-1, len(call.output_shapes[0])) and not _is_first(call, graph)
        _require(last, "reason_axis_order")
    _require(all(isinstance(number, int | float) for number in numbers), "reason_setting")
    settings = {page: own[name] for name, page in _FUNCTION_SETTINGS.items() if own.get(name) is not None}
    return {**settings, "power": numbers[0]} if numbers else settings


@dataclass(frozen=True)
class _Entering:
    """Stands for a value that enters a call."""

    number: int


def _with_constant(
    call: Call, kind: str, first: Any, second: Any, *, graph: Graph
) -> tuple[PageArithmetic, str | None, dict[str, Any]]:
    """Read the arithmetic of a value and of numbers that are always the same."""
    is_left = isinstance(first, _Entering)
    given = second if is_left else first
    constant = np.asarray(to_numpy(given) if hasattr(given, "detach") else given, np.float64)
    channels = call.output_shapes[0][-1]
    fits = constant.size == 1 or constant.shape[-1:] == (channels,) == (constant.size,)
    _require(fits and not (_is_first(call, graph) and constant.size > 1), "reason_axis_order")
    numbers = constant.ravel()
    if kind in ("maximum", "minimum"):
        _require(constant.size == 1, "reason_setting")
        return "activation", "clip", {"low" if kind == "maximum" else "high": float(numbers[0])}
    one, none = [1.0], [0.0]
    if kind == "multiply":
        return "scale", None, {"scale": numbers.tolist(), "offset": none}
    if kind == "divide":
        _require(is_left, "reason_setting")
        return "scale", None, {"scale": (1 / numbers).tolist(), "offset": none}
    sign = -1.0 if kind == "subtract" else 1.0
    scale = one if is_left or kind == "add" else [-1.0]
    return "scale", None, {"scale": scale, "offset": ((sign if is_left else 1.0) * numbers).tolist()}


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
    rows = math.prod(shape[axis] for axis in turned)
    settings: dict[str, Any] = {"rows": rows, "epsilon": float(layer.epsilon)}
    return settings | ({"centred": False} if call.type == "RMSNormalization" else {})


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
    rank = len(call.output_shapes[0])
    _require(call.operation.axis % (rank + 1), "reason_axis_order")  # along the images
    return {"axis": _axis(call.operation.axis, rank, graph)}


def _margins(call: Call, _graph: Graph) -> dict[str, Any]:
    layer = call.operation
    margins = layer.padding if call.type == "ZeroPadding2D" else layer.cropping
    return {"margins": [int(side[0]) for side in margins]}


def _upsampling(call: Call, _graph: Graph) -> dict[str, Any]:
    _require(call.operation.interpolation == "nearest", "reason_setting")
    return {"size": [int(length) for length in call.operation.size]}


def _resizing(call: Call, graph: Graph) -> dict[str, Any]:
    """Refuse all but straight lines between the middles of pixels; the sizes are those of the shapes."""
    layer = call.operation
    others = ("antialias", "crop_to_aspect_ratio", "pad_to_aspect_ratio")
    _require(not any(getattr(layer, name, False) for name in others), "reason_setting")
    _require(layer.interpolation == "bilinear", "reason_setting")
    order = getattr(layer, "data_format", "channels_last")
    _require((order == "channels_first") == graph.channels_first, "reason_axis_order")
    return {}


def _reduction(call: Call, graph: Graph) -> dict[str, Any]:
    layer, rank = call.operation, len(call.input_shapes[0])
    given = 1 if call.type.startswith("Global") else layer.axis
    axes = range(rank + 1) if given is None else [given] if isinstance(given, int) else given
    _require(getattr(layer, "initial", None) is None, "reason_setting")
    _require(getattr(layer, "data_format", "channels_last") == "channels_last", "reason_axis_order")
    _require(all(axis % (rank + 1) for axis in axes), "reason_axis_order")  # over the images, too
    return {"how": _REDUCTIONS[call.type], "axes": sorted(_axis(axis, rank, graph) for axis in axes)}


def _strided(call: Call, graph: Graph) -> dict[str, Any]:
    """Let a layer move places to learn how it moves numbers: where it begins, and a step for each axis."""
    _require(len(call.inputs) == 1, "reason_setting")
    shape, made = (channels_last(one, graph) for one in (call.input_shapes[0], call.output_shapes[0]))
    size = math.prod(shape)
    _require(size + math.prod(made) <= _MOST_MOVED, "reason_setting")
    places = np.arange(2 * size, dtype=np.float32).reshape(2, *shape)  # exact: there are few enough
    turned = np.moveaxis(places, -1, 1) if graph.channels_first and len(shape) == 3 else places
    found = None
    with suppress(Exception):  # whatever it does not take, such as a batch of two
        found = call_alone(graph, call, turned)
    _require(found is not None and found.ndim == len(made) + 1, "reason_setting")
    assert found is not None  # noqa: S101  for mypy
    moved = np.moveaxis(found, 1, -1) if graph.channels_first and len(made) == 3 else found
    _require(moved.shape == (2, *made), "reason_setting")
    first = moved[0]
    offset = int(first.flat[0])
    strides = [
        int(first[tuple(int(axis == one) for one in range(len(made)))]) - offset if length > 1 else 0
        for axis, length in enumerate(made)
    ]
    steps = sum(step * place for step, place in zip(strides, np.indices(made), strict=True))
    _require(np.array_equal(moved, np.stack([offset + steps, offset + steps + size])), "reason_setting")
    return {"offset": offset, "strides": strides}


def _transposed(call: Call, _graph: Graph) -> dict[str, Any]:
    layer = call.operation
    _require(layer.output_padding is None and getattr(layer, "groups", 1) == 1, "reason_setting")
    kernel, strides, dilation = (
        [int(one) for one in pair] for pair in (layer.kernel_size, layer.strides, layer.dilation_rate)
    )
    reach = [(size - 1) * gap + 1 for size, gap in zip(kernel, dilation, strict=True)]
    # What "same" cuts off at the top and left of all that is laid down.
    crop = [max(0, (size - step) // 2) for size, step in zip(reach, strides, strict=True)]
    return {
        "strides": strides,
        "dilation": dilation,
        "crop": crop if layer.padding == "same" else [0, 0],
    }


def _attention(call: Call, _graph: Graph) -> dict[str, Any]:
    layer = call.operation
    config = layer.get_config()
    args, kwargs = call.arguments({number: _Entering(number) for number in call.inputs})
    named = dict(zip(("query", "value", "key"), args, strict=False)) | kwargs
    given = [named.pop(name, None) for name in ("query", "value", "key")]
    given[2] = given[2] or given[1]
    _require(all(isinstance(one, _Entering) for one in given), "reason_setting")
    _require(not any(value not in (None, False) for value in named.values()), "reason_setting")
    _require(all(len(shape) == 2 for shape in (*call.input_shapes, *call.output_shapes)), "reason_axis_order")
    _require(config.get("attention_axes") in (None, (1,), [1]), "reason_axis_order")
    unusual = config.get("use_gate") or config.get("sliding_window") is not None
    alike = config.get("num_key_value_heads") in (None, config["num_heads"])
    _require(not unusual and alike, "reason_setting")
    roles = [call.inputs.index(one.number) for one in given]
    return {"heads": int(config["num_heads"]), "roles": roles}


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
    # The parts of an attention are layers of their own.
    paths = [one.path.split("/")[-2:] for one in layer.weights]
    parts = ["_".join(path).removeprefix("attention_") for path in paths]
    names = parts if kind == "attention" else [one.name for one in layer.weights]
    found = zip(names, layer.get_weights(), strict=True)
    named = {WEIGHTS.get(name, name): np.asarray(value, np.float32) for name, value in found}
    known = ("kernel", "bias", "gamma", "beta", "mean", "variance", "depthwise", "pointwise", "alpha")
    if kind == "same":  # what is random in training keeps the state of its generator
        return {}
    _require(set(named) <= set(known + _PARTS_OF_ATTENTION), "reason_setting")
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
    "transposed": _transposed,
    "attention": _attention,
    "reduce": _reduction,
    "strided": _strided,
    "resize": _resizing,
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
