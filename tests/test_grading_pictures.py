"""Lesson 7: photographs, what is made of them, and what shifts cost."""

import convscope  # isort: skip  (it chooses Keras's back end, before Keras is imported)
import numpy as np
import pytest
from lesson_namespaces import check, checked_wrong, solved
from PIL import Image

from convscope.errors import DataError
from convscope.teaching.lessons import make_photographs, read_pictures
from convscope.teaching.lessons.data import photograph


@pytest.mark.parametrize("task", ["7.1", "7.2", "7.3"])
def test_the_solution_is_right(task):
    verdict = check(task)
    assert verdict.state == "right", str(verdict)


def prepare(picture):
    return solved(7)["prepare"](picture)


def resized(picture, size=(28, 28)):
    return np.asarray(Image.fromarray(picture).resize(size))[..., np.newaxis]


def with_box(length):
    """Prepare as the solution does, but to another length."""

    def prepare_to(picture):
        own = prepare(picture)[..., 0]
        rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
        digit = own[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = (max(1, round(side * length / max(digit.shape))) for side in digit.shape)
        small = np.asarray(Image.fromarray(digit).resize((width, height)))
        result = np.zeros((28, 28, 1), np.uint8)
        top, left = (28 - height) // 2, (28 - width) // 2
        result[top : top + height, left : left + width, 0] = small
        return result

    return prepare_to


def stretched(picture):
    own = prepare(picture)[..., 0]
    rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
    digit = own[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    result = np.zeros((28, 28, 1), np.uint8)
    result[2:26, 2:26, 0] = np.asarray(Image.fromarray(digit).resize((24, 24)))
    return result


WRONG_PREPARATIONS = {
    "not-inverted": (resized, "dark on white: 255"),
    "inverted-only": (lambda picture: 255 - resized(picture), "not dark grey: subtract its brightness"),
    "too-large": (with_box(28), "Leave a margin"),
    "too-small": (with_box(12), "Cut away the paper first"),
    "stretched": (stretched, "One scale for both directions"),
    "in-the-corner": (lambda p: np.roll(prepare(p), (-2, -2), axis=(0, 1)), "their centre of mass"),
    "channel-axis-forgotten": (lambda p: prepare(p)[..., 0], "The channel axis is missing"),
    "scaled-already": (lambda p: prepare(p) / np.float32(255), "as the training images were before scaling"),
    "pale": (lambda p: prepare(p) // 2, "Stretch the contrast"),
    "another-size": (lambda p: resized(p, (32, 32)), "28×28 pixels and one channel"),
    "nothing": (lambda p: None, "End the function with return"),
    "raises": (lambda p: p[9999], "It was called with a uint8 picture"),
}


@pytest.mark.parametrize(("function", "message"), WRONG_PREPARATIONS.values(), ids=WRONG_PREPARATIONS)
def test_wrong_preparations(function, message):
    checked_wrong("7.1", message, prepare=function)


def unscaled(lesson):
    prepared = np.stack([prepare(picture) for picture in lesson["pictures"]]).astype("float32")
    return np.mean(convscope.predict(lesson["model"], prepared).argmax(axis=1) == lesson["digits"])


def as_they_are(lesson):
    return np.mean(convscope.predict(lesson["model"], lesson["x_raw"]).argmax(axis=1) == lesson["digits"])


WRONG_ACCURACIES = {
    "per-cent": (lambda n: 100 * n["accuracy_prepared"], "this is in per cent"),
    "as-they-are": (as_they_are, "call prepare first"),
    "of-the-test-images": (lambda n: 0.987, "Prepare every picture, predict, compare"),
    "unscaled": (unscaled, "preprocess.apply comes after prepare"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_ACCURACIES.values(), ids=WRONG_ACCURACIES)
def test_wrong_accuracies(wrong, message):
    checked_wrong("7.2", message, accuracy_prepared=wrong(solved(7)))


def by_shift(lesson, axis):
    def right(shift):
        images = np.roll(lesson["x_some"], shift, axis=axis)
        return np.mean(convscope.predict(lesson["model"], images).argmax(axis=1) == lesson["labels_some"])

    return [right(shift) for shift in lesson["SHIFTS"]]


WRONG_SHIFTS = {
    "down": (lambda n: by_shift(n, 1), "That axis runs down the image"),
    "another-images-label": (lambda n: by_shift(n, 0), "Axis 0 runs over the images"),
    "not-shifted": (lambda n: n["accuracy_by_shift"][:1] * 5, "predict the shifted images"),
    "per-cent": (lambda n: 100 * np.array(n["accuracy_by_shift"]), "these are in per cent"),
    "too-few": (lambda n: n["accuracy_by_shift"][:2], "5 accuracies, one for each shift"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_SHIFTS.values(), ids=WRONG_SHIFTS)
def test_wrong_shifts(wrong, message):
    checked_wrong("7.3", message, accuracy_by_shift=wrong(solved(7)))


# Pictures


def test_photographs_are_dark_on_light_and_the_same_each_time():
    digits = convscope.load("digits")
    first, labels = make_photographs(digits, count=5)
    second, _ = make_photographs(digits, count=5)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert labels.tolist() == digits.test.labels[:5].tolist()
    for picture in first:
        assert picture.dtype == np.uint8
        assert picture.ndim == 2
        assert np.median(picture) > 150
        assert picture.min() < 90


def test_a_blank_image_becomes_blank_paper():
    picture = photograph(np.zeros((28, 28), np.uint8), np.random.default_rng(0))
    assert picture.min() > 120


def test_pictures_are_read_in_order_with_their_digits(tmp_path):
    Image.new("RGB", (2000, 1000), (200, 210, 220)).save(tmp_path / "7-photographed.jpg")
    Image.new("L", (30, 40), 255).save(tmp_path / "3.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    pictures, digits = read_pictures(tmp_path)
    assert digits.tolist() == [3, 7]
    assert [picture.shape for picture in pictures] == [(40, 30), (320, 640)]
    assert all(picture.dtype == np.uint8 for picture in pictures)


def test_a_picture_without_a_digit_in_its_name_is_refused(tmp_path):
    Image.new("L", (30, 40), 255).save(tmp_path / "seven.png")
    with pytest.raises(DataError, match=r"name to begin with its digit, got seven\.png\. Rename it"):
        read_pictures(tmp_path)
