"""Convolutions with fused forward and backward passes: direct, and as one matrix product per row."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from convscope.lowering.kernels import (
    CONVOLUTION_POINTWISE,
    LINEAR_POINTWISE,
    Context,
    Tail,
    Tensor,
    require_first_order,
)
from convscope.lowering.program import DataFormat, Pair


@dataclass(frozen=True)
class Geometry:
    """The settings of a convolution as torch takes them, with symmetric padding."""

    strides: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    depthwise: bool = False


@dataclass(frozen=True)
class Order:
    """In which axis order images come and go, and in which they lie in memory while they are convolved."""

    data_format: DataFormat = "channels_last"
    layout: DataFormat = "channels_last"

    @property
    def memory(self) -> torch.memory_format:
        """Return torch's name for the order in memory."""
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    def enter(self, images: Tensor) -> Tensor:
        """View images of the model in torch's order (n, c, h, w), copied only where they lie otherwise."""
        viewed = images if self.data_format == "channels_first" else images.permute(0, 3, 1, 2)
        return viewed.contiguous(memory_format=self.memory)

    def leave(self, images: Tensor) -> Tensor:
        """View images in torch's order in the model's."""
        return images if self.data_format == "channels_first" else images.permute(0, 2, 3, 1)


def narrow_kernel(
    kernel: Tensor, dtype: torch.dtype, layout: torch.memory_format, depthwise: bool = False
) -> Tensor:
    """Bring a Keras kernel into torch's order (out, in/groups, k, k) and a precision.

    Examples
    --------
    >>> narrow_kernel(torch.zeros(3, 5, 2, 4), torch.bfloat16, torch.channels_last).shape
    torch.Size([4, 2, 3, 5])
    """
    if depthwise:
        # A kernel (k, k, in, times) with one input channel per group.
        kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
    return kernel.permute(3, 2, 0, 1).to(dtype).contiguous(memory_format=layout)  # (out, in/groups, k, k)


def convolve(
    images: Tensor, kernel: Tensor, bias: Tensor | None, geometry: Geometry, order: Order, tail: Tail
) -> Tensor:
    """Compute tail(images ∗ kernel + bias), the ReLU inside the convolution where oneDNN can.

    Parameters
    ----------
    images : Tensor of shape (n, h, w, in) or (n, in, h, w)
        In the order that ``order`` names.
    kernel : Tensor of shape (out, in/groups, k, k)
        Of the images' precision.
    bias : Tensor of shape (out,), optional
    geometry : Geometry
    order : Order
    tail : Tail

    Returns
    -------
    Tensor of shape (n, h', w', out) or (n, out, h', w')
    """
    return order.leave(_convolved(order.enter(images), kernel, bias, geometry, tail))


def _convolved(image: Tensor, kernel: Tensor, bias: Tensor | None, geometry: Geometry, tail: Tail) -> Tensor:
    strides, padding, dilation, groups = (
        geometry.strides,
        geometry.padding,
        geometry.dilation,
        geometry.groups,
    )
    if tail.relu and CONVOLUTION_POINTWISE is not None and image.device.type == "cpu":
        result = CONVOLUTION_POINTWISE(
            image, kernel, bias, padding, strides, dilation, groups, "relu", [], ""
        )
        return tail.finish(result, activated=True)
    return tail.finish(torch.conv2d(image, kernel, bias, strides, padding, dilation, groups))


