"""Matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from convscope.lowering import kernels
from convscope.lowering.cpu import LANES, compiled
from convscope.lowering.ir import Activation, KernelChoice, Op, Shape, Value, require
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
from convscope.lowering.layers.elementwise import Dropout, FusedEpilogue, read_fused_activation
from convscope.lowering.layers.normalization import BatchNormalization

# Fewer rows are predicted sooner by torch's product.
_FEWEST_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class ConvOrDense(Op):
    """A convolution or a matrix product, with what was fused behind it: the ops that a plan decides about."""

    kernel: str
    kernel_shape: tuple[int, ...]
    bias: str | None = None
    activation: Activation | None = None
    drop: Dropout | None = None
    folded: BatchNormalization | None = None
    choice: KernelChoice = field(default_factory=KernelChoice)

    @property
    def filters(self) -> int:
        """Return the number of output channels or units."""
        return self.kernel_shape[-1]

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Return in which shape a factor for each filter multiplies the kernel."""
        return (self.filters,)

    @property
    def weights(self) -> tuple[str, ...]:
        """Return kernel and bias, and those of a folded normalization."""
        own = (self.kernel,) if self.bias is None else (self.kernel, self.bias)
        return own + (self.folded.weights if self.folded else ())

    @property
    def state(self) -> tuple[str, ...]:
        """Return the statistics of a folded normalization."""
        return self.folded.state if self.folded else ()


@dataclass(frozen=True, kw_only=True)
class Dense(ConvOrDense):
    """A matrix product over the last axis; the kernel is ``(in, out)``, its variable may have more axes.

    ``input_scale`` multiplies the product in training: the scale of a dropout before.
    """

    kernel_shape: tuple[int, int]
    input_scale: float = 1.0

    @property
    def has_few_columns(self) -> bool:
        """Whether the kernel has fewer columns than libraries make their products for."""
        return self.filters < LANES

    @property
    def suits_tiles(self) -> bool:
        """Whether the loops for matrix products can compute it."""
        return self.kernel_shape[0] % LANES == 0 and (self.has_few_columns or self.filters % LANES == 0)

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        (shape,) = shapes
        require(
            shape[-1] == self.kernel_shape[0],
            f"the kernel {self.kernel_shape} does not fit the last axis of {shape}",
        )
        return (*shape[:-1], self.kernel_shape[1])


@reads("Dense")
def _read_dense(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value:
    value = builder.add(
        Dense,
        layer,
        inputs,
        kernel=builder.path(layer.kernel),
        kernel_shape=tuple(layer.kernel.shape),
        bias=builder.optional_path(layer.bias),
    )
    return read_fused_activation(builder, layer, value)


@runs(Dense)
def _run_dense(op: Dense, network: WeightSource) -> Runner:
    fused = FusedEpilogue(op.activation, op.drop)
    dtype = getattr(torch, op.choice.precision)
    in_tiles = op.choice.algorithm == "tiled" and dtype is torch.float32
    in_loops = fused.smooth is not None and op.filters % LANES == 0 and compiled.available()

    def prepare() -> Prepared:
        kernel, bias = folded(op, network)
        if torch.is_grad_enabled():
            return kernel, bias
        return kernel.to(dtype), None if bias is None else bias.to(dtype)

    def run(step: Step, x: Tensor) -> Tensor:
        kernel, bias = network.prepared(op, prepare)
        rows = x if x.dtype is torch.bfloat16 else x.to(dtype)
        rows = rows if x.dim() == 2 else rows.reshape(-1, op.kernel_shape[0])  # (n, in)
        scale = op.input_scale if step.training else 1.0
        pays = torch.is_grad_enabled() or (op.has_few_columns and len(rows) >= _FEWEST_ROWS)
        tiled = in_tiles and pays and x.device.type == kernel.device.type == "cpu"
        smooth = fused.smooth if in_loops and x.device.type == "cpu" else None
        result = kernels.apply(
            kernels.MatrixProduct, rows, kernel, bias, scale, fused.at(step), dtype, tiled, smooth
        )
        result = result if smooth else fused.finish(result)
        return result if x.dim() == 2 else result.view(*x.shape[:-1], -1)

    return run


def folded(op: ConvOrDense, network: WeightSource) -> Prepared:
    """Return kernel and bias in Keras's layout, a folded normalization multiplied in."""
    kernel = network.tensor(op.kernel)
    bias = None if op.bias is None else network.tensor(op.bias)
    if kernel.shape != op.kernel_shape:  # of several axes, which are one of a matrix
        kernel = kernel.reshape(op.kernel_shape)
        bias = None if bias is None else bias.reshape(-1)
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
    return kernel * scale.view(op.scale_shape), offset
