"""A source → images of one size with their labels, decoded once into the cache: ``ingest``.

Image files are gone through twice: a first look at each gives the size that suits most, and how many bits are
in use; then they are decoded, part after part, in several threads or processes. Of many images the parts are
kept until the end, so that a build which is stopped goes on. Images that come as numbers are read once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray

from convscope import __version__
from convscope.data.cache import (
    Store,
    StoreWriter,
    kept_parts,
    open_known,
    open_or_write,
    write_store,
)
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
from convscope.parts import in_parts, pack, unpack
from convscope.preprocessing import RESIZES, resize_to_input

# The longest side that a folder's images get unless another size is asked for.
LARGEST_SIDE = 96
# Sides are multiples of this, so that pooling halves them without rest.
SIDE_STEP = 8
# Beyond this many threads, decoding waits for the disk.
MOST_WORKERS = 64
# Images that a first look opens.
PEEKED = 48
# Bytes of decoded images in a part, at most.
PART_BYTES = 64 * 2**20
# From so many images on, parts are kept on the disk until all are done.
KEPT = 8_192
# Raised when the same files would give other pixels or other notes.
FILES_VERSION, PIXELS_VERSION = 3, 5

_Answer = TypeVar("_Answer")
# Some image files: the name of each, and what reads it; None for one that is passed over.
_Job = Sequence[tuple[str, Reader | None]]
Progress = Callable[[int, int], None]  # takes how many are done, and of how many


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class ReadOptions:
    """How images are brought to one size; the arguments of ``load`` with the same names.

    ``workers`` are threads, ``processes`` are as many programs, each with its share of the threads.
    """

    size: int | tuple[int, int] | None = None
    channels: int | None = None
    resize: str = "letterbox"
    workers: int | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise unknown_name("way to resize", self.resize, RESIZES)
        if self.channels not in {None, 1, 3}:
            raise UsageError(expected_got("1 or 3 channels", self.channels))
        if self.shape and not all(1 <= side <= 4096 for side in self.shape):
            raise UsageError(expected_got("a height and a width from 1 to 4096 pixels", self.size))
        if self.workers is not None and not 0 <= self.workers <= MOST_WORKERS:
            raise UsageError(expected_got(f"from 0 to {MOST_WORKERS} workers", self.workers))
        if not 1 <= self.processes <= MOST_WORKERS:
            raise UsageError(expected_got(f"from 1 to {MOST_WORKERS} workers", self.processes))

    @property
    def threads(self) -> int:
        """How many threads decode in each process; 0 for none beside its first."""
        return max(1, min(8, os.cpu_count() or 1) // self.processes) if self.workers is None else self.workers

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
    if are_files:
        write, collect = partial(_write_files, source, options, progress), _collect_files
    else:
        write, collect = partial(_write_pixels, source, options, settings), _collect_pixels
    store = open_known([source.signature, *settings], write) if source.signature else write()[1]
    return collect(source, store, options.resize)


# Image files


def peek(source: Source) -> tuple[int, float, int] | None:
    """Look at a few image files: how many there are, the longer side of the usual one, its channels.

    None for images that are no files, and where none of the few can be read.
    """
    if source.index is None or not len(source.index):
        return None
    sides, channels = [], []
    with quiet_pillow():
        chunk = next(iter(source.chunks()))
        readers = [] if isinstance(chunk, Pixels) else chunk
        for read in readers[:: max(1, len(readers) // PEEKED)]:
            try:
                header = read_header(read(), "")
            except ImageError:
                continue
            sides.append(max(header.height, header.width))
            channels.append(header.channels)
    return (len(source.index), float(np.median(sides)), max(channels)) if sides else None


def _write_files(source: Source, options: ReadOptions, progress: Progress) -> tuple[str, Store]:
    """Look at all files, and decode them unless that was done: the key stands for content and shape."""
    with _kept([source.signature, FILES_VERSION, PIL.__version__], source) as folder:
        survey = _survey(source, options, progress, folder)
        shape = choose_shape(survey, options, source.name)
        settings = [FILES_VERSION, PIL.__version__, shape, options.resize, sorted(survey.problems)]
        digest = hashlib.sha256(json.dumps(settings).encode())
        digest.update(survey.digests.tobytes())
        key = digest.hexdigest()

        def write() -> None:
            with write_store(key, shape) as writer, _kept([key], source) as folder:
                kept, hashes = _decode_into(writer, source, survey, options, progress, folder)
                require_usable(survey, source.name)
                writer.arrays.update({name: getattr(survey, name) for name in COLUMNS}, kept=kept)
                writer.arrays["groups"] = near_duplicates(writer.so_far(), hashes)
                writer.notes["problems"] = [[row, *why] for row, why in sorted(survey.problems.items())]

        return key, open_or_write(key, write)


@contextmanager
def _kept(identity: list[Any], source: Source) -> Iterator[Path | None]:
    """Give a folder for the parts of many images; None where they are few, or may change unnoticed."""
    if len(index_of(source)) < KEPT or not source.signature:
        yield None
        return
    with kept_parts([*identity, __version__]) as folder:  # another one may cut other parts
        yield folder


def _survey(source: Source, options: ReadOptions, progress: Progress, folder: Path | None) -> Survey:
    """Read what each image says about itself."""
    survey = Survey.empty(len(index_of(source)))
    prepare = partial(partial, _look_at, options.threads)
    begin = 0
    for content in in_parts(_jobs(source), prepare, folder, options.processes):
        found = unpack(content)
        end = begin + len(found["heights"])
        for name in COLUMNS:
            getattr(survey, name)[begin:end] = found[name]
        survey.problems |= _problems(json.loads(str(found["problems"])), begin)
        begin = end
        progress(begin, len(survey.heights))
    return survey


def _look_at(threads: int, job: _Job) -> bytes:
    """Read what some images say about themselves."""
    survey = Survey.empty(len(job))
    formats = list(FORMATS)

    def look(position: int, name: str, read: Reader) -> None:
        raw = read()
        survey.digests[position] = np.frombuffer(hashlib.sha256(raw).digest(), np.uint8)
        header = read_header(raw, name)
        survey.heights[position], survey.widths[position] = header.height, header.width
        survey.formats[position] = formats.index(header.format)
        survey.channels[position] = header.channels
        survey.traits[position] = sum(1 << TRAITS.index(trait) for trait in header.traits)
        if "sixteen_bit" in header.traits:
            survey.peaks[position] = read_peak(raw, name)

    _, problems = _each_image(job, look, threads)
    return pack({name: getattr(survey, name) for name in COLUMNS} | {"problems": problems})


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
    writer: StoreWriter,
    source: Source,
    survey: Survey,
    options: ReadOptions,
    progress: Progress,
    folder: Path | None,
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Append all usable images to a store; return their positions and hashes."""
    prepare = partial(partial, _decode, options.threads, writer.shape, options.resize, survey.depth)
    most = max(1, PART_BYTES // math.prod(writer.shape))
    jobs = _jobs(source, frozenset(survey.problems), most)
    kept, hashes = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    begin = 0
    for content in in_parts(jobs, prepare, folder, options.processes):
        found = unpack(content)
        writer.append(found["images"])
        kept.append(begin + found["kept"])
        hashes.append(found["hashes"])
        survey.problems |= _problems(json.loads(str(found["problems"])), begin)
        begin += int(found["count"])
        progress(begin, len(survey.heights))
    return np.concatenate(kept), np.concatenate(hashes)


def _decode(threads: int, shape: tuple[int, ...], resize: str, depth: int, job: _Job) -> bytes:
    """Decode some images."""
    height, width, channels = shape

    def work(_position: int, name: str, read: Reader) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        pixels = resize_to_input(decode(read(), name, depth), (height, width), channels, resize)
        return pixels, thumbnail(pixels)

    answers, problems = _each_image(job, work, threads)
    images = [pixels for pixels, _ in answers.values()]
    thumbnails = [small for _, small in answers.values()]
    return pack(
        {
            "count": np.array(len(job)),
            "kept": np.array(list(answers), np.int64),
            "images": np.stack(images) if images else np.empty((0, *shape), np.uint8),
            "hashes": perceptual_hash(np.stack(thumbnails)) if images else np.empty(0, np.uint64),
            "problems": problems,
        }
    )


def _jobs(source: Source, skip: Container[int] = (), most: int | None = None) -> Iterator[_Job]:
    """Go through the files of a source, some at a time."""
    names, position = index_of(source).names, 0
    for chunk in source.chunks():
        if isinstance(chunk, Pixels):
            raise TypeError("a source with an index gives files")
        job = [
            (names[number], None if number in skip else read) for number, read in enumerate(chunk, position)
        ]
        position += len(job)
        step = most or len(job)
        yield from (job[start : start + step] for start in range(0, len(job), step))


def _each_image(
    job: _Job, work: Callable[[int, str, Reader], _Answer], threads: int
) -> tuple[dict[int, _Answer], NDArray[Any]]:
    """Do something with each image, in several threads; give the answers by position, and what has none.

    Why images cannot be used is one array of text, as it is packed beside others; ``_problems`` reads it. An
    image that is passed over is in neither.
    """

    def attempt(position: int, name: str, read: Reader | None) -> _Answer | ImageError | None:
        try:
            return None if read is None else work(position, name, read)
        except ImageError as error:
            return error
        except DataError as error:  # it cannot be brought to size
            return ImageError("too_large", str(error), "a line of pixels")

    pool = ThreadPoolExecutor(max(threads, 1))  # starts its threads with the first task
    positions, names, readers = range(len(job)), [name for name, _ in job], [read for _, read in job]
    answers: dict[int, _Answer] = {}
    problems: list[list[int | str]] = []
    try:
        with quiet_pillow():
            found = (pool.map if threads else map)(attempt, positions, names, readers)
            for position, answer in enumerate(found):
                if isinstance(answer, ImageError):
                    problems.append([position, answer.kind, answer.found, str(answer)])
                elif answer is not None:
                    answers[position] = answer
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the images in work, not for all of the part
    return answers, np.array(json.dumps(problems))


def _problems(rows: Iterable[Sequence[Any]], begin: int = 0) -> dict[int, tuple[str, str, str]]:
    """Read why images cannot be used, by their positions, of which the first is ``begin``."""
    return {begin + position: (kind, found, why) for position, kind, found, why in rows}


def _collect_files(source: Source, store: Store, resize: str) -> Collection:
    """Put together what a store holds and what the source says."""
    index, kept = index_of(source), store.arrays["kept"]
    columns = {name: store.arrays[name] for name in COLUMNS}
    survey = Survey(**columns, problems=_problems(store.notes["problems"]))
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


def _write_pixels(source: Source, options: ReadOptions, settings: list[Any]) -> tuple[str, Store]:
    """Read the files unless that was done: the key stands for their content and what is done with it."""
    digests = [_digest(file) for file in source.files]
    key = hashlib.sha256(json.dumps([settings, digests]).encode()).hexdigest()
    return key, open_or_write(key, lambda: _write_numbers(source, options, key))


def _digest(file: Path) -> str:
    """Condense a file of any size."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_numbers(source: Source, options: ReadOptions, key: str) -> None:
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
