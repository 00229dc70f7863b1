"""Lesson 7: pictures of your own digits, brought into the form of the training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import expected_got
from convscope.teaching.grading.verdict import CheckFailed, as_array, as_number, call_answer, close, require
from convscope.teaching.lessons.data import cut_out, photograph

Array = NDArray[Any]
Prepare = Callable[[Array], Any]

SIDE = 28
INK = 64  # brighter than this counts as ink in a prepared image
CENTRE_TOLERANCE = 1.6  # pixels; rounding to whole pixels may cost one in each direction


def judge_prepare(prepare: Prepare, box: int) -> str:
    """Judge a function that makes a photograph, uint8 (H, W), look like a training image (28, 28, 1).

    ``box`` is the longest side of a digit in the training images, in pixels.
    """
    require(callable(prepare), expected_got("`prepare` as a function", type(prepare).__name__))
    generator = np.random.default_rng(1338)
    drawings = _drawings()
    for name, drawing in drawings.items():
        picture = photograph(drawing, generator)
        _require_prepared(_call(prepare, picture), name, drawing, box)
    return f"Bright on black, {box} pixels long, in the middle: right for {len(drawings)} pictures."


def _drawings() -> dict[str, NDArray[np.uint8]]:
    """Draw three simple digits whose size and centre are known."""
    down, across = np.mgrid[0:SIDE, 0:SIDE]
    ring = np.abs(np.hypot((down - 13.5) / 10, (across - 13.5) / 7) - 0.85) < 0.15
    bar = (abs(across - 13.5) < 2) & (abs(down - 13.5) < 10)
    hook = ((abs(across - 8.5) < 2) & (abs(down - 13.5) < 10)) | ((down > 19) & (down < 24) & (across > 6))
    hook &= across < 20
    shapes = {"a ring": ring, "a bar": bar, "a hook": hook}
    return {name: (255 * shape).astype(np.uint8) for name, shape in shapes.items()}


def _call(prepare: Prepare, picture: Array) -> Array:
    called = f"It was called with a uint8 picture of shape {picture.shape}."
    result = call_answer(prepare, "prepare(picture) to give an image", called, picture.copy())
    return as_array(result, "prepare(picture)")


def _require_prepared(image: Array, name: str, drawing: Array, box: int) -> None:
    _require_form(image)
    grey = image[..., 0].astype(np.float64)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    brightness = float(np.median(border))
    require(
        brightness < INK / 2,
        expected_got(f"a black background for {name}", f"a brightness of {brightness:.0f} at the border"),
        "Training images are bright on black; a photograph is dark on white: 255 − picture."
        if brightness > 127
        else "The paper must become black, not dark grey: subtract its brightness, and cut at 0.",
    )
    ink = grey > INK
    require(
        ink.any() and grey.max() > 150,
        expected_got(f"bright ink for {name}", f"at most {grey.max():.0f}"),
        "Stretch the contrast: the darkest ink becomes 255, the paper 0.",
    )
    require(
        ink.mean() < 0.5,
        expected_got(f"ink on less than half of the image for {name}", f"on {ink.mean():.0%}"),
        "Paper in the shade counts as ink: set everything below a threshold to 0.",
    )
    _require_size(ink, name, drawing, box)
    down, across = (float(np.average(np.arange(SIDE), weights=grey.sum(axis=axis))) for axis in (1, 0))
    middle = (SIDE - 1) / 2
    require(
        max(abs(down - middle), abs(across - middle)) <= CENTRE_TOLERANCE,
        expected_got(f"the ink of {name} around the middle, at 13.5", f"around ({down:.1f}, {across:.1f})"),
        "Training images are centred by the mean position of their ink, their centre of mass.",
        "Compute the centre of mass, and paste the digit so that it falls on the middle.",
    )


def _require_form(image: Array) -> None:
    shape = (SIDE, SIDE, 1)
    require(
        image.shape == shape,
        expected_got(f"prepare(picture) of shape {shape}", image.shape),
        "The channel axis is missing: image[..., np.newaxis]"
        if image.shape == shape[:2]
        else "A training image has 28×28 pixels and one channel.",
    )
    require(
        image.dtype == np.uint8,
        expected_got("prepare(picture) as uint8, 0 to 255", image.dtype),
        "Give pixels, as the training images were before scaling; the scaling comes after, the same for all.",
        "np.rint(….clip(0, 255)).astype(np.uint8)",
    )


def _require_size(ink: Array, name: str, drawing: Array, box: int) -> None:
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    longest = max(height, width)
    require(
        abs(longest - box) <= 2,
        expected_got(f"{name} {box} pixels long", f"{longest} pixels"),
        "Cut away the paper first, then bring the digit to size."
        if longest < box
        else "Leave a margin: a digit that fills the image is larger than any the network has seen.",
        f"scale = {box} / max(digit.shape)",
    )
    cut = cut_out(drawing)
    wanted, found = cut.shape[1] / cut.shape[0], width / height
    require(
        abs(found - wanted) <= 0.2 * max(wanted, 0.5),
        expected_got(f"{name} {wanted:.2f} times as wide as high", f"{found:.2f} times"),
        "One scale for both directions: otherwise a 1 becomes a block.",
    )


def judge_own_accuracy(
    model: Any,
    preprocess: Any,
    pictures: Sequence[Array],
    digits: Any,
    prepare: Prepare,
    accuracy_prepared: Any,
) -> str:
    """Judge the accuracy on prepared pictures."""
    found, labels = as_number(accuracy_prepared, "accuracy_prepared"), np.asarray(digits)
    prepared = np.stack([_call(prepare, picture) for picture in pictures])
    right = _share_right(model, preprocess.apply(prepared), labels)
    raw = _share_right(model, preprocess.apply([picture[..., np.newaxis] for picture in pictures]), labels)
    unscaled = _share_right(model, prepared.astype(np.float32), labels)
    if close(found, right, 1e-3):
        require(
            right > raw,
            expected_got(f"more than the {raw:.1%} that the pictures give as they are", f"{right:.1%}"),
            "Look at the prepared pictures beside a few training images: what differs?",
        )
        return f"{right:.1%} of {len(labels)} pictures; {raw:.1%} of them as they are."
    hint = "Prepare every picture, predict, compare with `digits`."
    if close(found, 100 * right, 1e-3):
        hint = "A share lies between 0 and 1; this is in per cent."
    elif close(found, raw, 1e-3):
        hint = "That is the accuracy of the pictures as they are: call prepare first."
    elif close(found, unscaled, 1e-3):
        hint = "The network was trained on scaled pixels: preprocess.apply comes after prepare."
    answer = "preprocess.apply(np.stack([prepare(picture) for picture in pictures]))"
    raise CheckFailed(expected_got("the accuracy of the prepared pictures", f"{found:g}"), (hint, answer))


def judge_shifts(
    model: Any,
    data_format: str,
    x_some: Array,
    labels_some: Array,
    shifts: Sequence[int],
    accuracy_by_shift: Any,
) -> str:
    """Judge the accuracy of test images that were shifted to the right by some pixels."""
    found = as_array(accuracy_by_shift, "accuracy_by_shift")
    require(
        found.shape == (len(shifts),),
        expected_got(f"{len(shifts)} accuracies, one for each shift", f"shape {found.shape}"),
        "for shift in SHIFTS: …",
    )
    across = 2 if data_format == "channels_last" else 3
    right = _accuracies(model, x_some, labels_some, shifts, across, fill=True)
    rolled = _accuracies(model, x_some, labels_some, shifts, across, fill=False)
    if any(np.allclose(found, accuracies, atol=0.005) for accuracies in (right, rolled)):
        return f"From {right[0]:.1%} to {right[-1]:.1%} at {shifts[-1]} pixels."
    hint = "Shift every image by the same number of pixels along its width, predict, compare."
    if np.allclose(found, 100 * right, atol=0.5) or np.allclose(found, 100 * rolled, atol=0.5):
        hint = "A share lies between 0 and 1; these are in per cent."
    elif np.ptp(found) < 1e-9:
        hint = "All the same: predict the shifted images, not the ones they were made of."
    elif np.allclose(
        found, _accuracies(model, x_some, labels_some, shifts, across - 1, fill=False), atol=0.005
    ):
        hint = "That axis runs down the image; the width is the next one."
    elif np.allclose(found, _accuracies(model, x_some, labels_some, shifts, 0, fill=False), atol=0.005):
        hint = "Axis 0 runs over the images: shifting it gives each image another one's label."
    message = expected_got("the accuracy at each shift", np.array2string(found, precision=3))
    raise CheckFailed(message, (hint, f"np.roll(x_some, shift, axis={across})"))


def _accuracies(
    model: Any, images: Array, labels: Array, shifts: Sequence[int], axis: int, fill: bool
) -> NDArray[np.float64]:
    """Compute the accuracy at each shift; with `fill` black pixels follow from the left."""
    accuracies = []
    for shift in shifts:
        moved = np.roll(images, shift, axis)
        if fill and shift:
            np.moveaxis(moved, axis, 0)[:shift] = 0
        accuracies.append(_share_right(model, moved, labels))
    return np.array(accuracies)


def _share_right(model: Any, images: Array, labels: Array) -> float:
    from convscope.training.api import predict

    return float(np.mean(predict(model, images).argmax(axis=1) == labels))
