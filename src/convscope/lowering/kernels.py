"""Fused forward and backward passes for what costs most on a CPU: each an autograd function of its own.

A training step of a small network is bound by memory traffic as much as by arithmetic, so these functions
read and write large tensors as rarely as torch's own operations allow. Each computes what torch's plain
operations would; on other devices those run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from convscope import _torch_internals as torch_internals
from convscope._torch_internals import WeakTensorKeyDictionary, version_of
from convscope.lowering.cpu import compiled
from convscope.lowering.masks import Mask, bits_type

Tensor = torch.Tensor
Shape = Sequence[int]
Context = Any  # torch types the context of an autograd function as Any


@dataclass(frozen=True, eq=False)
class Shard:
    """The rows of a batch that this process computes; others have the rest, at the same time."""

    first: int
    rows: int
    total: int
    sum_up: Callable[[torch.Tensor], torch.Tensor]  # over all processes, in place; each calls it

    def elements(self, count: int) -> tuple[int, int]:
        """Say which elements of the whole batch's tensor the ``count`` elements of these rows are."""
        each = count // self.rows
        return self.first * each, (self.first + self.rows) * each


def require_first_order() -> None:
    """Refuse a second derivative: the backward passes below are not written for it."""
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "A lowered network has first derivatives only; take others from the Keras model."
        )


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """Call one of the functions below; torch leaves ``apply`` untyped."""
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def normalize(function: type[torch.autograd.Function], *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Call a batch normalization of those below, which gives the batch's mean and variance (c,) too."""
    result: tuple[Tensor, Tensor, Tensor] = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True)
class Epilogue:
    """What follows a convolution or product, on its result in place: a ReLU, and a dropout behind it.

    The ReLU of a convolution may have a ``ceiling``, such as ReLU6; nothing is dropped behind that.
    ``keep`` makes the mask for a tensor of some shape, type and device. Where the result is positive, both
    let the gradient through, and nowhere else: the result is all that the backward pass needs.
    """

    relu: bool = False
    keep: Callable[[Shape, torch.dtype, torch.device], Mask] | None = None
    scale: float = 1.0
    ceiling: float | None = None

    def mask(self, shape: Shape, like: Tensor) -> Mask | None:
        """Make the mask for a tensor of a shape, of another's type and device, if anything is dropped."""
        return None if self.keep is None else self.keep(shape, like.dtype, like.device)

    def scaled(self, x: Tensor) -> Tensor:
        """Multiply in place by the scale of the dropout."""
        return x if self.keep is None or self.scale == 1.0 else x.mul_(self.scale)

    def scaled_gradient(self, gradient: Tensor) -> Tensor:
        """Multiply a gradient by the scale of the dropout."""
        return gradient if self.keep is None or self.scale == 1.0 else gradient * self.scale

    def finish(self, result: Tensor, activated: bool = False) -> Tensor:
        """Compute ReLU (unless it is in the result already) and dropout in place."""
        if self.relu and not activated:
            result = result.relu_() if self.ceiling is None else result.clamp_(0.0, self.ceiling)
        mask = self.mask(result.shape, result)
        return result if mask is None else self.scaled(mask.apply(result, out=result))

    def gradient(self, gradient: Tensor, result: Tensor) -> Tensor:
        """Compute the gradient in front of the epilogue."""
        if not self.relu:
            return gradient
        if self.ceiling is not None:
            clipped: Tensor = torch_internals.hardtanh_backward(gradient, result, 0.0, self.ceiling)
            return clipped
        if result.device.type != "cpu":
            elsewhere: Tensor = torch_internals.threshold_backward(gradient, result, 0)
            return self.scaled(elsewhere)
        # As integers: the result is zero or positive, and so are its bits, which need no widening to compare.
        bits = bits_type(result.dtype)
        passed: Tensor = torch_internals.threshold_backward(gradient.view(bits), result.view(bits), 0)
        return self.scaled(passed.view(result.dtype))


class TileMaxPool(torch.autograd.Function):
    """Max-pooling over tiles of two by two with a epilogue, in one compiled pass each way."""

    @staticmethod
    def forward(ctx: Context, images: Tensor, epilogue: Epilogue) -> Tensor:
        """Compute from contiguous images (n, h, w, c); an odd last row or column is ignored."""
        result, places = tile_max(images, epilogue)
        ctx.save_for_backward(places)
        ctx.epilogue, ctx.shape = epilogue, images.shape
        return result

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Give each tile's gradient to the element that was the maximum, the first of equal ones."""
        require_first_order()
        (places,) = ctx.saved_tensors
        gradient = ctx.epilogue.scaled_gradient(gradient).contiguous()
        return compiled.tile_max_back(gradient, places, ctx.shape), None


