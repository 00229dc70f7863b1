"""The floor of a training step: its convolutions and matrix products alone, each at its fastest precision.

Whatever else a step does (activations, pooling, dropout, normalisation, the optimizer) comes on top.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from models import NETWORKS, keras_model

Work = Callable[[], Any]


def floor_trainer(network: str) -> Callable[[int], None]:
    """Choose the fastest precision of each operation once, then run the chosen ones step by step."""
    chosen = [min(candidates, key=_seconds) for candidates in _operations(network)]

    def train(steps: int) -> None:
        with torch.no_grad():
            for _ in range(steps):
                for work in chosen:
                    work()

    return train


def _operations(network: str) -> list[list[Work]]:
    """List each operation of a step in every precision: forward, and backward for data and weights."""
    import keras

    batch = NETWORKS[network][2]
    model = keras_model(network)
    weighted = (keras.layers.Conv2D, keras.layers.Dense, keras.layers.DepthwiseConv2D)
    layers = [layer for layer in model.layers if isinstance(layer, weighted)]
    operations = []
    for number, layer in enumerate(layers):
        make = _dense if isinstance(layer, keras.layers.Dense) else _convolution
        variants = [make(layer, batch, dtype, number == 0) for dtype in (torch.float32, torch.bfloat16)]
        operations += [list(pair) for pair in zip(*variants, strict=True)]
    return operations


def _dense(layer: Any, batch: int, dtype: torch.dtype, first: bool) -> list[Work]:
    inputs, units = layer.kernel.shape
    x, gradient = torch.randn(batch, inputs, dtype=dtype), torch.randn(batch, units, dtype=dtype)
    kernel = torch.randn(units, inputs, dtype=dtype)
    works: list[Work] = [lambda: x @ kernel.T, lambda: gradient.T @ x]
    return works if first else [*works, lambda: gradient @ kernel]


def _convolution(layer: Any, batch: int, dtype: torch.dtype, first: bool) -> list[Work]:
    _, height, width, channels = layer.input.shape
    filters = layer.output.shape[-1]
    size, stride = layer.kernel_size[0], layer.strides[0]
    depthwise = layer.__class__.__name__ == "DepthwiseConv2D"
    groups = channels if depthwise else 1
    # A symmetric padding that gives at least the layer's output size; the surplus row is cut by the stride.
    padding = 0 if layer.padding == "valid" else (size - 1 + stride - 1) // 2
    last = torch.channels_last

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype).to(memory_format=last)

    x = tensor(batch, channels, height, width)
    kernel = tensor(filters, channels // groups, size, size)
    gradient = tensor(*torch.conv2d(x, kernel, None, stride, padding, 1, groups).shape)

    def backward(*wanted: bool) -> Any:
        return torch.ops.aten.convolution_backward(
            gradient, x, kernel, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups, wanted
        )

    works: list[Work] = [
        lambda: torch.conv2d(x, kernel, None, stride, padding, 1, groups),
        lambda: backward(False, True, False),
    ]
    return works if first else [*works, lambda: backward(True, False, False)]


def _seconds(work: Work) -> float:
    """Time an operation: the fastest of a few, after a first one that does not count."""
    times = []
    with torch.no_grad():
        for _ in range(6):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
    return min(times[1:])
