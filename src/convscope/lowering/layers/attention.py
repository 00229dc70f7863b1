"""Attention, and matrix products over several axes, of which it is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses

from convscope.arithmetic.formulas import known_lengths
from convscope.lowering import kernels
from convscope.lowering.graph import is_altered
from convscope.lowering.ir import Op, Shape, Value, require
from convscope.lowering.layers.base import ProgramBuilder, Runner, Step, Tensor, WeightSource, reads, runs
from convscope.lowering.layers.dense import Dense
from convscope.lowering.layers.elementwise import Dropout, Dropper, read_fused_activation
from convscope.lowering.layers.reshaping import Reshape


@dataclass(frozen=True, kw_only=True)
class Attention(Op):
    """softmax(scale · q · kᵀ) · v for each head, of queries, values and keys (n, t, heads, size)."""

    scale: float
    drop: Dropout | None = None

    def _output_shape(self, shapes: Sequence[Shape]) -> Shape:
        queries, values, keys = shapes
        require(
            all(len(shape) == 4 for shape in shapes) and queries[2:] == keys[2:] and values[1:3] == keys[1:3],
            f"queries {queries}, values {values} and keys {keys} do not fit",
        )
        return (*queries[:3], values[3])


@reads("EinsumDense")
def _read_einsum_dense(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value | None:
    (value,) = inputs
    if not _is_product(layer) or None in value.shape[1:] or value.rank != len(_axes(layer)[0]):
        return None
    return read_fused_activation(builder, layer, _project(builder, layer, value))


@reads("MultiHeadAttention")
def _read_multi_head_attention(builder: ProgramBuilder, layer: Any, inputs: Sequence[Value]) -> Value | None:
    parts = (layer.query_dense, layer.value_dense, layer.key_dense, layer.output_dense)
    settings = layer.get_config()
    if (
        not all(map(_is_product, parts))
        or any(value.rank != 3 or None in value.shape[1:] for value in inputs)
        or not (len(set(inputs)) == 1 or builder.batches.issuperset(value.name for value in inputs))
        or settings.get("attention_axes") not in (None, (1,), [1])
        or settings.get("use_gate")
        or settings.get("sliding_window") is not None
    ):
        return None
    heads = [_project(builder, part, value) for part, value in zip(parts, inputs, strict=False)]
    stream, rate = builder.next_stream(), float(settings["dropout"])
    drop = Dropout(name="dropout", layer=layer.name, inputs=(), output="", rate=rate, stream=stream)
    mixed = builder.add(
        Attention, layer, heads, scale=float(settings["key_dim"]) ** -0.5, drop=drop if rate else None
    )
    return _project(builder, layer.output_dense, mixed)


def _axes(layer: Any) -> tuple[str, str, str]:
    """Return the letters of an EinsumDense: of its input, its kernel and its result."""
    sources, _, result = layer.equation.replace(" ", "").partition("->")
    left, _, kernel = sources.partition(",")
    return left, kernel, result


def _is_product(layer: Any) -> bool:
    """Say whether an EinsumDense multiplies its last axes by a matrix, and adds a bias to them all."""
    left, kernel, result = _axes(layer)
    kept = sum(letter in result for letter in left)
    inner = len(left) - kept
    return (
        "..." not in layer.equation
        and len(set(left)) == len(left)
        and 0 < kept < len(left)
        and left[kept:] + result[kept:] == kernel
        and left[:kept] == result[:kept]
        and len(kernel) > inner
        and (layer.bias is None or tuple(layer.bias.shape) == tuple(layer.kernel.shape[inner:]))
        and not getattr(layer, "lora_enabled", False)
        and getattr(layer, "quantization_mode", None) is None
        and layer.activity_regularizer is None
        and not is_altered(layer)
    )


def _project(builder: ProgramBuilder, layer: Any, value: Value) -> Value:
    """Multiply the last axes of a value by the kernel of an EinsumDense, as one matrix."""
    left, _, result = _axes(layer)
    shape = tuple(layer.kernel.shape)
    kept = value.rank - sum(letter not in result for letter in left)
    rows = known_lengths(value.shape[1:kept])
    inner, outer = shape[: value.rank - kept], shape[value.rank - kept :]
    if len(inner) > 1:
        value = builder.add(Reshape, layer, [value], part="rows", target=(*rows, math.prod(inner)))
    value = builder.add(
        Dense,
        layer,
        [value],
        kernel=builder.path(layer.kernel),
        kernel_shape=(math.prod(inner), math.prod(outer)),
        bias=builder.optional_path(layer.bias),
    )
    return (
        value
        if len(outer) == 1
        else builder.add(Reshape, layer, [value], part="axes", target=(*rows, *outer))
    )


@runs(Attention)
def _run_attention(op: Attention, _network: WeightSource) -> Runner:
    dropper = None if op.drop is None else Dropper(op.drop)

    def run(step: Step, *tensors: Tensor) -> Tensor:
        # A plan may compute each in another type.
        alike = len({tensor.dtype for tensor in tensors}) == 1
        queries, values, keys = (
            (tensor if alike else tensor.float()).transpose(1, 2) for tensor in tensors
        )  # (n, heads, t, size)
        # On a CPU, the gradient of torch's own operation takes several times as long in bfloat16.
        is_fast = queries.dtype is torch.float32 or queries.device.type != "cpu"
        if is_fast and (dropper is None or not step.training):
            mixed = F.scaled_dot_product_attention(queries, keys, values, scale=op.scale)
        else:
            shares = torch.softmax((queries * op.scale) @ keys.transpose(2, 3), -1)  # (n, heads, t, s)
            if dropper is not None and step.training:
                mask = dropper.of(step)(shares.shape, shares.dtype, shares.device)
                shares = kernels.apply(kernels.Drop, shares, mask, dropper.scale)
            mixed = shares @ values
        return mixed.transpose(1, 2)  # (n, t, heads, size)

    return run
