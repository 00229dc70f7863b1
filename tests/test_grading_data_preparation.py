"""Lesson 1: what the checks say about right and about wrong preparations."""

import numpy as np
import pytest
from lesson_namespaces import check, checked_wrong, solved
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import MinMaxScaler


@pytest.mark.parametrize("task", ["1.1", "1.2", "1.3", "1.4"])
def test_the_solution_is_right(task):
    verdict = check(task)
    assert verdict.state == "right", str(verdict)
    assert verdict.points == verdict.out_of


@pytest.fixture
def lesson():
    return dict(solved(1))


def split(images, labels, **arguments):
    names = ("images_train", "images_val", "labels_train", "labels_val")
    parts = train_test_split(images, labels, **{"test_size": 0.3, "random_state": 0, **arguments})
    return dict(zip(names, parts, strict=True))


def test_another_seed_is_right_too(lesson):
    assert check("1.1", **split(lesson["images"], lesson["labels"], random_state=7))


def shuffled_apart(lesson):
    parts = split(lesson["images"], lesson["labels"])
    return parts | {"labels_train": np.random.default_rng(0).permutation(parts["labels_train"])}


def trained_on_everything(lesson):
    parts = split(lesson["images"], lesson["labels"])
    return parts | {"images_val": parts["images_train"][:431], "labels_val": parts["labels_train"][:431]}


def with_test_images(lesson):
    images = np.concatenate([lesson["images"][:-360], lesson["test_images"]])
    labels = np.concatenate([lesson["labels"][:-360], lesson["test_labels"]])
    return split(images, labels)


def results_in_wrong_order(lesson):
    a, b, c, d = train_test_split(lesson["images"], lesson["labels"], test_size=0.3)
    return {"images_train": a, "labels_train": b, "images_val": c, "labels_val": d}


def without_a_class(lesson):
    order = np.argsort(lesson["labels"] == 9, kind="stable")
    cut = round(0.7 * len(order))
    rows = np.random.default_rng(0).permutation(order[:cut]), order[cut:]
    return {
        "images_train": lesson["images"][rows[0]],
        "labels_train": lesson["labels"][rows[0]],
        "images_val": lesson["images"][rows[1]],
        "labels_val": lesson["labels"][rows[1]],
    }


