"""Images that come as numbers, all of one size: in arrays, in IDX files, in tables of pixels."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.collection import Collection, group_written
from convscope.data.decode import DEPTH
from convscope.data.findings import Finding
from convscope.data.names import Names
from convscope.data.pixel_layout import Layout
from convscope.data.similarity import perceptual_hash, thumbnail
from convscope.data.source import PARTS, SETTLED_SECONDS, encode_labels, parts_of_table, united_classes
from convscope.data.store import Store, StoreWriter, known_store, open_or_write, remember_store, write_store
from convscope.data.survey import ReadOptions
from convscope.errors import DataError, sentence
from convscope.preprocessing import conform

# Raised when the same files would give other pixels or labels.
STORE_VERSION = 4
HASH_BLOCK = 2**20


@dataclass(frozen=True, eq=False)
class PixelChunk:
    """Some images of one part.

    Attributes
    ----------
    part : int
        Position in ``PARTS``.
    images : ndarray of shape (k, h, w, c), uint8
        Pixels.
    labels : ndarray of shape (k,)
        Whole numbers, or names of classes.
    layout : Layout
        What was assumed about the numbers.
    """

    part: int
    images: NDArray[np.uint8]
    labels: NDArray[Any]
    layout: Layout


@dataclass(frozen=True)
class PixelSource:
    """Images as numbers, read some at a time.

    Attributes
    ----------
    name, layout : str
        The file's name, and how it was understood.
    files : tuple of Path
        What is read.
    chunks : callable
        Iterates over all images.
    class_names : tuple of str, optional
        By label, where the source names them; labels are positions in them then.
    findings : tuple of Finding
        What was noticed.
    """

    name: str
    layout: str
    files: tuple[Path, ...]
    chunks: Callable[[], Iterator[PixelChunk]] = field(repr=False)
    class_names: tuple[str, ...] | None = None
    findings: tuple[Finding, ...] = ()


def collect_pixels(source: PixelSource, options: ReadOptions) -> Collection:
    """Bring images that come as numbers into the cache, unless they are there.

    Parameters
    ----------
    source : PixelSource
        Where they come from.
    options : ReadOptions
        Images keep the size that they have, unless another is asked for.

    Returns
    -------
    Collection
        A row for each image.

    Raises
    ------
    DataError
        If there are none, labels do not fit, or the cache cannot be written.
    """
    settings = [STORE_VERSION, source.layout, options.shape, options.channels, options.resize]
    shortcut = _shortcut(source.files, settings)
    store = known_store(shortcut)
    if store is None:
        key = hashlib.sha256(json.dumps([settings, [_digest(file) for file in source.files]]).encode())
        store = open_or_write(key.hexdigest(), lambda: _write(source, options, key.hexdigest()))
        remember_store(shortcut, key.hexdigest())
    return _collection(source, store, options.resize)


def _shortcut(files: Sequence[Path], settings: list[Any]) -> list[Any] | None:
    """Gather names, sizes and times; None where a file has just been changed."""
    stats = [file.stat() for file in files]
    if any(time.time() - stat.st_ctime < SETTLED_SECONDS for stat in stats):
        return None
    times = [[stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for stat in stats]
    return [[str(file.resolve()) for file in files], times, settings]


def _digest(file: Path) -> str:
    """Condense a file of any size."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _write(source: PixelSource, options: ReadOptions, key: str) -> None:
    """Read everything once, into a store."""
    chunks = source.chunks()
    first = next((chunk for chunk in chunks if len(chunk.images)), None)
    if first is None:
        raise DataError(sentence(f"images in {source.name}", "none"))
    height, width, channels = first.images.shape[1:]
    shape = (*(options.shape or (height, width)), options.channels or channels)
    with write_store(key, shape) as writer:
        labels, parts, hashes = _write_chunks(writer, itertools.chain([first], chunks), options.resize)
        part_of_each = np.concatenate(parts)
        numbers, class_names, united = _encode(np.concatenate(labels), part_of_each, source)
        groups = group_written(writer, np.concatenate(hashes))
        writer.arrays.update(labels=numbers, parts=part_of_each, groups=groups)
        writer.notes.update(
            class_names=list(class_names),
            united=united,
            note=first.layout.describe(),
            depth=first.layout.depth,
        )


def _write_chunks(
    writer: StoreWriter, chunks: Iterator[PixelChunk], resize: str
) -> tuple[list[NDArray[Any]], list[NDArray[np.int8]], list[NDArray[np.uint64]]]:
    """Append all images; return their labels, parts and hashes, chunk by chunk."""
    height, width, channels = writer.shape
    labels, parts, hashes = [], [], []
    for chunk in chunks:
        images = chunk.images
        if not len(images):
            continue
        if images.shape[1:] != writer.shape:
            images = np.stack([conform(image, (height, width), channels, resize) for image in images])
        writer.append(images)
        labels.append(chunk.labels)
        parts.append(np.full(len(images), chunk.part, np.int8))
        hashes.append(perceptual_hash(np.stack([thumbnail(image) for image in images])))
    return labels, parts, hashes


def _encode(
    labels: NDArray[Any], parts: NDArray[np.int8], source: PixelSource
) -> tuple[NDArray[np.int64], tuple[str, ...], dict[str, str]]:
    """Turn labels into positions in the class names; a source that has names gives positions."""
    if source.class_names is not None:
        return labels.astype(np.int64), source.class_names, {}
    names = Names(_numbered(source.name, parts))
    return encode_labels(labels.tolist(), lambda position: f"of {names[position]}")


def _collection(source: PixelSource, store: Store, resize: str) -> Collection:
    """Put together what a store holds and what the source says."""
    parts = parts_of_table(store.arrays["parts"])
    return Collection(
        name=source.name,
        layout=source.layout,
        images=store.images,
        labels=store.arrays["labels"],
        parts=parts,
        names=Names(_numbered(source.name, parts)),
        groups=store.arrays["groups"],
        class_names=tuple(store.notes["class_names"]),
        resize=resize,
        findings=(*source.findings, *united_classes(store.notes["united"])),
        notes=(store.notes["note"],),
        is_table=True,
        depth=store.notes["depth"] if store.notes["depth"] > 8 else DEPTH,
    )


def _numbered(name: str, parts: NDArray[np.int8]) -> Iterator[str]:
    """Name images by their place in their part."""
    counters = [itertools.count() for _ in PARTS]
    for part in parts.tolist():
        yield f"{name}/{PARTS[part]}/{next(counters[part]):05d}"
