"""Images of one size in the cache, decoded once: what every kind of source becomes before it is a Dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from convscope.data.decode import DEPTH, ImageError, decode, quiet_pillow
from convscope.data.findings import Finding
from convscope.data.names import Names
from convscope.data.pixels import read_pixels
from convscope.data.similarity import near_duplicates, perceptual_hash, thumbnail
from convscope.data.source import ImageSource, Reader
from convscope.data.store import Store, StoreWriter, known_store, open_or_write, remember_store, write_store
from convscope.data.survey import (
    Progress,
    ReadOptions,
    Survey,
    choose_shape,
    each_image,
    no_progress,
    require_usable,
    survey_images,
)
from convscope.preprocessing import conform

# Raised when the same files would give other pixels or other notes.
STORE_VERSION = 2
# Images that are handed to the disk at a time.
FLUSH = 256


@dataclass(frozen=True, eq=False)
class FileRecords:
    """What was noticed about each file, the unusable ones too.

    Attributes
    ----------
    source : ImageSource
        Names, labels and parts of all files.
    survey : Survey
        A row for each file.
    kept : ndarray of shape (n,), int64
        Which files the images of the collection are.
    """

    source: ImageSource
    survey: Survey
    kept: NDArray[np.int64] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Collection:
    """Images of one size with their labels, a row for each.

    Attributes
    ----------
    name, layout : str
        The source's name, and how it was understood.
    images : ndarray of shape (n, h, w, c), uint8
        Memory-mapped where they are many.
    labels : ndarray of shape (n,), int64
        Positions in ``class_names``.
    parts : ndarray of shape (n,), int8
        0 training, 1 validation, 2 test.
    names : sequence of n str
        Where each image comes from.
    groups : ndarray of shape (n,), int64
        Near-duplicates share a number.
    class_names : tuple of str
        By label.
    resize : str
        How images of other sizes were brought to this one.
    findings : tuple of Finding
        What was noticed before the images were read.
    notes : tuple of str
        What was assumed about the source.
    files : FileRecords, optional
        Where the images were files.
    is_table : bool
        Whether the images are in the order of a table's rows.
    depth : int
        How many bits the images of more than 8 have in use.
    """

    name: str
    layout: str
    images: NDArray[np.uint8] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    parts: NDArray[np.int8] = field(repr=False)
    names: Sequence[str] = field(repr=False)
    groups: NDArray[np.int64] = field(repr=False)
    class_names: tuple[str, ...]
    resize: str = "letterbox"
    findings: tuple[Finding, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    files: FileRecords | None = field(default=None, repr=False)
    is_table: bool = False
    depth: int = DEPTH


def collect_images(source: ImageSource, options: ReadOptions, progress: Progress = no_progress) -> Collection:
    """Bring all images of a source to one size; decode them only if that was not done before.

    Parameters
    ----------
    source : ImageSource
        Where they come from.
    options : ReadOptions
        Size, channels, and how to get there.
    progress : callable
        Told how many are done; the images are gone through twice.

    Returns
    -------
    Collection
        What could not be used is named in its file records.

    Raises
    ------
    DataError
        If no image can be used, or the cache cannot be written.
    """
    settings = [STORE_VERSION, PIL.__version__, options.shape, options.channels, options.resize]
    shortcut = [source.signature, *settings] if source.signature else None
    store = known_store(shortcut)
    if store is None:
        with quiet_pillow():
            survey = survey_images(source, progress, options.workers)
            shape = choose_shape(survey, options, source.name)
            key = _key(survey, shape, options.resize)
            store = open_or_write(key, lambda: _decode_all(source, survey, shape, options, key, progress))
        remember_store(shortcut, key)
    return _collection(source, store, options.resize)


def _decode_all(
    source: ImageSource,
    survey: Survey,
    shape: tuple[int, int, int],
    options: ReadOptions,
    key: str,
    progress: Progress,
) -> None:
    """Decode every image into a store, and note what came out."""
    with write_store(key, shape) as writer:
        kept, hashes = _decode_into(writer, source, survey, options, progress)
        require_usable(survey, source.name)
        writer.arrays.update(survey.arrays, kept=kept, groups=group_written(writer, hashes))
        writer.notes["problems"] = [[position, *why] for position, why in sorted(survey.problems.items())]


def group_written(writer: StoreWriter, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Find the near-duplicates among the images that a store has been given so far."""
    writer.file.flush()
    images = read_pixels(Path(writer.file.name), (writer.count, *writer.shape))
    return near_duplicates(images, hashes)


def _decode_into(
    writer: StoreWriter, source: ImageSource, survey: Survey, options: ReadOptions, progress: Progress
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Append all usable images to a store; return their positions and hashes."""
    height, width, channels = writer.shape
    depth = survey.depth

    def work(position: int, read: Reader) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        image = decode(read(), source.names[position], depth)
        pixels = conform(image, (height, width), channels, options.resize)
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
    for position, answer in each_image(source, work, progress, unusable, options.workers):
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


def _collection(source: ImageSource, store: Store, resize: str) -> Collection:
    """Put together what a store holds and what the source says."""
    kept = store.arrays["kept"]
    survey = Survey.from_arrays(store.arrays, store.notes["problems"])
    names = source.names.take(kept) if isinstance(source.names, Names) else [source.names[i] for i in kept]
    return Collection(
        name=source.name,
        layout=source.layout,
        images=store.images,
        labels=source.labels[kept],
        parts=source.parts[kept],
        names=names,
        groups=store.arrays["groups"],
        class_names=source.class_names,
        resize=resize,
        findings=source.findings,
        notes=source.notes,
        files=FileRecords(source, survey, kept),
        is_table=source.is_table,
        depth=survey.depth,
    )


def _key(survey: Survey, shape: tuple[int, int, int], resize: str) -> str:
    """Condense the content of all files, and what is done with them."""
    settings = [STORE_VERSION, PIL.__version__, shape, resize, sorted(survey.problems)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    digest.update(survey.digests.tobytes())
    return digest.hexdigest()
