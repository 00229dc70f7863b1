"""How much a processor multiplies in float32 by each library and by convscope's own loops.

    python benchmarks/kernels.py [--threads 1] [--rounds 8]

Every line is an operation of a training step of `deep`, `stages` or the ResNet-like network, timed in turns
with the others in one process; the shortest run counts, in time on the processor where there is one thread.
GF/s are those of the plain products: what needs fewer multiplications (Winograd, gradients that a pooling
stops) can exceed the best. The table is written to benchmarks/results/ with the machine's name.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import torch

from convscope.lowering import processor
from convscope.lowering.convolutions import Order, PooledConvolution, torch_kernel
from convscope.lowering.cpu import compiled, keep_memory
from convscope.lowering.kernels import Epilogue, TileMaxPool, apply

Work = Callable[[], object]
Line = tuple[str, str, float, Work]  # operation, computed by, multiplications and additions, what does it

# What comes back through a ReLU and a dropout of a quarter is some 40 % of what a pooling lets through.
KEPT = 0.4


def products(size: int = 1536) -> Iterator[Line]:
    """Yield a large product: the best that a library makes of the processor."""
    a, b = (np.random.default_rng(seed).random((size, size), np.float32) for seed in (0, 1))
    result, work = np.empty_like(a), 2.0 * size**3
    yield f"product {size}³", "NumPy", work, lambda: np.matmul(a, b, out=result)
    left, right = torch.from_numpy(a), torch.from_numpy(b)
    yield f"product {size}³", "torch", work, lambda: left @ right


def dense(count: int, inputs: int, units: int) -> Iterator[Line]:
    """Yield the three products of a dense layer."""
    x, kernel, gradient = torch.randn(count, inputs), torch.randn(inputs, units), torch.randn(count, units)
    arrays = x.numpy(), kernel.numpy(), gradient.numpy()
    rows, weights, back = arrays
    name, work = f"dense {count}×{inputs}×{units}", 2.0 * count * inputs * units
    yield f"{name}, forward", "torch", work, lambda: x @ kernel
    yield f"{name}, forward", "NumPy", work, lambda: rows @ weights
    yield f"{name}, data gradient", "torch", work, lambda: gradient @ kernel.t()
    yield f"{name}, data gradient", "NumPy", work, lambda: back @ weights.T
    yield f"{name}, weight gradient", "torch", work, lambda: x.t() @ gradient
    yield f"{name}, weight gradient", "NumPy", work, lambda: rows.T @ back


def convolution(count: int, size: int, channels: int, filters: int) -> Iterator[Line]:
    """Yield a 3×3 convolution with max-pooling behind it: oneDNN's, and the loops."""
    images, kernel = torch.randn(count, size, size, channels), torch.randn(3, 3, channels, filters)
    wide = size - 2
    work = 2.0 * count * wide * wide * filters * 9 * channels
    order, relu = Order(), Epilogue(relu=True)
    plain = torch_kernel(kernel, torch.float32, torch.channels_last)
    image = order.enter(images)
    tiles = (count, wide // 2, wide // 2, filters)
    gradient = torch.randn(tiles)
    places = torch.randint(1, 5, tiles) * (torch.rand(tiles) < KEPT)
    places = places.to(torch.uint8)
    whole = compiled.tile_max_back(gradient, places, torch.Size((count, wide, wide, filters)))
    name = f"convolution {channels}→{filters} on {size}×{size}"

    def back(*wanted: bool) -> object:
        return torch.ops.aten.convolution_backward(
            order.enter(whole), image, plain, [filters], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, wanted
        )

    def pooled_plainly() -> object:
        convolved = order.leave(torch.conv2d(image, plain))
        return apply(TileMaxPool, convolved.contiguous(), relu)

    yield f"{name}, forward", "oneDNN", work, lambda: torch.conv2d(image, plain)
    yield f"{name}, forward and pooling", "oneDNN, loops", work, pooled_plainly
    yield (
        f"{name}, forward and pooling", "loops: Winograd", work,
        lambda: apply(PooledConvolution, images, kernel, None, relu, True),
    )  # fmt: skip
    yield f"{name}, data gradient", "oneDNN", work, lambda: back(True, False, False)
    yield (
        f"{name}, data gradient", "loops: listed", work,
        lambda: compiled.pooled_gradients(images, kernel, gradient, places, (True, False)),
    )  # fmt: skip
    yield f"{name}, weight gradient", "oneDNN", work, lambda: back(False, True, True)
    yield (
        f"{name}, weight gradient", "loops: listed", work,
        lambda: compiled.pooled_gradients(images, kernel, gradient, places, (False, True)),
    )  # fmt: skip


def unpooled_convolution(count: int, size: int, channels: int, filters: int) -> Iterator[Line]:
    """Yield a 3×3 convolution with nothing but its own padding: oneDNN's, and Winograd's F(4×4, 3×3)."""
    images, kernel = torch.randn(count, size, size, channels), torch.randn(3, 3, channels, filters)
    result = torch.randn(count, size, size, filters)
    work = 2.0 * result.numel() * 9 * channels
    order = Order()
    image, gradient = order.enter(images), order.enter(result)
    plain = torch_kernel(kernel, torch.float32, torch.channels_last)
    name = f"convolution {channels}→{filters} on {size}×{size}, padded"

    def back(*wanted: bool) -> object:
        return torch.ops.aten.convolution_backward(
            gradient, image, plain, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted
        )

    def convolve(values: torch.Tensor, weights: torch.Tensor) -> object:
        transformed = compiled.winograd_kernel(weights)
        return compiled.winograd_convolution(values, transformed, None, (1, 1), False)

    turned = kernel.flip(0, 1).transpose(2, 3)
    yield f"{name}, forward", "oneDNN", work, lambda: torch.conv2d(image, plain, padding=1)
    yield f"{name}, forward", "loops: Winograd", work, lambda: convolve(images, kernel)
    yield f"{name}, data gradient", "oneDNN", work, lambda: back(True, False, False)
    yield f"{name}, data gradient", "loops: Winograd", work, lambda: convolve(result, turned)
    yield f"{name}, weight gradient", "oneDNN", work, lambda: back(False, True, False)
    yield (
        f"{name}, weight gradient", "loops: Winograd", work,
        lambda: compiled.winograd_kernel_gradient(images, result, (1, 1)),
    )  # fmt: skip


def measure(lines: list[Line], rounds: int, clock: Callable[[], float]) -> list[float]:
    """Time the operations in turns; return the shortest run of each."""
    best = [math.inf] * len(lines)
    with torch.no_grad():
        for number in range(rounds + 1):  # the first round only warms up
            for index, (*_, work) in enumerate(lines):
                begin = clock()
                work()
                if number:
                    best[index] = min(best[index], clock() - begin)
    return best


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--name", default="kernels", help="the name of the file in benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    keep_memory()  # as in training: otherwise the operating system clears each result's memory anew
    lines = [
        *products(),
        *convolution(128, 26, 32, 64),
        *convolution(128, 11, 64, 64),
        *unpooled_convolution(128, 32, 16, 16),
        *unpooled_convolution(128, 16, 32, 32),
        *unpooled_convolution(128, 8, 64, 64),
        *dense(128, 9216, 128),
        *dense(128, 1600, 512),
    ]
    # Time on the processor tells nothing about several threads, and NumPy has threads of its own.
    clock = processor.clock if arguments.threads == 1 else time.perf_counter
    seconds = measure(lines, arguments.rounds, clock)
    best = max(lines[index][2] / seconds[index] for index in (0, 1))
    here = processor.this_processor()
    text = [
        "# Kernels in float32",
        "",
        f"{here.name} ({here.kind.name}), threads: {arguments.threads}. "
        "`python benchmarks/kernels.py` repeats it.",
        "",
        "| operation | by | ms | GF/s | of the large product |",
        "| --- | --- | --: | --: | --: |",
    ]
    for (name, by, work, _), time_ in zip(lines, seconds, strict=True):
        text.append(
            f"| {name} | {by} | {1e3 * time_:.2f} | {work / time_ / 1e9:.0f} | {work / time_ / best:.0%} |"
        )
    print("\n".join(text))
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / f"{arguments.name}.md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
