"""Named networks: one contract that each of them passes."""

import keras
import numpy as np
import pytest

from convscope.errors import ArchitectureError, UnknownNameError, UsageError
from convscope.networks import NETWORKS, build

# Worked out by hand: kernel·kernel·in·out + out for each convolution, in·out + out for each dense layer.
PARAMETERS = {
    "simple": 320 + 216_330,
    "dense": 320 + 2_769_024 + 1_290,
    "deep": 320 + 18_496 + 1_179_776 + 1_290,
    "stages": 320 + 9_248 + 18_496 + 36_928 + 819_712 + 5_130,
    "swift": 416 + 4_640 + 5 * 5 * 32 * 256 + 256 + 2_570,
    # Four numbers for each normalized feature: scale, shift, and two moving statistics.
    "normalized": 288 + 18_432 + 73_728 + 294_912 + 4 * (32 + 64 + 128 + 256) + 2_570,
}
every_network = pytest.mark.parametrize("name", NETWORKS)


@every_network
def test_parameters_are_those_worked_out_by_hand(name):
    assert build(name).count_params() == PARAMETERS[name]


@every_network
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_any_input_shape_and_class_count_gives_probabilities(name, data_format):
    shape = (33, 30, 3) if data_format == "channels_last" else (3, 33, 30)
    model = build(name, shape, classes=7, data_format=data_format)
    output = model.predict(np.zeros((2, *shape), np.float32), verbose=0)
    assert output.shape == (2, 7)
    np.testing.assert_allclose(output.sum(axis=1), 1, atol=1e-6)


@every_network
def test_saving_and_loading_keep_the_predictions(name, tmp_path):
    model = build(name)
    model.save(tmp_path / "model.keras")
    images = np.random.default_rng(0).random((3, 28, 28, 1), np.float32)
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(images, verbose=0), model.predict(images, verbose=0))


@every_network
def test_an_input_that_is_too_small_gets_the_arithmetic(name):
    with pytest.raises(ArchitectureError, match=r"for layer '\w+' \(\w+\).*got 2×2.*= [0−]"):
        build(name, (2, 2, 1))


def test_layers_are_named_after_kind_and_number():
    assert [layer.name for layer in build("deep").layers] == [
        "conv2d_1",
        "conv2d_2",
        "max_pooling2d_1",
        "dropout_1",
        "flatten_1",
        "dense_1",
        "dropout_2",
        "dense_2",
    ]


def test_an_unknown_network_gets_the_nearest_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'deep'"):
        build("depe")


def test_one_class_is_refused():
    with pytest.raises(UsageError, match="at least 2 classes, got 1"):
        build("simple", classes=1)
