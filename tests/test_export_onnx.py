"""ONNX exports: resizing held against Pillow's, and 8 bits as good as their source or refused."""

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers
from onnx import numpy_helper

import convscope
from convscope.errors import DataError, ExportError
from convscope.export import Bundle, exporting, load_bundle, onnx_files
from convscope.export.exporting import CheckImages, export_run, find_images
from convscope.export.onnx_files import open_session, to_resizing, write_int8
from convscope.networks import NETWORKS
from convscope.preprocessing import RESIZES, Preprocess
from convscope.runs import RunDirectory

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
    onnx_files.write_onnx(bundle, tmp_path / "model.onnx")
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
    onnx_files.write_onnx(bundle, tmp_path / "model.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert not kinds & {"Sub", "Reshape"}
    found = open_session(tmp_path / "model.onnx", (5, 5, 3), 2)(images)
    assert found == pytest.approx(bundle.predict(images), abs=1e-4)


@pytest.mark.slow
def test_a_thousand_images_of_any_size_get_the_labels_of_the_run(digits_run, tmp_path):
    bundle = load_bundle(digits_run)
    onnx_files.write_onnx(bundle, tmp_path / "model.onnx")
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


SHAPE, CLASSES = (28, 28, 3), 4


def mobile(shape=SHAPE, classes=CLASSES):
    """Depthwise convolutions, ReLU6, a linear bottleneck and a residual, as in MobileNetV2."""

    def normalized(values, layer, activation=True):
        values = layers.BatchNormalization(momentum=0.5)(layer(values))
        return layers.ReLU(6.0)(values) if activation else values

    given = keras.Input(shape)
    values = normalized(given, layers.Conv2D(16, 3, 2, padding="same", use_bias=False))
    for filters, strides in ((16, 1), (24, 2)):
        before = values
        values = normalized(values, layers.Conv2D(48, 1, use_bias=False))
        values = normalized(values, layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False))
        values = normalized(values, layers.Conv2D(filters, 1, use_bias=False), activation=False)
        if strides == 1:
            values = layers.Add()([before, values])
    values = layers.GlobalAveragePooling2D()(values)
    return keras.Model(given, layers.Dense(classes, "softmax")(values), name="mobile")


