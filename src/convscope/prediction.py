"""Image files → predictions: found, decoded, brought to size, predicted some at a time, judged.

An input is a file, a folder (all files below it with an image's ending, in sorted order; other files are
passed over), or ``-``: standard input, which holds either one image or a list of paths, one to a line or,
as ``find -print0`` writes them, separated by zero bytes. What cannot be read is named with the reason, and
the rest is predicted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.dataset import printable
from convscope.data.decode import (
    FORMATS,
    HEAD,
    SUFFIXES,
    ImageError,
    decode,
    quiet_pillow,
    read_bytes,
    sniff,
)
from convscope.errors import DataError, UsageError, expected_got
from convscope.export import Bundle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STANDARD_INPUT = "-"
RANKED = 3
PLACES = ("second", "third")
# Of a row in a table of predictions; those of a failure are empty but for its file and the error.
COLUMNS = (
    "file", "label", "probability", "second", "second_probability", "third", "third_probability", "abstained",
    "warnings", "error",
)  # fmt: skip
# Images decoded before the network is asked; enough to keep it busy, little enough for large photographs.
CHUNK = 64
MOST_SHOWN = 60
ACROSS = 6


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the network makes of one image.

    Attributes
    ----------
    name : str
        The image's path, printable.
    ranked : tuple of (str, float)
        The most probable classes with their probabilities, up to three, the most probable first.
    abstained : bool
        Whether the highest probability is below the threshold that was asked for.
    drift_warnings : tuple of str
        What about the image is unlike the training images.
    distance : float or None
        How far it is from them in the network's features; None where that is not known.
    pixels : ndarray of shape (height, width, channels), uint8
        The image in the size that the network takes.
    probabilities : ndarray of shape (classes,), float32
        Of all classes, by position.
    """

    name: str
    ranked: tuple[tuple[str, float], ...]
    abstained: bool
    drift_warnings: tuple[str, ...]
    distance: float | None
    pixels: NDArray[np.uint8] = field(repr=False, compare=False)
    probabilities: NDArray[np.float32] = field(repr=False, compare=False)

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.ranked[0][0]

    @property
    def probability(self) -> float:
        """Its probability."""
        return self.ranked[0][1]

    def to_row(self) -> dict[str, Any]:
        """Give the prediction as a row of a table; the label of one that abstained is None."""
        row: dict[str, Any] = {"file": self.name, "label": None if self.abstained else self.label}
        row["probability"] = self.probability
        for place, (label, value) in zip(PLACES, self.ranked[1:], strict=False):
            row |= {place: label, f"{place}_probability": value}
        return row | {"abstained": self.abstained, "warnings": "; ".join(self.drift_warnings)}

    def to_json(self) -> dict[str, Any]:
        """Give the prediction as JSON values; the label of one that abstained is null."""
        return {
            "file": self.name,
            "label": None if self.abstained else self.label,
            "probability": self.probability,
            "abstained": self.abstained,
            "ranked": [{"label": label, "probability": value} for label, value in self.ranked],
            "warnings": list(self.drift_warnings),
            "distance": self.distance,
        }


@dataclass(frozen=True)
class Failure:
    """An input that could not be predicted: its path, printable; what was expected and what was found."""

    name: str
    reason: str

    def to_row(self) -> dict[str, Any]:
        """Give the failure as a row of the same table."""
        return {"file": self.name, "error": self.reason}

    def to_json(self) -> dict[str, str]:
        """Give the failure as JSON values."""
        return {"file": self.name, "reason": self.reason}


