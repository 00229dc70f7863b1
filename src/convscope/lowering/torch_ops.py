"""How each op runs on torch: one short function per op type returns a callable that only executes.

Images keep Keras's axis order; a convolution sees them through ``permute``, a view, so that a batch that is
contiguous in (n, h, w, c) is torch's channels_last without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses

from convscope.lowering import program as ops
from convscope.lowering.activations import activation_function
from convscope.lowering.masks import MaskSource, mix
from convscope.lowering.program import DataFormat, Pair
from convscope.lowering.shapes import same_padding

if TYPE_CHECKING:
    from convscope.lowering.emit import LoweredNetwork

Tensor = torch.Tensor


@dataclass
class Step:
    """What one pass through the network knows: its mode, its random numbers, the losses it met."""

    training: bool
    seed: int = 0
    number: int = 0
    losses: list[Tensor] = field(default_factory=list)


Runner = Callable[..., Any]
_EMITTERS: dict[type[ops.Op], Callable[[Any, Any], Runner]] = {}
_T = TypeVar("_T", bound=Callable[..., Runner])


def runner_of(op: ops.Op, network: LoweredNetwork) -> Runner:
    """Return a callable ``(step, *tensors) → tensor`` that computes the op on a network's weights."""
    return _EMITTERS[type(op)](op, network)


def _emits(kind: type[ops.Op]) -> Callable[[_T], _T]:
    def register(function: _T) -> _T:
        _EMITTERS[kind] = function
        return function

    return register


def to_torch_order(x: Tensor, data_format: DataFormat) -> Tensor:
    """View images in torch's axis order."""
    return x if data_format == "channels_first" else x.permute(0, 3, 1, 2)  # (n, c, h, w)


def to_keras_order(x: Tensor, data_format: DataFormat) -> Tensor:
    """View images that are in torch's axis order in the model's."""
    return x if data_format == "channels_first" else x.permute(0, 2, 3, 1)  # (n, h, w, c)


def _padding(image: Tensor, op: ops.Conv2D | ops.Pool2D, window: Pair, dilation: Pair = (1, 1)) -> tuple[Pair, Pair]:
    if op.padding == "valid":
        return (0, 0), (0, 0)
    height, width = (
        same_padding(length, size, stride, step)
        for length, size, stride, step in zip(image.shape[2:], window, op.strides, dilation, strict=True)
    )
    return height, width


@_emits(ops.Conv2D)
def _conv2d(op: ops.Conv2D, network: LoweredNetwork) -> Runner:
    window = (op.kernel_shape[0], op.kernel_shape[1])
    activate = activation_function(op.activation) if op.activation else None
    dtype = getattr(torch, op.compute.precision)
    last = op.compute.layout == "channels_last"
    layout = torch.channels_last if last else torch.contiguous_format

    def prepare() -> tuple[Tensor, Tensor | None]:
        kernel, bias = _folded(op, network)
        if op.depthwise:
            kernel = kernel.reshape(*window, 1, op.filters)
        kernel = kernel.permute(3, 2, 0, 1)  # (out, in, k, k)
        return kernel.to(dtype).contiguous(memory_format=layout), None if bias is None else bias.to(dtype)

    def run(step: Step, x: Tensor) -> Tensor:
        del step
        kernel, bias = network.prepared(op, prepare)
        image = to_torch_order(x.to(dtype), op.data_format)
        rows, columns = _padding(image, op, window, op.dilation)
        if rows[0] != rows[1] or columns[0] != columns[1]:
            image = F.pad(image, (*columns, *rows))
            rows = columns = (0, 0)
        image = image.contiguous(memory_format=layout)
        result = torch.conv2d(image, kernel, bias, op.strides, (rows[0], columns[0]), op.dilation, op.groups)
        return to_keras_order(activate(result) if activate else result, op.data_format)

    return run


@_emits(ops.Dense)
def _dense(op: ops.Dense, network: LoweredNetwork) -> Runner:
    activate = activation_function(op.activation) if op.activation else None
    dtype = getattr(torch, op.compute.precision)

    def prepare() -> tuple[Tensor, Tensor | None]:
        kernel, bias = _folded(op, network)
        return kernel.to(dtype), None if bias is None else bias.to(dtype)

    def run(step: Step, x: Tensor) -> Tensor:
        del step
        kernel, bias = network.prepared(op, prepare)
        rows = x.to(dtype).reshape(-1, kernel.shape[0])
        result = rows @ kernel if bias is None else torch.addmm(bias, rows, kernel)
        result = activate(result) if activate else result
        return result.view(*x.shape[:-1], -1)

    return run


def _folded(op: ops.Conv2D | ops.Dense, network: LoweredNetwork) -> tuple[Tensor, Tensor | None]:
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


