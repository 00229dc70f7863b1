"""How the larger ops run on torch: convolution, matrix product, max-pooling, dropout.

Each chooses, from the op's ``KernelChoice`` and from what it is given, between torch's own operation and one
of the fused kernels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses

from convscope.lowering import ir as ops
from convscope.lowering import kernels
from convscope.lowering.activations import Function, activation_function
from convscope.lowering.convolutions import (
    Convolution,
    FewChannelConvolution,
    Geometry,
    Order,
    convolve,
    convolve_few_channels,
    torch_kernel,
)
from convscope.lowering.cpu import compiled
from convscope.lowering.ir import Activation, Pair
from convscope.lowering.kernels import Epilogue
from convscope.lowering.masks import Mask, MaskSource, bits_type, keep_probability, mix
from convscope.lowering.runners import (
    Prepared,
    Runner,
    Step,
    Tensor,
    WeightSource,
    emits,
    is_lopsided,
    padded,
    padding_of,
    to_keras_order,
    to_torch_order,
)


class _FusedEpilogue:
    """What was fused behind a heavy op: a epilogue for the kernel, or an activation for afterwards."""

    def __init__(self, activation: Activation | None, drop: ops.Dropout | None) -> None:
        relu = activation is not None and activation.is_plain_relu
        self.activate: Function | None = (
            None if activation is None or relu else activation_function(activation)
        )
        self._plain = Epilogue(relu)
        self._dropper = None if drop is None else _Dropper(drop)

    def epilogue(self, step: Step) -> Epilogue:
        """Return the epilogue of this pass: dropout belongs to training only."""
        if self._dropper is None or not step.training:
            return self._plain
        return Epilogue(self._plain.relu, self._dropper.of(step), self._dropper.scale)

    def finish(self, result: Tensor) -> Tensor:
        """Compute an activation that no kernel takes in."""
        return result if self.activate is None else self.activate(result)


class _Dropper:
    """Makes the masks of one dropout."""

    def __init__(self, op: ops.Dropout) -> None:
        self._op = op
        self._sources: dict[tuple[Any, ...], MaskSource] = {}
        self.scale = 1.0 / keep_probability(op.rate) if op.scaled and op.rate < 1.0 else 1.0

    def of(self, step: Step) -> Callable[[kernels.Shape, torch.dtype, torch.device], Mask]:
        """Return a function that makes the mask of this step for a tensor of some shape."""
        key = mix(step.seed, step.number, self._op.stream)
        return lambda shape, dtype, device: self._source(shape, device).mask(key, bits_type(dtype))

    def _source(self, shape: kernels.Shape, device: torch.device) -> MaskSource:
        noise = self._op.noise_shape or (None,) * len(shape)
        wanted = tuple(size if fixed is None else fixed for size, fixed in zip(shape, noise, strict=True))
        known = (wanted, device)
        if known not in self._sources:
            self._sources[known] = MaskSource(self._op.rate, wanted, device)
        return self._sources[known]


@emits(ops.Conv2D)
def _conv2d(op: ops.Conv2D, network: WeightSource) -> Runner:
    if op.kernel_shape[:2] == (1, 1) and op.strides != (1, 1):
        return _sampled(op, network)
    direct = _convolution(op, network)
    if op.choice.algorithm == "direct":
        return direct
    shallow = _few_channel_convolution(op, network)

    def run(step: Step, x: Tensor) -> Tensor:
        on_cpu = x.device.type == network.tensor(op.kernel).device.type == "cpu"
        result: Tensor = (shallow if on_cpu else direct)(step, x)
        return result

    return run


def _sampled(op: ops.Conv2D, network: WeightSource) -> Runner:
    """Convolve with a 1×1 kernel in strides: only the pixels under it are looked at.

    With its own strides, oneDNN writes past the end of its memory in the weight gradient of images with few
    channels, where it has no more than AVX2 (`benchmarks/convolution_crashes.py`).
    """
    convolve_each = _conv2d(dataclasses.replace(op, strides=(1, 1)), network)
    rows, columns = (slice(None, None, stride) for stride in op.strides)
    pixels = (..., rows, columns, slice(None)) if op.data_format == "channels_last" else (..., rows, columns)

    def run(step: Step, x: Tensor) -> Tensor:
        result: Tensor = convolve_each(step, x[pixels])
        return result

    return run


def _convolution(op: ops.Conv2D, network: WeightSource) -> Runner:
    window = (op.kernel_shape[0], op.kernel_shape[1])
    behind = _FusedEpilogue(op.activation, op.drop)
    dtype = getattr(torch, op.choice.precision)
    order = Order(op.data_format, op.choice.layout)

    def prepare() -> Prepared:
        kernel, bias = folded(op, network)
        if torch.is_grad_enabled():
            # The autograd function converts the weights itself, and widens their gradients.
            return kernel, bias
        torch_order = torch_kernel(kernel, dtype, order.memory, op.depthwise)
        return torch_order, None if bias is None else bias.to(dtype)

    def run(step: Step, x: Tensor) -> Tensor:
        kernel, bias = network.prepared(op, prepare)
        images = x.to(dtype)
        rows, columns = padding_of(images, op, window, op.dilation)
        if is_lopsided(rows, columns):
            images = padded(images, rows, columns, op.data_format)
            rows = columns = (0, 0)
        geometry = Geometry(op.strides, (rows[0], columns[0]), op.dilation, op.groups, op.depthwise)
        epilogue = behind.epilogue(step)
        if torch.is_grad_enabled():
            result = kernels.apply(Convolution, images, kernel, bias, geometry, order, epilogue)
        else:
            result = convolve(images, kernel, bias, geometry, order, epilogue)
        return behind.finish(result)

    return run


def _few_channel_convolution(op: ops.Conv2D, network: WeightSource) -> Runner:
    window = (op.kernel_shape[0], op.kernel_shape[1])
    behind = _FusedEpilogue(op.activation, op.drop)
    dtype = getattr(torch, op.choice.precision)
    geometry = Geometry(op.strides, dilation=op.dilation)
    first = op.data_format == "channels_first"

    def prepare() -> Prepared:
        return folded(op, network)

    def run(step: Step, x: Tensor) -> Tensor:
        kernel, bias = network.prepared(op, prepare)
        rows, columns = padding_of(x, op, window, op.dilation)
        if rows != (0, 0) or columns != (0, 0):
            x = padded(x, rows, columns, op.data_format)
        images = x.permute(0, 2, 3, 1) if first else x  # (n, h, w, c)
        arguments = images, kernel, bias, geometry, behind.epilogue(step), dtype
        if torch.is_grad_enabled():
            result = kernels.apply(FewChannelConvolution, *arguments)
        else:
            result = convolve_few_channels(*arguments)
        result = behind.finish(result)
        return result.permute(0, 3, 1, 2) if first else result

    return run


@emits(ops.Dense)
def _dense(op: ops.Dense, network: WeightSource) -> Runner:
    behind = _FusedEpilogue(op.activation, op.drop)
    dtype = getattr(torch, op.choice.precision)

    def prepare() -> Prepared:
        kernel, bias = folded(op, network)
        if torch.is_grad_enabled():
            return kernel, bias
        return kernel.to(dtype), None if bias is None else bias.to(dtype)

    def run(step: Step, x: Tensor) -> Tensor:
        kernel, bias = network.prepared(op, prepare)
        rows = x if x.dtype is torch.bfloat16 else x.to(dtype)
        rows = rows if x.dim() == 2 else rows.reshape(-1, op.kernel_shape[0])  # (n, in)
        scale = op.input_scale if step.training else 1.0
        result = kernels.apply(kernels.MatrixProduct, rows, kernel, bias, scale, behind.epilogue(step), dtype)
        result = behind.finish(result)
        return result if x.dim() == 2 else result.view(*x.shape[:-1], -1)

    return run


def folded(op: ops.Conv2D | ops.Dense, network: WeightSource) -> Prepared:
    """Return kernel and bias in Keras's layout, a folded normalization multiplied in."""
    kernel = network.tensor(op.kernel)
    bias = None if op.bias is None else network.tensor(op.bias)
    norm = op.folded
    if norm is None:
        return kernel, bias
    mean, variance = network.tensor(norm.moving_mean), network.tensor(norm.moving_variance)
    scale = torch.rsqrt(variance + norm.epsilon)
    if norm.gamma is not None:
        scale = scale * network.tensor(norm.gamma)
    offset = (bias - mean if bias is not None else -mean) * scale
    if norm.beta is not None:
        offset = offset + network.tensor(norm.beta)
    shaped = scale.view(op.kernel_shape[2:]) if isinstance(op, ops.Conv2D) and op.depthwise else scale
    return kernel * shaped, offset


