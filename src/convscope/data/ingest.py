"""A source → images of one size with their labels, decoded once into the cache: ``ingest``.

Image files are gone through twice: a first look at each gives the size that suits most, and how many bits are
in use; then they are decoded, in several threads. Images that come as numbers are read once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray

from convscope.data.cache import Store, StoreWriter, known_store, open_or_write, remember_store, write_store
from convscope.data.dataset import Names, take_names
from convscope.data.decode import (
    DEPTH,
    FORMATS,
    TRAITS,
    ImageError,
    decode,
    quiet_pillow,
    read_header,
    read_peak,
)
from convscope.data.similarity import near_duplicates, perceptual_hash, thumbnail
from convscope.data.sources import find_source
from convscope.data.sources.base import (
    SPLITS,
    Finding,
    Index,
    Pixels,
    Reader,
    Source,
    count,
    encode_labels,
    index_of,
    splits_of_table,
    united_classes,
)
from convscope.errors import DataError, UsageError, expected_got, unknown_name
from convscope.preprocessing import RESIZES, resize_to_input

# The longest side that a folder's images get unless another size is asked for.
LARGEST_SIDE = 96
# Sides are multiples of this, so that pooling halves them without rest.
SIDE_STEP = 8
# Beyond this many threads, decoding waits for the disk.
MOST_WORKERS = 64
# Images that are handed to the disk at a time.
FLUSH = 256
# Raised when the same files would give other pixels or other notes.
FILES_VERSION, PIXELS_VERSION = 2, 5

_Answer = TypeVar("_Answer")
Progress = Callable[[int, int], None]  # takes how many are done, and of how many


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class ReadOptions:
    """How images are brought to one size; the arguments of ``load`` with the same names."""

    size: int | tuple[int, int] | None = None
    channels: int | None = None
    resize: str = "letterbox"
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise unknown_name("way to resize", self.resize, RESIZES)
        if self.channels not in {None, 1, 3}:
            raise UsageError(expected_got("1 or 3 channels", self.channels))
        if self.shape and not all(1 <= side <= 4096 for side in self.shape):
            raise UsageError(expected_got("a height and a width from 1 to 4096 pixels", self.size))
        if self.workers is not None and not 0 <= self.workers <= MOST_WORKERS:
            raise UsageError(expected_got(f"from 0 to {MOST_WORKERS} workers", self.workers))

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width, if they are given."""
        if self.size is None:
            return None
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])


@dataclass
class Survey:
    """What each image file says about itself; a row for each, zeros where it could not be read."""

    heights: NDArray[np.int32]  # of the upright image, in pixels
    widths: NDArray[np.int32]
    formats: NDArray[np.uint8]  # position in FORMATS
    channels: NDArray[np.uint8]  # 1 or 3
    traits: NDArray[np.uint8]  # bit k is set where TRAITS[k] applies
    digests: NDArray[np.uint8]  # (n, 32), SHA-256 of the file
    peaks: NDArray[np.uint32]  # the largest value of an image of more than 8 bits, else 0
    problems: dict[int, tuple[str, str, str]]  # why an image cannot be used: kind, found, message

    @classmethod
    def empty(cls, rows: int) -> Survey:
        """Make a survey to be filled."""
        shapes = {name: (rows, 32) if name == "digests" else (rows,) for name in COLUMNS}
        return cls(**{name: np.zeros(shapes[name], dtype) for name, dtype in COLUMNS.items()}, problems={})

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], problems: Iterable[tuple[int, str, str, str]]
    ) -> Survey:
        """Rebuild a survey from its columns and problems."""
        reasons = {number: (kind, found, why) for number, kind, found, why in problems}
        return cls(**{name: arrays[name] for name in COLUMNS}, problems=reasons)

    def refuse(self, position: int, error: ImageError) -> None:
        """Note why an image cannot be used."""
        self.problems[position] = (error.kind, error.found, str(error))

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


COLUMNS = {
    "heights": np.int32,
    "widths": np.int32,
    "formats": np.uint8,
    "channels": np.uint8,
    "traits": np.uint8,
    "digests": np.uint8,
    "peaks": np.uint32,
}