@_emits(ops.BatchNormalization)
def _batch_normalization(op: ops.BatchNormalization, network: LoweredNetwork) -> Runner:
    def run(step: Step, x: Tensor) -> Tensor:
        gamma = None if op.gamma is None else network.tensor(op.gamma)
        beta = None if op.beta is None else network.tensor(op.beta)
        mean, variance = network.tensor(op.moving_mean), network.tensor(op.moving_variance)
        moved = x.movedim(op.axis, 1)
        if not step.training or op.frozen:
            result = torch.batch_norm(
                moved, gamma, beta, mean, variance, False, 0.0, op.epsilon, torch.backends.cudnn.enabled
            )
            return result.movedim(1, op.axis)
        batch_mean, batch_variance = torch.empty_like(mean), torch.empty_like(variance)
        result = torch.batch_norm(
            moved, gamma, beta, batch_mean, batch_variance, True, 1.0, op.epsilon, torch.backends.cudnn.enabled
        )
        _update_statistics(op, mean, variance, batch_mean, batch_variance, moved.numel() // moved.shape[1])
        return result.movedim(1, op.axis)

    return run


def _update_statistics(
    op: ops.BatchNormalization, mean: Tensor, variance: Tensor, batch_mean: Tensor, batch_variance: Tensor, count: int
) -> None:
    """Move the statistics towards the batch's; torch gives the unbiased variance, Keras keeps the biased one."""
    with torch.no_grad():
        biased = batch_variance * ((count - 1) / count) if count > 1 else torch.zeros_like(batch_variance)
        mean.lerp_(batch_mean, 1.0 - op.momentum)
        variance.lerp_(biased, 1.0 - op.momentum)


@_emits(ops.LayerNormalization)
def _layer_normalization(op: ops.LayerNormalization, network: LoweredNetwork) -> Runner:
    def run(step: Step, x: Tensor) -> Tensor:
        del step
        gamma = None if op.gamma is None else network.tensor(op.gamma)
        beta = None if op.beta is None else network.tensor(op.beta)
        rank = x.dim()
        if op.axes == tuple(range(rank - len(op.axes), rank)):
            sizes = [x.shape[axis] for axis in op.axes]
            return F.layer_norm(x, sizes, gamma, beta, op.epsilon)
        wide = x.float()
        variance, mean = torch.var_mean(wide, dim=op.axes, keepdim=True, correction=0)
        shape = [x.shape[axis] if axis in op.axes else 1 for axis in range(rank)]
        result = (wide - mean) * torch.rsqrt(variance + op.epsilon)
        result = result * gamma.view(shape) if gamma is not None else result
        result = result + beta.view(shape) if beta is not None else result
        return result.to(x.dtype)

    return run


@_emits(ops.Activate)
def _activate(op: ops.Activate, network: LoweredNetwork) -> Runner:
    del network
    function = activation_function(op.activation)
    return lambda step, x: function(x)


@_emits(ops.PRelu)
def _prelu(op: ops.PRelu, network: LoweredNetwork) -> Runner:
    def run(step: Step, x: Tensor) -> Tensor:
        del step
        return torch.relu(x) - network.tensor(op.alpha).to(x.dtype) * torch.relu(-x)

    return run


@_emits(ops.Pool2D)
def _pool2d(op: ops.Pool2D, network: LoweredNetwork) -> Runner:
    del network
    activate = activation_function(op.activation) if op.activation else None
    pool = _max_pool if op.mode == "max" else _average_pool

    def run(step: Step, x: Tensor) -> Tensor:
        del step
        image = to_torch_order(x, op.data_format)
        result = pool(op, image, *_padding(image, op, op.pool))
        return to_keras_order(activate(result) if activate else result, op.data_format)

    return run


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


@_emits(ops.GlobalPool2D)
def _global_pool2d(op: ops.GlobalPool2D, network: LoweredNetwork) -> Runner:
    del network
    axes = (1, 2) if op.data_format == "channels_last" else (2, 3)
    if op.mode == "average":
        return lambda step, x: x.mean(axes, keepdim=op.keepdims)
    return lambda step, x: x.amax(axes, keepdim=op.keepdims)


@_emits(ops.Dropout)
def _dropout(op: ops.Dropout, network: LoweredNetwork) -> Runner:
    sources: dict[tuple[Any, ...], MaskSource] = {}

    def run(step: Step, x: Tensor) -> Tensor:
        if not step.training:
            return x
        if op.rate >= 1.0:
            return torch.zeros_like(x)
        noise = op.noise_shape or (None,) * x.dim()
        shape = tuple(size if wanted is None else wanted for size, wanted in zip(x.shape, noise, strict=True))
        key = (shape, x.device)
        if key not in sources:
            sources[key] = MaskSource(op.rate, shape, x.device)
        source = sources[key]
        kept = source.keep(mix(step.seed, step.number, op.stream))
        return torch.where(kept, x * (1.0 / source.keep_probability), 0.0)

    return run


@_emits(ops.Flatten)
def _flatten(op: ops.Flatten, network: LoweredNetwork) -> Runner:
    del network

    def run(step: Step, x: Tensor) -> Tensor:
        del step
        if op.data_format == "channels_first" and x.dim() > 2:
            x = x.movedim(1, -1)
        return x.reshape(x.shape[0], -1)

    return run


@_emits(ops.Reshape)
def _reshape(op: ops.Reshape, network: LoweredNetwork) -> Runner:
    del network
    return lambda step, x: x.reshape(x.shape[0], *op.target)


@_emits(ops.ZeroPad2D)
def _zero_pad2d(op: ops.ZeroPad2D, network: LoweredNetwork) -> Runner:
    del network
    rows, columns = op.amounts
    amounts = (0, 0, *columns, *rows) if op.data_format == "channels_last" else (*columns, *rows)
    return lambda step, x: F.pad(x, amounts)


@_emits(ops.Crop2D)
def _crop2d(op: ops.Crop2D, network: LoweredNetwork) -> Runner:
    del network
    (top, bottom), (left, right) = op.amounts

    def run(step: Step, x: Tensor) -> Tensor:
        del step
        image = to_torch_order(x, op.data_format)
        height, width = image.shape[2:]
        return to_keras_order(image[:, :, top : height - bottom, left : width - right], op.data_format)

    return run


@_emits(ops.UpSample2D)
def _up_sample2d(op: ops.UpSample2D, network: LoweredNetwork) -> Runner:
    del network
    settings: dict[str, Any] = {"mode": op.interpolation}
    if op.interpolation == "bilinear":
        settings["align_corners"] = False

    def run(step: Step, x: Tensor) -> Tensor:
        del step
        image = to_torch_order(x, op.data_format)
        size = [length * factor for length, factor in zip(image.shape[2:], op.size, strict=True)]
        return to_keras_order(F.interpolate(image, size=size, **settings), op.data_format)

    return run


_MERGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "average": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


@_emits(ops.Merge)
def _merge(op: ops.Merge, network: LoweredNetwork) -> Runner:
    del network
    combine = _MERGES[op.mode]

    def run(step: Step, *tensors: Tensor) -> Tensor:
        del step
        aligned = _same_rank(tensors)
        result = aligned[0]
        for tensor in aligned[1:]:
            result = combine(result, tensor)
        return result / len(tensors) if op.mode == "average" else result

    return run


def _same_rank(tensors: Sequence[Tensor]) -> list[Tensor]:
    rank = max(tensor.dim() for tensor in tensors)
    return [
        tensor.reshape(tensor.shape[0], *(1,) * (rank - tensor.dim()), *tensor.shape[1:])
        if tensor.dim() < rank
        else tensor
        for tensor in tensors
    ]


@_emits(ops.Concatenate)
def _concatenate(op: ops.Concatenate, network: LoweredNetwork) -> Runner:
    del network
    return lambda step, *tensors: torch.cat(tensors, dim=op.axis)


@_emits(ops.Affine)
def _affine(op: ops.Affine, network: LoweredNetwork) -> Runner:
    shape = op.constant_shape
    constants = [torch.tensor(numbers, dtype=torch.float32).reshape(shape) for numbers in (op.scale, op.offset)]

    def run(step: Step, x: Tensor) -> Tensor:
        del step
        scale, offset = (network.on_device(constant) for constant in constants)
        wide = x if x.is_floating_point() else x.float()
        result = (wide + offset) / scale if op.divide else wide * scale + offset
        return result.to(wide.dtype)

    return run


@_emits(ops.KerasCall)
def _keras_call(op: ops.KerasCall, network: LoweredNetwork) -> Runner:
    def run(step: Step, *tensors: Tensor) -> Any:
        named = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in zip(op.inputs, tensors, strict=True)
        }
        trainable = [network.tensor(path) for path in op.trainable]
        others = [network.tensor(path) for path in op.others]
        number = mix(step.seed, step.number, op.stream) & 0x7FFFFFFF
        with torch.random.fork_rng(devices=[], enabled=step.training):
            if step.training:
                # Keras's unseeded dropout draws from torch's global generator.
                torch.manual_seed(number)
            outputs, updated, losses = op.call.run(
                named, trainable, others, step.training, (number, 0) if step.training else None
            )
        if step.training:
            with torch.no_grad():
                for state, value in zip(others, updated, strict=True):
                    if value is not state:
                        state.copy_(value)
        step.losses.extend(losses)
        return outputs if len(op.outputs) > 1 else outputs[0]

    return run


@_emits(ops.ActivityLoss)
def _activity_loss(op: ops.ActivityLoss, network: LoweredNetwork) -> Runner:
    del network

    def run(step: Step, x: Tensor) -> None:
        step.losses.append(op.regularizer(x.float()) / x.shape[0])

    return run