@emits(ops.Pool2D)
def _pool2d(op: ops.Pool2D, _network: WeightSource) -> Runner:
    behind = _FusedEpilogue(op.activation, op.drop)
    pool = _max_pool if op.mode == "max" else _average_pool
    tiled = op.mode == "max" and op.pool == op.strides == (2, 2) and op.data_format == "channels_last"

    def run(step: Step, x: Tensor) -> Tensor:
        rows, columns = padding_of(x, op, op.pool)
        epilogue = behind.epilogue(step)
        if tiled and rows == columns == (0, 0) and x.is_contiguous() and compiled.suits(x):
            return behind.finish(kernels.apply(kernels.TileMaxPool, x, epilogue))
        pooled = behind.finish(pool(op, to_torch_order(x, op.data_format), rows, columns))
        result = to_keras_order(pooled, op.data_format)
        result = torch.relu(result) if epilogue.relu else result
        mask = epilogue.mask(result.shape, result)
        return result if mask is None else kernels.apply(kernels.Drop, result, mask, epilogue.scale)

    return run


def _max_pool(op: ops.Pool2D, image: Tensor, rows: Pair, columns: Pair) -> Tensor:
    if is_lopsided(rows, columns):
        image = F.pad(image, (*columns, *rows), value=float("-inf"))
        rows = columns = (0, 0)
    return F.max_pool2d(image, op.pool, op.strides, (rows[0], columns[0]))


def _average_pool(op: ops.Pool2D, image: Tensor, rows: Pair, columns: Pair) -> Tensor:
    if not is_lopsided(rows, columns):
        return F.avg_pool2d(image, op.pool, op.strides, (rows[0], columns[0]), count_include_pad=False)
    if op.edge == "replicate":
        return F.avg_pool2d(F.pad(image, (*columns, *rows), mode="replicate"), op.pool, op.strides)
    counted = torch.ones_like(image[:1, :1])
    total, count = (
        F.avg_pool2d(F.pad(part, (*columns, *rows)), op.pool, op.strides) for part in (image, counted)
    )
    return total / count


@emits(ops.Dropout)
def _dropout(op: ops.Dropout, _network: WeightSource) -> Runner:
    dropper = _Dropper(op)

    def run(step: Step, x: Tensor) -> Tensor:
        if not step.training:
            return x
        if op.rate >= 1.0:
            return torch.zeros_like(x)
        mask = dropper.of(step)(x.shape, x.dtype, x.device)
        return kernels.apply(kernels.Drop, x, mask, dropper.scale)

    return run