def tile_max(images: Tensor, epilogue: Epilogue) -> tuple[Tensor, Tensor]:
    """Pool contiguous images (n, h, w, c) by tiles of two by two; return where each gradient goes, too."""
    count, height, width, channels = images.shape
    mask = epilogue.mask((count, height // 2, width // 2, channels), images)
    result, places = compiled.tile_max(images, epilogue.relu, mask)
    return epilogue.scaled(result), places


class BatchNormalization(torch.autograd.Function):
    """Normalization by the statistics of the batch, which are returned beside the result."""

    @staticmethod
    def forward(
        ctx: Context, images: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute from images (n, ..., c), contiguous on a CPU; mean and biased variance are (c,)."""
        mean, variance = batch_statistics(images)
        moved = images.movedim(-1, 1)  # (n, c, ...)
        result = torch_internals.batch_norm(moved, gamma, beta, mean, variance, False, 0.0, epsilon, False)
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
        image_gradient, gamma_gradient, beta_gradient = torch_internals.batch_norm_backward(
            gradient.movedim(-1, 1), images.movedim(-1, 1), gamma, None, None, mean, deviation,
            True, ctx.epsilon, wanted,
        )  # fmt: skip
        if wanted[0]:
            image_gradient = image_gradient.movedim(1, -1)
        return image_gradient, gamma_gradient, beta_gradient, None


class FusedNormalization(torch.autograd.Function):
    """clip(normalized images + residual, 0, ceiling) in compiled loops, the batch's statistics beside it."""

    @staticmethod
    def forward(
        ctx: Context,
        images: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        epsilon: float,
        residual: Tensor | None,
        ceiling: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute from images and a residual (n, ..., c), channels last in memory; statistics are (c,)."""
        residual = None if residual is None else residual.contiguous()
        result, moments, columns = compiled.normalize(images, gamma, beta, epsilon, ceiling, residual)
        kept = result if residual is not None and ceiling is not None else None
        ctx.save_for_backward(images, kept, gamma, moments, columns)
        ctx.ceiling, ctx.has_gamma, ctx.has_beta = ceiling, gamma is not None, beta is not None
        mean, variance = moments[0], moments[1]
        ctx.mark_non_differentiable(mean, variance)
        return result, mean, variance

    @staticmethod
    def backward(ctx: Context, gradient: Tensor, *_statistics: Any) -> tuple[Any, ...]:
        """Send the gradient through the clipping, the normalization and the statistics."""
        require_first_order()
        images, results, gamma, moments, columns = ctx.saved_tensors
        gradient = gradient.contiguous()
        wants_residual = ctx.needs_input_grad[4]
        split = wants_residual and ctx.ceiling is not None
        found, weights, through = compiled.normalize_back(
            gradient, images, results, gamma, moments, columns, ctx.ceiling, ctx.needs_input_grad[0], split
        )
        through = through if split or not wants_residual else gradient
        gamma_gradient = weights[0] if ctx.has_gamma else None
        return found, gamma_gradient, weights[1] if ctx.has_beta else None, None, through, None


class SharedBatchNormalization(torch.autograd.Function):
    """Normalization by the statistics of a batch whose rows several processes share.

    Each adds its sums to the others' in float64: of values and squares on the way there, of gradients and
    gradients times normalized values on the way back. torch.nn.SyncBatchNorm does this on GPUs alone.
    """

    @staticmethod
    def forward(
        ctx: Context, shard: Shard, images: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute from these rows' images (n, ..., c); the batch's mean and biased variance are (c,)."""
        channels = images.shape[-1]
        count = images.numel() // channels
        if images.is_contiguous() and images.device.type == "cpu" and images.dtype is torch.float32:
            mean, variance = batch_statistics(images)
        else:
            axes = tuple(range(images.dim() - 1))
            variance, mean = torch.var_mean(images.float(), dim=axes, correction=0)
        mean, variance = mean.double(), variance.double()
        sums = shard.sum_up(torch.stack([mean, variance + mean.square()]) * count)  # (2, c)
        whole = count // shard.rows * shard.total
        mean = sums[0] / whole
        variance = (sums[1] / whole - mean.square()).clamp_min(0).float()
        mean = mean.float()
        moved = images.movedim(-1, 1)  # (n, c, ...)
        cudnn = torch.backends.cudnn.enabled
        result = torch_internals.batch_norm(moved, gamma, beta, mean, variance, False, 0.0, epsilon, cudnn)
        ctx.save_for_backward(images, gamma, mean, (variance + epsilon).rsqrt())
        ctx.shard, ctx.whole, ctx.epsilon, ctx.has_beta = shard, whole, epsilon, beta is not None
        ctx.mark_non_differentiable(mean, variance)
        return result.movedim(1, -1), mean, variance

    @staticmethod
    def backward(ctx: Context, gradient: Tensor, *_statistics: Any) -> tuple[Any, ...]:
        """Send these rows' gradient through the normalization and through the whole batch's statistics."""
        require_first_order()
        images, gamma, mean, deviation = ctx.saved_tensors
        scale = torch.ones_like(mean) if gamma is None else gamma
        _, scaled_sum, plain_sum = torch_internals.batch_norm_backward(
            gradient.movedim(-1, 1), images.movedim(-1, 1), scale, None, None, mean, deviation,
            True, ctx.epsilon, (False, True, True),
        )  # fmt: skip
        image_gradient = None
        if ctx.needs_input_grad[1]:
            sums = ctx.shard.sum_up(torch.stack([plain_sum, scaled_sum]).double()) / ctx.whole  # (2, c)
            plain, scaled = sums.float()
            factor = scale * deviation
            # factor · (gradient − plain − normalized image · scaled), in few passes
            along = torch.addcmul(-factor * plain, images - mean, -factor * deviation * scaled)
            image_gradient = along.addcmul_(gradient.to(along.dtype), factor).to(images.dtype)
        own = scaled_sum if gamma is not None else None
        return None, image_gradient, own, plain_sum if ctx.has_beta else None, None


def batch_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance (c,) of each channel of images (n, ..., c), channels last in memory.

    Torch adds the values of a channel one after the other in float32, which costs two digits over a batch of
    some 100,000 pixels. So pixels that follow each other are counted as channels of their own first, and
    their statistics are put together: closer to the truth by a factor of 50, and faster.
    """
    channels = images.shape[-1]
    count = images.numel() // channels
    # Few values are added exactly enough as they are.
    groups = math.gcd(count, min(64, max(1, count // 64)))
    rows = images.reshape(count // groups, groups * channels)
    means = torch.zeros(groups * channels, dtype=torch.float32, device=images.device)
    variances = torch.zeros_like(means)
    torch_internals.batch_norm_update_stats(rows, means, variances, 1.0)
    means, variances = means.view(groups, channels), variances.view(groups, channels)
    mean = means.mean(0)
    length = count // groups
    # Torch's variances are unbiased; of a single value there is none.
    within = variances.mean(0) * ((length - 1) / length) if length > 1 else 0.0
    return mean, within + (means - mean).square_().mean(0)


class Drop(torch.autograd.Function):
    """Dropout by a mask, and a scale for what is kept."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, mask: Mask, scale: float) -> Tensor:
        """Set to zero what the mask drops."""
        ctx.mask, ctx.scale, ctx.order = mask, scale, Mask.order_of(x)
        return _dropped(x, mask, scale)

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Drop the same elements of the gradient."""
        require_first_order()
        return _dropped(gradient.contiguous(memory_format=ctx.order), ctx.mask, ctx.scale), None, None


def _dropped(x: Tensor, mask: Mask, scale: float) -> Tensor:
    result = mask.apply(x)
    return result if scale == 1.0 else result.mul_(scale)


class Smooth(torch.autograd.Function):
    """GELU or SiLU in one compiled pass each way; only its input is kept."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, name: str) -> Tensor:
        """Compute from a tensor without gaps in memory."""
        ctx.save_for_backward(x)
        ctx.name, ctx.order = name, Mask.order_of(x)
        return compiled.activate(name, x)

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Multiply by the slope."""
        require_first_order()
        (x,) = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=ctx.order)
        return compiled.activate_back(ctx.name, x, None, gradient)[0], None


class RowNormalization(torch.autograd.Function):
    """Normalization of each row of a contiguous tensor, of one or more last axes, in compiled loops."""

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float, axes: int
    ) -> Tensor:
        """Compute from x (n, ..., c) and weights (c,)."""
        result, moments = compiled.normalize_rows(x, gamma, beta, epsilon, axes)
        ctx.save_for_backward(x, gamma, moments)
        ctx.has_beta = beta is not None
        return result

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Send the gradient through the normalization and through its statistics."""
        require_first_order()
        x, gamma, moments = ctx.saved_tensors
        found, sums = compiled.normalize_rows_back(x, gamma, moments, gradient.contiguous())
        of_gamma, of_beta = sums
        return found, None if gamma is None else of_gamma, of_beta if ctx.has_beta else None, None, None


class MatrixProduct(torch.autograd.Function):
    """epilogue(scale · (x · kernel) + bias), in ``precision``; the kernel and its gradient are float32.

    Where x is bfloat16 and ``precision`` is not (in front of the logits), so is the backward pass: its
    gradient would be rounded to that anyway, and x is the largest tensor here. ``scale`` is that of a dropout
    before: multiplying the few outputs costs less than the many inputs. ``tiled``: in loops, on a CPU, in
    float32. ``smooth`` names an activation function that a loop computes while it adds the bias.
    """

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        kernel: Tensor,
        bias: Tensor | None,
        scale: float,
        epilogue: Epilogue,
        precision: torch.dtype,
        tiled: bool = False,
        smooth: str | None = None,
    ) -> Tensor:
        """Compute from x (n, in) and a kernel (in, out)."""
        lasting = kernel.is_leaf and kernel.requires_grad and precision is torch.bfloat16
        computed = bfloat16_copy(kernel) if lasting else kernel.to(precision)
        if tiled:
            x, computed = x.contiguous(), computed.contiguous()
            result = compiled.dense_product(x.float(), computed).contiguous()
        else:
            result = x.to(precision) @ computed
        if scale != 1.0:
            result = result.mul_(scale)
        if smooth is not None:
            wide = None if bias is None else bias.float().contiguous()
            ctx.save_for_backward(x, computed, result, wide)
            result = compiled.activate(smooth, result, wide)
        else:
            result = epilogue.finish(result if bias is None else result.add_(bias.to(precision)))
            ctx.save_for_backward(x, computed, result if epilogue.relu else None, None)
        ctx.scale, ctx.epilogue, ctx.smooth = scale, epilogue, smooth
        ctx.tiled = tiled and x.dtype is torch.float32
        # None where the weight takes gradients of any type: an optimizer that reads bfloat16 asks for it.
        ctx.kernel_type = kernel.grad_dtype if kernel.is_leaf else kernel.dtype
        return result

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Compute the three gradients, each where it is wanted."""
        require_first_order()
        x, computed, result, bias = ctx.saved_tensors
        wants_x, wants_kernel, wants_bias = ctx.needs_input_grad[:3]
        if ctx.smooth is None:
            gradient = ctx.epilogue.gradient(gradient, result)
            bias_gradient = gradient.sum(0).float() if wants_bias else None
        else:
            gradient = gradient.contiguous()
            gradient, bias_gradient = compiled.activate_back(ctx.smooth, result, bias, gradient)
        scaled = gradient if ctx.scale == 1.0 else gradient * ctx.scale
        scaled = scaled.to(x.dtype)
        if ctx.tiled:
            scaled = scaled.contiguous()
            x_gradient = compiled.dense_input_gradient(scaled, computed) if wants_x else None
            kernel_gradient = compiled.dense_kernel_gradient(x, scaled) if wants_kernel else None
        else:
            x_gradient = scaled @ computed.to(x.dtype).t() if wants_x else None
            kernel_gradient = x.t() @ scaled if wants_kernel else None
        if kernel_gradient is not None and ctx.kernel_type is not None:
            kernel_gradient = kernel_gradient.to(ctx.kernel_type)
        return x_gradient, kernel_gradient, bias_gradient, None, None, None, None, None


@dataclass
class _Copy:
    """The bfloat16 copy of a weight: needed at each step, and written by an optimizer with the weight."""

    tensor: Tensor
    version: int  # the weight's version counter when the copy was made


_COPIES: MutableMapping[Tensor, _Copy] = WeakTensorKeyDictionary()


def bfloat16_copy(weight: Tensor) -> Tensor:
    """Return a long-lived weight in bfloat16, to be read only; the same tensor at each call, up to date."""
    copy = _COPIES.get(weight)
    if copy is None:
        copy = _COPIES[weight] = _Copy(torch.empty_like(weight, dtype=torch.bfloat16), -1)
    if copy.version != version_of(weight):
        with torch.no_grad():
            copy.tensor.copy_(weight)
        copy.version = version_of(weight)
    return copy.tensor


def copy_of(weight: Tensor) -> Tensor | None:
    """Return the tensor that holds a weight's copy, for who changes both; None where nobody asked for one."""
    copy = _COPIES.get(weight)
    return None if copy is None else copy.tensor


def forget_copy(weight: Tensor) -> None:
    """Let a weight's copy be made again, after a change that torch does not count."""
    _COPIES.pop(weight, None)


def declare_copy_current(weight: Tensor) -> None:
    """Say that a weight's copy has been written along with its last change."""
    copy = _COPIES.get(weight)
    if copy is not None:
        torch.autograd.graph.increment_version(copy.tensor)
        copy.version = version_of(weight)
