"""Normalizations: by the statistics of a batch, of each example, or of groups of its channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses

from convscope import _torch_internals as torch_internals
from convscope.lowering import kernels
from convscope.lowering.activations import activation_function
from convscope.lowering.cpu import compiled
from convscope.lowering.ir import Activation, Op, Shape, Value, require
from convscope.lowering.layers.base import ProgramBuilder, Runner, Step, Tensor, WeightSource, reads, runs


@dataclass(frozen=True, kw_only=True)
class Normalization(Op):
    """What all have in common: a scale and an offset that are learned, where the layer has them."""

    gamma: str | None = None
    beta: str | None = None
    epsilon: float = 1e-3

    @property
    def weights(self) -> tuple[str, ...]:
        """Return scale and offset, where the layer has them."""
        return tuple(path for path in (self.gamma, self.beta) if path is not None)

    def scale_and_offset(self, network: WeightSource) -> tuple[Tensor | None, Tensor | None]:
        """Return what the weights are now."""
        gamma = None if self.gamma is None else network.tensor(self.gamma)
        return gamma, None if self.beta is None else network.tensor(self.beta)


def _common(builder: ProgramBuilder, layer: Any) -> dict[str, Any]:
    return {
        "gamma": builder.path(layer.gamma) if layer.scale else None,
        "beta": builder.path(layer.beta) if layer.center else None,
        "epsilon": float(layer.epsilon),
    }


@dataclass(frozen=True, kw_only=True)
class BatchNormalization(Normalization):
    """Normalization by batch statistics (training) or moving statistics (``frozen``, or inference)."""

    axis: int
    moving_mean: str
    moving_variance: str
    momentum: float = 0.99
    frozen: bool = False
    activation: Activation | None = None  # fused behind it, and behind a second input that is added before

    @property
    def state(self) -> tuple[str, ...]:
        """Return the moving statistics."""
        return (self.moving_mean, self.moving_variance)

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        shape = shapes[0]
        require(0 < self.axis < len(shape), f"axis {self.axis} does not exist in {shape}")
        require(all(other == shape for other in shapes), f"the shapes {shapes} differ")
        return shape


@reads("BatchNormalization")
def _read_batch_normalization(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    return builder.add(
        BatchNormalization,
        layer,
        inputs,
        axis=layer.axis % inputs[0].rank,
        moving_mean=builder.path(layer.moving_mean),
        moving_variance=builder.path(layer.moving_variance),
        momentum=float(layer.momentum),
        frozen=not layer.trainable,
        **_common(builder, layer),
    )


@runs(BatchNormalization)
def _run_batch_normalization(op: BatchNormalization, network: WeightSource) -> Runner:
    activation = op.activation
    activate = None if activation is None else activation_function(activation)
    ceiling = None if activation is None else math.inf if activation.ceiling is None else activation.ceiling

    def finish(result: Tensor, residual: Tensor | None) -> Tensor:
        result = result.movedim(-1, op.axis)
        result = result if residual is None else result + residual
        return result if activate is None else activate(result)

    def run(step: Step, x: Tensor, residual: Tensor | None = None) -> Tensor:
        gamma, beta = op.scale_and_offset(network)
        mean, variance = network.tensor(op.moving_mean), network.tensor(op.moving_variance)
        images = x.movedim(op.axis, -1)
        if not step.training or op.frozen:
            apply = apply_statistics if x.device.type == "mps" else _apply_statistics_by_torch
            return finish(apply(images, mean, variance, gamma, beta, op.epsilon), residual)
        # In narrower types, the images' own rounding hides that of their statistics.
        suits_kernel = images.is_contiguous() and x.device.type == "cpu" and x.dtype is torch.float32
        other = None if residual is None else residual.movedim(op.axis, -1)
        fused = step.shard is None and compiled.suits_normalization(images)
        fused = fused and (other is None or other.dtype is images.dtype)
        given = images, gamma, beta, op.epsilon
        if fused:
            found = kernels.normalize(kernels.FusedNormalization, *given, other, ceiling)
        elif step.shard is not None:
            found = kernels.normalize(kernels.SharedBatchNormalization, step.shard, *given)
        elif suits_kernel:
            found = kernels.normalize(kernels.BatchNormalization, *given)
        else:
            found = normalize_elementwise(*given) if x.device.type == "mps" else _normalize_by_torch(*given)
        result, *statistics = found
        with torch.no_grad():
            for moving, of_batch in zip((mean, variance), statistics, strict=True):
                moving.lerp_(of_batch, 1.0 - op.momentum)
        return result.movedim(-1, op.axis) if fused else finish(result, residual)

    return run


def _apply_statistics_by_torch(
    images: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
) -> Tensor:
    cudnn = torch.backends.cudnn.enabled
    moved = images.movedim(-1, 1)  # (n, c, ...)
    return torch_internals.batch_norm(moved, gamma, beta, mean, variance, False, 0.0, epsilon, cudnn).movedim(
        1, -1
    )


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
    moved = images.movedim(-1, 1)  # (n, c, ...)
    result = torch_internals.batch_norm(moved, gamma, beta, mean, variance, True, 1.0, epsilon, cudnn)
    count = images.numel() // images.shape[-1]
    # Torch's variance is unbiased, Keras keeps the biased one.
    biased = variance * ((count - 1) / count) if count > 1 else torch.zeros_like(variance)
    return result.movedim(1, -1), mean, biased


@dataclass(frozen=True, kw_only=True)
class LayerNormalization(Normalization):
    """Normalization over ``axes`` of each example."""

    axes: tuple[int, ...]

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        require(all(0 < axis < len(shape) for axis in self.axes), f"axes {self.axes} do not exist in {shape}")
        return shape


@reads("LayerNormalization")
def _read_layer_normalization(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    axes = (layer.axis,) if isinstance(layer.axis, int) else tuple(layer.axis)
    axes = tuple(sorted(axis % inputs[0].rank for axis in axes))
    return builder.add(LayerNormalization, layer, inputs, axes=axes, **_common(builder, layer))


@runs(LayerNormalization)
def _run_layer_normalization(op: LayerNormalization, network: WeightSource) -> Runner:
    def run(_step: Step, x: Tensor) -> Tensor:
        gamma, beta = op.scale_and_offset(network)
        rank = x.dim()
        if op.axes == tuple(range(rank - len(op.axes), rank)):
            rows = x.contiguous()
            if len(op.axes) == 1 and compiled.suits_rows(rows):
                return kernels.apply(kernels.RowNormalization, rows, gamma, beta, op.epsilon, 1)
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


@dataclass(frozen=True, kw_only=True)
class GroupNormalization(Normalization):
    """Normalization of groups of channels, along ``axis``, over all positions of each example."""

    axis: int
    groups: int

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        require(0 < self.axis < len(shape), f"axis {self.axis} does not exist in {shape}")
        channels = shape[self.axis]
        shared = channels is not None and channels % self.groups == 0
        require(shared, f"{self.groups} groups do not share {channels} channels evenly")
        return shape


@reads("GroupNormalization")
def _read_group_normalization(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value | None:
    axis = layer.axis % inputs[0].rank
    channels = inputs[0].shape[axis]
    if channels is None:
        return None
    groups = channels if layer.groups == -1 else layer.groups
    common = _common(builder, layer)
    return builder.add(GroupNormalization, layer, inputs, axis=axis, groups=groups, **common)


@runs(GroupNormalization)
def _run_group_normalization(op: GroupNormalization, network: WeightSource) -> Runner:
    def run(_step: Step, x: Tensor) -> Tensor:
        gamma, beta = op.scale_and_offset(network)
        if op.groups == 1 and op.axis == x.dim() - 1 and compiled.suits_rows(x):
            return kernels.apply(kernels.RowNormalization, x, gamma, beta, op.epsilon, x.dim() - 1)
        moved = x.movedim(op.axis, 1).float()  # (n, c, ...)
        # With one of the two alone, the backward pass of torch's operation fails.
        both = gamma is not None and beta is not None
        weights = (gamma, beta) if both else (None, None)
        result = torch_internals.group_norm(moved, op.groups, *weights, op.epsilon).movedim(1, -1)
        if not both:
            result = result if gamma is None else result * gamma
            result = result if beta is None else result + beta
        return result.movedim(-1, op.axis).to(x.dtype)

    return run
