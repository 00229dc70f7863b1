"""Lessons 4 to 6: dropout, pooling and one activation, done by hand and done wrong."""

import numpy as np
import pytest
from lesson_namespaces import check, checked_wrong, solved


@pytest.mark.parametrize("task", ["4.3", "5.1", "6.4"])
def test_the_solution_is_right(task):
    verdict = check(task)
    assert verdict.state == "right", str(verdict)


def by_hand(lesson, seed=0, rate=0.25):
    """Drop by hand, as training does."""
    kept = np.random.default_rng(seed).random(lesson["ones"].shape) >= rate
    return np.where(kept, lesson["ones"] / (1 - rate), 0)


def test_dropout_by_hand_is_right():
    dropped = by_hand(solved(4))
    answers = {"dropped": dropped, "share_of_zeros": np.mean(dropped == 0), "kept_value": dropped.max()}
    assert check("4.3", **answers)


WRONG_DROPOUTS = {
    "as-at-prediction": (lambda n: {"dropped": n["ones"]}, "Dropout works in training only"),
    "rate-taken-for-what-stays": (lambda n: {"dropped": by_hand(n, rate=0.75)}, "the share that goes"),
    "share-that-stays": (lambda n: {"share_of_zeros": np.mean(n["dropped"] > 0)}, "share of what was kept"),
    "count": (lambda n: {"share_of_zeros": np.sum(n["dropped"] == 0)}, "divide by the number of values"),
    "mean": (lambda n: {"kept_value": n["dropped"].mean()}, "the mean of all values"),
    "not-scaled": (lambda n: {"kept_value": 1.0 + 1e-2}, "divided by the share that stays"),
    "another-shape": (lambda n: {"dropped": n["dropped"][0]}, "`dropped` of shape (1000, 100)"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_DROPOUTS.values(), ids=WRONG_DROPOUTS)
def test_wrong_dropouts(wrong, message):
    checked_wrong("4.3", message, **wrong(solved(4)))


def mean_pool(image, size):
    rows, columns = image.shape[0] // size, image.shape[1] // size
    windows = image[: rows * size, : columns * size].reshape(rows, size, columns, size, -1)
    return windows.mean(axis=(1, 3))


def overlapping(image, size):
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))
    return windows.max(axis=(-2, -1))


def keeps_the_rest(image, size):
    height, width = image.shape[:2]
    rest = ((0, -height % size), (0, -width % size), (0, 0))
    return solved(5)["max_pool"](np.pad(image, rest, constant_values=-np.inf), size)


WRONG_POOLS = {
    "mean": (mean_pool, "got the mean"),
    "one-pixel-at-a-time": (overlapping, "The window moves by its own size"),
    "keeps-the-rest": (keeps_the_rest, "fills no window is dropped"),
    "over-the-channels": (
        lambda image, size: solved(5)["max_pool"](image, size).max(axis=2),
        "Each channel is pooled alone",
    ),
    "one-pixel-of-each-window": (
        lambda image, size: image[: len(image) // size * size : size, : image.shape[1] // size * size : size],
        "got other values",
    ),
    "nothing": (lambda image, size: None, "End the function with return"),
    "raises": (lambda image, size: image[99], "IndexError"),
}


@pytest.mark.parametrize(("function", "message"), WRONG_POOLS.values(), ids=WRONG_POOLS)
def test_wrong_pools(function, message):
    checked_wrong("5.1", message, max_pool=function)


def activation(image, kernel, bias, row, column, number, *, relu=True, pad="constant", turn=False, begin=0):
    """Recompute an activation as the solution does, with one thing different."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode=pad)
    patch = padded[row + begin : row + begin + 3, column + begin : column + begin + 3]
    weights = kernel[::-1, ::-1, :, number] if turn else kernel[..., number]
    total = (patch * weights).sum() + bias[number]
    return max(total, 0.0) if relu else total


def without_bias(image, kernel, bias, *place):
    return activation(image, kernel, 0 * bias, *place)


def bias_outside(image, kernel, bias, row, column, number):
    return without_bias(image, kernel, bias, row, column, number) + bias[number]


def not_at_the_edge(image, kernel, bias, row, column, number):
    patch = image[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
    shrunk = kernel[: patch.shape[0], : patch.shape[1]]
    return max((patch * shrunk[..., number]).sum() + bias[number], 0.0)


WRONG_ACTIVATIONS = {
    "relu-forgotten": (lambda *a: activation(*a, relu=False), "A negative result becomes 0"),
    "bias-forgotten": (without_bias, "The bias of the filter is added before the ReLU"),
    "bias-outside-the-relu": (bias_outside, "the ReLU comes last, after the bias"),
    "kernel-turned": (lambda *a: activation(*a, turn=True), "Keras does not turn the kernel"),
    "edge-repeated": (
        lambda *a: activation(*a[:1], *a[1:], pad="edge"),
        "there it is 0",
    ),
    "patch-begins-at-the-place": (
        lambda image, k, b, r, c, f: activation(
            np.pad(image, ((0, 1), (0, 1), (0, 0))), k, b, r, c, f, begin=1
        ),
        "it begins one pixel before",
    ),
    "always-filter-0": (lambda i, k, b, r, c, f: activation(i, k, b, r, c, 0), "filter 31"),
    "nothing": (lambda *a: None, "End the function with return"),
}


@pytest.mark.parametrize(("function", "message"), WRONG_ACTIVATIONS.values(), ids=WRONG_ACTIVATIONS)
def test_wrong_activations(function, message):
    bright_everywhere = 0.5 + 0.5 * np.random.default_rng(0).random((28, 28, 1), np.float32)
    checked_wrong("6.4", message, activation=function, image=bright_everywhere)
    checked_wrong("6.4", "activation at row", activation=not_at_the_edge, image=bright_everywhere)


def test_the_solution_is_right_for_any_image():
    noise = np.random.default_rng(0).random((28, 28, 1), np.float32)
    assert check("6.4", image=noise)
