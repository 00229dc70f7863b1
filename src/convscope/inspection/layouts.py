"""The same weights in Keras's and in torch's order of axes."""

from __future__ import annotations

from convscope.arithmetic import show_shape
from convscope.inspection.layers import LayerDescription, NetworkDescription

_KERNELS = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense")


def explain_kernel_layouts(description: NetworkDescription) -> tuple[str, ...]:
    """Explain how Keras and torch (or Theano) lay out the kernels of this network.

    Parameters
    ----------
    description : NetworkDescription
        From `describe`.

    Returns
    -------
    tuple of str
        Lines: the rule, then each layer's shapes in both layouts and the transposition between them. Empty
        for a network without convolutions and dense layers.

    Examples
    --------
    >>> from convscope.inspection import describe
    >>> from convscope.networks import build
    >>> lines = explain_kernel_layouts(describe(build("deep")))
    >>> print(lines[2])
    conv2d_1: Keras (3, 3, 1, 32), torch (32, 1, 3, 3); keras_kernel.transpose(3, 2, 0, 1)
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
