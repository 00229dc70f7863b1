"""How the heavy ops run on torch: convolution, matrix product, max-pooling, dropout.

Each chooses, from the op's ``Compute`` and from what it is given, between torch's own operation and one of
the fused kernels. The choice is made when the network is emitted, or when a shape is first seen.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses

from convscope.lowering import kernels
from convscope.lowering import program as ops
from convscope.lowering.activations import Function, activation_function
from convscope.lowering.masks import MaskSource, mix
from convscope.lowering.program import Activation, Pair
from convscope.lowering.runners import (
    Host,
    Prepared,
    Runner,
    Step,
    Tensor,
    emits,
    padding_of,
    to_keras_order,
    to_torch_order,
)

_LAYOUTS = {"channels_last": torch.channels_last, "channels_first": torch.contiguous_format}


def _split(activation: Activation | None) -> tuple[bool, Function | None]:
    """Say whether a kernel can take the activation in; else return it as a function of its own."""
    if activation is None:
        return False, None
    return (True, None) if activation.is_plain_relu else (False, activation_function(activation))


@emits(ops.Conv2D)
def _conv2d(op: ops.Conv2D, network: Host) -> Runner:
    return (
        _row_convolution(op, network) if op.compute.algorithm == "rows" else _direct_convolution(op, network)
    )


def _direct_convolution(op: ops.Conv2D, network: Host) -> Runner:
    window = (op.kernel_shape[0], op.kernel_shape[1])
    relu, activate = _split(op.activation)
    dtype, layout = getattr(torch, op.compute.precision), _LAYOUTS[op.compute.layout]

    def prepare() -> Prepared:
        kernel, bias = folded(op, network)
        if op.depthwise:
            kernel = kernel.reshape(*window, 1, op.filters)
        kernel = kernel.permute(3, 2, 0, 1)  # (out, in, k, k)
        return kernel.to(dtype).contiguous(memory_format=layout), None if bias is None else bias.to(dtype)

    def run(_step: Step, x: Tensor) -> Tensor:
        kernel, bias = network.prepared(op, prepare)
        image = to_torch_order(x.to(dtype), op.data_format)
        rows, columns = padding_of(image, op, window, op.dilation)
        if rows[0] != rows[1] or columns[0] != columns[1]:
            image = F.pad(image, (*columns, *rows))
            rows = columns = (0, 0)
        image = image.contiguous(memory_format=layout)
        geometry = (op.strides, (rows[0], columns[0]), op.dilation, op.groups)
        if relu:
            result = kernels.apply(kernels.ConvolutionRelu, image, kernel, bias, *geometry)
        else:
            result = torch.conv2d(image, kernel, bias, *geometry)
        return to_keras_order(activate(result) if activate else result, op.data_format)

    return run


def _row_convolution(op: ops.Conv2D, network: Host) -> Runner:
    window = (op.kernel_shape[0], op.kernel_shape[1])
    relu, activate = _split(op.activation)
    dtype = getattr(torch, op.compute.precision)

    def prepare() -> Prepared:
        kernel, bias = folded(op, network)
        return kernel.to(dtype), None if bias is None else bias.to(dtype)

    def run(_step: Step, x: Tensor) -> Tensor:
        kernel, bias = network.prepared(op, prepare)
        image = to_torch_order(x.to(dtype), op.data_format)
        rows, columns = padding_of(image, op, window)
        images = image.permute(0, 2, 3, 1)  # (n, h, w, c)
        if rows != (0, 0) or columns != (0, 0):
            images = F.pad(images, (0, 0, *columns, *rows))
        result = kernels.apply(kernels.RowConvolution, images, kernel, bias, op.strides, relu)
        result = activate(result) if activate else result
        return result if op.data_format == "channels_last" else result.permute(0, 3, 1, 2)

    return run


@emits(ops.Dense)
def _dense(op: ops.Dense, network: Host) -> Runner:
    relu, activate = _split(op.activation)
    dtype = getattr(torch, op.compute.precision)

    def prepare() -> Prepared:
        kernel, bias = folded(op, network)
        # While gradients are wanted, the kernel's own function narrows it, and widens its gradient.
        return (
            (kernel, bias)
            if torch.is_grad_enabled()
            else (kernel.to(dtype), None if bias is None else bias.to(dtype))
        )

    def run(step: Step, x: Tensor) -> Tensor:
        kernel, bias = network.prepared(op, prepare)
        rows = x.to(dtype).reshape(-1, op.kernel_shape[0])  # (n, in)
        scale = op.input_scale if step.training else 1.0
        result = kernels.apply(kernels.DenseRelu, rows, kernel, bias, scale, relu)
        result = activate(result) if activate else result
        return result.view(*x.shape[:-1], -1)

    return run


def folded(op: ops.Conv2D | ops.Dense, network: Host) -> tuple[Tensor, Tensor | None]:
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
def _pool2d(op: ops.Pool2D, _network: Host) -> Runner:
    relu, activate = _split(op.activation)
    activate = torch.relu if relu else activate
    pool = _max_pool if op.mode == "max" else _average_pool
    tiles = op.mode == "max" and op.pool == op.strides == (2, 2) and op.data_format == "channels_last"

    def run(_step: Step, x: Tensor) -> Tensor:
        image = to_torch_order(x, op.data_format)
        rows, columns = padding_of(image, op, op.pool)
        if tiles and rows == columns == (0, 0) and _suits_tiles(x):
            result = kernels.apply(kernels.TileMaxPool, x, relu)
            return result if relu or activate is None else activate(result)
        result = pool(op, image, rows, columns)
        return to_keras_order(activate(result) if activate else result, op.data_format)

    return run


def _suits_tiles(x: Tensor) -> bool:
    """Say whether strided maxima beat torch's max-pooling here: measured on bfloat16 images on CPUs."""
    return x.device.type == "cpu" and x.is_contiguous() and (x.dtype is torch.bfloat16 or not x.requires_grad)


