"""How each of the lighter ops runs on torch: a short function per type returns a callable that only executes.

Images keep Keras's axis order; where torch wants its own, it sees them through ``permute``, a view, so that a
batch that is contiguous in (n, h, w, c) is torch's channels_last without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses

from convscope.lowering import ir as ops
from convscope.lowering import kernels
from convscope.lowering.activations import activation_function
from convscope.lowering.devices import forked_generators
from convscope.lowering.keras_call import SEED_BITS
from convscope.lowering.masks import mix
from convscope.lowering.runners import (
    Runner,
    Step,
    Tensor,
    WeightSource,
    emits,
    to_keras_order,
    to_torch_order,
)


@emits(ops.BatchNormalization)
def _batch_normalization(op: ops.BatchNormalization, network: WeightSource) -> Runner:
    def run(step: Step, x: Tensor) -> Tensor:
        gamma = None if op.gamma is None else network.tensor(op.gamma)
        beta = None if op.beta is None else network.tensor(op.beta)
        mean, variance = network.tensor(op.moving_mean), network.tensor(op.moving_variance)
        images = x.movedim(op.axis, -1)
        if not step.training or op.frozen:
            apply = apply_statistics if x.device.type == "mps" else _apply_statistics_by_torch
            return apply(images, mean, variance, gamma, beta, op.epsilon).movedim(-1, op.axis)
        # In narrower types, the images' own rounding hides that of their statistics.
        suits_kernel = images.is_contiguous() and x.device.type == "cpu" and x.dtype is torch.float32
        normalize = kernels.batch_normalization if suits_kernel else _normalize_by_torch
        if x.device.type == "mps":
            normalize = normalize_elementwise
        result, *statistics = normalize(images, gamma, beta, op.epsilon)
        with torch.no_grad():
            for moving, of_batch in zip((mean, variance), statistics, strict=True):
                moving.lerp_(of_batch, 1.0 - op.momentum)
        return result.movedim(-1, op.axis)

    return run


def _apply_statistics_by_torch(
    images: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
) -> Tensor:
    cudnn = torch.backends.cudnn.enabled
    moved = images.movedim(-1, 1)  # (n, c, ...)
    return torch.batch_norm(moved, gamma, beta, mean, variance, False, 0.0, epsilon, cudnn).movedim(1, -1)


def apply_statistics(
    images: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
) -> Tensor:
    """Normalize images (n, ..., c) by given statistics, one element at a time, in any order in memory.

    On Apple's mps, the gradient of torch's own operation fails for images that lie channels last.
    """
    scale = torch.rsqrt(variance + epsilon)
    result = (images - mean) * (scale if gamma is None else scale * gamma)
    return result if beta is None else result + beta


def normalize_elementwise(
    images: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize images (n, ..., c) as ``apply_statistics`` does; return the batch's mean and variance too."""
    variance, mean = torch.var_mean(images, dim=tuple(range(images.dim() - 1)), correction=0)
    return apply_statistics(images, mean, variance, gamma, beta, epsilon), mean.detach(), variance.detach()


