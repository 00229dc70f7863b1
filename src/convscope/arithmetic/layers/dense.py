"""Dense layers, and a softmax over the units of one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from convscope.arithmetic.activations import Array
from convscope.arithmetic.formulas import dense_parameters, product_of, show, show_shape
from convscope.arithmetic.kind import (
    ActivationContext,
    LayerArithmetic,
    LayerContext,
    LayerKind,
    Recomputed,
    show_value,
    sum_lines,
)


def dense(context: LayerContext) -> LayerArithmetic:
    """Analyse Dense: every unit meets every number along the last axis."""
    inputs = _last_length(context)
    units, use_bias = int(context.settings["units"]), context.use_bias
    parameters = dense_parameters(inputs, units, use_bias)
    macs = product_of([*context.shape[:-1], inputs, units])
    kernel = ("kernel", (inputs, units))
    # With channels first the last axis is the width, and what is seen is no longer a window.
    fields = None if context.channels_first and len(context.shape) > 1 else context.fields[0]
    where = "" if len(context.shape) == 1 else f", at each of {show_shape(context.shape[:-1])} positions"
    return LayerArithmetic(
        output_shape=(*context.shape[:-1], units),
        weight_shapes=(kernel, ("bias", (units,))) if use_bias else (kernel,),
        parameters=parameters.value or 0,
        macs=macs.value,
        fields=fields,
        lines=(
            f"output: one number for each of the {show(units)} units{where}",
            f"parameters: {parameters}",
            f"multiply-accumulates: {macs}",
        ),
    )


def _last_length(context: LayerContext) -> int:
    length = context.shape[-1] if context.shape else None
    if length is None:
        raise context.failure(
            f"an input of known length for {context.label}",
            show_shape(context.shape) or "none",
            "Give the network an input of fixed size, or pool globally instead of flattening.",
        )
    return length


def _recompute_dense(context: ActivationContext) -> Recomputed:
    row = context.row()
    kernel = context.weight("kernel")
    biases = context.optional_weight("bias")
    if context.activation.name != "softmax":
        bias = None if biases is None else float(biases[context.channel])
        return context.product_result(row, kernel[:, context.channel], bias)
    sums = row @ kernel + (0.0 if biases is None else biases)
    return recompute_softmax(context, row, sums, kernel[:, context.channel], biases)


def recompute_softmax(
    context: ActivationContext, row: Array, sums: Array, weights: Array | None, biases: Array | None
) -> Recomputed:
    """Recompute a probability from the sums of all units, and the weights and biases that gave them."""
    probabilities = context.activation(sums)
    total, value = float(sums[context.channel]), float(probabilities[context.channel])
    largest = float(sums.max())
    powers = np.exp(sums - largest)
    bias = 0.0 if biases is None else float(biases[context.channel])
    lines = [
        *([] if weights is None else sum_lines(row, weights, total - bias, None if biases is None else bias)),
        f"softmax over {sums.size} units, the largest sum {show_value(largest)} taken off each: "
        f"e^({total - largest:.6g}) / Σ = {powers[context.channel]:.6g} / {powers.sum():.6g} "
        f"= {value:.6g}".replace("-", "−"),
    ]
    answer = context.result(
        row, value=value, lines=lines, weights=weights, bias=bias, total=total, activation="softmax"
    )
    return replace(answer, sums=sums)


KINDS = (LayerKind("Dense", dense, _recompute_dense, page="dense"),)
