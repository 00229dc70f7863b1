"""Lesson 1: the split, the scaling, the channel axis, the one-hot targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.dataset import Dataset
from convscope.errors import expected_got
from convscope.teaching.grading.verdict import as_array, as_shape, require, row_counts

VALIDATION_SHARE = 0.3
# Rows whose values are compared; a wrong transformation shows in the first ones already.
COMPARED_ROWS = 500
FLOAT32_TOLERANCE = 1e-5

Array = NDArray[Any]


def judge_split(
    images: Array,
    labels: Array,
    test_images: Array,
    images_train: Any,
    labels_train: Any,
    images_val: Any,
    labels_val: Any,
) -> str:
    """Judge a split: every image exactly once, with its own label, 30 % for validation, at random."""
    train, val = as_array(images_train, "images_train"), as_array(images_val, "images_val")
    own, other = as_array(labels_train, "labels_train"), as_array(labels_val, "labels_val")
    _require_pairs(train, own, "train")
    _require_pairs(val, other, "val")
    _require_share(len(train), len(val), len(images))
    require(
        train.shape[1:] == images.shape[1:],
        expected_got(f"images of shape {images.shape[1:]}", train.shape[1:]),
        "Split the images as they are; their shape changes later.",
    )
    _require_each_once(row_counts(images), row_counts(train), row_counts(val), row_counts(test_images))
    pairs = row_counts(images, labels.astype(np.int64))
    kept = row_counts(train, own.astype(np.int64)) + row_counts(val, other.astype(np.int64))
    require(
        pairs == kept,
        expected_got("each image with its own label", "labels that belong to other images"),
        "Images and labels must be shuffled together.",
        "train_test_split(images, labels, …) takes both and keeps the pairs.",
    )
    _require_random(images, train, val)
    _require_all_classes(own, other)
    return f"{len(train):,} images to train on, {len(val):,} to validate with, each in one part only."


def _require_pairs(images: Array, labels: Array, part: str) -> None:
    require(
        labels.ndim == 1 and len(images) == len(labels),
        expected_got(
            f"one label for each image in `images_{part}`",
            f"{len(images):,} images and labels of shape {labels.shape}",
        ),
        "train_test_split gives four results for two arrays: mind their order.",
        "images_train, images_val, labels_train, labels_val = train_test_split(images, labels, …)",
    )


def _require_share(train: int, val: int, total: int) -> None:
    share = val / max(1, train + val)
    swapped = abs(share - (1 - VALIDATION_SHARE)) < 0.01
    found = f"{share:.0%} ({val:,} of {train + val:,} images)"
    require(
        abs(share - VALIDATION_SHARE) < 0.01,
        expected_got("30 % of the images for validation", found),
        "The two parts are the wrong way round." if swapped else "See the argument test_size.",
        "test_size=0.3 gives the second part 30 %.",
    )
    require(
        abs(train + val - total) <= 1 or train + val > total,
        expected_got(f"all {total:,} images in one of the two parts", f"{train + val:,}"),
        "Split the whole of `images`.",
    )


def _require_each_once(
    everything: Counter[bytes], train: Counter[bytes], val: Counter[bytes], test: Counter[bytes]
) -> None:
    """Require that the parts make up the whole; say whether images leaked instead."""
    if train + val == everything:
        return
    foreign = (train + val) - everything
    from_test = sum((foreign & test).values())
    require(
        not from_test,
        expected_got("training images only", f"{from_test:,} test images among them"),
        "The test images answer one question, at the very end. Nothing else may see them.",
    )
    shared = sum((train & val).values())
    require(
        not shared,
        expected_got("no image in both parts", f"{shared:,} images that are in both"),
        "What the network was trained on says nothing about images that are new to it.",
        "Take both parts from one call of train_test_split.",
    )
    require(
        not foreign,
        expected_got("the images as they were loaded", f"{sum(foreign.values()):,} that were changed"),
        "Split first; scaling comes in the next task.",
    )
    require(train + val == everything, expected_got("every image once", "some missing, others twice"))


def _require_random(images: Array, train: Array, val: Array) -> None:
    in_order = np.array_equal(train, images[: len(train)]) or np.array_equal(val, images[: len(val)])
    require(
        not in_order,
        expected_got("images taken at random", "the rows in the order of the file, cut in two"),
        "Files are often sorted: by class, by writer, by date. Then the last rows are unlike the first.",
        "train_test_split shuffles, unless shuffle=False.",
    )


def _require_all_classes(train: Array, val: Array) -> None:
    missing = sorted(set(np.unique(train)) ^ set(np.unique(val)))
    require(
        not missing,
        expected_got(
            "every class in both parts", f"class {missing[0] if missing else ''} in only one of them"
        ),
        "See the argument stratify.",
    )


def judge_scaling(
    images_train: Array,
    images_val: Array,
    test_images: Array,
    scaler: Any,
    scaled_train: Any,
    scaled_val: Any,
    scaled_test: Any,
) -> str:
    """Judge the scaling: fitted on the training images only, per pixel, applied to all three parts."""
    raw = {"train": images_train, "val": images_val, "test": test_images}
    given = {"train": scaled_train, "val": scaled_val, "test": scaled_test}
    scaled = {part: as_array(value, f"scaled_{part}") for part, value in given.items()}
    _require_fitted_scaler(scaler, images_train)
    _require_fitted_on_training({part: len(value) for part, value in raw.items()}, scaler, images_train)
    for part, values in scaled.items():
        _require_scaled_part(values, f"scaled_{part}", raw[part].shape)
    low, high = float(scaled["train"].min()), float(scaled["train"].max())
    require(
        abs(low) < FLOAT32_TOLERANCE and abs(high - 1) < FLOAT32_TOLERANCE,
        expected_got("training values from 0 to 1", f"{low:g} to {high:g}"),
        "MinMaxScaler(feature_range=(0, 1)) brings each pixel's smallest value to 0 and its largest to 1.",
    )
    for part, values in scaled.items():
        _require_same_scaler(values, raw[part], scaler, f"scaled_{part}")
    return f"Fitted on the {len(images_train):,} training images, and applied to all three parts."


def _require_fitted_scaler(scaler: Any, images: Array) -> None:
    require(
        hasattr(scaler, "data_max_") and hasattr(scaler, "n_samples_seen_"),
        expected_got("`scaler` as a fitted MinMaxScaler", type(scaler).__name__),
        "Fit it: scaler.fit_transform(…) on the training images.",
    )
    require(
        tuple(scaler.feature_range) == (0, 1),
        expected_got("a scaler to the range from 0 to 1", tuple(scaler.feature_range)),
    )
    pixels = int(np.prod(images.shape[1:]))
    require(
        int(scaler.n_features_in_) == pixels,
        expected_got(f"a scaler for {pixels} pixels", f"one for {scaler.n_features_in_} features"),
        "The scaler takes a table: one row for each image, one column for each pixel.",
        f"images_train.reshape(len(images_train), {pixels})",
    )


def _require_fitted_on_training(counts: Mapping[str, int], scaler: Any, train: Array) -> None:
    """Say on which images the scaler was fitted, if not on the training images alone."""
    seen = int(scaler.n_samples_seen_)
    others = {
        "training and validation images": counts["train"] + counts["val"],
        "training, validation and test images": sum(counts.values()),
        "training and test images": counts["train"] + counts["test"],
        "validation images": counts["val"],
        "test images": counts["test"],
    }
    culprit = next((name for name, count in others.items() if count == seen), f"{seen:,} rows")
    again = seen in (counts["val"], counts["test"])
    require(
        seen == counts["train"],
        expected_got("a scaler fitted on the training images only", f"one fitted on the {culprit}"),
        "fit_transform fits anew: what was learned from the training images is forgotten."
        if again
        else "A scaler that has seen other images carries knowledge of them into the training.",
        "fit_transform for the training images, transform for the others.",
    )
    flat = train.reshape(len(train), -1)
    require(
        np.allclose(scaler.data_max_, flat.max(axis=0)) and np.allclose(scaler.data_min_, flat.min(axis=0)),
        expected_got("the ranges of `images_train` in the scaler", "other ranges"),
        "Fit the scaler on the raw training images, values 0 to 255.",
    )


def _require_scaled_part(values: Array, name: str, shape: tuple[int, ...]) -> None:
    flat = values.ndim == 2
    require(
        values.shape == shape,
        expected_got(f"`{name}` of shape {shape}", values.shape),
        "The scaler works on a table; make images of its rows again."
        if flat
        else "Each part keeps its own images, no more and no fewer.",
        f"….reshape({shape})",
    )
    require(
        values.dtype == np.float32,
        expected_got(f"`{name}` as float32", values.dtype),
        "Whole numbers cannot hold what lies between 0 and 1, and float64 takes twice the memory.",
        'Convert with .astype("float32") before scaling.',
    )


def _require_same_scaler(values: Array, raw: Array, scaler: Any, name: str) -> None:
    rows = raw[:COMPARED_ROWS].reshape(len(raw[:COMPARED_ROWS]), -1).astype(np.float32)
    expected = rows * scaler.scale_ + scaler.min_
    found = values[:COMPARED_ROWS].reshape(rows.shape)
    clipped = np.allclose(found, np.clip(expected, 0, 1), atol=1e-4)
    require(
        clipped or np.allclose(found, expected, atol=1e-4),
        expected_got(
            f"`{name}` as `scaler` transforms it", f"other values ({found.min():g} to {found.max():g})"
        ),
        "Every part goes through the same scaler, fitted once.",
        "scaler.transform(…), not a new scaler and not a division by hand.",
    )


def judge_channel_axis(
    data_format: str,
    scaled_train: Array,
    scaled_val: Array,
    scaled_test: Array,
    input_shape: Any,
    x_train: Any,
    x_val: Any,
    x_test: Any,
) -> str:
    """Judge the channel axis: where `image_data_format` wants it, and the images as they were."""
    height, width = scaled_train.shape[1:3]
    last = data_format == "channels_last"
    expected = (height, width, 1) if last else (1, height, width)
    shape = as_shape(input_shape, "`input_shape`")
    place = f'image_data_format() is "{data_format}": the channel axis comes {"last" if last else "first"}.'
    require(shape == expected, expected_got(f"`input_shape` {expected}", shape), place)
    scaled = {"x_train": scaled_train, "x_val": scaled_val, "x_test": scaled_test}
    for (name, before), value in zip(scaled.items(), (x_train, x_val, x_test), strict=True):
        _require_channel_axis(as_array(value, name), before, (len(before), *expected), name, place)
    return f"One image has shape {expected}, the channel axis {'last' if last else 'first'}."


def _require_channel_axis(
    images: Array, before: Array, expected: tuple[int, ...], name: str, place: str
) -> None:
    hints = {
        2: "The images are rows of pixels now; Conv2D needs height and width.",
        3: "The channel axis is missing: Conv2D takes (images, height, width, channels).",
        4: place,
    }
    require(
        images.shape == expected,
        expected_got(f"`{name}` of shape {expected}", images.shape),
        hints.get(images.ndim, place),
        f"{name} = ….reshape((len(…), *input_shape))",
    )
    flat, wanted = (
        part[:COMPARED_ROWS].reshape(len(before[:COMPARED_ROWS]), -1) for part in (images, before)
    )
    require(
        np.allclose(flat, wanted, atol=FLOAT32_TOLERANCE),
        expected_got(f"the same images in `{name}` as before", "pixels in other places"),
        "An axis of length 1 moves no pixel. Plot one image before and after.",
        "Use reshape or np.expand_dims; transpose and swapaxes turn the images.",
    )
    require(images.dtype == np.float32, expected_got(f"`{name}` as float32", images.dtype))


def judge_one_hot(
    data: Dataset,
    labels_train: Array,
    labels_val: Array,
    test_labels: Array,
    y_train: Any,
    y_val: Any,
    y_test: Any,
) -> str:
    """Judge the targets: one row for each label, a single 1 at the label."""
    labels = {"y_train": labels_train, "y_val": labels_val, "y_test": test_labels}
    for (name, own), value in zip(labels.items(), (y_train, y_val, y_test), strict=True):
        _require_one_hot(as_array(value, name), own, len(data.class_names), name)
    return f"Each label is a row of {len(data.class_names)} numbers with a single 1."


def _require_one_hot(targets: Array, labels: Array, classes: int, name: str) -> None:
    expected = (len(labels), classes)
    if targets.ndim == 1:
        hint = "These are still class numbers: the network's output is a row of probabilities."
    elif targets.ndim > 2:
        hint = "Encoded twice: use new names for the targets, so that the cell can run again."
    elif targets.shape[1:] != (classes,):
        hint = f"One column for each of the {classes} classes, 0 to {classes - 1}."
    else:
        hint = "Each part has its own labels."
    require(
        targets.shape == expected,
        expected_got(f"`{name}` of shape {expected}", targets.shape),
        hint,
        f"keras.utils.to_categorical(…, {classes})",
    )
    single = ((targets == 0) | (targets == 1)).all() and (targets.sum(axis=1) == 1).all()
    require(
        single,
        expected_got(f"a single 1 in each row of `{name}`, and else 0", targets[0]),
        "One-hot rows are made of whole labels, before any scaling.",
    )
    found = targets.argmax(axis=1)
    shifted = len(labels) and len(set((found - labels) % classes)) == 1
    require(
        np.array_equal(found, labels),
        expected_got(f"the 1 of each row of `{name}` at its label", "ones in other places"),
        "The first class is number 0, not 1." if shifted else "The rows are not in the order of the images.",
        "to_categorical(labels_train, …) for y_train, and so on for the other two.",
    )
