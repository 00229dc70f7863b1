"""One preprocessing: equal to scikit-learn's, frozen, the same after a round trip through files."""

import dataclasses

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from convscope.errors import DataError, UnknownNameError, UsageError
from convscope.preprocessing import Preprocess, one_hot, resize_to_input

images_strategy = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 6), st.just(3), st.just(4), st.sampled_from([1, 3]))
)


@given(images_strategy)
@settings(deadline=None)
def test_minmax_is_scikit_learns(images):
    flat = images.reshape(len(images), -1).astype(np.float32)
    expected = MinMaxScaler().fit(flat).transform(flat).reshape(images.shape)
    np.testing.assert_allclose(Preprocess.fit(images).apply(images), expected, atol=1e-6)


@given(images_strategy)
@settings(deadline=None)
def test_standard_is_scikit_learns_per_channel(images):
    by_channel = images.reshape(-1, images.shape[-1]).astype(np.float64)  # (pixels, c)
    expected = StandardScaler().fit_transform(by_channel).reshape(images.shape)
    np.testing.assert_allclose(Preprocess.fit(images, "standard").apply(images), expected, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_fitting_in_chunks_changes_nothing(monkeypatch, chunk):
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), np.uint8)
    whole = Preprocess.fit(images)
    monkeypatch.setattr("convscope.preprocessing.FIT_CHUNK", chunk)
    np.testing.assert_array_equal(Preprocess.fit(images).scale, whole.scale)


def test_unit_divides_by_255():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    result = Preprocess.fit(images, "unit").apply(images)
    np.testing.assert_allclose(result, images / 255, atol=1e-7)
    assert result.dtype == np.float32


def test_pixels_outside_the_fitted_range_are_clipped():
    train = np.full((2, 1, 2, 1), 100, np.uint8)
    train[1, 0, 1, 0] = 200  # the second position ranges from 100 to 200, the first is constant
    unseen = np.array([[0, 0], [255, 255], [100, 150]], np.uint8).reshape(3, 1, 2, 1)
    result = Preprocess.fit(train).apply(unseen)
    assert result.ravel().tolist() == [0, 0, 1, 1, 0, 0.5]


def test_channels_first_is_a_transposition():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    last = Preprocess.fit(images)
    first = Preprocess.fit(images, data_format="channels_first")
    assert first.input_shape == (3, 4, 6)
    np.testing.assert_array_equal(first.apply(images), last.apply(images).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("scaling", ["minmax", "unit", "standard"])
def test_files_bring_back_the_same_object(scaling):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
    preprocess = Preprocess.fit(images, scaling, "channels_first", "crop")
    again = Preprocess.from_files(preprocess.to_files())
    assert again.describe() == preprocess.describe()
    np.testing.assert_array_equal(again.apply(images), preprocess.apply(images))


@pytest.mark.parametrize("name", ["preprocess.json", "preprocess.npz"])
def test_a_damaged_file_is_refused(name):
    files = Preprocess.fit(np.zeros((1, 4, 4, 1), np.uint8)).to_files()
    with pytest.raises(DataError, match=r"preprocess.json and preprocess.npz of a run"):
        Preprocess.from_files(files | {name: files[name][:-9]})


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Preprocess.fit(np.zeros((1, 4, 4, 1), np.uint8)).scaling = "unit"


def test_arrays_and_tensors_go_the_same_way():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
    preprocess = Preprocess.fit(images)
    np.testing.assert_array_equal(
        preprocess.apply(images), preprocess.apply_tensor(torch.from_numpy(images)).numpy()
    )


def test_images_that_must_not_be_written_to_stay_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
    images.flags.writeable = False
    before = images.copy()
    assert Preprocess.fit(images).apply(images).max() == 1
    np.testing.assert_array_equal(images, before)


def test_scaled_floats_are_refused_so_that_nothing_is_scaled_twice():
    preprocess = Preprocess.fit(np.zeros((1, 4, 4, 1), np.uint8))
    with pytest.raises(DataError, match=r"images as uint8 .* got float32"):
        preprocess.apply(np.zeros((1, 4, 4, 1), np.float32))


@pytest.mark.parametrize(
    ("choice", "near"),
    [({"scaling": "minmx"}, "minmax"), ({"data_format": "channel_first"}, "channels_first")],
)
def test_an_unknown_choice_gets_the_nearest_one(choice, near):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'"):
        Preprocess.fit(np.zeros((1, 4, 4, 1), np.uint8), **choice)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_one_hot_has_a_single_one_at_the_label(labels):
    targets = one_hot(np.array(labels), 7)
    assert targets.argmax(axis=1).tolist() == labels
    assert targets.sum() == len(labels)
    assert targets.dtype == np.float32


def test_one_hot_refuses_a_label_that_is_no_class():
    with pytest.raises(UsageError, match="labels from 0 to 2, got 0 to 3"):
        one_hot(np.array([0, 3]), 3)


@pytest.mark.parametrize(("height", "width", "first"), [(61, 40, (40, 28)), (40, 61, (28, 40))])
def test_the_axis_that_is_resampled_first_is_that_of_pillow_13(height, width, first):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    picture = Image.fromarray(image)
    one, whole = (
        np.asarray(
            picture.resize(size, Image.Resampling.BILINEAR).resize((28, 28), Image.Resampling.BILINEAR)
        )
        for size in (first, (28, 28))
    )
    found = resize_to_input(image, (28, 28), 3, "stretch")
    np.testing.assert_array_equal(found, one)
    if PIL.__version__ >= "13":
        np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize(
    ("resize", "corner", "middle"),
    [("letterbox", 0, 255), ("crop", 255, 255), ("stretch", 255, 255)],
)
def test_a_wide_white_image_is_brought_to_a_square(resize, corner, middle):
    square = resize_to_input(np.full((10, 20, 3), 255, np.uint8), (8, 8), 3, resize)
    assert square.shape == (8, 8, 3)
    assert square[0, 0].tolist() == [corner] * 3
    assert square[4, 4].tolist() == [middle] * 3


@pytest.mark.parametrize("shape", [(10, 20, 3), (20, 10, 3)], ids=["wide", "tall"])
def test_a_letterbox_is_pillows_padding_around_the_middle(shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    padded = ImageOps.pad(Image.fromarray(picture), (8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize_to_input(picture, (8, 8), 3), np.asarray(padded))


def test_grey_and_colour_are_brought_to_the_training_images_channels():
    grey = resize_to_input(np.full((4, 4, 1), 9, np.uint8), (4, 4), 3)
    assert grey.tolist() == np.full((4, 4, 3), 9).tolist()
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    assert resize_to_input(red, (4, 4), 1)[0, 0].tolist() == [76]  # 0.299 · 255


def test_two_of_the_same_values_are_equal_and_one_in_a_set():
    images = np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1)
    first, again = Preprocess.fit(images), Preprocess.fit(images.copy())
    assert first == again and len({first, again}) == 1
    assert first == Preprocess.from_files(first.to_files())
    for other in (Preprocess.fit(images + 1), Preprocess.fit(images, "unit"), "minmax"):
        assert first != other
