"""The cache of decoded images: pixels and what was noted beside them, kept under a key of their content."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.cache import disk_errors_named, scratch_folder
from convscope.data.eviction import NOTES_FILE, cache_limit, evict, mark_used
from convscope.data.pixels import read_pixels
from convscope.environment import cache_folder
from convscope.errors import DataError, sentence
from convscope.runs import locked


@dataclass
class StoreWriter:
    """Takes the pixels of a store, some at a time.

    Attributes
    ----------
    file : binary file
        What has been appended so far.
    shape : tuple of int
        Of one image, ``(h, w, c)``.
    count : int
        Images so far.
    arrays : dict of str to ndarray
        What is to be kept beside the pixels; filled by whoever writes.
    notes : dict
        The same, as JSON values.
    """

    file: IO[bytes]
    shape: tuple[int, ...]
    count: int = 0
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def append(self, images: NDArray[np.uint8]) -> None:
        """Write images ``(k, h, w, c)`` behind those that are there."""
        self.file.write(np.ascontiguousarray(images).data)
        self.count += len(images)


@dataclass(frozen=True, eq=False)
class Store:
    """A finished store: pixels, and what was noted beside them."""

    images: NDArray[np.uint8]
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    notes: Mapping[str, Any] = field(repr=False)


def store_folder() -> Path:
    """Name the folder of the cache that holds the stores."""
    return cache_folder() / "images"


def open_store(key: str) -> Store | None:
    """Open the store of that key, if there is a whole one.

    Parameters
    ----------
    key : str
        Hexadecimal digits that stand for the content.

    Returns
    -------
    Store or None
        Its pixels in memory where they are few, else memory-mapped.
    """
    folder = store_folder() / key
    try:
        notes = json.loads((folder / NOTES_FILE).read_text("utf-8"))
        shape = tuple(notes["shape"])
        if (folder / "pixels").stat().st_size != math.prod(shape):
            return None
        with (folder / "arrays.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        store = Store(read_pixels(folder / "pixels", shape), arrays, notes["notes"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None  # not there, or not ours: it is made anew
    mark_used(folder)
    return store


def open_or_write(key: str, write: Callable[[], None]) -> Store:
    """Open the store of that key, or write it first; where another process is at it, wait for that one.

    Parameters
    ----------
    key : str
        Hexadecimal digits that stand for the content.
    write : callable
        Writes it, by ``write_store``.

    Returns
    -------
    Store

    Raises
    ------
    DataError
        If the cache cannot be written, or does not keep what is written.
    """
    if (store := open_store(key)) is not None:
        return store
    with disk_errors_named():
        store_folder().mkdir(parents=True, exist_ok=True)
        with locked(store_folder() / key, seconds=-1):
            if (store := open_store(key)) is None:  # else another process has just written it
                write()
                store = open_store(key)
    if store is None:
        hint = "Is another program clearing it?"
        raise DataError(sentence(f"the cache {cache_folder()} to keep what is written", "nothing", hint))
    return store


@contextmanager
def write_store(key: str, shape: tuple[int, ...]) -> Iterator[StoreWriter]:
    """Write a store; it appears under its key when the block ends well, whole, or not at all.

    Stores that were used least lately make room for it. Two processes that write the same one, which
    ``open_or_write`` avoids, do no harm: the first to end wins.

    Parameters
    ----------
    key : str
        Hexadecimal digits that stand for the content.
    shape : tuple of int
        Of one image, ``(h, w, c)``.

    Yields
    ------
    StoreWriter
        To append to.

    Raises
    ------
    DataError
        If the cache cannot be written, or the disk is full.
    """
    cache_limit()  # a wrong one is told before images are decoded, not after
    with disk_errors_named(), scratch_folder() as scratch:
        folder = scratch / key
        folder.mkdir()
        with (folder / "pixels").open("wb") as file:
            writer = StoreWriter(file, shape)
            yield writer
            _sync(file)
        _write_beside(folder, writer)
        _publish(folder, store_folder() / key)
        evict(store_folder(), keep=key)


def _write_beside(folder: Path, writer: StoreWriter) -> None:
    """Write what is kept beside the pixels."""
    with (folder / "arrays.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **writer.arrays)
        _sync(file)
    with (folder / NOTES_FILE).open("wb") as file:
        shape = [writer.count, *writer.shape]
        file.write(json.dumps({"shape": shape, "notes": writer.notes}).encode())
        _sync(file)


def _sync(file: IO[bytes]) -> None:
    """Make sure that the content is on the disk before its name is."""
    file.flush()
    os.fsync(file.fileno())


def _publish(folder: Path, target: Path) -> None:
    """Rename a finished store into place, unless a whole one is there already."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.rename(target)
    except OSError:
        if open_store(target.name) is not None:
            return
        # A damaged one is in the way; it is moved aside, so that a reader finds a whole one or none.
        target.rename(folder.with_name("damaged"))
        folder.rename(target)


def known_store(shortcut: Sequence[Any] | None) -> Store | None:
    """Open the store that belongs to files that have not changed, without reading them.

    Parameters
    ----------
    shortcut : sequence of JSON values, optional
        Names, sizes and times of the files, and what is done with them.

    Returns
    -------
    Store or None
        None if nothing is known about such files.
    """
    if shortcut is None:
        return None
    try:
        key = _known_file(shortcut).read_text("ascii")
    except (OSError, ValueError):
        return None
    return open_store(key)


def remember_store(shortcut: Sequence[Any] | None, key: str) -> None:
    """Note which store belongs to these files, so that next time they need not be read.

    Parameters
    ----------
    shortcut : sequence of JSON values, optional
        As for ``known_store``.
    key : str
        The store's key.
    """
    if shortcut is None:
        return
    file = _known_file(shortcut)
    with disk_errors_named():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_text(key, "ascii")
        temporary.replace(file)


def _known_file(shortcut: Sequence[Any]) -> Path:
    """Name the file that holds a key."""
    return cache_folder() / "known" / hashlib.sha256(json.dumps(shortcut).encode()).hexdigest()
