"""Single activations, recomputed in float64 and held against the network's own float32 numbers."""

import functools
import json

import keras
import numpy as np
import pytest
from keras import layers
from odd_networks import ODD_NETWORKS
from scipy import special
from scipy.signal import correlate

from convscope.errors import UnknownNameError, UsageError
from convscope.inspection import Recomputation, describe, feature_maps, recompute
from convscope.lowering.graph import read_graph
from convscope.networks import NETWORKS, build

ALL_NETWORKS = {**{name: lambda name=name: build(name) for name in NETWORKS}, **ODD_NETWORKS}
FIRST = {"data_format": "channels_first"}


def shake(model: keras.Model) -> keras.Model:
    """Give every weight a random value: biases and moving statistics begin at 0 and 1."""
    generator = np.random.default_rng(1338)
    for layer in model.layers:
        for weight in layer.weights:
            shape = tuple(weight.shape)
            if "variance" in weight.name:
                weight.assign(generator.uniform(0.5, 2, shape))
            elif len(shape) == 1:
                weight.assign(generator.normal(0, 0.5, shape))
    return model


def image_for(model: keras.Model) -> np.ndarray:
    return np.random.default_rng(7).uniform(-1, 1, model.input_shape[1:]).astype("float32")


def places(shape: tuple[int, ...], first: bool) -> list[tuple[tuple[int, int] | None, int]]:
    """List the corners, edges and some inner places, each with some channel."""
    generator = np.random.default_rng(0)
    if len(shape) == 1:
        return [(None, 0), (None, shape[0] - 1), (None, int(generator.integers(shape[0])))]
    channels, height, width = shape if first else (shape[2], *shape[:2])
    rows, columns = {0, height // 2, height - 1}, {0, width // 2, width - 1}
    return [((row, column), int(generator.integers(channels))) for row in rows for column in columns]


CASES = [
    pytest.param(network, number, id=f"{name}-{call.name}")
    for name, network in ALL_NETWORKS.items()
    for number, call in enumerate(read_graph(network()).calls)
    if call.type != "UpSampling2D" and type(call.operation).__module__.startswith("keras.src.layers")
]


@functools.cache
def made(network) -> keras.Model:
    """Make each network once."""
    keras.utils.set_random_seed(1338)
    return shake(network())


@functools.cache
def numbers_of(network) -> tuple[list[tuple[int, ...]], bool, Recomputation]:
    """Run each network once."""
    model = made(network)
    description = describe(model)
    shapes = [layer.output_shape for layer in description.layers]
    return shapes, description.channels_first, Recomputation(model, image_for(model))


@pytest.mark.parametrize(("network", "number"), CASES)
def test_recomputed_number_is_the_networks(network, number):
    shapes, first, numbers = numbers_of(network)
    results = [numbers(number, position, channel) for position, channel in places(shapes[number], first)]
    wrong = [(r.position, r.channel, r.value, r.network_value) for r in results if r.difference > 1e-5]
    assert wrong == []


OPTIONS = {
    "leaky": layers.LeakyReLU(0.2),
    "capped relu": layers.ReLU(max_value=0.4, negative_slope=0.1, threshold=0.1),
    "softmax layer": layers.Softmax(),
    "sigmoid": layers.Activation("sigmoid"),
    "gelu, as Keras computes it": layers.Activation("gelu"),
    "elu": layers.Conv2D(3, 2, activation="elu"),
    "silu": layers.Conv2D(3, 2, activation="silu"),
    "hard sigmoid": layers.Conv2D(3, 2, activation="hard_sigmoid"),
    "relu6": layers.Conv2D(3, 2, activation="relu6"),
    "softplus": layers.Conv2D(3, 2, activation="softplus"),
    "exponential": layers.Conv2D(3, 2, activation="exponential"),
    "hard silu": layers.Conv2D(3, 2, activation="hard_silu"),
    "even padding": layers.Conv2D(3, 4, padding="same", strides=3),
    "dense on an image": layers.Dense(3, activation="tanh"),
    "dense softmax on an image": layers.Dense(3, activation="softmax"),
    "max same": layers.MaxPooling2D(3, strides=1, padding="same"),
    "average, even padding": layers.AveragePooling2D(3, strides=1, padding="same"),
    "average, uneven padding": layers.AveragePooling2D(2, strides=1, padding="same"),
    "rescaling": layers.Rescaling(2.0, offset=-1.0),
    "reshape": layers.Reshape((4, 7, 2)),
    "flatten": layers.Flatten(),
    "no scale": layers.BatchNormalization(scale=False, center=False),
    "identity": layers.Identity(),
    "rescaling of each channel": layers.Rescaling([2.0, 0.5]),
    "layer normalization over an image": layers.LayerNormalization(axis=(1, 2, 3)),
    "layer normalization over two axes": layers.LayerNormalization(axis=(2, 3), center=False),
    "groups of channels": layers.GroupNormalization(2, epsilon=0.1),
    "one group": layers.GroupNormalization(1, scale=False),
    "a group for each channel": layers.GroupNormalization(-1, center=False),
}


@pytest.mark.parametrize("layer", OPTIONS.values(), ids=OPTIONS)
def test_option_is_recomputed(layer):
    model = shake(keras.Sequential([keras.Input((7, 4, 2)), layer]))
    numbers = Recomputation(model, image_for(model))
    results = [numbers(0, *place) for place in places(model.output_shape[1:], False)]
    assert [(r.value, r.network_value) for r in results if r.difference > 1e-5] == []


CHANNELS_FIRST = {
    "pooling": layers.AveragePooling2D(2, **FIRST),
    "padding": layers.ZeroPadding2D(((1, 0), (0, 2)), **FIRST),
    "cropping": layers.Cropping2D(1, **FIRST),
    "flatten": layers.Flatten(**FIRST),
    "flatten in the other order": layers.Flatten(data_format="channels_last"),
    "global": layers.GlobalMaxPooling2D(**FIRST),
    "separable": layers.SeparableConv2D(3, 2, **FIRST),
    "normalisation": layers.BatchNormalization(axis=1),
    "activation": layers.Activation("tanh"),
    "groups": layers.GroupNormalization(2, axis=1),
    "reshape": layers.Reshape((2, 3, 12)),
}


@pytest.mark.parametrize("layer", CHANNELS_FIRST.values(), ids=CHANNELS_FIRST)
def test_channels_first_is_recomputed(layer):
    stem = layers.Conv2D(2, 1, **FIRST)
    model = shake(keras.Sequential([keras.Input((2, 6, 6)), stem, layer]))
    numbers = Recomputation(model, image_for(model))
    results = [numbers(1, *place) for place in places(model.output_shape[1:], True)]
    assert [(r.value, r.network_value) for r in results if r.difference > 1e-5] == []


def test_parts_are_those_of_a_correlation_in_float64():
    model = made(ALL_NETWORKS["deep"])
    image = image_for(model)
    kernel, bias = (np.float64(weight) for weight in model.layers[0].get_weights())
    result = recompute(model, image, "conv2d_1", (25, 0), channel=3)
    np.testing.assert_array_equal(result.inputs, np.float64(image[25:28, 0:3]))
    np.testing.assert_array_equal(result.weights, kernel[..., 3])
    correlated = correlate(np.float64(image[..., 0]), kernel[:, :, 0, 3], mode="valid")
    assert result.total == pytest.approx(correlated[25, 0] + bias[3], rel=1e-12)
    assert (result.bias, result.value) == (bias[3], max(0.0, result.total))
    assert (result.rows, result.columns) == ((25, 26, 27), (0, 1, 2))
    assert result.inside.all()


def test_padding_is_marked_at_a_corner():
    model = made(ALL_NETWORKS["stages"])
    result = recompute(model, image_for(model), "conv2d_1", (0, 27), channel=0)
    assert result.rows == (-1, 0, 1)
    assert result.columns == (26, 27, 28)
    assert result.inside.tolist() == [[False] * 3, [True, True, False], [True, True, False]]
    assert (result.inputs[~result.inside] == 0).all()


def test_softmax_carries_the_sums_of_all_units():
    model = made(ALL_NETWORKS["simple"])
    result = recompute(model, image_for(model), "dense_1", channel=4)
    assert result.value == pytest.approx(special.softmax(result.sums)[4], rel=1e-12)
    assert result.total == result.sums[4]
    assert "softmax over 10 units" in result.lines[-2]


def test_arithmetic_is_written_out():
    model = keras.Sequential([keras.Input((2, 2, 1)), layers.Conv2D(1, 2, activation="relu")])
    model.layers[0].set_weights([np.array([1, -2, 0.5, 3]).reshape(2, 2, 1, 1), np.array([0.25])])
    image = np.array([[1, 2], [4, -1]], "float32")[..., None]
    assert recompute(model, image, 0).lines == (
        "sum of products: 1·1 + 2·(−2) + 4·0.5 + (−1)·3 = (−4)",
        "sum + bias: (−4) + 0.25 = (−3.75)",
        "relu: max(0, x) = 0 for x = −3.75",
        "the network gives 0, a difference of 0.0e+00",
    )


def test_a_large_sum_is_counted_and_not_written_out():
    model = made(ALL_NETWORKS["deep"])
    lines = recompute(model, image_for(model), "conv2d_2", (0, 0), 1).lines
    assert lines[0].startswith("sum of 3·3·32 = 288 products of input and weight: ")


def test_it_goes_into_json():
    model = made(ALL_NETWORKS["simple"])
    plain = json.loads(json.dumps(recompute(model, image_for(model), 0, (1, 2), 3).to_json()))
    total = (np.array(plain["inputs"]) * np.array(plain["weights"])).sum() + plain["bias"]
    assert total == pytest.approx(plain["total"], rel=1e-12)
    assert np.array(plain["inside"]).shape == (3, 3)


def test_it_notices_a_network_that_computes_something_else():
    class Doubled(layers.Conv2D):
        def call(self, inputs):
            return 2 * super().call(inputs)

    Doubled.__module__ = layers.Conv2D.__module__
    Doubled.__name__ = "Conv2D"
    model = keras.Sequential([keras.Input((4, 4, 1)), Doubled(1, 3)])
    assert not recompute(model, np.ones((4, 4, 1)), 0).agrees


REFUSED = {
    "unknown layer": ("conv2d_9", None, 0, UnknownNameError, "Did you mean 'conv2d_"),
    "channel": ("conv2d_1", (0, 0), 32, UsageError, "a channel of conv2d_1 from 0 to 31, got 32"),
    "position": ("conv2d_1", (26, 0), 0, UsageError, r"from \(0, 0\) to \(25, 25\), got \(26, 0\)"),
    "negative": ("conv2d_1", (0, -1), 0, UsageError, r"got \(0, -1\)"),
    "row": ("dense_1", (0, 0), 0, UsageError, "no position for dense_1, which gives a row"),
}


@pytest.mark.parametrize(("layer", "position", "channel", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_impossible_place_is_refused(layer, position, channel, error, message):
    model = made(ALL_NETWORKS["deep"])
    with pytest.raises(error, match=message):
        recompute(model, image_for(model), layer, position, channel)


UNKNOWN = {
    "layer": (layers.UpSampling2D(), "Expected a layer whose arithmetic is known"),
    "activation over a row": (layers.Conv2D(2, 1, activation="softmax"), "looks at one number"),
}


@pytest.mark.parametrize(("layer", "message"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_arithmetic_is_refused(layer, message):
    model = keras.Sequential([keras.Input((3, 3, 2)), layer])
    with pytest.raises(UsageError, match=message):
        recompute(model, np.ones((3, 3, 2)), 0)


def test_what_can_be_recomputed_is_listed():
    model = made(ALL_NETWORKS["separable"])
    listed = Recomputation(model, image_for(model)).layers
    unknown = {layer.type for layer in describe(model).layers if layer.name not in listed}
    assert unknown == {"UpSampling2D"}


BAD_IMAGES = {
    "shape": (np.zeros((28, 28)), "Expected preprocessed images of 28×28×1, got 28×28."),
    "size": (np.zeros((27, 28, 1)), "Expected preprocessed images of 28×28×1, got 27×28×1."),
    "several": (np.zeros((2, 28, 28, 1)), "Expected one image, got 2."),
}


class TestStrongest:
    """The activation that is shown where none is asked for."""

    @pytest.fixture
    def found(self):
        model = shake(ODD_NETWORKS["residual"]())  # begins with an input layer
        image = image_for(model)
        return Recomputation(model, image), feature_maps(model, image)

    def test_of_the_first_convolution(self, found):
        numbers, maps = found
        one = numbers.strongest()
        first = next(layer for layer in maps if layer.type == "Conv2D")
        assert (one.layer, one.network_value) == (first.layer, first.values.max())
        assert first.values[one.position][one.channel] == first.values.max()
        assert one.agrees

    @pytest.mark.parametrize(("position", "channel"), [((4, 3), None), (None, 5), ((4, 3), 5)], ids=str)
    def test_keeps_what_was_asked_for(self, found, position, channel):
        numbers, maps = found
        values = next(layer for layer in maps if layer.type == "Conv2D").values
        one = numbers.strongest(position=position, channel=channel)
        searched = values[position] if position else values
        assert one.network_value == (searched if channel is None else searched[..., channel]).max()
        assert position in (None, one.position) and channel in (None, one.channel)

    def test_is_where_something_enters(self):
        """The largest bias is not shown at a place where the image is empty."""
        model = keras.Sequential([keras.Input((28, 28, 1)), layers.Conv2D(3, 3, activation="relu")])
        kernel = np.zeros((3, 3, 1, 3), np.float32)
        kernel[..., 1], kernel[..., 2] = 0.5, -1
        model.layers[0].set_weights([kernel, np.array([5, 6, 7], np.float32)])
        image = np.zeros((28, 28, 1), np.float32)
        image[10:12, 20] = 1
        one = Recomputation(model, image).strongest()
        assert (one.channel, one.network_value, one.inputs.sum()) == (1, 7, 2)

        nothing = Recomputation(model, np.zeros_like(image)).strongest()
        assert (nothing.channel, nothing.network_value) == (2, 7)
        assert nothing.lines[0] == "sum of products: 0, for each of the 9 inputs is 0 here"

    def test_of_a_row(self, found):
        numbers, maps = found
        one = numbers.strongest(maps[-1].layer)
        assert (one.position, one.channel) == (None, maps[-1].values.argmax())

    @pytest.mark.parametrize("place", [{"position": (99, 0)}, {"channel": 999}, {"layer": "conv"}], ids=str)
    def test_refuses_what_is_not_there(self, found, place):
        with pytest.raises(UsageError):
            found[0].strongest(**place)


@pytest.mark.parametrize(("image", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_wrong_image_is_refused(image, message):
    with pytest.raises(UsageError, match=message):
        recompute(made(ALL_NETWORKS["simple"]), image, 0)