def squares(count, seed):
    """Four classes that a network learns in seconds: a bright square in red, green, blue or white."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    images = generator.integers(0, 120, (count, *SHAPE), np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = generator.integers(0, 16, 2)
        image[top : top + 12, left : left + 12, slice(None) if label == 3 else label] += 110
    return images, labels


def trained(model):
    images, labels = squares(400, 0)
    preprocess = Preprocess.fit(images, "standard")
    model.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy")
    convscope.fit(model, images, labels, preprocess=preprocess, epochs=4, seed=0, verbose=0, batch_size=32)
    return Bundle.from_model(model, preprocess, tuple("abcd"), 1.3)


def images_for(training=None, judging=None):
    judging = judging or squares(200, 1)
    return CheckImages(judging[0], judging[1], "squares", training, judging, "validation images")


def quantized(network, folder, images=None):
    bundle, file = network
    images = images or images_for(squares(128, 2)[0])
    return write_int8(file, folder / "model-int8.onnx", bundle, images)


def written(bundle, folder):
    """Give a bundle and its ONNX file."""
    onnx_files.write_onnx(bundle, folder / "model.onnx")
    return bundle, folder / "model.onnx"


def kinds(file):
    return [node.op_type for node in onnx.load(file).graph.node]


@pytest.fixture(scope="module")
def mobile_network(tmp_path_factory):
    keras.utils.set_random_seed(0)
    return written(trained(mobile()), tmp_path_factory.mktemp("mobile"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "mobile" else pytest.mark.slow)
        for name in [*NETWORKS, "mobile"]
    ],
)
def test_every_network_keeps_its_accuracy_in_eight_bits(name, tmp_path, mobile_network):
    keras.utils.set_random_seed(0)
    network = mobile_network
    if name != "mobile":
        network = written(trained(convscope.build(name, SHAPE, CLASSES)), tmp_path)
    bundle, full = network
    forward, note = quantized(network, tmp_path)
    pixels, labels = squares(200, 3)
    before, after = (
        np.mean(predict(pixels).argmax(axis=1) == labels) for predict in (bundle.predict, forward)
    )
    assert before > 0.7 and after >= before - 0.02
    assert "ranges from 128 training images" in note and "200 validation images" in note
    assert (tmp_path / "model-int8.onnx").stat().st_size < full.stat().st_size


def test_the_file_takes_images_of_any_size_and_says_what_it_is(mobile_network, tmp_path):
    quantized(mobile_network, tmp_path)
    model = onnx.load(tmp_path / "model-int8.onnx")
    assert "class_names" in {entry.key for entry in model.metadata_props}
    session = onnxruntime.InferenceSession(tmp_path / "model-int8.onnx")
    images = squares(8, 4)[0]
    [sized] = session.run(None, {"pixels": images})
    [large] = session.run(None, {"pixels": np.repeat(np.repeat(images, 3, axis=1), 3, axis=2)})
    assert sized.shape == large.shape == (8, CLASSES)
    assert (sized.argmax(axis=1) == large.argmax(axis=1)).all()


def test_weights_have_seven_bits_so_that_no_processor_cuts_sums_off(mobile_network, tmp_path):
    quantized(mobile_network, tmp_path)
    graph = onnx.load(tmp_path / "model-int8.onnx").graph
    weights = [
        numpy_helper.to_array(one) for one in graph.initializer if one.data_type == onnx.TensorProto.INT8
    ]
    assert any(len(one.shape) == 4 for one in weights)
    assert max(np.abs(one.astype(int)).max() for one in weights) <= 64
    assert all(not one.any() for one in weights if one.ndim == 1)  # zero points


def test_everything_between_the_first_and_the_last_layer_is_in_eight_bits(mobile_network, tmp_path):
    """No layer in float32 stands between two of 8 bits: each change costs time."""
    _, note = quantized(mobile_network, tmp_path)
    assert "in float32 stay preprocessing and softmax" in note
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / "model-int8.onnx", options)
    found = kinds(tmp_path / "optimized.onnx")
    assert found.count("QLinearConv") == 7 and "Conv" not in found and "Relu" not in found
    first, last = found.index("QLinearConv"), len(found) - 1 - found[::-1].index("QLinearConv")
    assert set(found[first:last]) <= {"QLinearConv", "QLinearAdd"}


def test_sensitive_layers_stay_in_float32_where_eight_bits_cost_too_much(
    mobile_network, tmp_path, monkeypatch
):
    tries = []
    plain = onnx_files._quantize

    def poor_at_first(source, target, graph, pixels, in_float32):
        tries.append(in_float32)
        # Ranges of black images: everything brighter is cut off.
        plain(source, target, graph, pixels if in_float32 else np.zeros_like(pixels), in_float32)

    monkeypatch.setattr(onnx_files, "_quantize", poor_at_first)
    _, note = quantized(mobile_network, tmp_path)
    assert "in float32 stay the first and the last layer" in note
    assert [len(one) for one in tries] == [0, 2]
    assert kinds(tmp_path / "model-int8.onnx").count("DequantizeLinear") > 0


def test_an_export_that_stays_bad_is_refused_with_the_numbers(mobile_network, tmp_path, monkeypatch):
    monkeypatch.setattr(
        onnx_files, "open_session", lambda *_: lambda pixels: np.tile(np.eye(CLASSES)[0], (len(pixels), 1))
    )
    expected = r"Expected 8 bits to cost at most 1\.0% accuracy on 200 validation images, got \d+\.\d\d% and"
    with pytest.raises(ExportError, match=expected) as caught:
        quantized(mobile_network, tmp_path)
    assert caught.value.exit_code == 3 and "--format onnx" in str(caught.value)


def test_one_image_may_be_lost_where_few_were_held_back(mobile_network, tmp_path):
    pixels, labels = squares(20, 5)
    labels = np.where(np.arange(20) < 10, labels, (labels + 1) % CLASSES)  # half of them wrong
    _, note = quantized(mobile_network, tmp_path, images_for(squares(64, 2)[0], (pixels, labels)))
    assert "of 20 validation images right" in note


def test_quantizing_needs_training_images(mobile_network, tmp_path):
    with pytest.raises(
        DataError, match=r"training images to quantize with, got squares\. Name them with --data"
    ):
        quantized(mobile_network, tmp_path, CheckImages(*squares(9, 0), "squares"))


# The images of a run ----------------------------------------------------------------------------------------


def test_neither_test_nor_validation_images_give_the_ranges(digits_run, tmp_path):
    from bundle_cases import copy_of

    run = copy_of(digits_run, tmp_path / "run")
    from convscope.export import load_bundle

    images = find_images(RunDirectory(run), load_bundle(run))
    dataset = convscope.load("digits")
    stored = RunDirectory(run).read_arrays("predictions.npz")

    def rows(pixels):
        return {one.tobytes() for one in pixels}

    assert len(images.training) == exporting.CALIBRATION_IMAGES
    assert images.judged_on == "validation images"
    assert (np.sort(images.judging[1]) == np.sort(stored["validation_labels"])).all()
    assert rows(images.training) <= rows(dataset.train.images)
    assert not rows(images.training) & rows(images.judging[0])
    assert not rows(images.training) & rows(dataset.test.images)


def test_a_run_whose_data_are_gone_is_not_quantized(digits_run, tmp_path):
    from bundle_cases import copy_of, rewrite_json

    run = copy_of(digits_run, tmp_path / "run")
    rewrite_json(run / "run.json", data={"name": "gone", "class_names": list("0123456789")})
    with pytest.raises(DataError, match=r"training images to quantize with, got .* random pixels"):
        export_run(run, "int8", tmp_path / "export")
    assert not (tmp_path / "export").exists()
