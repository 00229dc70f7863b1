"""Convolutions with fused forward and backward passes: by oneDNN, and in compiled loops for few channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from convscope import _torch_internals as torch_internals
from convscope.lowering.cpu import compiled
from convscope.lowering.cpu.compiled import WindowGeometry
from convscope.lowering.ir import DataFormat, Pair
from convscope.lowering.kernels import Context, Epilogue, Tensor, require_first_order, tile_max
from convscope.lowering.processor import fused_convolution


def to_torch_order(x: Tensor, data_format: DataFormat) -> Tensor:
    """View images in torch's axis order."""
    return x if data_format == "channels_first" else x.permute(0, 3, 1, 2)  # (n, c, h, w)


def to_keras_order(x: Tensor, data_format: DataFormat) -> Tensor:
    """View images that are in torch's axis order in the model's."""
    return x if data_format == "channels_first" else x.permute(0, 2, 3, 1)  # (n, h, w, c)


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
        return to_torch_order(images, self.data_format).contiguous(memory_format=self.memory)

    def leave(self, images: Tensor) -> Tensor:
        """View images in torch's order in the model's."""
        return to_keras_order(images, self.data_format)


def torch_kernel(
    kernel: Tensor, dtype: torch.dtype, layout: torch.memory_format, depthwise: bool = False
) -> Tensor:
    """Bring a Keras kernel into torch's order (out, in/groups, k, k) and a precision."""
    if depthwise:
        # A kernel (k, k, in, times) with one input channel per group.
        kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
    return kernel.permute(3, 2, 0, 1).to(dtype).contiguous(memory_format=layout)  # (out, in/groups, k, k)


def convolve(
    images: Tensor, kernel: Tensor, bias: Tensor | None, geometry: Geometry, order: Order, epilogue: Epilogue
) -> Tensor:
    """Compute epilogue(images ∗ kernel + bias), the ReLU inside the convolution where oneDNN can.

    Images are in the order that ``order`` names; the kernel (out, in/groups, k, k) has their precision.
    """
    return order.leave(_convolved(order.enter(images), kernel, bias, geometry, epilogue))


def _convolved(
    image: Tensor, kernel: Tensor, bias: Tensor | None, geometry: Geometry, epilogue: Epilogue
) -> Tensor:
    strides, padding = geometry.strides, geometry.padding
    dilation, groups = geometry.dilation, geometry.groups
    fused = fused_convolution(image.device.type) if epilogue.relu and kernel.device == image.device else None
    if fused is not None and _are_finite(image, kernel, bias):
        ceiling = epilogue.ceiling
        name, limits = ("relu", []) if ceiling is None else ("hardtanh", [0.0, ceiling])
        result = fused(image, kernel, bias, padding, strides, dilation, groups, name, limits, "")
        return epilogue.finish(result, activated=True)
    return epilogue.finish(torch.conv2d(image, kernel, bias, strides, padding, dilation, groups))


def _are_finite(*tensors: Tensor | None) -> bool:
    """Say whether no NaN can come out: oneDNN's fused ReLU makes 0 of one, and would hide a divergence."""
    return math.isfinite(sum(float(tensor.detach().sum()) for tensor in tensors if tensor is not None))


