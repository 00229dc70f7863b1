"""A first look at each image file, in several threads, and the size that suits most of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from convscope.data.decode import DEPTH, FORMATS, TRAITS, ImageError, read_header, read_peak
from convscope.data.findings import count
from convscope.data.source import ImageSource, Reader
from convscope.errors import DataError, UsageError, sentence, unknown_name
from convscope.preprocessing import RESIZES

# The longest side that a folder's images get unless another size is asked for.
LARGEST_SIDE = 96
# Beyond this many threads, decoding waits for the disk.
MOST_WORKERS = 64
# Sides are multiples of this, so that pooling halves them without rest.
SIDE_STEP = 8

_Answer = TypeVar("_Answer")
Progress = Callable[[int, int], None]  # takes how many are done, and of how many


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class ReadOptions:
    """How images are brought to one size.

    Parameters
    ----------
    size : int or (int, int), optional
        Height and width; without it a size is chosen that suits most images, at most 96 on the longer side.
    channels : {1, 3}, optional
        Without it 1 if every image is grey, else 3.
    resize : {"letterbox", "crop", "stretch"}
        As in ``Preprocess``.
    workers : int, optional
        Threads that read and decode; 0 for none beside the caller's. Without it as many as there are cores,
        up to 8. They change how long reading takes, and nothing else.

    Raises
    ------
    UsageError
        If a size, a number of channels or of workers cannot be.

    Examples
    --------
    >>> ReadOptions(size=32).shape
    (32, 32)
    """

    size: int | tuple[int, int] | None = None
    channels: int | None = None
    resize: str = "letterbox"
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise unknown_name("way to resize", self.resize, RESIZES)
        if self.channels not in {None, 1, 3}:
            raise UsageError(sentence("1 or 3 channels", self.channels))
        if self.shape and not all(1 <= side <= 4096 for side in self.shape):
            raise UsageError(sentence("a height and a width from 1 to 4096 pixels", self.size))
        if self.workers is not None and not 0 <= self.workers <= MOST_WORKERS:
            raise UsageError(sentence(f"from 0 to {MOST_WORKERS} workers", self.workers))

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width, if they are given."""
        if self.size is None:
            return None
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])


@dataclass
class Survey:
    """What each image file says about itself; a row for each, zeros where it could not be read.

    Attributes
    ----------
    heights, widths : ndarray of shape (n,), int32
        Of the upright image, in pixels.
    formats : ndarray of shape (n,), uint8
        Position in ``FORMATS``.
    channels : ndarray of shape (n,), uint8
        1 or 3.
    traits : ndarray of shape (n,), uint8
        Bit k is set where ``TRAITS[k]`` applies.
    digests : ndarray of shape (n, 32), uint8
        SHA-256 of the file.
    peaks : ndarray of shape (n,), uint32
        The largest value of an image of more than 8 bits, else 0.
    problems : dict of int to (kind, found, message)
        Why an image cannot be used.
    """

    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    formats: NDArray[np.uint8]
    channels: NDArray[np.uint8]
    traits: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    peaks: NDArray[np.uint32]
    problems: dict[int, tuple[str, str, str]]

    @classmethod
    def empty(cls, count: int) -> Survey:
        """Make a survey to be filled."""
        return cls(
            heights=np.zeros(count, np.int32),
            widths=np.zeros(count, np.int32),
            formats=np.zeros(count, np.uint8),
            channels=np.zeros(count, np.uint8),
            traits=np.zeros(count, np.uint8),
            digests=np.zeros((count, 32), np.uint8),
            peaks=np.zeros(count, np.uint32),
            problems={},
        )

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], problems: Iterable[tuple[int, str, str, str]]
    ) -> Survey:
        """Rebuild a survey from its columns and problems."""
        columns = {name: arrays[name] for name in COLUMNS}
        return cls(**columns, problems={number: (kind, found, why) for number, kind, found, why in problems})

    def refuse(self, position: int, error: ImageError) -> None:
        """Note why an image cannot be used."""
        self.problems[position] = (error.kind, error.found, str(error))

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The columns, by name."""
        return {name: getattr(self, name) for name in COLUMNS}

    def has_trait(self, trait: str) -> NDArray[np.bool_]:
        """Tell which images have a trait."""
        return (self.traits >> TRAITS.index(trait) & 1).astype(bool)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Tell which images can be used, as far as is known."""
        usable = np.ones(len(self.heights), bool)
        usable[list(self.problems)] = False
        return usable

    @property
    def depth(self) -> int:
        """How many bits the usable images of more than 8 bits have in use, all together."""
        deep = self.peaks[self.usable & self.has_trait("sixteen_bit")]
        return max(8, int(deep.max()).bit_length()) if len(deep) else DEPTH