class NothingUsableError(DataError):
    """Images of which none can be used; carries what is wrong with each."""

    def __init__(self, message: str, survey: Survey) -> None:
        super().__init__(message)
        self.survey = survey


@dataclass(frozen=True, eq=False)
class Collection(Index):
    """Images of one size, in memory or mapped; names, labels and splits of those that could be used.

    Near-duplicates share a number in ``groups``. Of image files there is the survey of all of them, and which
    of them were kept. ``findings`` were made before the images were read, ``notes`` say what was assumed.
    """

    source: Source
    images: NDArray[np.uint8] = field(repr=False)  # (n, h, w, c)
    groups: NDArray[np.int64] = field(repr=False)  # (n,)
    resize: str = "letterbox"
    findings: tuple[Finding, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    survey: Survey | None = field(default=None, repr=False)
    kept: NDArray[np.int64] | None = field(default=None, repr=False)  # (n,)
    depth: int = DEPTH  # how many bits the images of more than 8 have in use


def open_path(path: Path, options: ReadOptions | None = None, progress: Progress = no_progress) -> Collection:
    """Read the images at a path into the cache, unless they are there, and open them."""
    return ingest(find_source(path), options or ReadOptions(), progress)


def ingest(source: Source, options: ReadOptions, progress: Progress = no_progress) -> Collection:
    """Bring all images of a source to one size; read them only if that was not done before."""
    are_files = source.index is not None
    version = [FILES_VERSION, PIL.__version__] if are_files else [PIXELS_VERSION, source.layout]
    settings = [*version, options.shape, options.channels, options.resize]
    store = known_store([source.signature, *settings]) if source.signature else None
    if store is None:
        with quiet_pillow():
            if are_files:
                key, write = _plan_files(source, options, progress)
            else:
                key, write = _plan_pixels(source, options, settings)
            store = open_or_write(key, write)
        if source.signature:
            remember_store([source.signature, *settings], key)
    make = _collect_files if are_files else _collect_pixels
    return make(source, store, options.resize)


# Image files


def peek(source: Source, most: int = 48) -> tuple[int, float, int] | None:
    """Look at a few image files: how many there are, the longer side of the usual one, its channels.

    None for images that are no files, and where none of the few can be read.
    """
    if source.index is None or not len(source.index):
        return None
    sides, channels = [], []
    with quiet_pillow():
        chunk = next(iter(source.chunks()))
        readers = [] if isinstance(chunk, Pixels) else chunk
        for read in readers[:: max(1, len(readers) // most)]:
            try:
                header = read_header(read(), "")
            except ImageError:
                continue
            sides.append(max(header.height, header.width))
            channels.append(header.channels)
    return (len(source.index), float(np.median(sides)), max(channels)) if sides else None


def _plan_files(source: Source, options: ReadOptions, progress: Progress) -> tuple[str, Callable[[], None]]:
    """Look at all files: the key stands for their content and what is done with them."""
    survey = _survey(source, progress, options.workers)
    shape = choose_shape(survey, options, source.name)
    settings = [FILES_VERSION, PIL.__version__, shape, options.resize, sorted(survey.problems)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    digest.update(survey.digests.tobytes())
    key = digest.hexdigest()

    def write() -> None:
        with write_store(key, shape) as writer:
            kept, hashes = _decode_into(writer, source, survey, options, progress)
            require_usable(survey, source.name)
            writer.arrays.update({name: getattr(survey, name) for name in COLUMNS}, kept=kept)
            writer.arrays["groups"] = near_duplicates(writer.so_far(), hashes)
            writer.notes["problems"] = [[position, *why] for position, why in sorted(survey.problems.items())]

    return key, write


def _survey(source: Source, progress: Progress, workers: int | None) -> Survey:
    """Read what each image says about itself."""
    names = index_of(source).names
    survey = Survey.empty(len(names))
    formats = list(FORMATS)

    def look(position: int, read: Reader) -> None:
        raw = read()
        survey.digests[position] = np.frombuffer(hashlib.sha256(raw).digest(), np.uint8)
        header = read_header(raw, names[position])
        survey.heights[position], survey.widths[position] = header.height, header.width
        survey.formats[position] = formats.index(header.format)
        survey.channels[position] = header.channels
        survey.traits[position] = sum(1 << TRAITS.index(trait) for trait in header.traits)
        if "sixteen_bit" in header.traits:
            survey.peaks[position] = read_peak(raw, names[position])

    for position, answer in _each_image(source, look, progress, workers=workers):
        if isinstance(answer, ImageError):
            survey.refuse(position, answer)
    return survey


def choose_shape(survey: Survey, options: ReadOptions, where: str) -> tuple[int, int, int]:
    """Choose height, width and channels that all images are brought to.

    A size that they all have is kept. Else it is the median height and width, shrunk until the longer side is
    at most ``LARGEST_SIDE`` and rounded to ``SIDE_STEP``.
    """
    require_usable(survey, where)
    heights, widths = survey.heights[survey.usable], survey.widths[survey.usable]
    channels = options.channels or int(survey.channels[survey.usable].max())
    if options.shape:
        return (*options.shape, channels)
    height, width = float(np.median(heights)), float(np.median(widths))
    if len(np.unique(heights)) == len(np.unique(widths)) == 1 and max(height, width) <= LARGEST_SIDE:
        return int(height), int(width), channels
    shrink = min(1.0, LARGEST_SIDE / max(height, width))
    height, width = (max(SIDE_STEP, round(side * shrink / SIDE_STEP) * SIDE_STEP) for side in (height, width))
    return int(height), int(width), channels


def require_usable(survey: Survey, where: str) -> None:
    """Refuse data of which nothing can be used."""
    if not survey.usable.any():
        kinds = sorted({kind.replace("_", " ") for kind, *_ in survey.problems.values()})
        found = f"{count(len(survey.problems), 'image')}: {', '.join(kinds)}" if kinds else "none"
        raise NothingUsableError(expected_got(f"at least one usable image in {where}", found), survey)


def _decode_into(
    writer: StoreWriter, source: Source, survey: Survey, options: ReadOptions, progress: Progress
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Append all usable images to a store; return their positions and hashes."""
    height, width, channels = writer.shape
    names, depth = index_of(source).names, survey.depth

    def work(position: int, read: Reader) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        image = decode(read(), names[position], depth)
        pixels = resize_to_input(image, (height, width), channels, options.resize)
        return pixels, thumbnail(pixels)

    kept: list[int] = []
    hashes = [np.empty(0, np.uint64)]
    waiting: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []

    def flush() -> None:
        images, thumbnails = (np.stack(arrays) for arrays in zip(*waiting, strict=True))
        writer.append(images)
        hashes.append(perceptual_hash(thumbnails))
        waiting.clear()

    unusable = frozenset(survey.problems)
    for position, answer in _each_image(source, work, progress, unusable, options.workers):
        if isinstance(answer, ImageError):
            survey.refuse(position, answer)
        elif answer is not None:
            kept.append(position)
            waiting.append(answer)
        if len(waiting) == FLUSH:
            flush()
    if waiting:
        flush()
    return np.array(kept, np.int64), np.concatenate(hashes)


def _each_image(
    source: Source,
    work: Callable[[int, Reader], _Answer],
    progress: Progress,
    skip: Container[int] = (),
    workers: int | None = None,
) -> Iterator[tuple[int, _Answer | ImageError | None]]:
    """Do something with each image, in several threads; yield positions and answers in order.

    An image that fails gives its ImageError, one that is skipped None.
    """

    def attempt(position: int, read: Reader) -> _Answer | ImageError | None:
        try:
            return None if position in skip else work(position, read)
        except ImageError as error:
            return error

    threads = min(8, os.cpu_count() or 1) if workers is None else workers
    position, total = 0, len(index_of(source))
    pool = ThreadPoolExecutor(max(threads, 1))  # starts its threads with the first task
    try:
        for chunk in source.chunks():
            if isinstance(chunk, Pixels):
                raise TypeError("a source with an index gives files")
            positions = range(position, position + len(chunk))
            answers = pool.map(attempt, positions, chunk) if threads else map(attempt, positions, chunk)
            yield from zip(positions, answers, strict=True)
            position += len(chunk)
            progress(position, total)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the images in work, not for all of the chunk


def _collect_files(source: Source, store: Store, resize: str) -> Collection:
    """Put together what a store holds and what the source says."""
    index, kept = index_of(source), store.arrays["kept"]
    survey = Survey.from_arrays(store.arrays, store.notes["problems"])
    return Collection(
        names=take_names(index.names, kept),
        labels=index.labels[kept],
        splits=index.splits[kept],
        class_names=index.class_names,
        source=source,
        images=store.images,
        groups=store.arrays["groups"],
        resize=resize,
        findings=source.findings,
        survey=survey,
        kept=kept,
        depth=survey.depth,
    )


# Images as numbers


def _plan_pixels(source: Source, options: ReadOptions, settings: list[Any]) -> tuple[str, Callable[[], None]]:
    """Read the files: the key stands for their content and what is done with it."""
    digests = [_digest(file) for file in source.files]
    key = hashlib.sha256(json.dumps([settings, digests]).encode()).hexdigest()
    return key, lambda: _write_pixels(source, options, key)


def _digest(file: Path) -> str:
    """Condense a file of any size."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_pixels(source: Source, options: ReadOptions, key: str) -> None:
    """Read everything once, into a store."""
    chunks = (chunk for chunk in source.chunks() if isinstance(chunk, Pixels) and len(chunk.images))
    first = next(chunks, None)
    if first is None:
        raise DataError(expected_got(f"images in {source.name}", "none"))
    height, width, channels = first.images.shape[1:]
    size, channels = options.shape or (height, width), options.channels or channels
    labels, splits, hashes = [], [], []
    with write_store(key, (*size, channels)) as writer:
        for chunk in itertools.chain([first], chunks):
            images = chunk.images
            if images.shape[1:] != writer.shape:
                images = np.stack(
                    [resize_to_input(image, size, channels, options.resize) for image in images]
                )
            writer.append(images)
            labels.append(chunk.labels)
            splits.append(np.full(len(images), chunk.split, np.int8))
            hashes.append(perceptual_hash(np.stack([thumbnail(image) for image in images])))
        split_of_each = np.concatenate(splits)
        united: dict[str, str] = {}
        if source.class_names is not None:  # labels are positions in them
            numbers, class_names = np.concatenate(labels).astype(np.int64), source.class_names
        else:
            names = _numbered(source.name, split_of_each)
            values = np.concatenate(labels).tolist()
            numbers, class_names, united = encode_labels(values, lambda position: f"of {names[position]}")
        groups = near_duplicates(writer.so_far(), np.concatenate(hashes))
        writer.arrays.update(labels=numbers, splits=split_of_each, groups=groups)
        writer.notes.update(class_names=list(class_names), united=united, note=first.note, depth=first.depth)


def _numbered(name: str, splits: NDArray[np.int8]) -> Names:
    """Name images by their place in their split."""
    counters = [itertools.count() for _ in SPLITS]
    return Names(f"{name}/{SPLITS[split]}/{next(counters[split]):05d}" for split in splits.tolist())


def _collect_pixels(source: Source, store: Store, resize: str) -> Collection:
    """Put together what a store holds and what the source says."""
    splits = splits_of_table(store.arrays["splits"])
    return Collection(
        names=_numbered(source.name, splits),
        labels=store.arrays["labels"],
        splits=splits,
        class_names=tuple(store.notes["class_names"]),
        source=source,
        images=store.images,
        groups=store.arrays["groups"],
        resize=resize,
        findings=(*source.findings, *united_classes(store.notes["united"])),
        notes=(store.notes["note"],),
        depth=store.notes["depth"] if store.notes["depth"] > 8 else DEPTH,
    )
