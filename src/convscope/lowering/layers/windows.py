"""Convolutions and poolings: what they are as ops, how they are read from Keras, how they run on torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses

from convscope.arithmetic.formulas import same_margins, window_positions
from convscope.lowering import kernels
from convscope.lowering.convolutions import (
    Convolution,
    FewChannelConvolution,
    Geometry,
    Order,
    PooledConvolution,
    WinogradConvolution,
    convolve,
    convolve_few_channels,
    convolve_tiles,
    convolve_winograd,
    to_keras_order,
    to_torch_order,
    torch_kernel,
)
from convscope.lowering.cpu import LANES, compiled
from convscope.lowering.ir import (
    Activation,
    DataFormat,
    Op,
    Padding,
    Pair,
    Shape,
    Value,
    channel_axis,
    require,
    require_image,
    spatial_axes,
    with_axes,
)
from convscope.lowering.layers.base import (
    Prepared,
    ProgramBuilder,
    Runner,
    Step,
    Tensor,
    WeightSource,
    reads,
    runs,
)
from convscope.lowering.layers.dense import ConvOrDense, folded
from convscope.lowering.layers.elementwise import Dropout, FusedEpilogue, read_fused_activation


@dataclass(frozen=True, kw_only=True)
class Pool2D(Op):
    """Max or average pooling, with what was fused behind it."""

    mode: Literal["max", "average"]
    pool: Pair
    strides: Pair
    padding: Padding = "valid"
    data_format: DataFormat = "channels_last"
    edge: Literal["ignore", "replicate"] = "ignore"
    activation: Activation | None = None
    drop: Dropout | None = None

    @property
    def is_tiled(self) -> bool:
        """Say whether it takes the largest of tiles of two by two, where nothing is padded."""
        tiles = self.pool == self.strides == (2, 2)
        return tiles and self.mode == "max" and self.data_format == "channels_last"

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        return self.pooled_shape(shape)

    def pooled_shape(self, shape: Shape) -> Shape:
        """Compute the shape of its result from that of its images."""
        require_image(self, shape)
        return _slid_over(self, shape, self.pool, (1, 1), f"the pool {self.pool}")


@dataclass(frozen=True, kw_only=True)
class Conv2D(ConvOrDense):
    """A convolution; its kernel is ``(k, k, in/groups, out)``, or ``depthwise`` ``(k, k, in, times)``.

    ``pooling`` was fused behind it.
    """

    kernel_shape: tuple[int, int, int, int]
    strides: Pair = (1, 1)
    padding: Padding = "valid"
    dilation: Pair = (1, 1)
    groups: int = 1
    depthwise: bool = False
    data_format: DataFormat = "channels_last"
    pooling: Pool2D | None = None

    @property
    def filters(self) -> int:
        """Return the number of output channels."""
        _, _, inner, outer = self.kernel_shape
        return inner * outer if self.depthwise else outer

    @property
    def listed_gradients(self) -> bool:
        """Say whether loops can go back through it from the few gradients that a max-pooling lets through."""
        return self._suits_loops and self.activation is None and self.drop is None

    @property
    def suits_winograd(self) -> bool:
        """Say whether loops can convolve as Winograd does, and pool where a max-pooling follows."""
        return self._suits_loops and self.kernel_shape[:2] == (3, 3) and self.filters % LANES == 0

    @property
    def _suits_loops(self) -> bool:
        plain = self.strides == self.dilation == (1, 1) and self.groups == 1 and not self.depthwise
        return plain and self.data_format == "channels_last" and self.kernel_shape[2] % LANES == 0

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Return in which shape a factor for each filter multiplies the kernel."""
        return self.kernel_shape[2:] if self.depthwise else (self.filters,)

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        require_image(self, shape)
        height, width, inner, _ = self.kernel_shape
        channels = shape[channel_axis(self.data_format)]
        expected = inner if self.depthwise else inner * self.groups
        require(
            channels == expected, f"the kernel {self.kernel_shape} reads {expected} channels, got {channels}"
        )
        require(
            self.filters % self.groups == 0,
            f"{self.filters} filters cannot be shared by {self.groups} groups",
        )
        result = list(_slid_over(self, shape, (height, width), self.dilation, f"the kernel {height}×{width}"))
        result[channel_axis(self.data_format)] = self.filters
        return tuple(result) if self.pooling is None else self.pooling.pooled_shape(tuple(result))


