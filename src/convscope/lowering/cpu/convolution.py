"""A 3×3 convolution as Winograd's F(4×4, 3×3), forward and for both gradients, in loops.

Lavin and Gray ("Fast Algorithms for Convolutional Neural Networks", 2016, section 4.3): a tile of six by six
pixels is transformed into 36 positions, each is multiplied with its position of the transformed kernel, and
36 sums are transformed back to four by four results, which takes four times fewer multiplications. The
polynomials behind it are evaluated at 0, ±√½, ±√2 and ∞, where rounding errors are half of those at the
paper's points. The block is that of ``loops.py``.
"""

from __future__ import annotations

from typing import Any

from convscope.lowering.cpu import LANES
from convscope.lowering.cpu.loops import _inline, _loop, _share
from convscope.lowering.cpu.products import _ROWS, _multiply, _tile
from convscope.lowering.cpu.vectors import (
    add,
    call,
    fused,
    load,
    multiply,
    prefetch,
    relu,
    repeat,
    store,
    subtract,
    zeros,
)

# The beginning of the SHA-256 of vectors.py, as in loops.py.
VECTORS = "631259124f7243fa"

_BYTES = 4 * LANES  # of a vector
_POSITIONS = 36
_ROOT = 2.0**0.5


@_inline
def _plus(total: Any, factor: float, vector: Any) -> Any:
    return fused(repeat(factor), vector, total)


