"""Lessons 2, 4 and 6: predicted shapes, parameter counts and kernel layouts."""

import numpy as np
import pytest
from lesson_namespaces import check, checked_wrong, solved


@pytest.mark.parametrize("task", ["2.1", "2.2", "4.4", "6.1", "6.2", "6.3"])
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