def _slid_over(op: Pool2D | Conv2D, shape: Shape, window: Pair, dilation: Pair, what: str) -> Shape:
    """Compute how many positions a window has on images of a shape; raise ShapeError where it has none."""
    sizes = [
        window_positions(shape[axis], size, stride, op.padding, spread)
        for axis, size, stride, spread in zip(
            spatial_axes(op.data_format), window, op.strides, dilation, strict=True
        )
    ]
    require(all(size is None or size > 0 for size in sizes), f"{what} is larger than {shape}")
    return with_axes(shape, op.data_format, sizes)


@dataclass(frozen=True, kw_only=True)
class GlobalPool2D(Op):
    """The mean or maximum of each channel."""

    mode: Literal["max", "average"]
    data_format: DataFormat = "channels_last"
    keepdims: bool = False

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        require_image(self, shape)
        if self.keepdims:
            return with_axes(shape, self.data_format, (1, 1))
        return (shape[0], shape[channel_axis(self.data_format)])


@reads("Conv2D")
def _read_conv2d(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    value = _convolved(
        builder, layer, inputs, layer.kernel, layer.use_bias, **_window_settings(layer), groups=layer.groups
    )
    return read_fused_activation(builder, layer, value)


@reads("DepthwiseConv2D")
def _read_depthwise_conv2d(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    settings = {**_window_settings(layer), "groups": layer.kernel.shape[2], "depthwise": True}
    value = _convolved(builder, layer, inputs, layer.kernel, layer.use_bias, **settings)
    return read_fused_activation(builder, layer, value)


@reads("SeparableConv2D")
def _read_separable_conv2d(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    first, second = layer.depthwise_kernel, layer.pointwise_kernel
    settings = {**_window_settings(layer), "groups": first.shape[2], "depthwise": True}
    middle = _convolved(builder, layer, inputs, first, False, part="depthwise", **settings)
    value = _convolved(builder, layer, [middle], second, layer.use_bias, part="pointwise")
    return read_fused_activation(builder, layer, value)


def _window_settings(layer: Any) -> dict[str, Any]:
    strides, dilation = tuple(layer.strides), tuple(layer.dilation_rate)
    return {"strides": strides, "padding": layer.padding, "dilation": dilation}


def _convolved(
    builder: ProgramBuilder, layer: Any, inputs: Sequence[Value], kernel: Any, biased: bool, **settings: Any
) -> Value:
    return builder.add(
        Conv2D,
        layer,
        inputs,
        kernel=builder.path(kernel),
        kernel_shape=tuple(kernel.shape),
        bias=builder.path(layer.bias) if biased else None,
        data_format=layer.data_format,
        **settings,
    )


@reads("MaxPooling2D", "AveragePooling2D")
def _read_pool2d(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    # Keras's torch back end averages over the replicated edge where the padding is lopsided.
    edge = "replicate" if keras.backend.backend() == "torch" else "ignore"
    return builder.add(
        Pool2D,
        layer,
        inputs,
        mode=layer.pool_mode,
        pool=tuple(layer.pool_size),
        strides=tuple(layer.strides),
        padding=layer.padding,
        data_format=layer.data_format,
        edge=edge if layer.pool_mode == "average" else "ignore",
    )


@reads("GlobalAveragePooling2D", "GlobalMaxPooling2D")
def _read_global_pool2d(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    mode = "average" if type(layer).__name__ == "GlobalAveragePooling2D" else "max"
    return builder.add(
        GlobalPool2D,
        layer,
        inputs,
        mode=mode,
        data_format=layer.data_format,
        keepdims=bool(layer.keepdims),
    )


@runs(Conv2D)
def _run_conv2d(op: Conv2D, network: WeightSource) -> Runner:
    if op.pooling is not None:
        return _pooled_convolution(op, op.pooling, network)
    if op.kernel_shape[:2] == (1, 1) and op.strides != (1, 1):
        return _sampled(op, network)
    direct = _convolution(op, network)
    if op.choice.algorithm == "direct":
        return direct
    by_name = {"shallow": _few_channel_convolution, "winograd": _winograd_convolution}
    in_loops = by_name[op.choice.algorithm](op, network)

    def run(step: Step, x: Tensor) -> Tensor:
        on_cpu = x.device.type == network.tensor(op.kernel).device.type == "cpu"
        result: Tensor = (in_loops if on_cpu else direct)(step, x)
        return result

    return run


def _sampled(op: Conv2D, network: WeightSource) -> Runner:
    """Convolve with a 1×1 kernel in strides: only the pixels under it are looked at.

    With its own strides, oneDNN writes past the end of its memory in the weight gradient of images with few
    channels, where it has no more than AVX2 (`benchmarks/convolution_crashes.py`).
    """
    convolve_each = _run_conv2d(dataclasses.replace(op, strides=(1, 1)), network)
    rows, columns = (slice(None, None, stride) for stride in op.strides)
    pixels = (..., rows, columns, slice(None)) if op.data_format == "channels_last" else (..., rows, columns)

    def run(step: Step, x: Tensor) -> Tensor:
        result: Tensor = convolve_each(step, x[pixels])
        return result

    return run


def _convolution(op: Conv2D, network: WeightSource) -> Runner:
    window = (op.kernel_shape[0], op.kernel_shape[1])
    fused = FusedEpilogue(op.activation, op.drop, clips=True)
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
        epilogue = fused.at(step)
        if torch.is_grad_enabled():
            result = kernels.apply(Convolution, images, kernel, bias, geometry, order, epilogue)
        else:
            result = convolve(images, kernel, bias, geometry, order, epilogue)
        return fused.finish(result)

    return run


def _few_channel_convolution(op: Conv2D, network: WeightSource) -> Runner:
    window = (op.kernel_shape[0], op.kernel_shape[1])
    fused = FusedEpilogue(op.activation, op.drop)
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
        arguments = images, kernel, bias, geometry, fused.at(step), dtype
        if torch.is_grad_enabled():
            result = kernels.apply(FewChannelConvolution, *arguments)
        else:
            result = convolve_few_channels(*arguments)
        result = fused.finish(result)
        return result.permute(0, 3, 1, 2) if first else result

    return run


def _winograd_convolution(op: Conv2D, network: WeightSource) -> Runner:
    fused = FusedEpilogue(op.activation, op.drop, clips=True)

    def prepare() -> Prepared:
        kernel, bias = folded(op, network)
        return kernel if torch.is_grad_enabled() else compiled.winograd_kernel(kernel), bias

    def run(step: Step, x: Tensor) -> Tensor:
        kernel, bias = network.prepared(op, prepare)
        images = x.float()
        rows, columns = padding_of(images, op, (3, 3))
        arguments = kernel, bias, (rows[0], columns[0]), fused.at(step)
        if torch.is_grad_enabled():
            return fused.finish(kernels.apply(WinogradConvolution, images, *arguments))
        return fused.finish(convolve_winograd(images.contiguous(), *arguments))

    return run


def _pooled_convolution(op: Conv2D, pooling: Pool2D, network: WeightSource) -> Runner:
    algorithm = op.choice.algorithm
    alone = dataclasses.replace(op, pooling=None, choice=dataclasses.replace(op.choice, algorithm="direct"))
    convolve_alone, pool = _run_conv2d(alone, network), _run_pool2d(pooling, network)
    window = (op.kernel_shape[0], op.kernel_shape[1])
    fused = FusedEpilogue(pooling.activation, pooling.drop)

    def prepare() -> Prepared:
        kernel, bias = folded(op, network)
        return kernel if torch.is_grad_enabled() else compiled.transformed_kernel(kernel), bias

    def run(step: Step, x: Tensor) -> Tensor:
        on_cpu = x.device.type == network.tensor(op.kernel).device.type == "cpu"
        together = algorithm == "winograd" or (algorithm == "pooled" and torch.is_grad_enabled())
        if not (on_cpu and together):
            separate: Tensor = pool(step, convolve_alone(step, x))
            return separate
        images = x.float()
        rows, columns = padding_of(images, op, window)
        if rows != (0, 0) or columns != (0, 0):
            images = padded(images, rows, columns, op.data_format)
        kernel, bias = network.prepared(op, prepare)
        epilogue = fused.at(step)
        if torch.is_grad_enabled():
            winograd = algorithm == "winograd"
            return fused.finish(kernels.apply(PooledConvolution, images, kernel, bias, epilogue, winograd))
        result, _ = convolve_tiles(images.contiguous(), kernel, bias, epilogue)
        return fused.finish(result)

    return run


@runs(Pool2D)
def _run_pool2d(op: Pool2D, _network: WeightSource) -> Runner:
    fused = FusedEpilogue(op.activation, op.drop)
    pool = _max_pool if op.mode == "max" else _average_pool

    def run(step: Step, x: Tensor) -> Tensor:
        rows, columns = padding_of(x, op, op.pool)
        epilogue = fused.at(step)
        if op.is_tiled and rows == columns == (0, 0) and x.is_contiguous() and compiled.suits(x):
            return fused.finish(kernels.apply(kernels.TileMaxPool, x, epilogue))
        pooled = fused.finish(pool(op, to_torch_order(x, op.data_format), rows, columns))
        result = to_keras_order(pooled, op.data_format)
        result = torch.relu(result) if epilogue.relu else result
        mask = epilogue.mask(result.shape, result)
        return result if mask is None else kernels.apply(kernels.Drop, result, mask, epilogue.scale)

    return run


def _max_pool(op: Pool2D, image: Tensor, rows: Pair, columns: Pair) -> Tensor:
    if is_lopsided(rows, columns):
        image = F.pad(image, (*columns, *rows), value=float("-inf"))
        rows = columns = (0, 0)
    return F.max_pool2d(image, op.pool, op.strides, (rows[0], columns[0]))


def _average_pool(op: Pool2D, image: Tensor, rows: Pair, columns: Pair) -> Tensor:
    if not is_lopsided(rows, columns):
        return F.avg_pool2d(image, op.pool, op.strides, (rows[0], columns[0]), count_include_pad=False)
    if op.edge == "replicate":
        return F.avg_pool2d(F.pad(image, (*columns, *rows), mode="replicate"), op.pool, op.strides)
    counted = torch.ones_like(image[:1, :1])
    total, count = (
        F.avg_pool2d(F.pad(part, (*columns, *rows)), op.pool, op.strides) for part in (image, counted)
    )
    return total / count


@runs(GlobalPool2D)
def _run_global_pool2d(op: GlobalPool2D, _network: WeightSource) -> Runner:
    axes = (1, 2) if op.data_format == "channels_last" else (2, 3)
    if op.mode == "average":
        return lambda _step, x: x.mean(axes, keepdim=op.keepdims)
    return lambda _step, x: x.amax(axes, keepdim=op.keepdims)


def padding_of(
    images: Tensor, op: Conv2D | Pool2D, window: Pair, dilation: Pair = (1, 1)
) -> tuple[Pair, Pair]:
    """Compute what padding adds before and after the rows and columns of images in the model's order."""
    if op.padding == "valid":
        return (0, 0), (0, 0)
    rows, columns = (
        same_margins(images.shape[axis], size, stride, step)
        for axis, size, stride, step in zip(
            spatial_axes(op.data_format), window, op.strides, dilation, strict=True
        )
    )
    return rows, columns


def is_lopsided(rows: Pair, columns: Pair) -> bool:
    """Say whether padding adds unequal amounts before and after, which no operation of torch takes."""
    return rows[0] != rows[1] or columns[0] != columns[1]


def padded(images: Tensor, rows: Pair, columns: Pair, data_format: DataFormat) -> Tensor:
    """Add zeros around images in the model's order."""
    amounts = (0, 0, *columns, *rows) if data_format == "channels_last" else (*columns, *rows)
    return F.pad(images, amounts)