@_inline
def _of_pixels(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """Transform six pixels in a line into six positions (Bᵀ in the paper)."""
    near_even, near_odd = _plus(e, -2.0, c), _plus(d, -2.0, b)
    far_even, far_odd = _plus(e, -0.5, c), _plus(d, -0.5, b)
    return (
        _plus(add(a, e), -2.5, c),
        _plus(near_even, 0.5 * _ROOT, near_odd),
        _plus(near_even, -0.5 * _ROOT, near_odd),
        _plus(far_even, _ROOT, far_odd),
        _plus(far_even, -_ROOT, far_odd),
        _plus(add(b, f), -2.5, d),
    )


@_inline
def _of_gradients(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Transform the gradients of four results in a line into six positions (A in the paper)."""
    near_even, near_odd = _plus(a, 0.5, c), _plus(b, 0.5, d)
    far_even, far_odd = _plus(a, 2.0, c), _plus(b, 2.0, d)
    return (
        a,
        _plus(near_even, 0.5 * _ROOT, near_odd),
        _plus(near_even, -0.5 * _ROOT, near_odd),
        _plus(far_even, _ROOT, far_odd),
        _plus(far_even, -_ROOT, far_odd),
        d,
    )


@_inline
def _to_results(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """Transform six sums of products in a line into four results (Aᵀ in the paper)."""
    near_even, near_odd, far_even, far_odd = add(b, c), subtract(b, c), add(d, e), subtract(d, e)
    return (
        add(add(a, near_even), far_even),
        _plus(multiply(repeat(_ROOT), far_odd), 0.5 * _ROOT, near_odd),
        _plus(multiply(repeat(2.0), far_even), 0.5, near_even),
        _plus(_plus(f, 2.0 * _ROOT, far_odd), 0.25 * _ROOT, near_odd),
    )


@_inline
def _of_weights(a: Any, b: Any, c: Any) -> Any:
    """Transform three weights in a line into six positions (G in the paper)."""
    near_even, far_even = _plus(a, 0.5, c), _plus(a, 2.0, c)
    near, far = multiply(repeat(-2.0 / 3.0), near_even), multiply(repeat(1.0 / 6.0), far_even)
    return (
        a,
        _plus(near, -_ROOT / 3.0, b),
        _plus(near, _ROOT / 3.0, b),
        _plus(far, _ROOT / 6.0, b),
        _plus(far, -_ROOT / 6.0, b),
        c,
    )


@_inline
def _to_weights(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """Transform the gradients of six positions in a line into those of three weights (Gᵀ in the paper)."""
    near_even, near_odd, far_even, far_odd = add(b, c), subtract(b, c), add(d, e), subtract(d, e)
    return (
        _plus(_plus(a, -2.0 / 3.0, near_even), 1.0 / 6.0, far_even),
        _plus(multiply(repeat(_ROOT / 6.0), far_odd), -_ROOT / 3.0, near_odd),
        _plus(f, 1.0 / 3.0, subtract(far_even, near_even)),
    )


@_inline
def _find_tile(
    image: int, top: int, left: int, size: int, height: int, width: int, pixel: int, copied: int
) -> Any:
    """Return where a tile of an image begins, and the bytes from line to line.

    A tile that is not wholly inside is copied, with zeros where there is no image.
    """
    line = width * pixel
    if top >= 0 and left >= 0 and top + size <= height and left + size <= width:
        return image + top * line + left * pixel, line
    for row in range(size):
        for column in range(size):
            inside = 0 <= top + row < height and 0 <= left + column < width
            source = image + (top + row) * line + (left + column) * pixel
            target = copied + (row * size + column) * pixel
            for group in range(0, pixel, _BYTES):
                store(target + group, load(source + group) if inside else zeros())
    return copied, size * pixel


@_inline
def _transform_pixels(corner: int, line: int, channels: int, half: int, target: int, step: int) -> None:
    """Transform a tile of pixels into 36 positions, ``step`` bytes apart; ``half`` is memory in between."""
    pixel = 4 * channels
    for group in range(0, pixel, _BYTES):
        for column in range(6):
            place = corner + column * pixel + group
            # What of the next tile no other one has read.
            _prefetch_four(place + 2 * line + 4 * pixel, line)
            found = _of_pixels(
                load(place), load(place + line), load(place + 2 * line), load(place + 3 * line),
                load(place + 4 * line), load(place + 5 * line),
            )  # fmt: skip
            _store_six(found, half + column * _BYTES, 6 * _BYTES)
        for row in range(6):
            place = half + row * 6 * _BYTES
            found = _of_pixels(
                load(place), load(place + _BYTES), load(place + 2 * _BYTES), load(place + 3 * _BYTES),
                load(place + 4 * _BYTES), load(place + 5 * _BYTES),
            )  # fmt: skip
            _store_six(found, target + group + row * 6 * step, step)


@_inline
def _transform_gradients(
    corner: int, line: int, filters: int, half: int, target: int, step: int, group_step: int
) -> None:
    """Transform the gradients of a tile of four by four into 36 positions, sixteen filters in a panel."""
    pixel = 4 * filters
    for group in range(filters // LANES):
        for column in range(4):
            place = corner + column * pixel + group * _BYTES
            found = _of_gradients(
                load(place), load(place + line), load(place + 2 * line), load(place + 3 * line)
            )
            _store_six(found, half + column * _BYTES, 4 * _BYTES)
        for row in range(6):
            place = half + row * 4 * _BYTES
            found = _of_gradients(
                load(place), load(place + _BYTES), load(place + 2 * _BYTES), load(place + 3 * _BYTES)
            )
            _store_six(found, target + group * group_step + row * 6 * step, step)


@_inline
def _store_six(found: Any, target: int, step: int) -> None:
    store(target, found[0])
    store(target + step, found[1])
    store(target + 2 * step, found[2])
    store(target + 3 * step, found[3])
    store(target + 4 * step, found[4])
    store(target + 5 * step, found[5])


@_inline
def _transform_sums(
    sums: int, step: int, filters: int, half: int, bias: int, positive: bool, corner: int, line: int
) -> None:
    """Transform 36 sums of products back to four by four results, add the bias, and write them."""
    pixel = 4 * filters
    for group in range(0, pixel, _BYTES):
        for column in range(6):
            place = sums + group + column * step
            found = _to_results(
                load(place), load(place + 6 * step), load(place + 12 * step), load(place + 18 * step),
                load(place + 24 * step), load(place + 30 * step),
            )  # fmt: skip
            _store_four(found, half + column * _BYTES, 6 * _BYTES)
        offset = load(bias + group)
        for row in range(4):
            place = half + row * 6 * _BYTES
            a, b, c, d = _to_results(
                load(place), load(place + _BYTES), load(place + 2 * _BYTES), load(place + 3 * _BYTES),
                load(place + 4 * _BYTES), load(place + 5 * _BYTES),
            )  # fmt: skip
            a, b, c, d = add(a, offset), add(b, offset), add(c, offset), add(d, offset)
            if positive:
                a, b, c, d = relu(a), relu(b), relu(c), relu(d)
            place = corner + row * line + group
            _prefetch_four(place + 4 * pixel, pixel)
            _store_four((a, b, c, d), place, pixel)


@_inline
def _store_four(found: Any, target: int, step: int) -> None:
    store(target, found[0])
    store(target + step, found[1])
    store(target + 2 * step, found[2])
    store(target + 3 * step, found[3])


@_inline
def _prefetch_four(place: int, step: int) -> None:
    prefetch(place)
    prefetch(place + step)
    prefetch(place + 2 * step)
    prefetch(place + 3 * step)


@_inline
def _copy_inside(copied: int, image: int, top: int, left: int, height: int, width: int, pixel: int) -> None:
    """Write what lies inside of an image of a tile of four by four."""
    for row in range(min(4, height - top)):
        for column in range(min(4, width - left)):
            target = image + ((top + row) * width + left + column) * pixel
            for group in range(0, pixel, _BYTES):
                store(target + group, load(copied + (row * 4 + column) * pixel + group))


@_loop
def winograd_convolution(block: Any) -> None:
    """Convolve padded images, add a bias, then ReLU if wanted.

    The block: pieces of all tiles; tiles of a piece, of all; height, width, channels of the images; rows and
    columns of zeros above and to the left; rows, columns, filters of the results; images; the transformed
    kernel (36, filters / 16, channels, 16), bias; results; relu; memory for each thread, its size in bytes.
    """
    length, tiles, height, width, channels = block[3], block[4], block[5], block[6], block[7]
    above, left, high, wide, filters = block[8], block[9], block[10], block[11], block[12]
    kernel, bias, positive = block[14], block[15], block[17] != 0
    down, along = (high + 3) // 4, (wide + 3) // 4  # tiles in a column and a row
    image_size, result_size = 4 * height * width * channels, 4 * high * wide * filters
    first, end = _share(block)
    number = 0 if block[0] == 0 else call(block[0])
    # Odd numbers of lines apart, so that positions do not share the cache's few places.
    step, sum_step = 4 * length * channels + _BYTES, 4 * length * filters + _BYTES
    pixels = block[18] + number * block[19]
    sums = pixels + _POSITIONS * step
    half = sums + _POSITIONS * sum_step
    copied = half + _POSITIONS * _BYTES
    for piece in range(first, end):
        begin = piece * length
        count = min(length, tiles - begin)
        for index in range(count):
            number, tile = (begin + index) // (down * along), (begin + index) % (down * along)
            corner, line = _find_tile(
                block[13] + number * image_size, 4 * (tile // along) - above, 4 * (tile % along) - left, 6,
                height, width, 4 * channels, copied,
            )  # fmt: skip
            _transform_pixels(corner, line, channels, half, pixels + 4 * index * channels, step)
        for position in range(_POSITIONS):
            _multiply(
                pixels + position * step, count, 4 * channels, kernel + 4 * position * filters * channels,
                channels, filters, sums + position * sum_step, True,
            )  # fmt: skip
        for index in range(count):
            number, tile = (begin + index) // (down * along), (begin + index) % (down * along)
            results, top, side = block[16] + number * result_size, 4 * (tile // along), 4 * (tile % along)
            corner, line = results + 4 * (top * wide + side) * filters, 4 * wide * filters
            whole = top + 4 <= high and side + 4 <= wide
            if not whole:
                corner, line = copied, 16 * filters
            _transform_sums(sums + 4 * index * filters, sum_step, filters, half, bias, positive, corner, line)
            if not whole:
                _copy_inside(copied, results, top, side, high, wide, 4 * filters)


@_loop
def winograd_kernel_gradient(block: Any) -> None:
    """Sum the gradients of the transformed kernel, each part over some of the tiles.

    The block: parts; tiles of a part, of a piece, of all; height, width, channels of the images; rows and
    columns of zeros above and to the left; rows, columns, filters of the gradients; images, gradients; sums
    (parts, 36, channels, filters); memory for each thread, its size in bytes.
    """
    each, length, tiles, height, width, channels = block[3], block[4], block[5], block[6], block[7], block[8]
    above, left, high, wide, filters = block[9], block[10], block[11], block[12], block[13]
    down, along = (high + 3) // 4, (wide + 3) // 4
    image_size, gradient_size = 4 * height * width * channels, 4 * high * wide * filters
    first, end = _share(block)
    number = 0 if block[0] == 0 else call(block[0])
    step, gradient_step = 4 * length * channels + _BYTES, 4 * length * filters + _BYTES
    pixels = block[17] + number * block[18]
    panels = pixels + _POSITIONS * step
    half = panels + _POSITIONS * gradient_step
    copied = half + _POSITIONS * _BYTES
    for part in range(first, end):
        sums, stop = block[16] + 4 * part * _POSITIONS * channels * filters, min((part + 1) * each, tiles)
        for begin in range(part * each, stop, length):
            count = min(length, stop - begin)
            for index in range(count):
                number, tile = (begin + index) // (down * along), (begin + index) % (down * along)
                top, side = 4 * (tile // along), 4 * (tile % along)
                corner, line = _find_tile(
                    block[14] + number * image_size, top - above, side - left, 6, height, width,
                    4 * channels, copied,
                )  # fmt: skip
                _transform_pixels(corner, line, channels, half, pixels + 4 * index * channels, step)
                corner, line = _find_tile(
                    block[15] + number * gradient_size, top, side, 4, high, wide, 4 * filters, copied
                )
                _transform_gradients(
                    corner, line, filters, half, panels + index * _BYTES, gradient_step, length * _BYTES
                )
            for position in range(_POSITIONS):
                for group in range(filters // LANES):
                    for channel in range(0, channels, _ROWS):
                        _tile(
                            pixels + position * step + 4 * channel, min(_ROWS, channels - channel), 4,
                            4 * channels, panels + position * gradient_step + group * length * _BYTES, count,
                            sums + 4 * ((position * channels + channel) * filters + group * LANES),
                            4 * filters, begin == part * each,
                        )  # fmt: skip


@_loop
def transform_kernel(block: Any) -> None:
    """Transform a kernel for ``winograd_convolution``.

    The block: channels; the same, filters; kernel (9, channels, filters); positions of it (36, filters / 16,
    channels, 16); memory for each thread, its size in bytes.
    """
    channels, filters = block[3], block[4]
    size = 4 * channels * filters
    first, end = _share(block)
    half = block[7] + (0 if block[0] == 0 else call(block[0])) * block[8]
    for channel in range(first, end):
        for group in range(filters // LANES):
            place = block[5] + 4 * channel * filters + group * _BYTES
            for column in range(3):
                found = _of_weights(load(place), load(place + 3 * size), load(place + 6 * size))
                _store_six(found, half + column * _BYTES, 3 * _BYTES)
                place += size
            target = block[6] + (group * channels + channel) * _BYTES
            for row in range(6):
                place = half + row * 3 * _BYTES
                found = _of_weights(load(place), load(place + _BYTES), load(place + 2 * _BYTES))
                _store_six(found, target + row * 6 * size, size)


@_loop
def finish_kernel_gradient(block: Any) -> None:
    """Add up the sums of all parts, and transform them back into gradients of a kernel.

    The block: channels; parts, channels, filters; sums (parts, 36, channels, filters); gradients (9,
    channels, filters); memory for each thread, its size in bytes.
    """
    parts, channels, filters = block[3], block[4], block[5]
    size = 4 * channels * filters
    first, end = _share(block)
    half = block[8] + (0 if block[0] == 0 else call(block[0])) * block[9]
    for corner in range(4 * first * filters, 4 * end * filters, _BYTES):
        for position in range(_POSITIONS):
            place = block[6] + corner + position * size
            total = load(place)
            for part in range(1, parts):
                total = add(total, load(place + part * _POSITIONS * size))
            store(half + position * _BYTES, total)
        for column in range(6):
            place = half + column * _BYTES
            a, b, c = _to_weights(
                load(place), load(place + 6 * _BYTES), load(place + 12 * _BYTES), load(place + 18 * _BYTES),
                load(place + 24 * _BYTES), load(place + 30 * _BYTES),
            )  # fmt: skip
            store(place, a)
            store(place + 6 * _BYTES, b)
            store(place + 12 * _BYTES, c)
        for row in range(3):
            place, target = half + row * 6 * _BYTES, block[7] + corner + row * 3 * size
            a, b, c = _to_weights(
                load(place), load(place + _BYTES), load(place + 2 * _BYTES), load(place + 3 * _BYTES),
                load(place + 4 * _BYTES), load(place + 5 * _BYTES),
            )  # fmt: skip
            store(target, a)
            store(target + size, b)
            store(target + 2 * size, c)
