"""Lessons 4 to 6: what dropout, pooling and a convolution do, done by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import expected_got
from convscope.teaching.grading.verdict import CheckFailed, as_array, as_number, call_answer, close, require

Array = NDArray[Any]

ACTIVATION_TOLERANCE = 1e-5
SHARE_TOLERANCE = 0.02
TRY_IT = "Try the function on that input yourself."


def judge_dropout(ones: Array, rate: float, dropped: Any, share_of_zeros: Any, kept_value: Any) -> str:
    """Judge an experiment with dropout: what it does in training, and to the numbers that stay."""
    after = as_array(dropped, "dropped")
    require(
        after.shape == ones.shape,
        expected_got(f"`dropped` of shape {ones.shape}", after.shape),
        "dropout(ones, training=True)",
    )
    require(
        not np.array_equal(after, ones),
        expected_got(f"about {rate:.0%} zeros in `dropped`", "none"),
        "Dropout works in training only; when a network predicts, it lets everything through.",
        "dropout(ones, training=True)",
    )
    zeros, kept = float(np.mean(after == 0)), float(after.max())
    require(
        abs(zeros - rate) < SHARE_TOLERANCE,
        expected_got(f"about {rate:.0%} zeros in `dropped`", f"{zeros:.1%}"),
        "The argument of Dropout is the share that goes, not the share that stays.",
    )
    share = as_number(share_of_zeros, "share_of_zeros")
    counted = "count, not a share: divide by the number of values" if share > 1 else "share of what was kept"
    require(
        close(share, zeros, 1e-3),
        expected_got("`share_of_zeros` as the share of zeros in `dropped`", f"{share:g}"),
        f"That is the {counted}." if share > 1 or close(share, 1 - zeros, 1e-3) else "Compare with 0.",
        "np.mean(dropped == 0)",
    )
    value = as_number(kept_value, "kept_value")
    mean = close(value, float(after.mean()), 1e-3)
    require(
        close(value, kept, 1e-3),
        expected_got("`kept_value` as the value that the ones left over have now", f"{value:g}"),
        "That is the mean of all values: it stays 1, and that is what the new value is for."
        if mean
        else "The values that stay are divided by the share that stays: look at dropped.max().",
        "1 / (1 − rate)",
    )
    return f"{zeros:.1%} zeros; the others became {kept:.4f} = 1/(1 − {rate:g}), so that the mean stays 1."


def judge_max_pool(max_pool: Callable[..., Any]) -> str:
    """Judge a function that pools an image by maxima, on images of several sizes."""
    require(
        callable(max_pool),
        expected_got("`max_pool` as a function", type(max_pool).__name__),
        "def max_pool(image, size): …",
    )
    generator = np.random.default_rng(1338)
    for height, width, channels, size in ((6, 6, 1, 2), (4, 8, 3, 2), (9, 6, 2, 3), (7, 5, 2, 2)):
        image = generator.normal(size=(height, width, channels)).astype(np.float32)
        _require_pooled(max_pool, image, size)
    return "Right for four images, even and odd."


def _require_pooled(max_pool: Callable[..., Any], image: Array, size: int) -> None:
    height, width, channels = image.shape
    called = f"max_pool of a {height}×{width}×{channels} image with size {size}"
    result = call_answer(max_pool, f"a value for {called}", TRY_IT, image.copy(), size)
    right = _pool(image, size, np.max)
    found = as_array(result, called)
    odd = height % size or width % size
    require(
        found.shape == right.shape,
        expected_got(f"{called} to have shape {right.shape}", found.shape),
        _pool_shape_hint(found.shape, image.shape, size, bool(odd)),
        "height // size rows, width // size columns, all channels",
    )
    averaged = np.allclose(found, _pool(image, size, np.mean), atol=1e-5)
    require(
        np.allclose(found, right, atol=1e-6),
        expected_got(
            f"the largest value of each window in {called}", "the mean" if averaged else "other values"
        ),
        "Each channel is pooled alone, and each window starts where the last one ended.",
        "image[size * i : size * (i + 1), size * j : size * (j + 1)].max(axis=(0, 1))",
    )


def _pool_shape_hint(found: tuple[int, ...], image: tuple[int, ...], size: int, odd: bool) -> str:
    if len(found) != 3:
        return "The result is an image again: rows, columns, channels. Each channel is pooled alone."
    if found[0] == image[0] - size + 1:
        return "The window moves by its own size, not by one pixel."
    if odd:
        return "What is left over at the edge and fills no window is dropped."
    return "A window of size×size pixels becomes one."


def _pool(image: Array, size: int, function: Callable[..., Any]) -> Array:
    height, width, channels = image.shape
    rows, columns = height // size, width // size
    windows = image[: rows * size, : columns * size].reshape(rows, size, columns, size, channels)
    pooled: Array = function(windows, axis=(1, 3))  # (rows, size, columns, size, c) → (rows, columns, c)
    return pooled


def judge_activation(
    model: Any, image: Array, activation: Callable[..., Any], layer_name: str = "conv2d_1"
) -> str:
    """Judge a function that recomputes one number of a convolution's output with padding ``same``.

    It is tried at the corners, the edges and in the middle, with the network's weights and with others.
    """
    require(
        callable(activation),
        expected_got("`activation` as a function", type(activation).__name__),
        "def activation(image, kernel, bias, row, column, filter): …",
    )
    kernel, bias = (np.asarray(weight) for weight in model.get_layer(layer_name).get_weights())
    picture = np.asarray(image)
    require(
        picture.ndim == 3,
        expected_got("`image` of shape (height, width, channels)", picture.shape),
        "image = x_test[0]",
    )
    # A bias far from 0 tells whether it is added, and makes some sums negative and others positive.
    shifted = (bias + np.linspace(-1, 1, len(bias))).astype(np.float32)
    for weights in ((kernel, shifted), (kernel, bias)):
        for row, column in _places(picture):
            for number in (0, len(bias) - 1):
                _require_activation(activation, picture, weights, row, column, number)
    return f"Equal to {layer_name}'s own numbers at {len(_places(picture))} places, corners and edges too."


def _places(image: Array) -> list[tuple[int, int]]:
    """Choose the middle first: an edge is a difficulty of its own."""
    height, width = image.shape[:2]
    strongest = divmod(int(image.sum(axis=2)[1:-1, 1:-1].argmax()), width - 2)
    middle = [(strongest[0] + 1, strongest[1] + 1), (height // 2, width // 2)]
    return [*middle, (0, width // 2), (height // 2, width - 1), (0, 0), (height - 1, width - 1)]


def _require_activation(
    activation: Callable[..., Any],
    image: Array,
    weights: tuple[Array, Array],
    row: int,
    column: int,
    number: int,
) -> None:
    kernel, bias = weights
    called = f"activation at row {row}, column {column}, filter {number}"
    found = as_number(
        call_answer(activation, f"a value for {called}", TRY_IT, image, kernel, bias, row, column, number),
        called,
    )
    total = _weighted_sum(image, kernel, row, column, number)
    own = float(bias[number])
    right = max(total + own, 0.0)
    if abs(found - right) < ACTIVATION_TOLERANCE:
        return
    flipped = _weighted_sum(image, kernel[::-1, ::-1], row, column, number) + own
    mistakes = {
        "A negative result becomes 0: the ReLU comes last, after the bias.": total + own,
        "The bias of the filter is added before the ReLU.": max(total, 0.0),
        "Neither bias nor ReLU: add the one, then cut at 0.": total,
        "The bias goes inside the ReLU: first add, then cut at 0.": max(total, 0.0) + own,
        "Keras does not turn the kernel: multiply it with the patch as it is.": max(flipped, 0.0),
    }
    near = [hint for hint, value in mistakes.items() if abs(found - value) < ACTIVATION_TOLERANCE]
    height, width = image.shape[:2]
    edge = row in (0, height - 1) or column in (0, width - 1)
    first = (
        near[0] if near else "At the edge the patch reaches outside the image: there it is 0." if edge else ""
    )
    first = first or "The patch's middle is at (row, column): it begins one pixel before, in both directions."
    answer = (
        "padded = np.pad(image, ((1, 1), (1, 1), (0, 0))); patch = padded[row : row + 3, column : column + 3]"
    )
    raise CheckFailed(expected_got(f"{right:.5f} for the {called}", f"{found:.5f}"), (first, answer))


def _weighted_sum(image: Array, kernel: Array, row: int, column: int, number: int) -> float:
    """Multiply one patch with one kernel and add it up, in float64, zeros around the image."""
    height, width = kernel.shape[:2]
    before = ((height - 1) // 2, (width - 1) // 2)
    padding = ((before[0], height - 1 - before[0]), (before[1], width - 1 - before[1]), (0, 0))
    padded = np.pad(image.astype(np.float64), padding)
    return float((padded[row : row + height, column : column + width] * kernel[..., number]).sum())
