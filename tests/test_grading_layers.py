"""Lessons 2 and 4 to 6: shapes and counts predicted; dropout, pooling and one activation done by hand."""

import numpy as np
import pytest
from lesson_namespaces import check, checked_wrong, solved


@pytest.mark.parametrize("task", ["2.1", "2.2", "4.3", "4.4", "5.1", "6.1", "6.2", "6.3", "6.4"])
def test_the_solution_is_right(task):
    verdict = check(task)
    assert verdict.state == "right", str(verdict)


def changed(number, name, **entries):
    return {name: solved(number)[name] | entries}


WRONG_CONV_SHAPES = {
    "padding-imagined": ({"A": (28, 28, 16)}, 'padding="same" would give'),
    "padding-forgotten": ({"E": (30, 30, 32)}, 'padding="valid" would give'),
    "stride-forgotten": ({"C": (24, 24, 8)}, "a stride of 1 would give"),
    "dilation-forgotten": ({"D": (26, 26, 4)}, "no dilation would give"),
    "rounded-up": ({"C": (9, 9, 8)}, "rounding up would give"),
    "steps-for-places": ({"A": (23, 23, 16)}, "forgetting the + 1 would give"),
    "channels-of-the-input": ({"A": (24, 24, 1)}, "another number of channels for A, got 1"),
    "no-channels": ({"A": (24, 24)}, "as (height, width, channels)"),
    "a-word": ({"A": "24x24"}, "as a shape such as (26, 26, 32)"),
    "fractions": ({"B": (14.0, 14.5, 8)}, "a shape of whole numbers"),
    "one-unanswered": ({"B": ...}, "`shapes['B']` to be filled in"),
}


@pytest.mark.parametrize(("entries", "message"), WRONG_CONV_SHAPES.values(), ids=WRONG_CONV_SHAPES)
def test_wrong_shapes_of_convolutions(entries, message):
    checked_wrong("2.1", message, **changed(2, "shapes", **entries))


def test_a_batch_axis_as_keras_writes_it_is_no_mistake():
    assert check("2.1", **changed(2, "shapes", A=(None, 24, 24, 16)))


WRONG_CONV_PARAMETERS = {
    "bias-forgotten": ({"A": 400}, "leaving out the biases"),
    "bias-imagined": ({"D": 40}, "With use_bias=False there is nothing to add"),
    "one-input-channel": ({"E": 3 * 3 * 32 + 32}, "a kernel over one input channel only"),
    "at-each-place": ({"B": 80 * 14 * 14}, "weights of their own at each place"),
    "anything-else": ({"C": 17}, "the number of parameters of C, got 17"),
    "several-numbers": ({"A": [400, 16]}, "as one number"),
}


@pytest.mark.parametrize(("entries", "message"), WRONG_CONV_PARAMETERS.values(), ids=WRONG_CONV_PARAMETERS)
def test_wrong_parameters_of_convolutions(entries, message):
    checked_wrong("2.2", message, **changed(2, "parameters", **entries))


WRONG_DENSE_COUNTS = {
    "bias-forgotten": ({"dense_1": 26 * 26 * 32 * 128}, "leaves out the biases"),
    "dropout-counted": ({"dropout_1": 8}, "Dropout learns nothing"),
    "flatten-counted": ({"flatten_1": 21632}, "Flatten learns nothing"),
    "image-size-in-the-convolution": ({"conv2d_1": 28 * 28 * 32}, "A kernel of k·k weights"),
    "not-flattened": ({"dense_1": 32 * 128 + 128}, "a weight for each pair of input and unit"),
}


@pytest.mark.parametrize(("entries", "message"), WRONG_DENSE_COUNTS.values(), ids=WRONG_DENSE_COUNTS)
def test_wrong_parameters_of_the_dense_network(entries, message):
    checked_wrong("4.4", message, **changed(4, "parameters", **entries))


WRONG_LAYER_SHAPES = {
    "same-taken-for-valid": ({"conv2d_1": (26, 26, 32)}, '"same" keeps height and width'),
    "valid-taken-for-same": ({"conv2d_2": (28, 28, 32)}, "takes k − 1 pixels"),
    "pooling-rounded-up": ({"pool_2": (6, 6, 64)}, "rounded down"),
    "flatten-forgets-channels": ({"flatten": (25,)}, "height times width times channels"),
    "dropout-shrinks": ({"dropout_1": (9, 9, 32)}, "it changes no shape"),
}


@pytest.mark.parametrize(("entries", "message"), WRONG_LAYER_SHAPES.values(), ids=WRONG_LAYER_SHAPES)
def test_wrong_shapes_of_layers(entries, message):
    checked_wrong("6.1", message, **changed(6, "shapes", **entries))


WRONG_LAYER_PARAMETERS = {
    "bias-forgotten": ({"conv2d_2": 3 * 3 * 32 * 32}, "leaves out the biases"),
    "one-input-channel": ({"conv2d_3": 3 * 3 * 64 + 64}, "32 channels come in"),
    "pooling-counted": ({"pool_1": 4}, "MaxPooling2D learns nothing"),
    "before-pooling": ({"dense_1": 11 * 11 * 64 * 512 + 512}, "a weight for each pair"),
}


@pytest.mark.parametrize(("entries", "message"), WRONG_LAYER_PARAMETERS.values(), ids=WRONG_LAYER_PARAMETERS)
def test_wrong_parameters_of_layers(entries, message):
    checked_wrong("6.2", message, **changed(6, "parameters", **entries))


WRONG_LAYOUTS = {
    "not-changed": (lambda kernel: kernel, "a kernel of shape (64, 32, 3, 3)"),
    "inputs-first": (lambda kernel: kernel.transpose(2, 3, 0, 1), "torch wants (filters, input channels"),
    "all-axes-reversed": (lambda kernel: kernel.T, "rows and columns exchanged"),
    "reshaped": (lambda kernel: kernel.reshape(64, 32, 3, 3), "reshape moves no number"),
    "turned": (
        lambda kernel: kernel[::-1, ::-1].transpose(3, 2, 0, 1),
        "the same weights, got other numbers",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG_LAYOUTS.values(), ids=WRONG_LAYOUTS)
def test_wrong_layouts(change, message):
    checked_wrong("6.3", message, torch_kernel=change(solved(6)["keras_kernel"]))


def test_hints_go_on_until_the_arithmetic_stands_there():
    wrong = changed(6, "shapes", pool_1=(14, 14, 32))
    hints = [check("6.1", **wrong).hint for _ in range(3)]
    assert "rounded down" in hints[0]
    assert hints[1] == hints[2] == "height and width: ⌊(26 − 2)/2⌋ + 1 = 13"


def test_the_answers_do_not_depend_on_number_types():
    counts = {key: np.int32(value) for key, value in solved(6)["parameters"].items()}
    assert check("6.2", parameters=counts)


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
