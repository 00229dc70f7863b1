"""The arithmetic of layers, held against Keras and torch."""

import re
from importlib import resources

import keras
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from convscope import arithmetic
from convscope.arithmetic import ReceptiveField, analyse, analyse_chain, explain_failure
from convscope.arithmetic.activations import ACTIVATIONS
from convscope.arithmetic.formulas import effective_window
from convscope.arithmetic.layers import LAYERS
from convscope.errors import ArchitectureError, UsageError

WINDOWS = {
    "length": st.integers(1, 60),
    "window": st.integers(1, 7),
    "stride": st.integers(1, 4),
    "dilation": st.integers(1, 3),
}


def pytorch_length(length: int, window: int, stride: int, dilation: int, padding: int) -> int:
    """Let torch find the output length without computing anything."""
    image = torch.empty(1, 1, length, device="meta")
    kernel = torch.empty(1, 1, window, device="meta")
    return torch.nn.functional.conv1d(image, kernel, None, stride, padding, dilation).shape[-1]


@given(**WINDOWS)
def test_valid_length_is_pytorchs(length, window, stride, dilation):
    result = arithmetic.output_length(length, window, stride, "valid", dilation)
    if length < effective_window(window, dilation):
        assert result.value < 1
    else:
        assert result.value == pytorch_length(length, window, stride, dilation, 0)


@given(**WINDOWS)
def test_same_padding_gives_the_length_of_same(length, window, stride, dilation):
    before, after, _ = arithmetic.same_padding(length, window, stride, dilation)
    result = arithmetic.output_length(length, window, stride, "same", dilation)
    padded = arithmetic.output_length(length + before + after, window, stride, "valid", dilation)
    assert 0 <= after - before <= 1
    assert padded.value == result.value


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["valid", "same"]),
    groups=st.sampled_from([1, 2]),
    data_format=st.sampled_from(["channels_last", "channels_first"]),
    use_bias=st.booleans(),
)
def test_conv2d_is_keras(size, kernel, strides, dilation, padding, groups, data_format, use_bias):
    dilation = (1, 1) if max(strides) > 1 else dilation
    options = {
        "filters": 6,
        "kernel_size": kernel,
        "strides": strides,
        "dilation_rate": dilation,
        "padding": padding,
        "groups": groups,
        "data_format": data_format,
        "use_bias": use_bias,
    }
    shape = (4, *size) if data_format == "channels_first" else (*size, 4)
    layer = keras.layers.Conv2D(**options)
    try:
        expected = layer.compute_output_shape((None, *shape))
    except ValueError:
        assert "Expected an input of at least" in explain_failure("Conv2D", options, shape)
        return
    layer.build((None, *shape))
    result = analyse("Conv2D", layer.get_config(), [shape])
    assert (None, *result.output_shape) == expected
    assert result.parameters == layer.count_params()
    assert [s for _, s in result.weight_shapes] == [tuple(w.shape) for w in layer.weights]


@pytest.mark.parametrize("stride", [1, 2, 3], ids="stride{}".format)
@pytest.mark.parametrize("window", [1, 2, 3, 4], ids="kernel{}".format)
@pytest.mark.parametrize("length", [5, 6, 7], ids="length{}".format)
def test_same_padding_is_the_one_keras_applies(length, window, stride):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, length, length, 1)).astype("float32")
    kernel = rng.normal(size=(window, window, 1, 1)).astype("float32")
    before, after, _ = arithmetic.same_padding(length, window, stride)
    padded = np.pad(image, ((0, 0), (before, after), (before, after), (0, 0)))
    same = keras.ops.conv(image, kernel, stride, "same", "channels_last")
    valid = keras.ops.conv(padded, kernel, stride, "valid", "channels_last")
    np.testing.assert_allclose(np.asarray(same), np.asarray(valid), rtol=1e-5, atol=1e-6)


NORMALIZATIONS = {
    "groups": lambda: keras.layers.GroupNormalization(2),
    "groups of the first axis": lambda: keras.layers.GroupNormalization(3, axis=1, center=False),
    "a group for each channel": lambda: keras.layers.GroupNormalization(-1, scale=False),
    "layer": lambda: keras.layers.LayerNormalization(axis=(1, 3), scale=False),
    "batch": lambda: keras.layers.BatchNormalization(center=False),
}


@pytest.mark.parametrize("make", NORMALIZATIONS.values(), ids=NORMALIZATIONS)
def test_a_normalization_has_the_weights_of_keras(make):
    layer = make()
    layer.build((None, 6, 5, 4))
    result = analyse(type(layer).__name__, layer.get_config(), [(6, 5, 4)])
    assert result.output_shape == (6, 5, 4)
    assert result.weight_shapes == tuple((weight.name, tuple(weight.shape)) for weight in layer.weights)
    assert result.parameters == layer.count_params()


