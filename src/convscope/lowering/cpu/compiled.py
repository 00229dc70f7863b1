"""Compiled loops on a CPU, called with torch's tensors and run by torch's own threads.

Threads of another pool would have to share the processor with torch's, which wait for their next work by
spinning. So a loop runs on the team of the OpenMP library that torch has loaded: the library's
``GOMP_parallel`` calls the loop once on each thread. Where there is no such function (on Windows), the
calling thread does it all.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses

from convscope.lowering.cpu import LANES
from convscope.lowering.processor import openmp

if TYPE_CHECKING:
    from convscope.lowering.masks import Mask

_log = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("convscope.progress")

Tensor = torch.Tensor

# So few elements are done before a second thread is awake.
_ALONE = 1 << 14
# Into so many parts the images of a batch are divided to sum gradients.
_PARTS = 32
# So many tiles are convolved at once, a multiple of six; what they need stays in a core's own cache.
_PIECE = 24
# Bytes that the tiles of a convolution by ``convolution.py`` take at once in a core's own cache; into so many
# parts they are divided to sum the gradients of its kernel.
_NEAR, _TILE_PARTS = 220 << 10, 8
# So many inputs of a dense layer are multiplied at once; into so many parts they are divided to sum products.
_DEEP, _DENSE_PARTS = 256, 8
_TALL = 48  # as in products.py
# Bytes of the nearest cache that a loop may count on, of 32 KiB or more.
_NEAREST = 28 << 10


def suits(tensor: Tensor) -> bool:
    """Say whether the loops can work on a tensor: on a CPU, of a known type, without gaps."""
    if tensor.device.type != "cpu" or tensor.dtype not in (torch.bfloat16, torch.float32) or not available():
        return False
    return tensor.is_contiguous() or (
        tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def hash_counters(words: Tensor, key: int, bits: int, threshold: int) -> None:
    """Fill int64 words with hashed counters; with ``bits``, decide over their fields (see ``masks.py``)."""
    signed = key - (1 << 64) if key >= 1 << 63 else key
    _run(_loops().hash_counters, words.numel(), words, signed, bits, threshold, work=words.numel())


def drop(source: Tensor, target: Tensor, mask: Mask) -> None:
    """Write to ``target`` (or in place) what a mask keeps of ``source``, zero elsewhere; both lie alike."""
    _run(_loop_for("drop", source), source.numel(), source, target, *mask.packed, work=source.numel())


def tile_max(images: Tensor, relu: bool, mask: Mask | None) -> tuple[Tensor, Tensor]:
    """Take the largest of each tile of two by two of contiguous images (n, h, w, c), then ReLU and dropout.

    Returns the results (n, h/2, w/2, c), and for each in uint8 which of the four its gradient goes to,
    counted from 1 row by row, the first of equals; 0 where ReLU or the mask lets none through.
    """
    count, height, width, channels = images.shape
    results = images.new_empty((count, height // 2, width // 2, channels))
    places = torch.empty_like(results, dtype=torch.uint8)
    lanes = (0, 0, 0) if mask is None else mask.packed
    rows = count * (height // 2)
    _run(
        _loop_for("tile_max", images), rows, height, width, channels, images, results, places, relu, *lanes,
        work=images.numel(),
    )  # fmt: skip
    return results, places


def tile_max_back(gradient: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """Send the gradients of ``tile_max`` back to images of a shape."""
    count, height, width, channels = shape
    images = gradient.new_empty(shape)
    if height % 2 or width % 2:
        images.zero_()
    _run(
        _loop_for("tile_max_back", gradient), count * (height // 2), height, width, channels, gradient,
        places, images, work=images.numel(),
    )  # fmt: skip
    return images


@dataclass(frozen=True, eq=False)
class WindowGeometry:
    """Where the windows of a few-channel convolution lie in the memory of its images."""

    height: int  # rows of an image
    line: int  # elements in a row
    result: tuple[int, int, int, int]  # (n, h', w', filters)
    down: int  # elements from one window to the one below
    along: int  # ... and to the next
    taps: Tensor  # int64: elements from the first of a window to each other; filled up to a multiple of three
    count: int  # elements of a window

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(
        images: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, int], dilation: tuple[int, int]
    ) -> WindowGeometry:
        """Work the windows out for images (n, h, w, c), padding included, and a kernel (k, k, c, filters)."""
        number, height, width, channels = images
        line = width * channels
        high, wide = (
            (length - spread * (size - 1) - 1) // stride + 1
            for length, size, stride, spread in zip(images[1:3], kernel, strides, dilation, strict=False)
        )
        taps = [
            row * dilation[0] * line + column * dilation[1] * channels + channel
            for row in range(kernel[0])
            for column in range(kernel[1])
            for channel in range(channels)
        ]
        padded = torch.tensor(taps + [0] * (-len(taps) % 3), dtype=torch.int64, device="cpu")
        result = (number, high, wide, kernel[3])
        return WindowGeometry(
            height, line, result, strides[0] * line, strides[1] * channels, padded, len(taps)
        )


def few_channel_convolution(
    images: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    windows: WindowGeometry,
    relu: bool,
    dtype: torch.dtype,
    signed: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Convolve images (n, h, w, c), padding included, with a kernel (k, k, c, filters), in float32.

    All are contiguous float32; the filters are a multiple of sixteen. Returns the result (n, h', w', filters)
    in ``dtype``, and if ``signed`` a bit for each that says whether it is positive, (n, h', w', filters / 16)
    of int16.
    """
    count, high, wide, filters = windows.result
    result = images.new_empty(windows.result, dtype=dtype)
    bias = images.new_zeros(filters) if bias is None else bias
    signs = images.new_empty((count, high, wide, filters // LANES), dtype=torch.int16) if signed else None
    _run(
        _loops().few_channel_convolution, count * high, windows.height, windows.line, high, wide, filters,
        windows.down, windows.along, images, windows.taps, windows.count, kernel, bias, result,
        result.element_size(), relu, signs, work=result.numel() * windows.count,
    )  # fmt: skip
    return result, signs


def few_channel_gradient(
    images: Tensor, gradient: Tensor, signs: Tensor | None, windows: WindowGeometry
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of kernel (taps, filters) and bias (filters,) of a few-channel convolution.

    ``signs`` are those of the convolution if behind it a ReLU stops the gradient where the result is not
    positive.
    """
    count, high, wide, filters = windows.result
    if count == 0:
        return images.new_zeros((windows.count, filters)), images.new_zeros(filters)
    parts, images_of_part = _parted(count)
    sums = images.new_empty((parts, windows.taps.numel() + 1, filters))
    rows = images.new_empty((parts, wide * filters))
    _run(
        _loops().few_channel_gradient, parts, images_of_part * high, count * high, windows.height,
        windows.line, high, wide, filters, windows.down, windows.along, images, windows.taps,
        windows.taps.numel(), gradient, signs, gradient.element_size(), sums, rows,
        work=gradient.numel() * windows.count,
    )  # fmt: skip
    total = sums.sum(0)
    return total[: windows.count], total[-1]


def winograd_tile_max(
    images: Tensor, kernel: Tensor, bias: Tensor | None, relu: bool, mask: Mask | None
) -> tuple[Tensor, Tensor]:
    """Compute what ``tile_max`` makes of images (n, h, w, c) ∗ a kernel of three by three + bias.

    ``kernel`` is the ``transformed_kernel``. All are contiguous float32, padding included; c and the filters
    are multiples of sixteen.
    """
    count, height, width, channels = images.shape
    filters = kernel.shape[1] * LANES
    high, wide = (height - 2) // 2, (width - 2) // 2
    results = images.new_empty((count, high, wide, filters))
    places = torch.empty_like(results, dtype=torch.uint8)
    bias = images.new_zeros(filters) if bias is None else bias.contiguous()
    pieces = -(-high * wide // _PIECE)
    room = 16 * _PIECE * (channels + filters) + 4 * filters
    rooms = images.new_empty((torch.get_num_threads(), room))
    lanes = (0, 0, 0) if mask is None else mask.packed
    _run(
        _more_loops("winograd").winograd_tile_max, count * pieces, _PIECE, height, width, channels, high,
        wide, filters, images, kernel, bias, results, places, relu, *lanes, rooms, 4 * room,
        work=results.numel() * 9 * channels,
    )  # fmt: skip
    return results, places


def transformed_kernel(kernel: Tensor) -> Tensor:
    """Transform a kernel (3, 3, c, filters) into 16 positions, in panels (16, filters / 16, c, 16)."""
    panels = kernel.reshape(*kernel.shape[:3], -1, LANES).transpose(2, 3)  # (3, 3, filters / 16, c, 16)
    rows = _halves(panels[0], panels[1], panels[2])
    return torch.stack([one for row in rows for one in _halves(row[0], row[1], row[2])])


def winograd_kernel(kernel: Tensor) -> Tensor:
    """Transform a kernel (3, 3, c, filters) into 36 positions, in panels (36, filters / 16, c, 16)."""
    *_, channels, filters = kernel.shape
    kernel = kernel.contiguous()
    panels = kernel.new_empty((36, filters // LANES, channels, LANES))
    rooms = kernel.new_empty((torch.get_num_threads(), 36 * LANES))
    _run(
        _more_loops("convolution").transform_kernel, channels, channels, filters, kernel, panels, rooms,
        4 * 36 * LANES, work=kernel.numel(),
    )  # fmt: skip
    return panels


def winograd_convolution(
    images: Tensor, kernel: Tensor, bias: Tensor | None, padding: tuple[int, int], relu: bool
) -> Tensor:
    """Convolve images (n, h, w, c) with zeros around them and a ``winograd_kernel``; add a bias, then ReLU.

    All are contiguous float32; c and the filters are multiples of sixteen.
    """
    count, height, width, channels = images.shape
    filters = kernel.shape[1] * LANES
    high, wide = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    results = images.new_empty((count, high, wide, filters))
    bias = images.new_zeros(filters) if bias is None else bias.contiguous()
    tiles, length = count * _quarters(high) * _quarters(wide), _tiles_at_once(channels + filters)
    room = _winograd_room(length, channels, filters)
    rooms = images.new_empty((torch.get_num_threads(), room))
    _run(
        _more_loops("convolution").winograd_convolution, -(-tiles // length), length, tiles, height, width,
        channels, *padding, high, wide, filters, images, kernel, bias, results, relu, rooms, 4 * room,
        work=results.numel() * 9 * channels,
    )  # fmt: skip
    return results


def winograd_kernel_gradient(images: Tensor, gradient: Tensor, padding: tuple[int, int]) -> Tensor:
    """Compute the gradient (3, 3, c, filters) of the kernel of ``winograd_convolution``."""
    count, height, width, channels = images.shape
    _, high, wide, filters = gradient.shape
    tiles, length = count * _quarters(high) * _quarters(wide), _tiles_at_once(channels + filters)
    if tiles == 0:
        return images.new_zeros((3, 3, channels, filters))
    parts, each = _parted(tiles, _TILE_PARTS)
    sums = images.new_empty((parts, 36, channels * filters))
    room = _winograd_room(length, channels, filters)
    rooms = images.new_empty((torch.get_num_threads(), room))
    _run(
        _more_loops("convolution").winograd_kernel_gradient, parts, each, length, tiles, height, width,
        channels, *padding, high, wide, filters, images, gradient, sums, rooms, 4 * room,
        work=gradient.numel() * 9 * channels,
    )  # fmt: skip
    found = images.new_empty((3, 3, channels, filters))
    _run(
        _more_loops("convolution").finish_kernel_gradient, channels, parts, channels, filters, sums, found,
        rooms, 4 * room, work=sums.numel(),
    )  # fmt: skip
    return found


def _quarters(length: int) -> int:
    return -(-length // 4)


def _winograd_room(length: int, channels: int, filters: int) -> int:
    """Return how many numbers a thread keeps: positions of all tiles, of half a transformation, a tile."""
    return 36 * (length * (channels + filters) + 3 * LANES + max(channels, filters))


def _tiles_at_once(numbers: int) -> int:
    """Return how many tiles fit a core's own cache, with so many numbers for each position: some sixes."""
    return max(1, _NEAR // (36 * 4 * 6 * numbers)) * 6


def _halves(first: Tensor, second: Tensor, third: Tensor) -> list[Tensor]:
    ends, middle = (first + third) / 2, second / 2
    return [first, ends + middle, ends - middle, third]


def dense_product(rows: Tensor, kernel: Tensor) -> Tensor:
    """Multiply rows (n, in) and a kernel (in, out), contiguous float32; out below sixteen or a multiple."""
    count, inputs = rows.shape
    few, kernel = kernel.shape[1], _widened(kernel)
    outputs = kernel.shape[1]
    parts, each = _parted(inputs, min(_DENSE_PARTS, -(-inputs // _DEEP)))
    sums = rows.new_empty((parts, count, outputs))
    panels = rows.new_empty((parts, _DEEP, outputs))
    _run(
        _more_loops("products").dense_product, parts, each, inputs, count, outputs, rows, kernel, sums,
        panels, _DEEP, work=rows.numel() * outputs,
    )  # fmt: skip
    return (sums[0] if parts == 1 else sums.sum(0))[:, :few]


def _widened(columns: Tensor) -> Tensor:
    """Fill up fewer than sixteen columns with zeros."""
    return F.pad(columns, (0, LANES - columns.shape[1])) if columns.shape[1] < LANES else columns


def dense_input_gradient(gradient: Tensor, kernel: Tensor) -> Tensor:
    """Multiply gradients (n, out) and a kernel (in, out) turned over: the gradients of the rows (n, in)."""
    count, outputs = gradient.shape
    inputs = kernel.shape[0]
    found = gradient.new_empty((count, inputs))
    panels = gradient.new_empty((inputs // LANES, outputs, LANES))
    _run(
        _more_loops("products").dense_input_gradient, inputs // LANES, inputs, count, outputs, gradient,
        kernel, found, panels, work=kernel.numel() * count,
    )  # fmt: skip
    return found


def dense_kernel_gradient(rows: Tensor, gradient: Tensor) -> Tensor:
    """Multiply rows (n, in) turned over and gradients (n, out): the gradients of the kernel (in, out)."""
    count, inputs = rows.shape
    few, gradient = gradient.shape[1], _widened(gradient)
    outputs = gradient.shape[1]
    found = rows.new_empty((inputs, outputs))
    panels = gradient.view(count, outputs // LANES, LANES).transpose(0, 1).contiguous()
    parts = -(-inputs // _TALL)
    copied = rows.new_empty((parts, count, _TALL))
    _run(
        _more_loops("products").dense_kernel_gradient, parts, inputs, count, outputs, rows, panels, found,
        copied, work=found.numel() * count,
    )  # fmt: skip
    return found if few == outputs else found[:, :few].contiguous()


def pooled_gradients(
    images: Tensor, kernel: Tensor, gradient: Tensor, places: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute the gradients of images, kernel and bias of a convolution behind which ``tile_max`` pools.

    The images (n, h, w, c), padding included, and the kernel (k, k, c, filters) are float32, c a multiple of
    sixteen; ``gradient`` and ``places`` are those of the tiles. ``wanted``: of the images, of the others.
    """
    if images.shape[0] == 0:
        return torch.zeros_like(images), torch.zeros_like(kernel), images.new_zeros(kernel.shape[3])
    image_gradient = _pooled_image_gradient(images, kernel, gradient, places) if wanted[0] else None
    if not wanted[1]:
        return image_gradient, None, None
    return image_gradient, *_pooled_kernel_gradient(images, kernel, gradient, places)


def _pooled_kernel_gradient(
    images: Tensor, kernel: Tensor, gradient: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    rows, columns, channels, filters = kernel.shape
    _, high, wide, _ = gradient.shape
    parts, each = _parted(len(images))
    line = 4 * images.shape[2] * channels
    at_once = _rows_at_once(high, 2 * line, spare=(rows - 1) * line)
    sums = images.new_empty((parts, filters, rows, columns, channels))
    bias = images.new_empty((parts, filters))
    entries = images.new_empty((parts, at_once * wide, 2))
    _run(
        _more_loops("pooled").pooled_kernel_gradient, parts, each, *images.shape, high, wide, filters, rows,
        columns, images, gradient, places, sums, bias, at_once, entries,
        work=gradient.numel() * rows * columns * channels,
    )  # fmt: skip
    return sums.sum(0).permute(1, 2, 3, 0).contiguous(), bias.sum(0)


def _pooled_image_gradient(images: Tensor, kernel: Tensor, gradient: Tensor, places: Tensor) -> Tensor:
    rows, columns, channels, filters = kernel.shape
    _, high, wide, _ = gradient.shape
    parts, each = _parted(len(images))
    at_once = _rows_at_once(high, 8 * wide * filters)
    found, by_filter = torch.empty_like(images), kernel.permute(3, 0, 1, 2).contiguous()
    entries = images.new_empty((parts, at_once * wide * filters + 1, 2))
    begins = images.new_empty((parts, 4 * at_once * wide + 1), dtype=torch.int64)
    _run(
        _more_loops("pooled").pooled_image_gradient, parts, each, *images.shape, high, wide, filters, rows,
        columns, found, gradient, places, by_filter, at_once, entries, begins,
        work=gradient.numel() * rows * columns * channels,
    )  # fmt: skip
    return found


def _rows_at_once(high: int, bytes_of_row: int, spare: int = 0) -> int:
    """Return how many rows of tiles fit the nearest cache, so that what they need is read from there."""
    return max(1, min(high, (_NEAREST - spare) // bytes_of_row))


def suits_normalization(images: Tensor) -> bool:
    """Say whether the loops can normalize images (n, ..., c), channels last in memory."""
    fits = images.device.type == "cpu" and images.dtype is torch.float32 and images.is_contiguous()
    return (
        fits
        and images.numel() > 0
        and images.numel() % math.lcm(images.shape[-1], LANES) == 0
        and available()
    )


def _cut(images: Tensor) -> tuple[int, int, int, int]:
    """Cut images into blocks of lines: return blocks, lines of a block, of all, and elements of a line."""
    line = math.lcm(images.shape[-1], LANES)
    lines = images.numel() // line
    each = min(512, max(64, 8192 // line))
    return -(-lines // each), each, lines, line


@functools.cache
def _ceilings(ceiling: float) -> Tensor:
    return torch.full((LANES,), ceiling, dtype=torch.float32, device="cpu")


def normalize(
    images: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    epsilon: float,
    ceiling: float | None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize images (n, ..., c) by their own statistics, add a residual, and clip to zero and a ceiling.

    Returns the results; mean, biased variance and 1 / deviation (3, c); what the way back needs (6, line).
    """
    blocks, each, lines, line = _cut(images)
    channels, loops = images.shape[-1], _more_loops("normalization")
    statistics = images.new_empty((blocks, 2, line))
    inverses = _inverses(each, lines - (blocks - 1) * each)
    _run(loops.block_statistics, blocks, each, lines, line, images, statistics, inverses, work=images.numel())
    moments, columns = images.new_empty((3, channels)), images.new_empty((6, line))
    small = ctypes.c_double(epsilon)
    _run(
        loops.finish_statistics, 1, each, lines, line, channels, statistics, gamma, beta,
        ctypes.addressof(small), moments, columns, work=0,
    )  # fmt: skip
    results = torch.empty_like(images)
    _run(
        loops.normalize, blocks, each, lines, line, images, results, columns, residual,
        None if ceiling is None else _ceilings(ceiling), work=images.numel(),
    )  # fmt: skip
    return results, moments, columns


def normalize_back(
    gradient: Tensor,
    images: Tensor,
    results: Tensor | None,
    gamma: Tensor | None,
    moments: Tensor,
    columns: Tensor,
    ceiling: float | None,
    wanted: bool,
    split: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Compute the gradients of images if ``wanted``, of gamma and beta (2, c), of a residual if ``split``.

    Without ``results``, they are computed again to see which were clipped.
    """
    blocks, each, lines, line = _cut(images)
    channels, loops = images.shape[-1], _more_loops("normalization")
    sums = images.new_empty((blocks, 2, line))
    limit = None if ceiling is None else _ceilings(ceiling)
    common = each, lines, line, images, gradient, results, columns
    _run(loops.gradient_sums, blocks, *common, limit, sums, work=images.numel())
    weight_gradients = images.new_empty((2, channels))
    _run(
        loops.finish_gradients, 1, each, lines, line, channels, sums, gamma, moments, weight_gradients,
        columns, work=0,
    )  # fmt: skip
    if not (wanted or split):
        return None, weight_gradients, None
    found = torch.empty_like(images)
    through = torch.empty_like(images) if split else None
    _run(loops.image_gradients, blocks, *common, limit, found, through, work=images.numel())
    return found, weight_gradients, through


@functools.cache
def _inverses(*counts: int) -> Tensor:
    return torch.tensor(counts, dtype=torch.float32, device="cpu").reciprocal().repeat_interleave(LANES)


def adam(
    weights: Tensor,
    gradient: Tensor,
    moments: Tensor,
    squares: Tensor,
    numbers: tuple[float, ...],
    copy: Tensor | None = None,
) -> None:
    """Update float32 weights in place by Adam's rule, its moments and squares, and a bfloat16 copy if any.

    ``numbers``: the learning rate with both bias corrections in it, β₁, 1 − β₁, β₂, 1 − β₂ and epsilon.
    """
    constants = (ctypes.c_float * 6)(*numbers)
    _run(
        _loops().adam, weights.numel(), weights, gradient, gradient.element_size(), moments, squares,
        ctypes.addressof(constants), copy, work=weights.numel(),
    )  # fmt: skip


def _run(loop: Any, items: int, *rest: int | Tensor | None, work: int) -> None:
    """Run a loop over some items, on torch's threads where there is work for more than one.

    The rest is that of its block: numbers, and tensors, of which it gets the addresses, 0 for none.
    """
    numbers = [0 if one is None else one.data_ptr() if isinstance(one, Tensor) else one for one in rest]
    team = openmp()
    threads = torch.get_num_threads() if team is not None and work > _ALONE else 1
    if team is None or threads == 1:
        loop.ctypes((ctypes.c_int64 * (3 + len(numbers)))(0, 0, items, *numbers))
    else:
        block = (ctypes.c_int64 * (3 + len(numbers)))(team.number, team.size, items, *numbers)
        team.parallel(loop.address, ctypes.addressof(block), threads, 0)


def _parted(count: int, most: int = _PARTS) -> tuple[int, int]:
    """Divide work into parts: return their number, and what each has.

    They do not depend on the number of threads, so that sums do not either.
    """
    each = -(-count // min(count, most))
    return -(-count // each), each


def _loop_for(name: str, tensor: Tensor) -> Any:
    return getattr(_loops(), f"{name}_{8 * tensor.element_size()}")


@functools.cache
def _loops() -> Any:
    """Load the loops: the first time on a machine they are compiled, which takes some seconds."""
    _PROGRESS.info("Loading the compiled loops; on a machine's first use they are compiled")
    return importlib.import_module("convscope.lowering.cpu.loops")


@functools.cache
def _more_loops(module: str) -> Any:
    """Load loops that most networks do without."""
    return importlib.import_module(f"convscope.lowering.cpu.{module}")


def target() -> str:
    """Name the processor that the loops are compiled for, as LLVM calls it."""
    return str(_loops().TARGET)


_left_out = False


@contextmanager
def left_out() -> Iterator[None]:
    """Let torch's operations do the work of a block, which belongs to one thread.

    Of a few images that is done before the loops are loaded, which takes 100 MB, too.
    """
    global _left_out  # noqa: PLW0603  as the loops are loaded once in a process
    before, _left_out = _left_out, True
    try:
        yield
    finally:
        _left_out = before


def available() -> bool:
    """Say whether the loops can be compiled here; where they cannot, torch's operations do the work."""
    return not _left_out and _can_be_loaded()


@functools.cache
def _can_be_loaded() -> bool:
    try:
        _loops()
    except ImportError:
        _log.info("numba is not installed; torch's operations are used.")
        return False
    except Exception:  # whatever LLVM says of this processor
        _log.warning("The compiled loops are not available here; torch's operations are used.", exc_info=True)
        return False
    return True


def suits_rows(x: Tensor) -> bool:
    """Say whether loops can work on rows, the last axis of a contiguous tensor, by sixteens."""
    return x.dim() > 0 and x.shape[-1] % LANES == 0 and x.is_contiguous() and suits_vectors(x)


def suits_vectors(x: Tensor) -> bool:
    """Say whether loops can work on the elements of a tensor, sixteen at once, in the order of memory."""
    return x.numel() > 0 and x.numel() % LANES == 0 and suits(x)


def activate(name: str, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute an activation function of x, plus a bias along its last axis if there is one."""
    loops, result = _more_loops("rows"), torch.empty_like(x)
    columns = LANES if bias is None else len(bias)
    _run(
        loops.activate, x.numel() // columns, columns, loops.FUNCTIONS.index(name), x, x.element_size(), bias,
        result, result.element_size(), work=4 * x.numel(),
    )  # fmt: skip
    return result


def activate_back(
    name: str, x: Tensor, bias: Tensor | None, gradient: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Compute the gradients of x, in its type, and of the bias, float32; all lie in memory as x does."""
    loops, found = _more_loops("rows"), torch.empty_like(x)
    columns = LANES if bias is None else len(bias)
    rows = x.numel() // columns
    parts, each = _parted(rows)
    sums = None if bias is None else x.new_empty((parts, columns), dtype=torch.float32)
    _run(
        loops.activate_back, parts, each, rows, columns, loops.FUNCTIONS.index(name), x, x.element_size(),
        bias, gradient, gradient.element_size(), found, found.element_size(), sums, work=4 * x.numel(),
    )  # fmt: skip
    return found, None if sums is None else sums.sum(0)


def normalize_rows(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float, axes: int = 1
) -> tuple[Tensor, Tensor]:
    """Normalize over the last axes of x (…, c); return the results, and mean and 1 / deviation (rows, 2)."""
    length, result, small = math.prod(x.shape[-axes:]), torch.empty_like(x), ctypes.c_double(epsilon)
    rows = x.numel() // length
    moments = x.new_empty((rows, 2), dtype=torch.float32)
    _run(
        _more_loops("rows").normalize_rows, rows, length, x.shape[-1], x, x.element_size(), gamma, beta,
        ctypes.addressof(small), moments, result, result.element_size(), work=x.numel(),
    )  # fmt: skip
    return result, moments


def normalize_rows_back(
    x: Tensor, gamma: Tensor | None, moments: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of x, and of gamma and beta (2, c), from that of ``normalize_rows``'s result."""
    rows, channels, found = moments.shape[0], x.shape[-1], torch.empty_like(x)
    parts, each = _parted(rows)
    sums = x.new_empty((parts, 2, channels), dtype=torch.float32)
    _run(
        _more_loops("rows").normalize_rows_back, parts, each, rows, x.numel() // rows, channels, x,
        x.element_size(), gamma, moments, gradient, gradient.element_size(), found, found.element_size(),
        sums, work=x.numel(),
    )  # fmt: skip
    return found, sums.sum(0)
