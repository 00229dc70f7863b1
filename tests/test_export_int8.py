"""Networks in 8 bits: as good as their source on images held back, on every processor, or refused."""

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers
from onnx import numpy_helper

import convscope
from convscope.errors import DataError, ExportError
from convscope.export import Bundle, checking, onnx_graph, onnx_int8, torch_graph
from convscope.export.checking import CheckImages, find_images
from convscope.export.exporting import export_run
from convscope.export.onnx_int8 import write_int8
from convscope.networks import NETWORKS
from convscope.preprocessing import Preprocess
from convscope.runs import RunDirectory

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
    onnx_graph.write_onnx(torch_graph.trace(bundle), bundle, folder / "model.onnx")
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
    plain = onnx_int8._quantize

    def poor_at_first(source, target, graph, pixels, in_float32):
        tries.append(in_float32)
        # Ranges of black images: everything brighter is cut off.
        plain(source, target, graph, pixels if in_float32 else np.zeros_like(pixels), in_float32)

    monkeypatch.setattr(onnx_int8, "_quantize", poor_at_first)
    _, note = quantized(mobile_network, tmp_path)
    assert "in float32 stay the first and the last layer" in note
    assert [len(one) for one in tries] == [0, 2]
    assert kinds(tmp_path / "model-int8.onnx").count("DequantizeLinear") > 0


def test_an_export_that_stays_bad_is_refused_with_the_numbers(mobile_network, tmp_path, monkeypatch):
    monkeypatch.setattr(
        onnx_int8, "open_session", lambda *_: lambda pixels: np.tile(np.eye(CLASSES)[0], (len(pixels), 1))
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

    assert len(images.training) == checking.CALIBRATION_IMAGES
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