MACS = {
    "conv2d": ("Conv2D", {"filters": 8, "kernel_size": (3, 5), "strides": 2}),
    "same": ("Conv2D", {"filters": 8, "kernel_size": 3, "padding": "same"}),
    "grouped": ("Conv2D", {"filters": 8, "kernel_size": 3, "groups": 2}),
    "depthwise": ("DepthwiseConv2D", {"kernel_size": 3, "depth_multiplier": 2}),
    "separable": ("SeparableConv2D", {"filters": 8, "kernel_size": 3, "depth_multiplier": 3}),
    "dense": ("Dense", {"units": 7}),
    "pooling": ("MaxPooling2D", {"pool_size": 2}),
}


@pytest.mark.parametrize(("kind", "options"), MACS.values(), ids=MACS)
def test_macs_are_half_of_the_flops_that_torch_counts(kind, options):
    layer = getattr(keras.layers, kind)(**options)
    image = torch.zeros((1, 12, 10, 4))
    layer(image)
    counter = FlopCounterMode(display=False)
    with counter:
        layer(image)
    assert analyse(kind, layer.get_config(), [(12, 10, 4)]).macs * 2 == counter.get_total_flops()


FORMULAS = {
    "valid": (arithmetic.output_length(28, 3), 26, "⌊(28 − 3)/1⌋ + 1 = 26"),
    "pooling": (arithmetic.output_length(11, 2, 2), 5, "⌊(11 − 2)/2⌋ + 1 = 5"),
    "same": (arithmetic.output_length(13, 3, 2, "same"), 7, "⌈13/2⌉ = 7"),
    "dilated": (arithmetic.output_length(28, 3, 1, "valid", 2), 24, "⌊(28 − 2·(3 − 1) − 1)/1⌋ + 1 = 24"),
    "too small": (arithmetic.output_length(1, 5), -3, "⌊(1 − 5)/1⌋ + 1 = −3"),
    "open": (arithmetic.output_length(None, 3), None, "⌊(n − 3)/1⌋ + 1 = open"),
    "kernel": (arithmetic.conv_parameters((3, 3), 1, 32), 320, "3·3·1·32 + 32 = 320"),
    "no bias": (arithmetic.conv_parameters((3, 3), 1, 32, use_bias=False), 288, "3·3·1·32 = 288"),
    "groups": (arithmetic.conv_parameters((3, 3), 8, 4, 2), 148, "3·3·(8/2)·4 + 4 = 148"),
    "dense": (arithmetic.dense_parameters(9216, 128), 1_179_776, "9,216·128 + 128 = 1,179,776"),
    "macs": (arithmetic.conv_macs((24, 24), (3, 3), 32, 64), 10_616_832, "24·24·64·(3·3·32) = 10,616,832"),
}


@pytest.mark.parametrize(("result", "value", "text"), FORMULAS.values(), ids=FORMULAS)
def test_formula_shows_its_numbers(result, value, text):
    assert (result.value, str(result)) == (value, text)


def conv(filters: int = 4, kernel_size: int = 3, **options: object) -> tuple[str, dict]:
    return "Conv2D", {"filters": filters, "kernel_size": kernel_size, **options}


FAILURES = {
    "kernel": (
        *conv(name="conv2d_2"),
        (2, 5, 8),
        "Expected an input of at least 3×3 for layer 'conv2d_2' (Conv2D), whose kernel is 3×3, "
        "got 2×5: ⌊(2 − 3)/1⌋ + 1 = 0. "
        "Use padding='same', a smaller kernel, fewer layers before it, or a larger image.",
    ),
    "dilated": (*conv(dilation_rate=4), (8, 8, 1), "got 8×8: ⌊(8 − 4·(3 − 1) − 1)/1⌋ + 1 = 0."),
    "pooling": ("MaxPooling2D", {"pool_size": 3}, (2, 2, 8), "whose pooling window is 3×3, got 2×2"),
    "stride and dilation": (
        *conv(strides=2, dilation_rate=3),
        (28, 28, 1),
        "Expected strides of 1 or a dilation_rate of 1 for a Conv2D layer, "
        "got strides=(2, 2) with dilation_rate=(3, 3).",
    ),
    "one axis each": (*conv(strides=(1, 2), dilation_rate=(2, 1)), (28, 28, 1), "got strides=(1, 2)"),
    "groups": (*conv(groups=3), (8, 8, 4), "Expected input channels that 3 groups share evenly"),
    "groups of channels": ("GroupNormalization", {"groups": 3}, (8, 8, 4), "got 4/3 = 1.33333."),
    "filters": (*conv(filters=5, groups=2), (8, 8, 4), "got 5/2 = 2.5."),
    "flat input": (
        *conv(),
        (784,),
        "Expected an input of height×width×channels for a Conv2D layer, got 784.",
    ),
    "cropping": ("Cropping2D", {"cropping": 2}, (4, 9, 1), "got 4×9: 4 − 2 − 2 = 0. Crop less"),
    "reshape": ("Reshape", {"target_shape": (5, 5)}, (4, 4, 1), "got 5×5 = 25."),
    "open length": ("Dense", {"units": 3}, (None,), "Expected an input of known length for a Dense layer"),
    "merge": ("Add", {}, [(4, 4, 1), (3, 4, 1)], "Expected inputs of one shape for an Add layer"),
    "concatenate": ("Concatenate", {"axis": -1}, [(4, 4, 1), (3, 4, 1)], "got 4×4×1 and 3×4×1."),
}


