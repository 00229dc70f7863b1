"""Fused forward and backward passes for what costs most on a CPU: each an autograd function of its own.

A training step of a small network is bound by memory traffic as much as by arithmetic, so these functions
read and write large tensors as rarely as torch's own operations allow. Each computes what the plain
operations of torch would; on other devices those run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from convscope.lowering.program import Pair

Tensor = torch.Tensor
Context = Any  # torch types the context of an autograd function as Any


def _find(name: str) -> Any | None:
    """Return one of torch's oneDNN operations, None where this build of torch has none."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(torch.ops.mkldnn, name, None)


_CONVOLUTION_POINTWISE = _find("_convolution_pointwise")
_LINEAR_POINTWISE = _find("_linear_pointwise")

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
        passed: Tensor = torch.ops.aten.threshold_backward(gradient, result, 0)
        return passed.mul_(self.scale) if self.keep is not None and self.scale != 1.0 else passed


class Convolution(torch.autograd.Function):
    """tail(image ∗ kernel + bias), the ReLU computed inside the convolution where oneDNN can."""

    @staticmethod
    def forward(
        ctx: Context,
        image: Tensor,
        kernel: Tensor,
        bias: Tensor | None,
        strides: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        tail: Tail,
    ) -> Tensor:
        """Compute from images (n, c, h, w) and a kernel (out, in/groups, k, k)."""
        fused = tail.relu and _CONVOLUTION_POINTWISE is not None and image.device.type == "cpu"
        if fused:
            result = _CONVOLUTION_POINTWISE(  # type: ignore[misc]  # fused says that it is there
                image, kernel, bias, list(padding), list(strides), list(dilation), groups, "relu", [], ""
            )
        else:
            result = torch.conv2d(image, kernel, bias, strides, padding, dilation, groups)
        result = tail.finish(result, activated=fused)
        ctx.save_for_backward(image, kernel, result if tail.relu else None)
        ctx.geometry, ctx.tail = (strides, padding, dilation, groups), tail
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Send the gradient through the tail and the convolution."""
        image, kernel, result = ctx.saved_tensors
        strides, padding, dilation, groups = ctx.geometry
        wanted = (*ctx.needs_input_grad[:2], ctx.bias_sizes is not None and ctx.needs_input_grad[2])
        gradients = torch.ops.aten.convolution_backward(
            ctx.tail.gradient(gradient, result), image, kernel, ctx.bias_sizes, strides, padding, dilation,
            False, (0, 0), groups, wanted,
        )  # fmt: skip
        return (*gradients, None, None, None, None, None)


class RowConvolution(torch.autograd.Function):
    """A convolution as one matrix product per row of the image, for images with very few channels.

    The kernel's rows become a banded matrix that maps ``k`` whole rows of the image to one whole row of the
    result. Most of it is zero, but a large matrix product runs much nearer to the machine's peak, and reads
    the image in so much longer runs, that it wins where ``in · k`` is small. The bias has a column of ones.
    """

    @staticmethod
    def forward(
        ctx: Context, image: Tensor, kernel: Tensor, bias: Tensor | None, strides: Pair, tail: Tail
    ) -> Tensor:
        """Compute (n, h', w', out) from padded images (n, h, w, c) and a Keras kernel (k, k, c, out)."""
        geometry = _RowGeometry(image.shape, kernel.shape, strides)
        rows = geometry.rows(image)  # (n·h', k·w·c + 1)
        matrix = geometry.band(kernel, bias)  # (k·w·c + 1, w'·out)
        fused = tail.relu and _LINEAR_POINTWISE is not None and image.device.type == "cpu"
        result = _relu_of_product(rows, matrix) if fused else rows @ matrix
        result = tail.finish(result.view(geometry.result_shape), activated=fused)
        ctx.save_for_backward(
            rows, matrix if ctx.needs_input_grad[0] else None, result if tail.relu else None
        )
        ctx.geometry, ctx.tail = geometry, tail
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Sum the band of the matrix gradient back into the kernel."""
        rows, matrix, result = ctx.saved_tensors
        geometry: _RowGeometry = ctx.geometry
        gradient = ctx.tail.gradient(gradient, result).reshape(rows.shape[0], -1)
        image_gradient = geometry.image_gradient(gradient @ matrix.t()) if matrix is not None else None
        kernel_gradient, bias_gradient = geometry.band_gradient(rows.t() @ gradient)
        return image_gradient, kernel_gradient, bias_gradient if ctx.needs_input_grad[2] else None, None, None


