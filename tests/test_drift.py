"""What an input looks like beside the training images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convscope.data.drift import FEATURES, TrainingStatistics, measure
from convscope.errors import DataError


@pytest.fixture(scope="module")
def statistics(digits):
    return TrainingStatistics.fit(digits.train.images)


def shifted(images):
    result = np.zeros_like(images)
    result[:, 9:] = images[:, :-9]
    return result


def shrunk(images):
    result = np.zeros_like(images)
    result[:, 9:19, 9:19] = images[:, 4:24:2, 4:24:2]
    return result


DISTORTIONS = {
    "inverted": (lambda x: 255 - x, ("inverted",)),
    "range 0 to 16": (lambda x: x // 16, ("wrong range",)),
    "range 0 to 1": (lambda x: np.round(x / 255).astype(np.uint8), ("wrong range",)),
    "off-centre": (shifted, ("off-centre", "bright border")),
    "small": (shrunk, ("small",)),
    "empty": (np.zeros_like, ("empty",)),
    "noise": (
        lambda x: np.random.default_rng(0).integers(0, 256, x.shape, np.uint8),
        ("large or scattered", "rough"),
    ),
    "half as bright": (lambda x: x // 2, ("dark", "dim")),
}


@pytest.mark.parametrize("name", DISTORTIONS)
def test_what_spoils_an_image_is_named(statistics, digits, name):
    distort, words = DISTORTIONS[name]
    found = statistics.drift_warnings(distort(digits.test.images))
    first = [sentences[0].split(":")[0] for sentences in found if sentences]
    assert len(first) >= 0.95 * len(found)
    assert np.mean([word in words for word in first]) > 0.8


def test_test_images_look_like_training_images(statistics, digits):
    assert np.mean([bool(found) for found in statistics.drift_warnings(digits.test.images)]) < 0.02


@pytest.mark.slow
def test_few_real_test_images_are_called_odd_and_no_inverted_one_is_missed(real_mnist):
    statistics = TrainingStatistics.fit(real_mnist.train.images)
    images = real_mnist.test.images
    assert np.mean([bool(found) for found in statistics.drift_warnings(images)]) < 0.005
    found = statistics.drift_warnings(255 - images)
    assert all(found)
    assert np.mean([sentences[0].startswith("inverted") for sentences in found]) > 0.99


def test_photographs_are_not_called_inverted_for_being_light():
    generator = np.random.default_rng(0)
    photographs = generator.integers(0, 256, (200, 1, 1, 3)) + generator.normal(0, 40, (200, 16, 16, 3))
    images = np.clip(photographs, 0, 255).astype(np.uint8)
    found = TrainingStatistics.fit(images[:150]).drift_warnings(images[150:])
    assert not any(sentence.startswith("inverted") for sentences in found for sentence in sentences)


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
def test_features_equal_their_definitions_in_float64(channels):
    image = np.random.default_rng(1).integers(0, 256, (9, 12, channels), np.uint8)
    grey = image.astype(np.float64).mean(axis=2)
    ring = np.concatenate([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])
    weight = np.abs(grey - np.median(ring))
    rows, columns = np.mgrid[0:9, 0:12]
    row = np.sum(weight * (rows + 0.5) / 9) / weight.sum()
    column = np.sum(weight * (columns + 0.5) / 12) / weight.sum()
    distances = ((rows + 0.5) / 9 - row) ** 2 + ((columns + 0.5) / 12 - column) ** 2
    expected = {
        "brightness": grey.mean(),
        "contrast": grey.std(),
        "darkest": np.sort(grey.ravel())[round(0.02 * 107)],
        "brightest": np.sort(grey.ravel())[round(0.98 * 107)],
        "border": ring.mean(),
        "sharpness": np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean(),
        "row": row,
        "column": column,
        "spread": np.sqrt(np.sum(weight * distances) / weight.sum()),
        "colour": (image.max(axis=2).astype(float) - image.min(axis=2)).mean(),
    }
    found = {name: values[0] for name, values in measure(image[None]).items()}
    assert found == pytest.approx(expected, rel=1e-5)  # measured in float32


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3]), st.integers(0, 255))
def test_any_size_can_be_measured(height, width, channels, level):
    image = np.full((2, height, width, channels), level, np.uint8)
    found = measure(image)
    assert set(found) == set(FEATURES)
    assert all(np.isfinite(values).all() for values in found.values())
    assert TrainingStatistics.fit(image).drift_warnings(image) == [(), ()]


def test_statistics_survive_json(statistics):
    assert TrainingStatistics.from_json(statistics.to_json()) == statistics


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "Expected statistics of training images, got KeyError"),
        ({"images": "many", "ranges": {}}, "Expected statistics of training images, got ValueError"),
        (
            {"images": 1, "ranges": {name: [0, 1] for name in FEATURES}},
            "Expected three bounds for brightness",
        ),
        (
            {"images": 1, "ranges": {name: [0, 1, float("nan")] for name in FEATURES}},
            "Expected three bounds for brightness",
        ),
    ],
    ids=["empty", "no number", "two bounds", "NaN"],
)
def test_damaged_statistics_are_refused(value, message):
    with pytest.raises(DataError, match=message):
        TrainingStatistics.from_json(value)


def test_no_images_have_no_statistics():
    with pytest.raises(DataError, match=r"Expected at least one training image, got none\."):
        TrainingStatistics.fit(np.empty((0, 8, 8, 1), np.uint8))