WRONG_SPLITS = {
    "last-rows": (lambda n: split(n["images"], n["labels"], shuffle=False), "in the order of the file"),
    "too-small": (lambda n: split(n["images"], n["labels"], test_size=0.1), "got 10 %"),
    "wrong-way-round": (lambda n: split(n["images"], n["labels"], test_size=0.7), "the wrong way round"),
    "labels-shuffled-apart": (shuffled_apart, "labels that belong to other images"),
    "in-both-parts": (trained_on_everything, "that are in both"),
    "test-images-among-them": (with_test_images, "test images among them"),
    "results-in-wrong-order": (results_in_wrong_order, "mind their order"),
    "scaled-already": (lambda n: split(n["images"] // 2, n["labels"]), "that were changed"),
    "only-some": (lambda n: split(n["images"][:500], n["labels"][:500]), "all 1,437 images"),
    "a-class-in-one-part-only": (without_a_class, "class 9 in only one of them"),
    "flat": (lambda n: split(n["images"].reshape(1437, -1), n["labels"]), "images of shape (28, 28)"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_SPLITS.values(), ids=WRONG_SPLITS)
def test_wrong_splits(lesson, wrong, message):
    answers = wrong(lesson)
    checked_wrong("1.1", message.replace(" %", "%"), **answers)


def scale(lesson, scaler=None, fitted_on=None, **changes):
    """Scale as a student would, with one thing different."""
    scaler = scaler or MinMaxScaler()
    parts = {
        "train": lesson["images_train"],
        "val": lesson["images_val"],
        "test": lesson["test_images"],
    }
    tables = {part: images.reshape(len(images), -1).astype("float32") for part, images in parts.items()}
    names = fitted_on or ["train"]
    scaler.fit(np.concatenate([tables[name] for name in names]))
    scaled = {
        f"scaled_{part}": scaler.transform(table).reshape(parts[part].shape) for part, table in tables.items()
    }
    return {"scaler": scaler, **scaled, **changes}


def fitted_again_on_test(lesson):
    answers = scale(lesson)
    test = lesson["test_images"]
    again = answers["scaler"].fit_transform(test.reshape(len(test), -1).astype("float32"))
    return answers | {"scaled_test": again.reshape(test.shape)}


def a_scaler_for_each_part(lesson):
    test = lesson["test_images"].reshape(360, -1).astype("float32")
    own = MinMaxScaler().fit_transform(test * 0.5 + 9).reshape(360, 28, 28)
    return scale(lesson, scaled_test=own + np.float32(0.2))


def one_range_for_all_pixels(lesson):
    scaler = MinMaxScaler().fit(lesson["images_train"].reshape(-1, 1))
    return scale(lesson) | {"scaler": scaler}


WRONG_SCALINGS = {
    "fitted-on-all": (
        lambda n: scale(n, fitted_on=["train", "val", "test"]),
        "fitted on the training, validation and test images",
    ),
    "fitted-on-training-and-validation": (
        lambda n: scale(n, fitted_on=["train", "val"]),
        "fitted on the training and validation images",
    ),
    "fitted-again-on-test": (fitted_again_on_test, "fit_transform fits anew"),
    "a-scaler-for-each-part": (a_scaler_for_each_part, "`scaled_test` as `scaler` transforms it"),
    "divided-by-255": (
        lambda n: scale(n, scaled_val=n["images_val"] / np.float32(400)),
        "as `scaler` transf",
    ),
    "not-scaled": (lambda n: scale(n, scaled_train=n["images_train"].astype("float32")), "got 0 to 255"),
    "still-uint8": (lambda n: scale(n, scaled_train=n["images_train"]), "got uint8"),
    "float64": (lambda n: scale(n, scaled_train=n["scaled_train"].astype("float64")), "got float64"),
    "still-flat": (
        lambda n: scale(n, scaled_val=n["scaled_val"].reshape(432, -1)),
        "images of its rows again",
    ),
    "one-range-for-all-pixels": (one_range_for_all_pixels, "one for 1 features"),
    "not-fitted": (lambda n: scale(n) | {"scaler": MinMaxScaler()}, "a fitted MinMaxScaler"),
    "another-range": (lambda n: scale(n, MinMaxScaler((-1, 1))), "the range from 0 to 1, got (-1, 1)"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_SCALINGS.values(), ids=WRONG_SCALINGS)
def test_wrong_scalings(lesson, wrong, message):
    checked_wrong("1.2", message, **wrong(lesson))


WRONG_CHANNEL_AXES = {
    "forgotten": (lambda n: {"x_train": n["scaled_train"]}, "The channel axis is missing"),
    "flat": (lambda n: {"x_val": n["scaled_val"].reshape(432, 784)}, "needs height and width"),
    "first": (lambda n: {"x_train": n["scaled_train"][:, np.newaxis]}, "the channel axis comes last"),
    "input-shape-without": (lambda n: {"input_shape": (28, 28)}, "`input_shape` (28, 28, 1), got (28, 28)"),
    "input-shape-first": (lambda n: {"input_shape": (1, 28, 28)}, 'image_data_format() is "channels_last"'),
    "turned": (
        lambda n: {"x_test": n["scaled_test"].transpose(0, 2, 1)[..., np.newaxis]},
        "pixels in other places",
    ),
    "raw": (lambda n: {"x_train": n["images_train"][..., np.newaxis]}, "pixels in other places"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_CHANNEL_AXES.values(), ids=WRONG_CHANNEL_AXES)
def test_wrong_channel_axes(lesson, wrong, message):
    checked_wrong("1.3", message, **wrong(lesson))


def test_channels_first_is_right_where_keras_wants_it(lesson):
    parts = {f"x_{part}": lesson[f"scaled_{part}"][:, np.newaxis] for part in ("train", "val", "test")}
    assert check("1.3", data_format="channels_first", input_shape=(1, 28, 28), **parts)


WRONG_TARGETS = {
    "not-one-hot": (lambda n: {"y_train": n["labels_train"]}, "still class numbers"),
    "encoded-twice": (lambda n: {"y_train": np.eye(10)[n["y_train"].astype(int)]}, "Encoded twice"),
    "eleven-columns": (lambda n: {"y_val": np.eye(11)[n["labels_val"]]}, "for each of the 10 classes"),
    "from-one": (lambda n: {"y_test": np.roll(n["y_test"], 1, axis=1)}, "class is number 0, not 1"),
    "in-another-order": (lambda n: {"y_train": n["y_train"][::-1]}, "not in the order of the images"),
    "of-another-part": (lambda n: {"y_val": n["y_test"]}, "Each part has its own labels"),
    "scaled": (lambda n: {"y_train": n["y_train"] * 0.9}, "a single 1 in each row"),
    "words": (lambda n: {"y_train": n["labels_train"].astype(str)}, "an array of numbers"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_TARGETS.values(), ids=WRONG_TARGETS)
def test_wrong_targets(lesson, wrong, message):
    checked_wrong("1.4", message, **wrong(lesson))
