"""Layers that change each element alone: activations, dropout, constants; and what other ops fuse of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import torch

from convscope import _keras_internals as internals
from convscope.lowering import kernels
from convscope.lowering.activations import (
    TORCH_FUNCTIONS,
    WITH_SETTINGS,
    Function,
    activation_function,
    smooth_name,
)
from convscope.lowering.ir import Activation, Elementwise, Op, Shape, Value, broadcast, channel_axis
from convscope.lowering.kernels import Epilogue
from convscope.lowering.layers.base import ProgramBuilder, Runner, Step, Tensor, WeightSource, reads, runs
from convscope.lowering.layers.operations import Random
from convscope.lowering.masks import Mask, bits_type, keep_probability, make_mask


@dataclass(frozen=True, kw_only=True)
class Activate(Elementwise):
    """An activation function on its own."""

    activation: Activation


@dataclass(frozen=True, kw_only=True)
class PRelu(Elementwise):
    """max(x, 0) + alpha · min(x, 0), with a learned alpha."""

    alpha: str

    @property
    def weights(self) -> tuple[str, ...]:
        """Return the slope."""
        return (self.alpha,)


@dataclass(frozen=True, kw_only=True)
class Dropout(Elementwise):
    """Sets a share of the elements, or of whole channels (``noise_shape`` with ones), to zero in training.

    ``stream`` numbers the dropouts of a program: masks depend on it, on the seed and on the step alone.
    ``scaled`` says whether what is kept is scaled here, or by the matrix product that follows.
    """

    rate: float
    stream: int
    noise_shape: tuple[int | None, ...] | None = None
    scaled: bool = True


@dataclass(frozen=True, kw_only=True)
class Affine(Op):
    """x · scale + offset with constants (Rescaling, Normalization); integers are accepted.

    ``divide`` says that the formula is (x + offset) / scale, as Normalization computes it.
    """

    scale: tuple[float, ...]
    offset: tuple[float, ...]
    constant_shape: tuple[int, ...] = ()
    divide: bool = False

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        return broadcast([shape, (None, *self.constant_shape[1:])]) if self.constant_shape else shape


# Keras's functions by what they are, not by their names.
KERAS_FUNCTIONS = {getattr(keras.activations, name): name for name in TORCH_FUNCTIONS}


# Keras's operations by the names of their classes, in small letters.
_OPERATIONS = {name.replace("_", ""): name for name in TORCH_FUNCTIONS} | {"exp": "exponential"}
_OPERATION_MODULES = ("keras.src.ops.nn", "keras.src.ops.numpy", "keras.src.activations.activations")


def activation_of(operation: Any) -> Activation | None:
    """Return the activation function that an operation of ``keras.ops`` is; None for any other."""
    kind = type(operation)
    name = _OPERATIONS.get(kind.__name__.lower())
    if name is None or kind.__module__ not in _OPERATION_MODULES:
        return None
    known = inspect.signature(getattr(keras.activations, name)).parameters
    settings = internals.settings_of_operation(operation).items()
    given = tuple((key, value) for key, value in settings if value != known[key].default)
    is_understood = name in WITH_SETTINGS and all(isinstance(value, int | float) for _, value in given)
    return Activation(name, given) if is_understood or not given else None


def read_activation(builder: ProgramBuilder, operation: Any, inputs: Sequence[Value]) -> Value:
    """Convert an activation function that is called as an operation."""
    return builder.add(Activate, operation, inputs, activation=activation_of(operation))


def read_fused_activation(
    builder: ProgramBuilder, layer: Any, value: Value, part: str = "activation"
) -> Value:
    """Append the activation that a layer computes on its own result."""
    name = "linear" if layer.activation is None else KERAS_FUNCTIONS[layer.activation]
    if name == "linear":
        return value
    return builder.add(Activate, layer, [value], part=part, activation=Activation(name))


@reads("Activation")
def _read_activation(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    return read_fused_activation(builder, layer, inputs[0], part="")


@reads("ReLU")
def _read_relu(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    given = {
        "negative_slope": float(layer.negative_slope or 0.0),
        "max_value": None if layer.max_value is None else float(layer.max_value),
        "threshold": float(layer.threshold or 0.0),
    }
    settings = tuple((key, value) for key, value in given.items() if value not in (0.0, None))
    if given["max_value"] == 0.0:
        settings = (*settings, ("max_value", 0.0))
    return builder.add(Activate, layer, inputs, activation=Activation("relu", settings))


@reads("LeakyReLU")
def _read_leaky_relu(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    settings = (("negative_slope", float(layer.negative_slope)),)
    return builder.add(Activate, layer, inputs, activation=Activation("leaky_relu", settings))


@reads("ELU")
def _read_elu(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    return builder.add(
        Activate, layer, inputs, activation=Activation("elu", (("alpha", float(layer.alpha)),))
    )


@reads("PReLU")
def _read_prelu(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    return builder.add(PRelu, layer, inputs, alpha=builder.path(layer.alpha))


@reads("Softmax")
def _read_softmax(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value | None:
    if not isinstance(layer.axis, int):
        return None
    settings = () if layer.axis == -1 else (("axis", layer.axis),)
    return builder.add(Activate, layer, inputs, activation=Activation("softmax", settings))


@reads("Dropout")
def _read_dropout(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    noise = None if layer.noise_shape is None else tuple(layer.noise_shape)
    return _read_dropped(builder, layer, inputs, noise)


@reads("SpatialDropout2D")
def _read_spatial_dropout2d(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    channels = inputs[0].shape[channel_axis(layer.data_format)]
    noise = (None, 1, 1, channels) if layer.data_format == "channels_last" else (None, channels, 1, 1)
    return _read_dropped(builder, layer, inputs, noise)


def _read_dropped(
    builder: ProgramBuilder, layer: Any, inputs: Sequence[Value], noise: tuple[int | None, ...] | None
) -> Value:
    stream = builder.next_stream()
    if layer.rate == 0:
        return inputs[0]
    return builder.add(Dropout, layer, inputs, rate=float(layer.rate), stream=stream, noise_shape=noise)


@reads("Rescaling")
def _read_rescaling(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    scale, offset = (np.asarray(number, dtype=np.float32) for number in (layer.scale, layer.offset))
    if scale.ndim and keras.config.image_data_format() == "channels_first":
        scale = scale.reshape(scale.shape + (1,) * (3 - scale.ndim))
    return _read_affine(builder, layer, inputs, scale, offset)


@reads("Normalization")
def _read_normalization(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    mean = np.asarray(keras.ops.convert_to_numpy(layer.mean), dtype=np.float32)
    variance = np.asarray(keras.ops.convert_to_numpy(layer.variance), dtype=np.float32)
    deviation = np.maximum(np.sqrt(variance), np.float32(keras.config.epsilon()))
    if layer.invert:
        return _read_affine(builder, layer, inputs, deviation, mean)
    return _read_affine(builder, layer, inputs, deviation, -mean, divide=True)


def _read_affine(
    builder: ProgramBuilder,
    layer: Any,
    inputs: Sequence[Value],
    scale: Any,
    offset: Any,
    divide: bool = False,
) -> Value:
    scale, offset = np.broadcast_arrays(scale, offset)
    rank = inputs[0].rank
    shape = (1,) * (rank - scale.ndim) + scale.shape if scale.ndim else ()
    return builder.add(
        Affine,
        layer,
        inputs,
        scale=tuple(map(float, scale.ravel())),
        offset=tuple(map(float, offset.ravel())),
        constant_shape=shape,
        divide=divide,
    )


@reads("Identity", "ActivityRegularization")
def _read_identity(_builder: ProgramBuilder, _layer: Any, inputs: Sequence[Value]) -> Value:
    return inputs[0]


@runs(Activate)
def _run_activate(op: Activate, _network: WeightSource) -> Runner:
    function = activation_function(op.activation)
    return lambda _step, x: function(x)


@runs(PRelu)
def _run_prelu(op: PRelu, network: WeightSource) -> Runner:
    def run(_step: Step, x: Tensor) -> Tensor:
        return torch.relu(x) - network.tensor(op.alpha).to(x.dtype) * torch.relu(-x)

    return run


@runs(Dropout)
def _run_dropout(op: Dropout, _network: WeightSource) -> Runner:
    dropper = Dropper(op)

    def run(step: Step, x: Tensor) -> Tensor:
        if not step.training:
            return x
        if op.rate >= 1.0:
            return torch.zeros_like(x)
        mask = dropper.of(step)(x.shape, x.dtype, x.device)
        return kernels.apply(kernels.Drop, x, mask, dropper.scale)

    return run


@runs(Affine)
def _run_affine(op: Affine, network: WeightSource) -> Runner:
    shape = op.constant_shape
    constants = [
        torch.tensor(numbers, dtype=torch.float32).reshape(shape) for numbers in (op.scale, op.offset)
    ]
    # A factor of one or a sum with zero would be a pass over memory for nothing.
    scales, shifts = op.scale != (1.0,), op.offset != (0.0,)

    def run(_step: Step, x: Tensor) -> Tensor:
        scale, offset = (network.on_device(constant) for constant in constants)
        wide = x if x.is_floating_point() else x.float()
        result = wide + offset if op.divide and shifts else wide
        if scales:
            result = result / scale if op.divide else result * scale
        result = result + offset if shifts and not op.divide else result
        return result.to(wide.dtype)

    return run


def random_streams(ops: Iterable[Op]) -> tuple[int, ...]:
    """Return the streams of all dropouts, alone or fused behind other ops, and of other random numbers."""
    fused = [
        (op, getattr(op, "drop", None), getattr(getattr(op, "pooling", None), "drop", None)) for op in ops
    ]
    found = {one.stream for group in fused for one in group if isinstance(one, Dropout | Random)}
    return tuple(sorted(found))


class FusedEpilogue:
    """What was fused behind an op: an epilogue for the kernel, or an activation for afterwards.

    A kernel that ``clips`` takes in a ReLU with a largest value too.
    """

    def __init__(self, activation: Activation | None, drop: Dropout | None, clips: bool = False) -> None:
        ceiling = activation.ceiling if activation is not None and clips and drop is None else None
        relu = activation is not None and (activation.is_plain_relu or ceiling is not None)
        self.activate: Function | None = (
            None if activation is None or relu else activation_function(activation)
        )
        # What a loop may compute in place of ``finish``, while it adds the bias.
        self.smooth = None if activation is None else smooth_name(activation)
        self._plain = Epilogue(relu, ceiling=ceiling)
        self._dropper = None if drop is None else Dropper(drop)

    def at(self, step: Step) -> Epilogue:
        """Return the epilogue of this pass: dropout belongs to training only."""
        if self._dropper is None or not step.training:
            return self._plain
        return Epilogue(self._plain.relu, self._dropper.of(step), self._dropper.scale)

    def finish(self, result: Tensor) -> Tensor:
        """Compute an activation that no kernel takes in."""
        return result if self.activate is None else self.activate(result)


class Dropper:
    """Makes the masks of one dropout."""

    def __init__(self, op: Dropout) -> None:
        self._op = op
        self.scale = 1.0 / keep_probability(op.rate) if op.scaled and op.rate < 1.0 else 1.0

    def of(self, step: Step) -> Callable[[kernels.Shape, torch.dtype, torch.device], Mask]:
        """Return a function that makes the mask of this step for a tensor of some shape."""
        key = step.key(self._op.stream)

        def make(shape: kernels.Shape, dtype: torch.dtype, device: torch.device) -> Mask:
            noise = self._op.noise_shape or (None,) * len(shape)
            wanted = tuple(size if fixed is None else fixed for size, fixed in zip(shape, noise, strict=True))
            shard = step.shard if noise[0] is None else None  # one mask for all rows is the same everywhere
            if shard is None:
                return make_mask(self._op.rate, wanted, key, bits_type(dtype), device)
            begin, end = shard.elements(math.prod(wanted))
            whole = (wanted[0] * shard.total // shard.rows, *wanted[1:])
            return make_mask(self._op.rate, whole, key, bits_type(dtype), device).part(begin, end, wanted)

        return make
