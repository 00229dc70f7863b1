"""What a network is made of: shapes, weights and costs of each layer with their arithmetic; layouts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from convscope import _keras_internals as internals
from convscope.arithmetic import Fields, LayerArithmetic, Shape, analyse, show_shape
from convscope.arithmetic.layers import as_image
from convscope.lowering.graph import Call, Graph, read_graph
from convscope.runs import as_json

if TYPE_CHECKING:
    import keras

_KERNELS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense")


@dataclass(frozen=True)
class LayerDescription:
    """One layer of a network. Shapes have no batch axis; None is a length that the network leaves open.

    Where several arrays go in or come out there are several shapes. Weights have Keras's names and layout;
    ``parameters`` are their elements, those that are not trained included, and 0 at a shared layer's later
    uses. ``macs`` are the multiply-accumulates for one image (of convolutions and dense layers, without
    biases and activations), ``receptive_field`` is the height and width, in pixels of the input image, of
    what one output sees (``fields`` with its jump and start); both are None where they are not known.
    ``arithmetic`` holds the formulas with their numbers.
    """

    name: str
    type: str
    input_shape: Any
    output_shape: Any
    weight_names: tuple[str, ...]
    weight_shapes: tuple[tuple[int, ...], ...]
    parameters: int
    trainable_parameters: int
    macs: int | None
    receptive_field: tuple[int, int] | None
    arithmetic: tuple[str, ...]
    fields: Fields = None

    def to_json(self) -> dict[str, Any]:
        """Give the description as plain lists, numbers and strings."""
        found = as_json(self)
        del found["fields"]
        return found


@dataclass(frozen=True)
class NetworkDescription:
    """A network and its layers, without input layers; sums over all layers.

    ``macs`` counts the layers for which they are known, and is None if lengths are left open.
    """

    name: str
    input_shape: Any
    channels_first: bool
    layers: tuple[LayerDescription, ...]
    parameters: int
    trainable_parameters: int
    macs: int | None

    def to_json(self) -> dict[str, Any]:
        """Give the description as plain lists, numbers and strings."""
        return {
            "name": self.name,
            "input_shape": self.input_shape,
            "data_format": "channels_first" if self.channels_first else "channels_last",
            "layers": [layer.to_json() for layer in self.layers],
            "parameters": self.parameters,
            "trainable_parameters": self.trainable_parameters,
            "macs": self.macs,
        }


@dataclass(frozen=True)
class _Value:
    """What is known of an array on its way: which input it comes from, and what its positions see of it."""

    fields: Fields
    image: tuple[int | None, int | None] | None
    origin: int


def describe(model: keras.Model) -> NetworkDescription:
    """Describe a network: shapes, weights and costs of each layer, with the arithmetic.

    Parameters
    ----------
    model : keras.Model
        A built Sequential or functional model; nested models are opened.

    Returns
    -------
    NetworkDescription
        Shapes, weights and parameters are Keras's own; multiply-accumulates, receptive fields and formulas
        are convscope's, and left out where they disagree with Keras.

    Raises
    ------
    UsageError
        When the model has no graph to read (a subclassed model, or a Sequential one without input shape).

    Examples
    --------
    >>> from convscope.networks import build
    >>> network = describe(build("simple"))
    >>> network.parameters
    216650
    >>> network.layers[0].arithmetic[0]
    'height and width: ⌊(28 − 3)/1⌋ + 1 = 26'
    """
    graph = read_graph(model)
    values = {
        number: _Value(*as_image(shape, graph.channels_first), origin)
        for origin, (number, shape) in enumerate(zip(graph.inputs, graph.input_shapes, strict=True))
    }
    layers = [_describe_call(call, graph, values) for call in graph.calls]
    is_open = any(None in shape for shape in graph.input_shapes)
    return NetworkDescription(
        name=model.name,
        input_shape=_one_or_all(graph.input_shapes),
        channels_first=graph.channels_first,
        layers=tuple(layers),
        parameters=sum(layer.parameters for layer in layers),
        trainable_parameters=sum(layer.trainable_parameters for layer in layers),
        macs=None if is_open else sum(layer.macs or 0 for layer in layers),
    )


def _describe_call(call: Call, graph: Graph, values: dict[int, _Value]) -> LayerDescription:
    entering = [values[number] for number in call.inputs]
    weights = list(getattr(call.operation, "weights", []))
    shapes = tuple(tuple(weight.shape) for weight in weights)
    trusted, lines = _checked(call, _arithmetic(call, graph, entering), shapes)
    fields = trusted.fields if trusted else None
    first = entering[0] if entering else _Value(None, None, -1)
    values.update(dict.fromkeys(call.outputs, replace(first, fields=fields)))
    return LayerDescription(
        name=call.name,
        type=call.type,
        input_shape=_one_or_all(call.input_shapes),
        output_shape=_one_or_all(call.output_shapes),
        weight_names=tuple(weight.name for weight in weights),
        weight_shapes=shapes,
        parameters=_count(weights) if call.first_use else 0,
        trainable_parameters=_count([w for w in weights if w.trainable]) if call.first_use else 0,
        macs=trusted.macs if trusted else None,
        receptive_field=(fields[0].size, fields[1].size) if fields else None,
        arithmetic=lines,
        fields=fields,
    )


def _arithmetic(call: Call, graph: Graph, entering: list[_Value]) -> LayerArithmetic | None:
    """Analyse a layer, if it is one of Keras's own."""
    if not internals.is_of_keras(call.operation) or not entering:
        return None
    one_image = len({value.origin for value in entering}) == 1
    return analyse(
        call.type,
        call.operation.get_config(),
        call.input_shapes,
        fields=[value.fields if one_image else None for value in entering],
        image=entering[0].image,
        channels_first=graph.channels_first,
    )