def _relu_of_product(rows: Tensor, matrix: Tensor) -> Tensor:
    assert _LINEAR_POINTWISE is not None  # noqa: S101  the caller has asked
    result: Tensor = _LINEAR_POINTWISE(rows, matrix.t(), None, "relu", [], "")
    return result


class _RowGeometry:
    """The index arithmetic of a row convolution."""

    def __init__(self, image: torch.Size, kernel: torch.Size, strides: Pair) -> None:
        self.count, self.height, self.width, self.channels = image
        self.window, self.filters = (kernel[0], kernel[1]), kernel[3]
        self.strides = strides
        self.out = tuple(
            (length - size) // stride + 1
            for length, size, stride in zip(image[1:3], self.window, strides, strict=True)
        )
        self.row = self.width * self.channels
        self.result_shape = (self.count, *self.out, self.filters)

    def rows(self, image: Tensor) -> Tensor:
        """Lay the rows under each row of the result side by side, with a one behind."""
        length = self.window[0] * self.row
        image = image.contiguous()
        windows = image.as_strided(
            (self.count, self.out[0], length), (self.height * self.row, self.strides[0] * self.row, 1)
        )
        rows = image.new_empty((self.count, self.out[0], length + 1))
        rows[..., :length].copy_(windows)
        rows[..., length:].fill_(1)
        return rows.view(-1, length + 1)

    def _band_view(self, matrix: Tensor) -> Tensor:
        """View the entries of the matrix that hold the kernel, as (k, k, c, w', out)."""
        line = matrix.stride(0)
        along = self.strides[1] * self.channels * line + self.filters
        steps = (self.row * line, self.channels * line, line, along, 1)
        return matrix.as_strided((*self.window, self.channels, self.out[1], self.filters), steps)

    def band(self, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Write the kernel into the banded matrix, the bias into its last row."""
        length = self.window[0] * self.row
        matrix = kernel.new_zeros((length + 1, self.out[1] * self.filters))
        self._band_view(matrix).copy_(kernel[:, :, :, None, :])
        if bias is not None:
            matrix[length].view(self.out[1], self.filters).copy_(bias)
        return matrix

    def band_gradient(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the gradient of the matrix over the places of each kernel entry and of the bias."""
        kernel = self._band_view(matrix).sum(3, dtype=torch.float32).to(matrix.dtype)
        bias = matrix[-1].view(self.out[1], self.filters).sum(0, dtype=torch.float32).to(matrix.dtype)
        return kernel, bias

    def image_gradient(self, rows: Tensor) -> Tensor:
        """Add the gradients of overlapping rows up."""
        parts = rows.view(self.count, self.out[0], -1)
        total = rows.new_zeros((self.count, self.height, self.row))
        for index in range(self.window[0]):
            last = index + (self.out[0] - 1) * self.strides[0] + 1
            total[:, index : last : self.strides[0]] += parts[:, :, index * self.row : (index + 1) * self.row]
        return total.view(self.count, self.height, self.width, self.channels)


class TileMaxPool(torch.autograd.Function):
    """Max-pooling over tiles of two by two, with a tail, without an index tensor.

    The maximum is taken over columns, then rows, of strided views; the way back compares again. Of equal
    elements the first gets the gradient, as torch and Keras have it.
    """

    @staticmethod
    def forward(ctx: Context, images: Tensor, tail: Tail) -> Tensor:
        """Compute from contiguous images (n, h, w, c); an odd last row or column is ignored."""
        tiles = _tiles(images)  # (n, h/2, 2, w/2, 2, c)
        wide = torch.maximum(tiles[:, :, :, :, 0], tiles[:, :, :, :, 1])  # (n, h/2, 2, w/2, c)
        result = tail.finish(torch.maximum(wide[:, :, 0], wide[:, :, 1]))  # (n, h/2, w/2, c)
        ctx.save_for_backward(images, wide, result)
        ctx.tail = tail
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Give each tile's gradient to the element that was the maximum.

        Where the tail has changed the maximum, the comparison fails; but there it lets no gradient through.
        """
        images, wide, result = ctx.saved_tensors
        bits = mask_type(images.dtype)
        gradient = ctx.tail.gradient(gradient, result).contiguous().view(bits)
        wide_gradient = torch.empty_like(wide).view(bits)
        _route(
            gradient,
            wide.view(bits)[:, :, 0],
            result.view(bits),
            wide_gradient[:, :, 0],
            wide_gradient[:, :, 1],
        )
        images_gradient = torch.empty_like(images)
        if images.shape[1] % 2 or images.shape[2] % 2:
            images_gradient.zero_()
        tiles, places = _tiles(images.view(bits)), _tiles(images_gradient.view(bits))
        _route(
            wide_gradient,
            tiles[:, :, :, :, 0],
            wide.view(bits),
            places[:, :, :, :, 0],
            places[:, :, :, :, 1],
        )
        return images_gradient, None


def _tiles(images: Tensor) -> Tensor:
    """View images (n, h, w, c) as tiles (n, h/2, 2, w/2, 2, c)."""
    count, height, width, channels = images.shape
    strides = images.stride()
    steps = (strides[0], 2 * strides[1], strides[1], 2 * strides[2], strides[2], strides[3])
    return images.as_strided((count, height // 2, 2, width // 2, 2, channels), steps, images.storage_offset())


def _route(gradient: Tensor, first: Tensor, largest: Tensor, to_first: Tensor, to_second: Tensor) -> None:
    """Write a gradient's bits to the first of two places if that was the largest, else to the second."""
    is_first = torch.empty_like(gradient)
    torch.eq(first, largest, out=is_first)
    torch.mul(gradient, is_first, out=to_first)
    torch.bitwise_xor(gradient, to_first, out=to_second)


class Drop(torch.autograd.Function):
    """x · keep · scale, with a mask of zeros and ones in the integer type of x's width."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        """Set to zero what the mask drops."""
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return _selected(x, keep, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Drop the same elements of the gradient."""
        (keep,) = ctx.saved_tensors
        return _selected(gradient, keep, ctx.scale), None, None


def _selected(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    result = torch.empty_like(x)
    torch.mul(x.view(keep.dtype), keep, out=result.view(keep.dtype))
    return result if scale == 1.0 else result.mul_(scale)


class MatrixProduct(torch.autograd.Function):
    """tail(scale · (x · kernel) + bias) in the precision of x; the kernel and its gradient are float32.

    ``scale`` is that of a dropout before: multiplying the few outputs costs less than the many inputs.
    """

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, kernel: Tensor, bias: Tensor | None, scale: float, tail: Tail
    ) -> Tensor:
        """Compute from x (n, in) and a kernel (in, out)."""
        narrow = kernel.to(x.dtype)
        result = x @ narrow
        if scale != 1.0:
            result = result.mul_(scale)
        if bias is not None:
            result = result.add_(bias.to(x.dtype))
        result = tail.finish(result)
        ctx.save_for_backward(x, narrow, result if tail.relu else None)
        ctx.scale, ctx.kernel_type, ctx.tail = scale, kernel.dtype, tail
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Compute the three gradients, each where it is wanted."""
        x, narrow, result = ctx.saved_tensors
        gradient = ctx.tail.gradient(gradient, result)
        wants_x, wants_kernel, wants_bias = ctx.needs_input_grad[:3]
        bias_gradient = gradient.sum(0).float() if wants_bias else None
        scaled = gradient if ctx.scale == 1.0 else gradient * ctx.scale
        x_gradient = scaled @ narrow.t() if wants_x else None
        kernel_gradient = (x.t() @ scaled).to(ctx.kernel_type) if wants_kernel else None
        return x_gradient, kernel_gradient, bias_gradient, None, None