def _normalize_by_torch(
    images: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize images (n, ..., c) in any order in memory; return the batch's mean and variance too."""
    # Torch weighs what is here by zero; memory left as it is might hold a NaN, which stays one.
    mean, variance = torch.zeros(2, images.shape[-1], dtype=torch.float32, device=images.device)
    cudnn = torch.backends.cudnn.enabled
    result = torch.batch_norm(images.movedim(-1, 1), gamma, beta, mean, variance, True, 1.0, epsilon, cudnn)
    count = images.numel() // images.shape[-1]
    # Torch's variance is unbiased, Keras keeps the biased one.
    biased = variance * ((count - 1) / count) if count > 1 else torch.zeros_like(variance)
    return result.movedim(1, -1), mean, biased


@emits(ops.LayerNormalization)
def _layer_normalization(op: ops.LayerNormalization, network: WeightSource) -> Runner:
    def run(_step: Step, x: Tensor) -> Tensor:
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


@emits(ops.Activate)
def _activate(op: ops.Activate, _network: WeightSource) -> Runner:
    function = activation_function(op.activation)
    return lambda _step, x: function(x)


@emits(ops.PRelu)
def _prelu(op: ops.PRelu, network: WeightSource) -> Runner:
    def run(_step: Step, x: Tensor) -> Tensor:
        return torch.relu(x) - network.tensor(op.alpha).to(x.dtype) * torch.relu(-x)

    return run


@emits(ops.GlobalPool2D)
def _global_pool2d(op: ops.GlobalPool2D, _network: WeightSource) -> Runner:
    axes = (1, 2) if op.data_format == "channels_last" else (2, 3)
    if op.mode == "average":
        return lambda _step, x: x.mean(axes, keepdim=op.keepdims)
    return lambda _step, x: x.amax(axes, keepdim=op.keepdims)


@emits(ops.Flatten)
def _flatten(op: ops.Flatten, _network: WeightSource) -> Runner:

    def run(_step: Step, x: Tensor) -> Tensor:
        if op.data_format == "channels_first" and x.dim() > 2:
            x = x.movedim(1, -1)
        return x.reshape(x.shape[0], -1)

    return run


@emits(ops.Reshape)
def _reshape(op: ops.Reshape, _network: WeightSource) -> Runner:
    return lambda _step, x: x.reshape(x.shape[0], *op.target)


@emits(ops.ZeroPad2D)
def _zero_pad2d(op: ops.ZeroPad2D, _network: WeightSource) -> Runner:
    rows, columns = op.amounts
    amounts = (0, 0, *columns, *rows) if op.data_format == "channels_last" else (*columns, *rows)
    return lambda _step, x: F.pad(x, amounts)


@emits(ops.Crop2D)
def _crop2d(op: ops.Crop2D, _network: WeightSource) -> Runner:
    (top, bottom), (left, right) = op.amounts

    def run(_step: Step, x: Tensor) -> Tensor:
        image = to_torch_order(x, op.data_format)
        height, width = image.shape[2:]
        return to_keras_order(image[:, :, top : height - bottom, left : width - right], op.data_format)

    return run


@emits(ops.UpSample2D)
def _up_sample2d(op: ops.UpSample2D, _network: WeightSource) -> Runner:
    settings: dict[str, Any] = {"mode": op.interpolation}
    if op.interpolation == "bilinear":
        settings["align_corners"] = False

    def run(_step: Step, x: Tensor) -> Tensor:
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


@emits(ops.Merge)
def _merge(op: ops.Merge, _network: WeightSource) -> Runner:
    combine = _MERGES[op.mode]

    def run(_step: Step, *tensors: Tensor) -> Tensor:
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


@emits(ops.Concatenate)
def _concatenate(op: ops.Concatenate, _network: WeightSource) -> Runner:
    return lambda _step, *tensors: torch.cat(tensors, dim=op.axis)


@emits(ops.Affine)
def _affine(op: ops.Affine, network: WeightSource) -> Runner:
    shape = op.constant_shape
    constants = [
        torch.tensor(numbers, dtype=torch.float32).reshape(shape) for numbers in (op.scale, op.offset)
    ]

    def run(_step: Step, x: Tensor) -> Tensor:
        scale, offset = (network.on_device(constant) for constant in constants)
        wide = x if x.is_floating_point() else x.float()
        result = (wide + offset) / scale if op.divide else wide * scale + offset
        return result.to(wide.dtype)

    return run


@emits(ops.KerasCall)
def _keras_call(op: ops.KerasCall, _network: WeightSource) -> Runner:
    def run(step: Step, *tensors: Tensor) -> Any:
        named = {
            name: tensor.float() if tensor is not None and tensor.is_floating_point() else tensor
            for name, tensor in zip(op.inputs, tensors, strict=True)
        }
        seed = mix(step.seed, step.number, op.stream) & SEED_BITS
        with forked_generators(tensors[0].device) if step.training else nullcontext():
            if step.training:
                # Keras's unseeded dropout draws from torch's global generator.
                torch.manual_seed(seed)
            outputs, losses = op.call.run(named, step.training, seed)
        step.losses.extend(losses)
        return outputs if len(op.outputs) > 1 else outputs[0]

    return run


@emits(ops.ActivityLoss)
def _activity_loss(op: ops.ActivityLoss, _network: WeightSource) -> Runner:

    def run(step: Step, x: Tensor) -> None:
        step.losses.append(op.regularizer(x.float()) / x.shape[0])

    return run
