"""Fused forward and backward passes for what costs most on a CPU: each an autograd function of its own.

A training step of a small network is bound by memory traffic as much as by arithmetic, so these functions
read and write large tensors as rarely as torch's own operations allow. Each computes what torch's plain
operations would; on other devices those run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor
Context = Any  # torch types the context of an autograd function as Any


def _find(name: str) -> Any | None:
    """Return one of torch's oneDNN operations, None where this build of torch has none."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(torch.ops.mkldnn, name, None)


CONVOLUTION_POINTWISE = _find("_convolution_pointwise")
LINEAR_POINTWISE = _find("_linear_pointwise")

# Selecting by multiplication of bit patterns is several times faster than torch.where on bfloat16.
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def mask_type(dtype: torch.dtype) -> torch.dtype:
    """Return the integer type as wide as a floating-point type.

    Examples
    --------
    >>> mask_type(torch.bfloat16)
    torch.int16
    """
    return _BITS[dtype]


def require_first_order() -> None:
    """Refuse a second derivative: the ways back below are not written for it."""
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "A lowered network has first derivatives only; take others from the Keras model."
        )


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """Call one of the functions below; torch leaves ``apply`` untyped."""
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True)
class Tail:
    """What follows a heavy op and is computed on its result in place: a ReLU, and a dropout behind it.

    ``keep`` gives, for a tensor, a mask of zeros and ones in its strides. Where the result is positive, both
    let the gradient through, and nowhere else: the result is all that the way back needs.
    """

    relu: bool = False
    keep: Callable[[Tensor], Tensor] | None = None
    scale: float = 1.0

    def finish(self, result: Tensor, activated: bool = False) -> Tensor:
        """Compute ReLU (unless it is in the result already) and dropout in place."""
        if self.relu and not activated:
            result = result.relu_()
        if self.keep is not None:
            result.view(mask_type(result.dtype)).mul_(self.keep(result))
            if self.scale != 1.0:
                result = result.mul_(self.scale)
        return result

    def gradient(self, gradient: Tensor, result: Tensor) -> Tensor:
        """Compute the gradient in front of the tail."""
        if not self.relu:
            return gradient
        # As integers: the result is zero or positive, and so are its bits, which need no widening to compare.
        bits = mask_type(result.dtype)
        passed: Tensor = torch.ops.aten.threshold_backward(gradient.view(bits), result.view(bits), 0)
        passed = passed.view(result.dtype)
        return passed.mul_(self.scale) if self.keep is not None and self.scale != 1.0 else passed


class TileMaxPool(torch.autograd.Function):
    """Max-pooling over tiles of two by two, with a tail, without an index tensor.

    The maximum is taken over columns, then rows, of strided views; the way back compares again. Of equal
    elements the first gets the gradient, as torch and Keras have it.
    """

    @staticmethod
    def forward(ctx: Context, images: Tensor, tail: Tail) -> Tensor:
        """Compute from contiguous images (n, h, w, c); an odd last row or column is ignored."""
        left, right = _tiles(images).unbind(4)  # (n, h/2, 2, w/2, c)
        wide = torch.maximum(left, right)
        result = tail.finish(torch.maximum(*wide.unbind(2)))  # (n, h/2, w/2, c)
        ctx.save_for_backward(images, wide, result)
        ctx.tail = tail
        return result

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Give each tile's gradient to the element that was the maximum.

        Where the tail has changed the maximum, the comparison fails; but there it lets no gradient through.
        """
        require_first_order()
        images, wide, result = ctx.saved_tensors
        bits = mask_type(images.dtype)
        gradient = ctx.tail.gradient(gradient, result).contiguous().view(bits)
        images, wide = images.view(bits), wide.view(bits)
        wide_gradient = torch.empty_like(wide)
        _route(gradient, wide.select(2, 0), result.view(bits), wide_gradient.unbind(2))
        images_gradient = torch.empty_like(images)
        if images.shape[1] % 2 or images.shape[2] % 2:
            images_gradient.zero_()
        _route(wide_gradient, _tiles(images).select(4, 0), wide, _tiles(images_gradient).unbind(4))
        return images_gradient.view(ctx.saved_tensors[0].dtype), None


def _tiles(images: Tensor) -> Tensor:
    """View images (n, h, w, c) as tiles (n, h/2, 2, w/2, 2, c)."""
    count, height, width, channels = images.shape
    strides = images.stride()
    steps = (strides[0], 2 * strides[1], strides[1], 2 * strides[2], strides[2], strides[3])
    return images.as_strided((count, height // 2, 2, width // 2, 2, channels), steps, images.storage_offset())


def _route(gradient: Tensor, first: Tensor, largest: Tensor, places: Sequence[Tensor]) -> None:
    """Write a gradient's bits to the first of two places if that was the largest, else to the second."""
    is_first = torch.empty_like(gradient)
    torch.eq(first, largest, out=is_first)
    torch.mul(gradient, is_first, out=places[0])
    torch.bitwise_xor(gradient, places[0], out=places[1])