def _max_pool(op: ops.Pool2D, image: Tensor, rows: Pair, columns: Pair) -> Tensor:
    if rows[0] != rows[1] or columns[0] != columns[1]:
        image = F.pad(image, (*columns, *rows), value=float("-inf"))
        rows = columns = (0, 0)
    return F.max_pool2d(image, op.pool, op.strides, (rows[0], columns[0]))


def _average_pool(op: ops.Pool2D, image: Tensor, rows: Pair, columns: Pair) -> Tensor:
    lopsided = rows[0] != rows[1] or columns[0] != columns[1]
    if not lopsided:
        return F.avg_pool2d(image, op.pool, op.strides, (rows[0], columns[0]), count_include_pad=False)
    if op.edge == "replicate":
        return F.avg_pool2d(F.pad(image, (*columns, *rows), mode="replicate"), op.pool, op.strides)
    counted = torch.ones_like(image[:1, :1])
    total, count = (
        F.avg_pool2d(F.pad(part, (*columns, *rows)), op.pool, op.strides) for part in (image, counted)
    )
    return total / count


@emits(ops.Dropout)
def _dropout(op: ops.Dropout, _network: Host) -> Runner:
    sources: dict[tuple[Any, ...], MaskSource] = {}

    def run(step: Step, x: Tensor) -> Tensor:
        if not step.training:
            return x
        if op.rate >= 1.0:
            return torch.zeros_like(x)
        shape = _mask_shape(op, x)
        if (shape, x.device) not in sources:
            sources[shape, x.device] = MaskSource(op.rate, shape, x.device)
        source = sources[shape, x.device]
        keep = source.keep(mix(step.seed, step.number, op.stream), kernels.mask_type(x.dtype))
        scale = 1.0 / source.keep_probability if op.scaled else 1.0
        return kernels.apply(kernels.Drop, x, _as_laid_out(keep, x), scale)

    return run


def _mask_shape(op: ops.Dropout, x: Tensor) -> tuple[int, ...]:
    noise = op.noise_shape or (None,) * x.dim()
    return tuple(size if wanted is None else wanted for size, wanted in zip(x.shape, noise, strict=True))


def _as_laid_out(keep: Tensor, x: Tensor) -> Tensor:
    """Give a full mask the strides of x, so that the two are read in the same order."""
    permuted = (
        keep.shape == x.shape and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    )
    return keep.as_strided(x.shape, x.stride()) if x.dim() == 4 and permuted else keep