class Convolution(torch.autograd.Function):
    """epilogue(images ∗ kernel + bias) in the images' precision; Keras's float32 kernel and bias go in."""

    @staticmethod
    def forward(
        ctx: Context,
        images: Tensor,
        kernel: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        order: Order,
        epilogue: Epilogue,
    ) -> Tensor:
        """Compute from images in the model's order and a Keras kernel (k, k, in/groups, out)."""
        torch_order = torch_kernel(kernel, images.dtype, order.memory, geometry.depthwise)
        image = order.enter(images)  # (n, c, h, w)
        result = _convolved(
            image, torch_order, None if bias is None else bias.to(image.dtype), geometry, epilogue
        )
        ctx.save_for_backward(image, torch_order, result if epilogue.relu else None)
        ctx.geometry, ctx.order, ctx.epilogue = geometry, order, epilogue
        ctx.kernel_shape, ctx.bias_shape = kernel.shape, None if bias is None else bias.shape
        return order.leave(result)

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Send the gradient through the epilogue and the convolution."""
        require_first_order()
        image, torch_order, result = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        wanted = (*ctx.needs_input_grad[:2], ctx.bias_shape is not None and ctx.needs_input_grad[2])
        image_gradient, kernel_gradient, bias_gradient = torch_internals.convolution_backward(
            ctx.epilogue.gradient(ctx.order.enter(gradient), result), image, torch_order, ctx.bias_shape,
            geometry.strides, geometry.padding, geometry.dilation, False, (0, 0), geometry.groups, wanted,
        )  # fmt: skip
        if image_gradient is not None:
            image_gradient = ctx.order.leave(image_gradient)
        if kernel_gradient is not None:
            kernel_gradient = kernel_gradient.permute(2, 3, 1, 0).float().reshape(ctx.kernel_shape)
        bias_gradient = None if bias_gradient is None else bias_gradient.float()
        return image_gradient, kernel_gradient, bias_gradient, None, None, None


def convolve_few_channels(
    images: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    epilogue: Epilogue,
    precision: torch.dtype,
) -> Tensor:
    """Compute what ``FewChannelConvolution`` computes, with no backward pass."""
    elements, kernel = images.float().contiguous(), kernel.contiguous()
    windows = WindowGeometry.of(elements.shape, kernel.shape, geometry.strides, geometry.dilation)
    result, _ = compiled.few_channel_convolution(elements, kernel, bias, windows, epilogue.relu, precision)
    return epilogue.finish(result, activated=True)


class FewChannelConvolution(torch.autograd.Function):
    """epilogue(images ∗ kernel + bias) for images of few channels on a CPU, in compiled loops.

    With so few elements under a window there is no matrix product worth its name: writing the result, and
    reading its gradient, is all that should take time. The arithmetic is float32 in every precision.
    """

    @staticmethod
    def forward(
        ctx: Context,
        images: Tensor,
        kernel: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        epilogue: Epilogue,
        precision: torch.dtype,
    ) -> Tensor:
        """Compute (n, h', w', out) from padded images (n, h, w, c) and a Keras kernel (k, k, c, out)."""
        elements = images.float().contiguous()
        windows = WindowGeometry.of(elements.shape, kernel.shape, geometry.strides, geometry.dilation)
        kernel = kernel.contiguous()
        result, signs = compiled.few_channel_convolution(
            elements,
            kernel,
            bias,
            windows,
            epilogue.relu,
            precision,
            signed=epilogue.relu and any(ctx.needs_input_grad),
        )
        result = epilogue.finish(result, activated=True)
        kept = kernel if ctx.needs_input_grad[0] else None
        # Behind a dropout, and for the images, the signs alone do not say what got through; the result does.
        stopped = epilogue.relu and (kept is not None or epilogue.keep is not None)
        ctx.save_for_backward(elements, kept, signs, result if stopped else None)
        ctx.windows, ctx.geometry, ctx.epilogue = windows, geometry, epilogue
        ctx.kernel_shape, ctx.images_type = kernel.shape, images.dtype
        return result

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Sum the products of gradient and images under the windows."""
        require_first_order()
        elements, kernel, signs, result = ctx.saved_tensors
        gradient = gradient.contiguous()
        if kernel is not None or ctx.epilogue.keep is not None:
            gradient, signs = ctx.epilogue.gradient(gradient, result), None
        taps, sums = compiled.few_channel_gradient(elements, gradient, signs, ctx.windows)
        image_gradient = None
        if kernel is not None:
            found = _image_gradient(gradient.float(), elements, kernel, ctx.geometry)
            image_gradient = found.to(ctx.images_type)
        bias_gradient = sums if ctx.needs_input_grad[2] else None
        return image_gradient, taps.view(ctx.kernel_shape), bias_gradient, None, None, None


