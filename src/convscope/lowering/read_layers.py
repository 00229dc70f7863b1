"""How each Keras layer becomes ops: one short function per layer type, and when it may."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras.src.trainers.trainer import Trainer

from convscope.lowering import ir as ops
from convscope.lowering.ir import Activation, Value
from convscope.lowering.shapes import channel_axis

if TYPE_CHECKING:
    from convscope.lowering.read import Reader

layers = keras.layers
Converter = Callable[["Reader", Any, Sequence[Value]], Value]
_CONVERTERS: dict[type, Converter] = {}

_FUNCTIONS = {
    getattr(keras.activations, name): name
    for name in [
        "linear",
        "relu",
        "relu6",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "softplus",
        "softsign",
        "soft_shrink",
        "sparse_plus",
        "squareplus",
        "tanh",
        "tanh_shrink",
        "hard_tanh",
        "hard_shrink",
        "sigmoid",
        "hard_sigmoid",
        "log_sigmoid",
        "sparse_sigmoid",
        "hard_silu",
        "exponential",
        "softmax",
        "log_softmax",
    ]
}
_COMPUTE_DTYPES = ("float32", "bfloat16")
# Keras wraps the first two in each layer; how a model trains and predicts is looked at by who calls that.
_NOT_COMPUTING = {"build", "quantize", *vars(Trainer)}
_COMPUTING = ("__call__", "call", "convolution_op", "update_step", "apply", "update_state", "result")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_known(operation: Any) -> bool:
    """Say whether lowering knows an operation's type, so that its settings decide what it becomes."""
    return type(operation) in _CONVERTERS


def converter_for(operation: Any, args: Any, kwargs: dict[str, Any]) -> Converter | None:
    """Return the function that makes ops of a layer; None when the layer must run as it is.

    Only the exact layer types of Keras are known: a subclass may compute something else.
    """
    if _arithmetic(operation) and not kwargs:
        return _binary if _is_plain_arithmetic(args) else None
    convert = _CONVERTERS.get(type(operation))
    if convert is None or kwargs or len(args) != 1:
        return None
    leaves = keras.tree.flatten(args)
    if not all(isinstance(leaf, Value) for leaf in leaves):
        return None
    if operation.compute_dtype not in _COMPUTE_DTYPES or operation.variable_dtype != "float32":
        return None
    if not all(leaf.dtype.startswith(("float32", "bfloat16", "uint8", "int")) for leaf in leaves):
        return None
    return None if _is_unusual(operation) else convert


def _arithmetic(operation: Any) -> str | None:
    kind = type(operation)
    known = {"Add": "add", "Subtract": "subtract", "Multiply": "multiply"}
    return known.get(kind.__name__) if kind.__module__.endswith("ops.numpy") else None


def _is_plain_arithmetic(args: Any) -> bool:
    numbers = [arg for arg in args if isinstance(arg, int | float)]
    values = [arg for arg in args if isinstance(arg, Value) and arg.dtype == "float32"]
    equal_ranks = len({value.rank for value in values}) == 1
    return len(args) == 2 and equal_ranks and len(numbers) + len(values) == 2


def _is_unusual(layer: Any) -> bool:
    adapted = getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None) is not None
    function = getattr(layer, "activation", None)
    unknown = function is not None and function not in _FUNCTIONS if _is_hashable(function) else True
    old_scaling = getattr(layer, "rms_scaling", False) or getattr(layer, "renorm", False)
    exotic = getattr(layer, "interpolation", "nearest") not in ("nearest", "bilinear")
    return bool(adapted or unknown or old_scaling or exotic or is_altered(layer))


def is_altered(thing: Any) -> bool:
    """Say whether somebody gave this one object, or its class, a method of its own, or torch hooks.

    Layers, models, losses, metrics and optimizers do not always do what their class said at first.
    """
    own = vars(thing)
    kind: Any = type(thing)
    return (
        any(own.get(hooks) for hooks in HOOKS)
        or any(callable(getattr(kind, name, None)) and name not in _NOT_COMPUTING for name in own)
        or (
            _is_of_a_library(kind)
            and not all(_is_of_a_library(getattr(kind, name)) for name in computing_methods(kind))
        )
    )