class BatchNormalization(torch.autograd.Function):
    """Normalization by the statistics of the batch, which are returned beside the result."""

    @staticmethod
    def forward(
        ctx: Context, images: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute from images (n, ..., c), channels last in memory; mean and biased variance are (c,)."""
        mean, variance = batch_statistics(images)
        moved = images.movedim(-1, 1)  # (n, c, ...)
        result = torch.batch_norm(moved, gamma, beta, mean, variance, False, 0.0, epsilon, False)
        ctx.save_for_backward(images, gamma, mean, (variance + epsilon).rsqrt())
        ctx.epsilon, ctx.has_beta = epsilon, beta is not None
        ctx.mark_non_differentiable(mean, variance)
        return result.movedim(1, -1), mean, variance

    @staticmethod
    def backward(ctx: Context, gradient: Tensor, *_statistics: Any) -> tuple[Any, ...]:
        """Send the gradient through the normalization and through the statistics."""
        require_first_order()
        images, gamma, mean, deviation = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], gamma is not None, ctx.has_beta)
        image_gradient, gamma_gradient, beta_gradient = torch.ops.aten.native_batch_norm_backward(
            gradient.movedim(-1, 1), images.movedim(-1, 1), gamma, None, None, mean, deviation,
            True, ctx.epsilon, wanted,
        )  # fmt: skip
        if wanted[0]:
            image_gradient = image_gradient.movedim(1, -1)
        return image_gradient, gamma_gradient, beta_gradient, None


def batch_normalization(
    images: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize images (n, ..., c), contiguous on a CPU; return the batch's mean and variance (c,) too."""
    result: tuple[Tensor, Tensor, Tensor] = BatchNormalization.apply(images, gamma, beta, epsilon)  # type: ignore[no-untyped-call]
    return result


def batch_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance of each channel.

    Torch adds the values of a channel one after the other in float32, which costs two digits over a batch of
    some 100,000 pixels. So pixels that follow each other are counted as channels of their own first, and
    their statistics are put together: closer to the truth by a factor of 50, and faster.

    Parameters
    ----------
    images : Tensor of shape (n, ..., c)
        Channels last in memory.

    Returns
    -------
    mean : Tensor of shape (c,)
    variance : Tensor of shape (c,)

    Examples
    --------
    >>> mean, variance = batch_statistics(torch.tensor([[1.0], [2.0], [6.0]]))
    >>> mean.item(), round(variance.item(), 4)
    (3.0, 4.6667)
    """
    channels = images.shape[-1]
    count = images.numel() // channels
    # Few values are added exactly enough as they are.
    groups = math.gcd(count, min(64, max(1, count // 64)))
    rows = images.reshape(count // groups, groups * channels)
    means = torch.zeros(groups * channels, dtype=torch.float32, device=images.device)
    variances = torch.zeros_like(means)
    torch.batch_norm_update_stats(rows, means, variances, 1.0)
    means, variances = means.view(groups, channels), variances.view(groups, channels)
    mean = means.mean(0)
    length = count // groups
    # Torch's variances are unbiased; of a single value there is none.
    within = variances.mean(0) * ((length - 1) / length) if length > 1 else 0.0
    return mean, within + (means - mean).square_().mean(0)


class Drop(torch.autograd.Function):
    """x · keep · scale, with a mask of zeros and ones in the integer type of x's width."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        """Set to zero what the mask drops."""
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return _selected(x, keep, scale)

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Drop the same elements of the gradient."""
        require_first_order()
        (keep,) = ctx.saved_tensors
        return _selected(gradient, keep, ctx.scale), None, None


def _selected(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    result = torch.empty_like(x)
    torch.mul(x.view(keep.dtype), keep, out=result.view(keep.dtype))
    return result if scale == 1.0 else result.mul_(scale)


class MatrixProduct(torch.autograd.Function):
    """tail(scale · (x · kernel) + bias), computed in ``precision``; the kernel and its gradient are float32.

    Where x is narrower than ``precision`` (in front of the logits), the way back is as narrow as x: its
    gradient would be rounded to that anyway, and x is the largest tensor here. ``scale`` is that of a dropout
    before: multiplying the few outputs costs less than the many inputs.
    """

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        kernel: Tensor,
        bias: Tensor | None,
        scale: float,
        tail: Tail,
        precision: torch.dtype,
    ) -> Tensor:
        """Compute from x (n, in) and a kernel (in, out)."""
        computed = kernel.to(precision)
        result = x.to(precision) @ computed
        if scale != 1.0:
            result = result.mul_(scale)
        if bias is not None:
            result = result.add_(bias.to(precision))
        result = tail.finish(result)
        ctx.save_for_backward(x, computed, result if tail.relu else None)
        ctx.scale, ctx.kernel_type, ctx.tail = scale, kernel.dtype, tail
        return result

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Compute the three gradients, each where it is wanted."""
        require_first_order()
        x, computed, result = ctx.saved_tensors
        gradient = ctx.tail.gradient(gradient, result)
        wants_x, wants_kernel, wants_bias = ctx.needs_input_grad[:3]
        bias_gradient = gradient.sum(0).float() if wants_bias else None
        scaled = gradient if ctx.scale == 1.0 else gradient * ctx.scale
        scaled = scaled.to(x.dtype)
        x_gradient = scaled @ computed.to(x.dtype).t() if wants_x else None
        kernel_gradient = (x.t() @ scaled).to(ctx.kernel_type) if wants_kernel else None
        return x_gradient, kernel_gradient, bias_gradient, None, None, None