class NothingUsableError(DataError):
    """Images of which none can be used; carries what is wrong with each."""

    def __init__(self, message: str, survey: Survey) -> None:
        super().__init__(message)
        self.survey = survey


COLUMNS = ("heights", "widths", "formats", "channels", "traits", "digests", "peaks")


def survey_images(
    source: ImageSource, progress: Progress = no_progress, workers: int | None = None
) -> Survey:
    """Read what each image says about itself.

    Parameters
    ----------
    source : ImageSource
        Where they come from.
    progress : callable
        Told how many are done.
    workers : int, optional
        As in ``ReadOptions``.

    Returns
    -------
    Survey
        A row for each.
    """
    survey = Survey.empty(len(source))
    names = list(FORMATS)

    def look(position: int, read: Reader) -> None:
        raw = read()
        survey.digests[position] = np.frombuffer(hashlib.sha256(raw).digest(), np.uint8)
        header = read_header(raw, source.names[position])
        survey.heights[position], survey.widths[position] = header.height, header.width
        survey.formats[position] = names.index(header.format)
        survey.channels[position] = header.channels
        survey.traits[position] = sum(1 << TRAITS.index(trait) for trait in header.traits)
        if "sixteen_bit" in header.traits:
            survey.peaks[position] = read_peak(raw, source.names[position])

    for position, answer in each_image(source, look, progress, workers=workers):
        if isinstance(answer, ImageError):
            survey.refuse(position, answer)
    return survey


def choose_shape(survey: Survey, options: ReadOptions, where: str) -> tuple[int, int, int]:
    """Choose the size that all images are brought to.

    One that they all have is kept. Else it is the median height and width, shrunk until the longer side is
    at most ``LARGEST_SIDE`` and rounded to ``SIDE_STEP``.

    Parameters
    ----------
    survey : Survey
        Sizes and channels.
    options : ReadOptions
        Wins where it says something.
    where : str
        The data's name, for the message.

    Returns
    -------
    tuple of int
        Height, width, channels.

    Raises
    ------
    DataError
        If no image can be used.
    """
    require_usable(survey, where)
    usable = survey.usable
    heights, widths = survey.heights[usable], survey.widths[usable]
    shape = options.shape or _common_shape(heights, widths)
    return (*shape, options.channels or int(survey.channels[usable].max()))


def require_usable(survey: Survey, where: str) -> None:
    """Refuse data of which nothing can be used.

    Parameters
    ----------
    survey : Survey
        Of all images.
    where : str
        The data's name, for the message.

    Raises
    ------
    NothingUsableError
        If no image can be used.
    """
    if not survey.usable.any():
        kinds = sorted({kind.replace("_", " ") for kind, *_ in survey.problems.values()})
        found = f"{count(len(survey.problems), 'image')}: {', '.join(kinds)}" if kinds else "none"
        raise NothingUsableError(sentence(f"at least one usable image in {where}", found), survey)


def _common_shape(heights: NDArray[np.int32], widths: NDArray[np.int32]) -> tuple[int, int]:
    """Find a height and a width that suit most images."""
    one_size = len(np.unique(heights)) == len(np.unique(widths)) == 1
    height, width = float(np.median(heights)), float(np.median(widths))
    if one_size and max(height, width) <= LARGEST_SIDE:
        return int(height), int(width)
    shrink = min(1.0, LARGEST_SIDE / max(height, width))
    sides = (max(SIDE_STEP, round(side * shrink / SIDE_STEP) * SIDE_STEP) for side in (height, width))
    return tuple(sides)  # type: ignore[return-value]  # there are two


def each_image(
    source: ImageSource,
    work: Callable[[int, Reader], _Answer],
    progress: Progress = no_progress,
    skip: Container[int] = (),
    workers: int | None = None,
) -> Iterator[tuple[int, _Answer | ImageError | None]]:
    """Do something with each image, in several threads.

    Parameters
    ----------
    source : ImageSource
        Where they come from.
    work : callable
        Takes an image's position and the function that reads it.
    progress : callable
        Told how many are done.
    skip : container of int
        Positions to pass over; their answer is None.
    workers : int, optional
        As in ``ReadOptions``.

    Yields
    ------
    position, answer
        In order; an image that fails gives its ImageError.
    """

    def attempt(position: int, read: Reader) -> _Answer | ImageError | None:
        try:
            return None if position in skip else work(position, read)
        except ImageError as error:
            return error

    threads = min(8, os.cpu_count() or 1) if workers is None else workers
    position = 0
    pool = ThreadPoolExecutor(max(threads, 1))  # starts its threads with the first task
    try:
        for chunk in source.chunks():
            positions = range(position, position + len(chunk))
            answers = pool.map(attempt, positions, chunk) if threads else map(attempt, positions, chunk)
            yield from zip(positions, answers, strict=True)
            position += len(chunk)
            progress(position, len(source))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the images in work, not for all of the chunk