class WinogradConvolution(torch.autograd.Function):
    """epilogue(images ∗ kernel + bias) as Winograd does: a kernel of three by three, float32, on a CPU."""

    @staticmethod
    def forward(
        ctx: Context, images: Tensor, kernel: Tensor, bias: Tensor | None, padding: Pair, epilogue: Epilogue
    ) -> Tensor:
        """Compute (n, h', w', out) from images (n, h, w, c) and a Keras kernel (3, 3, c, out)."""
        images = images.contiguous()
        result = convolve_winograd(images, compiled.winograd_kernel(kernel), bias, padding, epilogue)
        ctx.save_for_backward(images, kernel, result if epilogue.relu else None)
        ctx.padding, ctx.epilogue = padding, epilogue
        return result

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Convolve the gradient with the kernel turned over, and multiply it with the images."""
        require_first_order()
        images, kernel, result = ctx.saved_tensors
        wants_images, wants_kernel, wants_bias = ctx.needs_input_grad[:3]
        gradient = ctx.epilogue.gradient(gradient.contiguous(), result)
        image_gradient = kernel_gradient = None
        if wants_images:
            turned = compiled.winograd_kernel(kernel.flip(0, 1).transpose(2, 3))  # of (3, 3, out, c)
            above, left = ctx.padding
            margins = 2 - above, 2 - left
            image_gradient = compiled.winograd_convolution(gradient, turned, None, margins, False)
        if wants_kernel:
            kernel_gradient = compiled.winograd_kernel_gradient(images, gradient, ctx.padding)
        bias_gradient = gradient.sum((0, 1, 2)) if wants_bias else None
        return image_gradient, kernel_gradient, bias_gradient, None, None


def convolve_winograd(
    images: Tensor, transformed: Tensor, bias: Tensor | None, padding: Pair, epilogue: Epilogue
) -> Tensor:
    """Compute what ``WinogradConvolution`` computes, by a transformed kernel, with no backward pass."""
    relu = epilogue.relu and epilogue.ceiling is None
    result = compiled.winograd_convolution(images, transformed, bias, padding, relu)
    return epilogue.finish(result, activated=relu)


class PooledConvolution(torch.autograd.Function):
    """epilogue(max-pooling by tiles of two by two(images ∗ kernel + bias)) in float32 on a CPU.

    Forward by oneDNN or as Winograd does. The pooling lets at most one gradient in four through: on the way
    back, loops multiply only those.
    """

    @staticmethod
    def forward(
        ctx: Context, images: Tensor, kernel: Tensor, bias: Tensor | None, epilogue: Epilogue, winograd: bool
    ) -> Tensor:
        """Compute (n, h', w', out) from padded images (n, h, w, c) and a Keras kernel (k, k, c, out)."""
        images = images.contiguous()
        if winograd:
            result, places = convolve_tiles(images, compiled.transformed_kernel(kernel), bias, epilogue)
        else:
            order = Order()
            torch_order = torch_kernel(kernel, kernel.dtype, order.memory)
            convolved = convolve(images, torch_order, bias, Geometry(), order, Epilogue())
            result, places = tile_max(convolved.contiguous(), epilogue)
        ctx.save_for_backward(images, kernel, places)
        ctx.epilogue = epilogue
        return result

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Any, ...]:
        """Multiply the gradients that get through with what their windows saw."""
        require_first_order()
        images, kernel, places = ctx.saved_tensors
        wants_images, *wanted = ctx.needs_input_grad[:3]
        image_gradient, kernel_gradient, bias_gradient = compiled.pooled_gradients(
            images, kernel, ctx.epilogue.scaled_gradient(gradient).contiguous(), places,
            (wants_images, any(wanted)),
        )  # fmt: skip
        bias_gradient = bias_gradient if wanted[1] else None
        return image_gradient, kernel_gradient, bias_gradient, None, None


def convolve_tiles(
    images: Tensor, transformed: Tensor, bias: Tensor | None, epilogue: Epilogue
) -> tuple[Tensor, Tensor]:
    """Convolve and pool as Winograd does, by a transformed kernel; return where each gradient goes, too."""
    count, height, width, _ = images.shape
    filters = transformed.shape[1] * transformed.shape[3]
    shape = (count, (height - 2) // 2, (width - 2) // 2, filters)
    mask = epilogue.mask(shape, images)
    result, places = compiled.winograd_tile_max(images, transformed, bias, epilogue.relu, mask)
    return epilogue.scaled(result), places


def _image_gradient(gradient: Tensor, images: Tensor, kernel: Tensor, geometry: Geometry) -> Tensor:
    order = Order()
    found, _, _ = torch_internals.convolution_backward(
        order.enter(gradient), order.enter(images), torch_kernel(kernel, kernel.dtype, order.memory), None,
        geometry.strides, geometry.padding, geometry.dilation, False, (0, 0), 1, (True, False, False),
    )  # fmt: skip
    return order.leave(found)