@cache
def computing_methods(kind: Any) -> tuple[str, ...]:
    """Name the methods in which a class of Keras computes; somebody may put others there."""
    return tuple(name for name in _COMPUTING if isinstance(getattr(kind, name, None), FunctionType))


def _is_of_a_library(thing: Any) -> bool:
    return str(thing.__module__).startswith(("keras.", "torch."))


def _is_hashable(thing: Any) -> bool:
    return getattr(thing, "__hash__", None) is not None


def _converts(*kinds: type) -> Callable[[Converter], Converter]:
    def register(function: Converter) -> Converter:
        _CONVERTERS.update(dict.fromkeys(kinds, function))
        return function

    return register


def _activated(reader: Reader, layer: Any, value: Value) -> Value:
    name = "linear" if layer.activation is None else _FUNCTIONS[layer.activation]
    if name == "linear":
        return value
    return reader.add(ops.Activate, layer, [value], part="activation", activation=Activation(name))


def _optional(reader: Reader, variable: Any) -> str | None:
    return None if variable is None else reader.path(variable)


@_converts(layers.Conv2D)
def _conv2d(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    value = reader.add(
        ops.Conv2D,
        layer,
        inputs,
        kernel=reader.path(layer.kernel),
        kernel_shape=tuple(layer.kernel.shape),
        bias=reader.path(layer.bias) if layer.use_bias else None,
        strides=tuple(layer.strides),
        padding=layer.padding,
        dilation=tuple(layer.dilation_rate),
        groups=layer.groups,
        data_format=layer.data_format,
    )
    return _activated(reader, layer, value)


@_converts(layers.DepthwiseConv2D)
def _depthwise_conv2d(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    bias = reader.path(layer.bias) if layer.use_bias else None
    return _activated(reader, layer, _depthwise(reader, layer, inputs, layer.kernel, bias))


@_converts(layers.SeparableConv2D)
def _separable_conv2d(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    middle = _depthwise(reader, layer, inputs, layer.depthwise_kernel, None, part="depthwise")
    value = reader.add(
        ops.Conv2D,
        layer,
        [middle],
        part="pointwise",
        kernel=reader.path(layer.pointwise_kernel),
        kernel_shape=tuple(layer.pointwise_kernel.shape),
        bias=reader.path(layer.bias) if layer.use_bias else None,
        data_format=layer.data_format,
    )
    return _activated(reader, layer, value)


def _depthwise(
    reader: Reader, layer: Any, inputs: Sequence[Value], kernel: Any, bias: str | None, part: str = ""
) -> Value:
    return reader.add(
        ops.Conv2D,
        layer,
        inputs,
        part=part,
        kernel=reader.path(kernel),
        kernel_shape=tuple(kernel.shape),
        bias=bias,
        strides=tuple(layer.strides),
        padding=layer.padding,
        dilation=tuple(layer.dilation_rate),
        groups=kernel.shape[2],
        depthwise=True,
        data_format=layer.data_format,
    )


@_converts(layers.Dense)
def _dense(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    value = reader.add(
        ops.Dense,
        layer,
        inputs,
        kernel=reader.path(layer.kernel),
        kernel_shape=tuple(layer.kernel.shape),
        bias=_optional(reader, layer.bias),
    )
    return _activated(reader, layer, value)


@_converts(layers.BatchNormalization)
def _batch_normalization(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    return reader.add(
        ops.BatchNormalization,
        layer,
        inputs,
        axis=layer.axis % inputs[0].rank,
        moving_mean=reader.path(layer.moving_mean),
        moving_variance=reader.path(layer.moving_variance),
        gamma=reader.path(layer.gamma) if layer.scale else None,
        beta=reader.path(layer.beta) if layer.center else None,
        momentum=float(layer.momentum),
        epsilon=float(layer.epsilon),
        frozen=not layer.trainable,
    )


@_converts(layers.LayerNormalization)
def _layer_normalization(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    axes = (layer.axis,) if isinstance(layer.axis, int) else tuple(layer.axis)
    return reader.add(
        ops.LayerNormalization,
        layer,
        inputs,
        axes=tuple(sorted(axis % inputs[0].rank for axis in axes)),
        gamma=reader.path(layer.gamma) if layer.scale else None,
        beta=reader.path(layer.beta) if layer.center else None,
        epsilon=float(layer.epsilon),
    )


@_converts(layers.Activation)
def _activation(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    name = _FUNCTIONS[layer.activation]
    return (
        inputs[0]
        if name == "linear"
        else reader.add(ops.Activate, layer, inputs, activation=Activation(name))
    )


@_converts(layers.ReLU)
def _relu(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    given = {
        "negative_slope": float(layer.negative_slope or 0.0),
        "max_value": None if layer.max_value is None else float(layer.max_value),
        "threshold": float(layer.threshold or 0.0),
    }
    settings = tuple((key, value) for key, value in given.items() if value not in (0.0, None))
    if given["max_value"] == 0.0:
        settings = (*settings, ("max_value", 0.0))
    return reader.add(ops.Activate, layer, inputs, activation=Activation("relu", settings))


@_converts(layers.LeakyReLU)
def _leaky_relu(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    settings = (("negative_slope", float(layer.negative_slope)),)
    return reader.add(ops.Activate, layer, inputs, activation=Activation("leaky_relu", settings))


@_converts(layers.ELU)
def _elu(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    return reader.add(
        ops.Activate, layer, inputs, activation=Activation("elu", (("alpha", float(layer.alpha)),))
    )


@_converts(layers.PReLU)
def _prelu(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    return reader.add(ops.PRelu, layer, inputs, alpha=reader.path(layer.alpha))


@_converts(layers.Softmax)
def _softmax(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    if not isinstance(layer.axis, int):
        return reader.add_call(layer, tuple(inputs), {})  # type: ignore[no-any-return]
    settings = () if layer.axis == -1 else (("axis", layer.axis),)
    return reader.add(ops.Activate, layer, inputs, activation=Activation("softmax", settings))


@_converts(layers.MaxPooling2D, layers.AveragePooling2D)
def _pool2d(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    # Keras's torch back end averages over the replicated edge where the padding is lopsided.
    edge = "replicate" if keras.backend.backend() == "torch" else "ignore"
    return reader.add(
        ops.Pool2D,
        layer,
        inputs,
        mode=layer.pool_mode,
        pool=tuple(layer.pool_size),
        strides=tuple(layer.strides),
        padding=layer.padding,
        data_format=layer.data_format,
        edge=edge if layer.pool_mode == "average" else "ignore",
    )


@_converts(layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
def _global_pool2d(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    mode = "average" if isinstance(layer, layers.GlobalAveragePooling2D) else "max"
    return reader.add(
        ops.GlobalPool2D,
        layer,
        inputs,
        mode=mode,
        data_format=layer.data_format,
        keepdims=bool(layer.keepdims),
    )


@_converts(layers.Dropout)
def _dropout(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    noise = None if layer.noise_shape is None else tuple(layer.noise_shape)
    return _dropped(reader, layer, inputs, noise)


@_converts(layers.SpatialDropout2D)
def _spatial_dropout2d(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    channels = inputs[0].shape[channel_axis(layer.data_format)]
    noise = (None, 1, 1, channels) if layer.data_format == "channels_last" else (None, channels, 1, 1)
    return _dropped(reader, layer, inputs, noise)


def _dropped(
    reader: Reader, layer: Any, inputs: Sequence[Value], noise: tuple[int | None, ...] | None
) -> Value:
    stream = reader.next_stream()
    if layer.rate == 0:
        return inputs[0]
    return reader.add(ops.Dropout, layer, inputs, rate=float(layer.rate), stream=stream, noise_shape=noise)


@_converts(layers.Flatten)
def _flatten(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    return reader.add(ops.Flatten, layer, inputs, data_format=layer.data_format)


@_converts(layers.Reshape)
def _reshape(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    target = tuple(-1 if size is None else int(size) for size in layer.target_shape)
    return reader.add(ops.Reshape, layer, inputs, target=target)


@_converts(layers.ZeroPadding2D)
def _zero_padding2d(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    amounts = tuple(map(tuple, layer.padding))
    return reader.add(ops.ZeroPad2D, layer, inputs, amounts=amounts, data_format=layer.data_format)


@_converts(layers.Cropping2D)
def _cropping2d(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    amounts = tuple(map(tuple, layer.cropping))
    return reader.add(ops.Crop2D, layer, inputs, amounts=amounts, data_format=layer.data_format)


@_converts(layers.UpSampling2D)
def _up_sampling2d(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    return reader.add(
        ops.UpSample2D,
        layer,
        inputs,
        size=tuple(layer.size),
        interpolation=layer.interpolation,
        data_format=layer.data_format,
    )


@_converts(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
def _merge(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    return reader.add(ops.Merge, layer, inputs, mode=type(layer).__name__.lower())


def _binary(reader: Reader, operation: Any, arguments: Sequence[Any]) -> Value:
    """Convert the arithmetic of two values, or of a value and a number, written with operators."""
    mode = _arithmetic(operation)
    left, right = arguments
    if isinstance(left, Value) and isinstance(right, Value):
        return reader.add(ops.Merge, operation, [left, right], mode=mode)
    value, number = (left, right) if isinstance(left, Value) else (right, left)
    if mode == "multiply":
        scale, offset = float(number), 0.0
    elif mode == "add":
        scale, offset = 1.0, float(number)
    else:
        scale, offset = (1.0, -float(number)) if value is left else (-1.0, float(number))
    return reader.add(ops.Affine, operation, [value], scale=(scale,), offset=(offset,))


@_converts(layers.Concatenate)
def _concatenate(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    return reader.add(ops.Concatenate, layer, inputs, axis=layer.axis % inputs[0].rank)


@_converts(layers.Rescaling)
def _rescaling(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    scale, offset = (np.asarray(number, dtype=np.float32) for number in (layer.scale, layer.offset))
    if scale.ndim and keras.config.image_data_format() == "channels_first":
        scale = scale.reshape(scale.shape + (1,) * (3 - scale.ndim))
    return _affine(reader, layer, inputs, scale, offset)


@_converts(layers.Normalization)
def _normalization(reader: Reader, layer: Any, inputs: Sequence[Value]) -> Value:
    mean = np.asarray(keras.ops.convert_to_numpy(layer.mean), dtype=np.float32)
    variance = np.asarray(keras.ops.convert_to_numpy(layer.variance), dtype=np.float32)
    deviation = np.maximum(np.sqrt(variance), np.float32(keras.config.epsilon()))
    if layer.invert:
        return _affine(reader, layer, inputs, deviation, mean)
    return _affine(reader, layer, inputs, deviation, -mean, divide=True)


def _affine(
    reader: Reader, layer: Any, inputs: Sequence[Value], scale: Any, offset: Any, divide: bool = False
) -> Value:
    scale, offset = np.broadcast_arrays(scale, offset)
    rank = inputs[0].rank
    shape = (1,) * (rank - scale.ndim) + scale.shape if scale.ndim else ()
    return reader.add(
        ops.Affine,
        layer,
        inputs,
        scale=tuple(map(float, scale.ravel())),
        offset=tuple(map(float, offset.ravel())),
        constant_shape=shape,
        divide=divide,
    )


@_converts(layers.Identity, layers.ActivityRegularization)
def _identity(_reader: Reader, _layer: Any, inputs: Sequence[Value]) -> Value:
    return inputs[0]