def in_csv(row: Mapping[str, Any]) -> dict[str, Any]:
    """Write the numbers of a row as CSV files have them."""
    return {key: f"{value:.6f}" if isinstance(value, float) else value for key, value in row.items()}


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image that has not been read yet: a file, or the bytes that came through standard input."""

    name: str
    where: str | bytes = field(repr=False)

    def read(self) -> bytes:
        """Read it whole; raises ImageError."""
        return self.where if isinstance(self.where, bytes) else read_bytes(self.where, self.name)


@dataclass(frozen=True, eq=False)
class Input:
    """An image in the size that the network takes: (h, w, c)."""

    name: str
    pixels: NDArray[np.uint8] = field(repr=False)


def predict_files(
    bundle: Bundle,
    inputs: Iterable[str | Path],
    *,
    abstain: float | None = None,
    standard_input: Callable[[], bytes] | None = None,
) -> Iterator[Prediction | Failure]:
    """Predict image files one after the other, some at a time; memory stays flat however many there are.

    Parameters
    ----------
    bundle : Bundle
        The network and what it needs; see ``load_bundle``.
    inputs : iterable of str or Path
        Files, folders, ``-``.
    abstain : float, optional
        Above 0 and up to 1; a prediction with a lower probability abstains.
    standard_input : callable, optional
        Reads it whole; without it ``-`` is a file's name.

    Yields
    ------
    Prediction or Failure
        In the order of the inputs.

    Raises
    ------
    UsageError
        If the threshold is impossible.
    DataError
        If the network computes NaN.

    Examples
    --------
    >>> import convscope
    >>> images = np.zeros((2, 8, 8, 1), np.uint8)
    >>> model = convscope.build("simple", (8, 8, 1), classes=3)
    >>> preprocess = convscope.Preprocess.fit(images)
    >>> bundle = Bundle.from_model(model, preprocess, ("a", "b", "c"))
    >>> [result] = predict_files(bundle, ["no/such.png"])
    >>> result.reason
    'Expected no/such.png to be an image, got no such file. Check its path.'
    """
    require_threshold(abstain)
    return predict_sources(bundle, find_sources(inputs, standard_input), abstain or 0.0)


def require_threshold(value: float | None) -> None:
    """Refuse a probability below which to abstain that is none; with None a prediction never abstains."""
    if value is not None and not 0 < value <= 1:
        raise UsageError(expected_got("a threshold above 0 and up to 1", value, "0.8 is a common choice."))


def predict_sources(
    bundle: Bundle, sources: Iterable[ImageSource | Failure], threshold: float
) -> Iterator[Prediction | Failure]:
    """Predict some sources at a time."""
    waiting = iter(sources)
    while chunk := list(islice(waiting, CHUNK)):
        with quiet_pillow():
            read = [_read(source, bundle) for source in chunk]
        predictions = iter(judge(bundle, [one for one in read if not isinstance(one, Failure)], threshold))
        for one in read:
            yield one if isinstance(one, Failure) else next(predictions)


def _read(source: ImageSource | Failure, bundle: Bundle) -> Input | Failure:
    """Read one image and bring it to size."""
    try:
        return source if isinstance(source, Failure) else read_input(source.read(), source.name, bundle)
    except ImageError as error:
        return Failure(source.name, str(error))


def read_input(raw: bytes, name: str, bundle: Bundle) -> Input | Failure:
    """Decode an image file and bring it to size; call it inside ``quiet_pillow``."""
    try:
        image = decode(raw, name, bundle.preprocess.depth)
        return Input(name, bundle.preprocess.resize_to_input([image])[0])
    except DataError as error:
        return Failure(name, str(error))


def judge(bundle: Bundle, inputs: Sequence[Input], threshold: float = 0.0) -> list[Prediction]:
    """Ask the network, and compare with the training images."""
    if not inputs:
        return []
    pixels = np.stack([one.pixels for one in inputs])  # (n, h, w, c)
    probabilities, distances = bundle.predict_with_distances(pixels)
    drift_warnings = bundle.warnings(pixels, distances)
    measured = [None] * len(inputs) if distances is None else map(float, distances)
    predictions = []
    for one, row, odd, far in zip(inputs, probabilities, drift_warnings, measured, strict=True):
        order = np.argsort(-row, kind="stable")[:RANKED]
        ranked = tuple((bundle.class_names[index], float(row[index])) for index in order)
        predictions.append(Prediction(one.name, ranked, ranked[0][1] < threshold, odd, far, one.pixels, row))
    return predictions


def find_sources(
    inputs: Iterable[str | Path], standard_input: Callable[[], bytes] | None
) -> Iterator[ImageSource | Failure]:
    """Find the images that the inputs mean."""
    for one in inputs:
        if standard_input is not None and str(one) == STANDARD_INPUT:
            yield from _from_standard_input(standard_input())
        else:
            yield from _from_path(Path(one))


def _from_standard_input(content: bytes) -> Iterator[ImageSource | Failure]:
    """Take what came through standard input as one image, or as a list of paths."""
    if sniff(content[:HEAD]) in FORMATS:
        yield ImageSource(STANDARD_INPUT, content)
        return
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    paths = [os.fsdecode(line) for line in lines if line.strip()]
    if not paths:
        yield Failure(
            STANDARD_INPUT, expected_got("an image or a list of paths on standard input", "nothing")
        )
    for path in paths:
        yield from _from_path(Path(path))


def _from_path(path: Path) -> Iterator[ImageSource | Failure]:
    """Find the images of a file or a folder."""
    name = printable(str(path))
    if "\0" in str(path):
        yield Failure(name, expected_got("the path of an image", f"{name}, with a zero byte in it"))
        return
    if not path.is_dir():
        yield ImageSource(name, str(path))
        return
    try:
        from convscope.data.sources.folder import walk

        found = walk(path)
    except DataError as error:
        yield Failure(name, str(error))
        return
    images = [file for file in found.files if Path(file).suffix.lower() in SUFFIXES]
    for file in images:
        yield ImageSource(printable(str(path / file)), str(path / file))
    for finding in found.findings:
        if finding.kind != "repeated_link":  # what it leads to has been predicted
            for entry, detail in zip(finding.names, finding.details, strict=True):
                yield Failure(f"{name}/{entry}", expected_got("a file or a folder", detail))
    if not images:
        yield Failure(
            name, expected_got(f"images in {name}", "none", f"Endings: {' '.join(sorted(SUFFIXES))}.")
        )


def draw_sheet(bundle: Bundle, predictions: Sequence[Prediction]) -> Figure:
    """Draw what the network sees: the first 60 images after preprocessing, with what it makes of them."""
    from convscope.plotting.images import as_pictures, image_grid, message_figure
    from convscope.plotting.style import BLUE, GREY, RED, shorten

    shown = predictions[:MOST_SHOWN]
    if not shown:
        return message_figure("What the network sees", "No image could be read.")
    values = bundle.preprocess.apply(np.stack([one.pixels for one in shown]))
    size = "×".join(map(str, bundle.preprocess.input_shape))
    of = f" of {len(predictions):,}" if len(predictions) > len(shown) else ""
    title = f"What the network sees: {len(shown)}{of} inputs of {size}, after preprocessing"
    return image_grid(
        as_pictures(values),
        [f"{shorten(one.label, 16)} ({one.probability:.2f})" for one in shown],
        f"{title}\nblue: like the training images; red: unlike them; grey: abstains",
        ACROSS,
        below=[shorten(one.name, 26, keep_end=True) for one in shown],
        colours=[GREY if one.abstained else RED if one.drift_warnings else BLUE for one in shown],
    )