class Convolution(torch.autograd.Function):
    """tail(images ∗ kernel + bias) in the precision of the images; Keras's float32 kernel and bias go in."""

    @staticmethod
    def forward(
        ctx: Context,
        images: Tensor,
        kernel: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        order: Order,
        tail: Tail,
    ) -> Tensor:
        """Compute from images in the model's order and a Keras kernel (k, k, in/groups, out)."""
        narrow = narrow_kernel(kernel, images.dtype, order.memory, geometry.depthwise)
        image = order.enter(images)  # (n, c, h, w)
        result = _convolved(image, narrow, None if bias is None else bias.to(image.dtype), geometry, tail)
        ctx.save_for_backward(image, narrow, result if tail.relu else None)
        ctx.geometry, ctx.order, ctx.tail = geometry, order, tail
        ctx.kernel_shape, ctx.bias_shape = kernel.shape, None if bias is None else bias.shape
        return order.leave(result)

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Send the gradient through the tail and the convolution."""
        require_first_order()
        image, narrow, result = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        wanted = (*ctx.needs_input_grad[:2], ctx.bias_shape is not None and ctx.needs_input_grad[2])
        image_gradient, kernel_gradient, bias_gradient = torch.ops.aten.convolution_backward(
            ctx.tail.gradient(ctx.order.enter(gradient), result), image, narrow, ctx.bias_shape,
            geometry.strides, geometry.padding, geometry.dilation, False, (0, 0), geometry.groups, wanted,
        )  # fmt: skip
        if image_gradient is not None:
            image_gradient = ctx.order.leave(image_gradient)
        if kernel_gradient is not None:
            kernel_gradient = kernel_gradient.permute(2, 3, 1, 0).float().reshape(ctx.kernel_shape)
        bias_gradient = None if bias_gradient is None else bias_gradient.float()
        return image_gradient, kernel_gradient, bias_gradient, None, None, None


class RowConvolution(torch.autograd.Function):
    """A convolution as one matrix product per row of the image, for images with very few channels.

    The kernel's rows become a banded matrix that maps ``k`` whole rows of the image to one whole row of the
    result. Most of it is zero, but a large matrix product runs so much nearer to the machine's peak, and
    reads the image in so much longer runs, that it wins where ``in · k`` is small. A column of ones carries
    the bias.
    """

    @staticmethod
    def forward(
        ctx: Context, image: Tensor, kernel: Tensor, bias: Tensor | None, strides: Pair, tail: Tail
    ) -> Tensor:
        """Compute (n, h', w', out) from padded images (n, h, w, c) and a Keras kernel (k, k, c, out)."""
        geometry = RowGeometry.of(image.shape, kernel.shape, strides)
        rows = geometry.rows(image)  # (n·h', k·w·c + 1)
        matrix = geometry.band(kernel, bias, image.dtype)  # (k·w·c + 1, w'·out)
        if tail.relu and LINEAR_POINTWISE is not None and image.device.type == "cpu":
            result = LINEAR_POINTWISE(rows, matrix.t(), None, "relu", [], "").view(geometry.result_shape)
            result = tail.finish(result, activated=True)
        else:
            result = tail.finish((rows @ matrix).view(geometry.result_shape))
        kept = matrix if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(rows, kept, result if tail.relu else None)
        ctx.geometry, ctx.tail = geometry, tail
        return result

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Sum the band of the matrix gradient back into the kernel."""
        require_first_order()
        rows, matrix, result = ctx.saved_tensors
        geometry: RowGeometry = ctx.geometry
        gradient = ctx.tail.gradient(gradient, result).reshape(rows.shape[0], -1)
        image_gradient = None if matrix is None else geometry.image_gradient(gradient @ matrix.t())
        kernel_gradient, bias_gradient = geometry.band_gradient(rows.t() @ gradient)
        return image_gradient, kernel_gradient, bias_gradient if ctx.needs_input_grad[2] else None, None, None


class RowGeometry:
    """The index arithmetic of a row convolution.

    Parameters
    ----------
    image : tuple of int
        (n, h, w, c), padding included.
    kernel : tuple of int
        (k, k, c, out).
    strides : pair of int
    """

    def __init__(self, image: tuple[int, ...], kernel: tuple[int, ...], strides: Pair) -> None:
        self.count, self.height, self.width, self.channels = image
        self.window, self.filters = (kernel[0], kernel[1]), kernel[3]
        self.strides = strides
        self.out = tuple(
            (length - size) // stride + 1
            for length, size, stride in zip(image[1:3], self.window, strides, strict=True)
        )
        self.row = self.width * self.channels
        self.length = self.window[0] * self.row
        self.result_shape = (self.count, *self.out, self.filters)

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(image: tuple[int, ...], kernel: tuple[int, ...], strides: Pair) -> RowGeometry:
        """Return the geometry of some shapes, worked out once."""
        return RowGeometry(image, kernel, strides)

    def rows(self, image: Tensor) -> Tensor:
        """Lay the rows under each row of the result side by side, with a one behind."""
        windows = image.contiguous().as_strided(
            (self.count, self.out[0], self.length), (self.height * self.row, self.strides[0] * self.row, 1)
        )
        rows = image.new_empty((self.count, self.out[0], self.length + 1))
        rows[..., : self.length].copy_(windows)
        rows[..., self.length].fill_(1)
        return rows.view(-1, self.length + 1)

    def _band_view(self, matrix: Tensor) -> Tensor:
        """View the entries of the matrix that hold the kernel, as (k, k, c, w', out)."""
        line = matrix.stride(0)
        along = self.strides[1] * self.channels * line + self.filters
        steps = (self.row * line, self.channels * line, line, along, 1)
        return matrix.as_strided((*self.window, self.channels, self.out[1], self.filters), steps)

    def band(self, kernel: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Write the kernel into the banded matrix, the bias into its last row."""
        size = (self.length + 1, self.out[1] * self.filters)
        matrix = torch.zeros(size, dtype=dtype, device=kernel.device)
        self._band_view(matrix).copy_(kernel.unsqueeze(3))
        if bias is not None:
            matrix[self.length].view(self.out[1], self.filters).copy_(bias)
        return matrix

    def band_gradient(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the gradient of the matrix over the places of each kernel entry and of the bias."""
        kernel = self._band_view(matrix).sum(3, dtype=torch.float32)
        bias = matrix[self.length].view(self.out[1], self.filters).sum(0, dtype=torch.float32)
        return kernel, bias

    def image_gradient(self, rows: Tensor) -> Tensor:
        """Add the gradients of overlapping rows up."""
        parts = rows.view(self.count, self.out[0], -1)
        total = rows.new_zeros((self.count, self.height, self.row))
        for index in range(self.window[0]):
            last = index + (self.out[0] - 1) * self.strides[0] + 1
            total[:, index : last : self.strides[0]] += parts[:, :, index * self.row : (index + 1) * self.row]
        return total.view(self.count, self.height, self.width, self.channels)