def _checked(
    call: Call, arithmetic: LayerArithmetic | None, shapes: tuple[tuple[int, ...], ...]
) -> tuple[LayerArithmetic | None, tuple[str, ...]]:
    """Hold the arithmetic against Keras's own shapes, and write it; a layer changed by hand may differ."""
    if arithmetic is None:
        return None, (f"no arithmetic known for {call.type}; shapes and weights are as Keras reports them",)
    expected = tuple(shape for _, shape in arithmetic.weight_shapes)
    if arithmetic.output_shape != call.output_shapes[0] or expected != shapes:
        listed = ", ".join(show_shape(shape) or "one number" for shape in shapes) or "none"
        line = (
            f"Keras reports output {show_shape(call.output_shapes[0])} and weights {listed}, "
            f"which the arithmetic of {call.type} does not give; only Keras's numbers are shown"
        )
        return None, (line,)
    if not call.first_use and shapes:
        shared = "the weights are shared with the layer's first use and counted there"
        return arithmetic, (*arithmetic.lines, shared)
    return arithmetic, arithmetic.lines


def _count(weights: list[Any]) -> int:
    return sum(math.prod(map(int, weight.shape)) for weight in weights)


def _one_or_all(shapes: tuple[Shape, ...]) -> Any:
    return shapes[0] if len(shapes) == 1 else shapes


def explain_kernel_layouts(description: NetworkDescription) -> tuple[str, ...]:
    """Explain how Keras and torch (or Theano) lay out the kernels of a network.

    Lines: the rule, then each layer's shapes in both layouts and the transposition between them. Empty for a
    network without convolutions and dense layers.
    """
    layers = [layer for layer in description.layers if layer.type in _KERNELS and layer.weight_shapes]
    if not layers:
        return ()
    rules: tuple[str, ...] = ()
    if any(layer.type != "Dense" for layer in layers):
        rules = (
            "Keras keeps a convolution's kernel as (height, width, input channels, filters).",
            "torch keeps it as (filters, input channels, height, width), and so did Theano, which also "
            "turned each kernel by 180°: it computed a convolution proper, the others a cross-correlation.",
        )
    explained = [line for layer in layers for line in _explain(layer)]
    return (*rules, *explained, *_flatten_order(description))


def _explain(layer: LayerDescription) -> list[str]:
    shapes = [shape for shape in layer.weight_shapes if len(shape) > 1]
    if layer.type == "SeparableConv2D":
        return [_depthwise(layer.name, shapes[0]), _convolution(layer.name, shapes[1])]
    if layer.type == "DepthwiseConv2D":
        return [_depthwise(layer.name, shapes[0])]
    if layer.type == "Dense":
        inputs, units = shapes[0]
        return [f"{layer.name}: Keras {(inputs, units)}, torch {(units, inputs)}; keras_kernel.T"]
    return [_convolution(layer.name, shapes[0])]


def _convolution(name: str, shape: tuple[int, ...]) -> str:
    height, width, channels, filters = shape
    torch_shape = (filters, channels, height, width)
    return f"{name}: Keras {shape}, torch {torch_shape}; keras_kernel.transpose(3, 2, 0, 1)"


def _depthwise(name: str, shape: tuple[int, ...]) -> str:
    height, width, channels, multiplier = shape
    filters = channels * multiplier
    torch_shape = (filters, 1, height, width)
    return (
        f"{name} (each channel alone): Keras {shape}, torch {torch_shape} with groups={channels}; "
        f"keras_kernel.reshape({height}, {width}, 1, {filters}).transpose(3, 2, 0, 1)"
    )


def _flatten_order(description: NetworkDescription) -> tuple[str, ...]:
    """Say in which order Flatten, and with it the next dense kernel, runs through an image."""
    flat = [layer for layer in description.layers if layer.type == "Flatten" and len(layer.input_shape) == 3]
    if not flat or description.channels_first or None in flat[0].input_shape:
        return ()
    height, width, channels = flat[0].input_shape
    return (
        f"{flat[0].name} runs through {show_shape((height, width, channels))} with the channels fastest: the "
        f"number at (y, x, c) goes to row (y·{width} + x)·{channels} + c of the next dense kernel. torch "
        f"flattens ({channels}, {height}, {width}), where it is row (c·{height} + y)·{width} + x.",
    )