@pytest.mark.parametrize(("kind", "options", "shape", "message"), FAILURES.values(), ids=FAILURES)
def test_failure_is_explained(kind, options, shape, message):
    assert message in explain_failure(kind, options, shape)


def test_nothing_is_explained_where_nothing_fails():
    assert explain_failure(*conv(), (28, 28, 1)) == ""
    assert explain_failure("LSTM", {"units": 3}, (2, 2)) == ""


def test_chain_fails_at_the_first_layer_that_cannot_exist():
    chain = [conv(name="first"), ("MaxPooling2D", {}), conv(name="second"), ("Flatten", {})]
    with pytest.raises(ArchitectureError, match="for layer 'second'"):
        analyse_chain(chain, (6, 6, 1))


def test_chain_stops_knowing_at_an_unknown_layer():
    chain = analyse_chain([conv(), ("Mystery", {}), ("Flatten", {})], (8, 8, 1))
    assert [layer is None for layer in chain] == [False, True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((5, 0), "window of at least 1"), ((5, 3, 0), "stride of"), ((5, 3, 1, "full"), "'valid' or 'same'")],
    ids=["window", "stride", "padding"],
)
def test_impossible_window_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        arithmetic.output_length(*arguments)


def test_receptive_field_grows_by_the_jump():
    field = ReceptiveField().through(3, before=1).through(2, stride=2).through(3)
    assert (field.size, field.jump, field.start) == (8, 2, -1)


def test_receptive_field_is_cut_to_the_image():
    field = ReceptiveField().through(3, before=1)
    assert (field.over(28, image=28).size, field.over(4, image=28).size) == (28, 5)


def test_every_record_names_a_layer_of_keras_and_a_page_arithmetic_that_is_there():
    script = resources.files("convscope.explorer").joinpath("page", "kinds.js").read_text(encoding="utf-8")
    table = script[script.index("const KINDS") :]
    computed = re.findall(r"^  (\w+)(?::|,$)", table[: table.index("\n};")], re.MULTILINE)
    for name, kind in LAYERS.items():
        assert issubclass(getattr(keras.layers, name), keras.layers.Layer)
        assert kind.page is None or kind.page in computed


def test_the_page_computes_activation_functions_that_are_written_out():
    script = (
        resources.files("convscope.explorer").joinpath("page", "activations.js").read_text(encoding="utf-8")
    )
    table = script[script.index("export const ACTIVATIONS") :]
    names = re.findall(r"^  (\w+)(?::|,$)", table[: table.index("\n};")], re.MULTILINE)
    written = {name for name, function in ACTIVATIONS.items() if function.apply}
    assert written - {"softmax", "log_softmax"} <= set(names) <= ACTIVATIONS.keys()


@pytest.mark.parametrize("name", [name for name, function in ACTIVATIONS.items() if function.apply])
def test_an_activation_function_is_the_one_of_keras(name):
    x = np.linspace(-30, 30, 121)
    expected = getattr(keras.activations, name)(torch.tensor(x)).numpy()
    np.testing.assert_allclose(
        ACTIVATIONS[name](x), expected, rtol=1e-9, atol=1e-14
    )  # torch cuts softplus off


@pytest.mark.parametrize("name", sorted(ACTIVATIONS.keys() - {"threshold"}))  # has no defaults
def test_what_is_said_to_increase_does(name):
    y = getattr(keras.activations, name)(torch.linspace(-8, 8, 400, dtype=torch.float64)[None])
    if ACTIVATIONS[name].is_increasing({}):
        assert bool((y.diff() >= -1e-12).all())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("relu", {"negative_slope": -0.1}),
        ("relu", {"threshold": -1.0}),
        ("relu", {"max_value": 1.0, "threshold": 2.0}),
        ("leaky_relu", {"negative_slope": -0.1}),
        ("elu", {"alpha": -1.0}),
        ("gelu", {}),
    ],
)
def test_what_falls_somewhere_does_not_commute_with_the_maximum(name, settings):
    assert not ACTIVATIONS[name].is_increasing(settings)
