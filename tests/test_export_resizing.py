"""The resizing inside an ONNX export, held against ``Preprocess.resize_to_input``, which is Pillow's."""

import keras
import numpy as np
import onnx
import onnxruntime
import pytest

import convscope
from convscope.export import Bundle, load_bundle, onnx_graph, torch_graph
from convscope.export.onnx_graph import open_session
from convscope.export.onnx_resizing import to_resizing
from convscope.preprocessing import RESIZES, Preprocess

PROBABILITIES = 1e-4


def noise(generator, shape):
    """Pixels of any value, or only black and white: the hardest that there are to resize."""
    pixels = generator.integers(0, 256, shape, np.uint8)
    return np.where(pixels > 127, 255, 0).astype(np.uint8) if generator.random() < 0.3 else pixels


def smooth(generator, height, width, channels):
    """A picture with shapes: coarse noise, enlarged."""
    coarse = generator.integers(0, 256, (1, *generator.integers(2, 9, 2), channels), np.uint8)
    large = Preprocess.fit(np.zeros((1, height, width, channels), np.uint8), resize="stretch")
    return large.resize_to_input(coarse)


def preprocess(shape, resize):
    return Preprocess.fit(np.zeros((1, *shape), np.uint8), "unit", resize=resize)


def session_of(settings):
    model = to_resizing(settings)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("shape", [(32, 24, 3), (28, 28, 1), (7, 50, 3)], ids=str)
def test_any_size_and_colour_becomes_what_pillow_makes_of_it(shape, resize):
    generator = np.random.default_rng(0)
    settings = preprocess(shape, resize)
    session = session_of(settings)
    for _ in range(60):
        height, width, count = generator.integers(1, (150, 150, 4))
        images = noise(generator, (count, height, width, generator.choice([1, 3])))
        [found] = session.run(None, {"pixels": images})
        expected = settings.resize_to_input(images)
        np.testing.assert_array_equal(found, expected, str(images.shape))


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_the_right_size_stays_as_it_is(channels, resize):
    images = noise(np.random.default_rng(1), (3, 28, 20, channels))
    session = session_of(preprocess(images.shape[1:], resize))
    [found] = session.run(None, {"pixels": images})
    assert (found == images).all()


@pytest.mark.parametrize(("given", "wanted"), [(1, 3), (3, 1)])
def test_colours_alone_are_exactly_pillow_s(given, wanted):
    images = np.random.default_rng(2).integers(0, 256, (2, 300, 300, given), np.uint8)
    settings = preprocess((300, 300, wanted), "letterbox")
    [found] = session_of(settings).run(None, {"pixels": images})
    assert (found == settings.resize_to_input(images)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("resize", RESIZES)
def test_the_thinnest_images_too(size, resize):
    images = noise(np.random.default_rng(3), (1, *size, 3))
    settings = preprocess((16, 12, 3), resize)
    [found] = session_of(settings).run(None, {"pixels": images})
    np.testing.assert_array_equal(found, settings.resize_to_input(images))


def test_a_network_in_a_file_predicts_images_of_any_size_as_the_bundle_does(tmp_path):
    generator = np.random.default_rng(4)
    settings = Preprocess.fit(noise(generator, (8, 12, 10, 3)), "standard")
    model = convscope.build("normalized", settings.input_shape, 3)
    model.set_weights(
        [generator.uniform(0.1, 0.3, value.shape).astype(np.float32) for value in model.get_weights()]
    )
    bundle = Bundle.from_model(model, settings, ("a", "b", "c"), 1.5)
    onnx_graph.write_onnx(torch_graph.trace(bundle), bundle, tmp_path / "model.onnx")
    forward = open_session(tmp_path / "model.onnx", (12, 10, 3), 3)
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert not kinds & {"Sub", "BatchNormalization"}  # the normalizations are part of the convolutions
    for shape in ((5, 12, 10, 3), (1, 40, 31, 3), (2, 9, 50, 1)):
        images = noise(generator, shape)
        assert forward(images) == pytest.approx(bundle.predict(images), abs=PROBABILITIES)


def test_the_normalization_of_a_wide_depthwise_convolution_is_part_of_it(tmp_path):
    generator = np.random.default_rng(6)
    given = keras.Input((5, 5, 3))
    values = keras.layers.Conv2D(1152, 1)(given)
    values = keras.layers.DepthwiseConv2D(5, padding="same", use_bias=False)(values)
    values = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization()(values))
    values = keras.layers.GlobalAveragePooling2D()(values)
    model = keras.Model(given, keras.layers.Dense(2, activation="softmax")(values))
    images = noise(generator, (4, 5, 5, 3))
    bundle = Bundle.from_model(model, Preprocess.fit(images, "unit"), ("a", "b"))
    onnx_graph.write_onnx(torch_graph.trace(bundle), bundle, tmp_path / "model.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert not kinds & {"Sub", "Reshape"}
    found = open_session(tmp_path / "model.onnx", (5, 5, 3), 2)(images)
    assert found == pytest.approx(bundle.predict(images), abs=1e-4)


@pytest.mark.slow
def test_a_thousand_images_of_any_size_get_the_labels_of_the_run(digits_run, tmp_path):
    bundle = load_bundle(digits_run)
    onnx_graph.write_onnx(torch_graph.trace(bundle), bundle, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    generator = np.random.default_rng(5)
    digits = convscope.load("digits").test.images
    for number in range(1000):
        height, width = generator.integers(8, 200, 2)
        channels = int(generator.choice([1, 3]))
        images = smooth(generator, height, width, channels)
        if number % 2:  # a digit, larger or smaller
            images = np.repeat(
                preprocess((height, width, 1), "stretch").resize_to_input(digits[number % len(digits)][None]),
                channels, axis=3,
            )  # fmt: skip
        [found] = session.run(["probabilities"], {"pixels": images})
        expected = bundle.predict(images)
        assert found == pytest.approx(expected, abs=PROBABILITIES), images.shape
        first, second = np.sort(expected[0])[[-1, -2]]
        assert found.argmax() == expected.argmax() or first - second < PROBABILITIES
