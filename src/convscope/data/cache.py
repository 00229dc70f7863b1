"""The cache on disk: scratch files, decoded images under a key of their content, and pixels read from there.

It stays below a size: what was used least lately goes first. Only what convscope itself made is ever removed,
and removing it loses nothing but the time to decode it again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import tempfile
import time
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from convscope.environment import cache_folder
from convscope.errors import DataError, RunError, UsageError, expected_got
from convscope.parts import pack
from convscope.runs import is_lock_left, locked, sync_file, write_file

_PROGRESS = logging.getLogger("convscope.progress")

LIMIT_VARIABLE = "CONVSCOPE_CACHE_GB"
DEFAULT_GB = 20.0
# What nobody has locked, and nobody has changed for a day, was left behind.
STALE_SECONDS = 86_400
# A store's notes: their time says when the store was last used.
NOTES_FILE = "notes.json"
# Arrays up to this size are read into memory, and answers up to this size are copies in memory.
IN_MEMORY = 256 * 2**20
# Bytes held in memory at a time when rows are written into a file of their own.
COPY_BYTES = 16 * 2**20


# Scratch files, and the disk's errors in our words


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder for files that are being written; it is removed in the end, with all that is still in it.

    It lies in the cache, because a file is renamed into place from here, and is locked, because other
    processes remove those of processes that were killed.
    """
    folder = cache_folder() / "scratch"
    with disk_errors_named():
        folder.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(folder, unless=lambda entry: is_recent(entry) and not is_lock_left(entry))
    scratch = folder / secrets.token_hex(8)
    with locked(scratch):
        with disk_errors_named():
            scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Let one process at a time work on what has this name in the cache; others say that they wait."""
    path = cache_folder() / name
    with disk_errors_named():
        path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(path))
        except RunError as error:
            if not isinstance(error.__cause__, Timeout):
                raise DataError(str(error)) from error
            _PROGRESS.info("Waiting for another process that decodes these images")
            held.enter_context(locked(path, seconds=-1))
        yield


@contextmanager
def kept_parts(identity: Sequence[Any]) -> Iterator[Path]:
    """Give a folder for parts of a store that one process writes; it goes when the block ends well.

    What a process leaves that is stopped is there for a day, for whoever comes with the same ``identity``.
    """
    folder = cache_folder() / "parts" / _digest(identity)
    with disk_errors_named():
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(folder.parent, unless=is_recent)
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder)


def is_recent(path: Path) -> bool:
    """Say whether a file or folder was changed within a day."""
    return time.time() - path.stat().st_mtime < STALE_SECONDS


def _remove_left_behind(folder: Path, unless: Callable[[Path], bool]) -> None:
    """Remove what killed processes left; others may be doing the same."""
    for entry in folder.iterdir():
        with suppress(OSError, RunError):
            if unless(entry):
                continue
            with locked(entry):
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()


@contextmanager
def disk_errors_named() -> Iterator[None]:
    """Say in our words what is wrong with the cache's disk."""
    try:
        yield
    except RunError as error:  # of a lock
        raise DataError(str(error)) from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise _no_space("free space", "a full disk") from error
        found = error.strerror or str(error)
        hint = "Set CONVSCOPE_CACHE to a folder of your own."
        raise DataError(expected_got(f"to write into the cache {cache_folder()}", found, hint)) from error


def _require_space(size: int) -> None:
    """Refuse to begin what the disk cannot hold."""
    folder = cache_folder()
    with disk_errors_named():
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < size:
        raise _no_space(f"{size / 2**30:.1f} GB of free space", f"{free / 2**30:.1f} GB")


def _no_space(expected: str, found: str) -> DataError:
    """Make the error for a disk that is full."""
    hint = "Make room, or set CONVSCOPE_CACHE to a folder on another disk."
    return DataError(expected_got(f"{expected} in the cache {cache_folder()}", found, hint))


# Stores: decoded images and what was noted beside them


@dataclass
class StoreWriter:
    """Takes the pixels of a store, some at a time, and what is to be kept beside them."""

    file: IO[bytes]
    shape: tuple[int, ...]  # of one image, (h, w, c)
    count: int = 0
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def append(self, images: NDArray[np.uint8]) -> None:
        """Write images ``(k, h, w, c)`` behind those that are there."""
        self.file.write(np.ascontiguousarray(images).data)
        self.count += len(images)

    def so_far(self) -> NDArray[np.uint8]:
        """Open the images that have been written."""
        self.file.flush()
        return read_pixels(Path(self.file.name), (self.count, *self.shape))


@dataclass(frozen=True, eq=False)
class Store:
    """A finished store: pixels, in memory where they are few, and what was noted beside them."""

    images: NDArray[np.uint8]
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    notes: Mapping[str, Any] = field(repr=False)


def store_folder() -> Path:
    """Name the folder of the cache that holds the stores."""
    return cache_folder() / "images"


def open_store(key: str) -> Store | None:
    """Open the store of a key, the digits that stand for its content; None if there is no whole one."""
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
    with suppress(OSError):  # one that cannot be written keeps its time
        os.utime(folder / NOTES_FILE)
    return store


def open_or_write(key: str, write: Callable[[], None]) -> Store:
    """Open the store of that key, or write it first; where another process is at it, wait for that one."""
    if (store := open_store(key)) is not None:
        return store
    with disk_errors_named(), one_at_a_time(f"images/{key}"):
        if (store := open_store(key)) is None:  # else another process has just written it
            write()
            store = open_store(key)
    if store is None:
        hint = "Is another program clearing it?"
        raise DataError(expected_got(f"the cache {cache_folder()} to keep what is written", "nothing", hint))
    return store


@contextmanager
def write_store(key: str, shape: tuple[int, ...]) -> Iterator[StoreWriter]:
    """Write a store; it appears under its key when the block ends well, whole, or not at all.

    Stores that were used least lately make room for it. Two processes that write the same one, which
    ``open_or_write`` avoids, do no harm: the first to end wins.
    """
    cache_limit()  # a wrong one is told before images are decoded, not after
    with disk_errors_named(), scratch_folder() as scratch:
        folder = scratch / key
        folder.mkdir()
        with (folder / "pixels").open("wb") as file:
            writer = StoreWriter(file, shape)
            yield writer
            sync_file(file)
        with (folder / "arrays.npz").open("wb") as file:
            np.savez(file, allow_pickle=False, **writer.arrays)
            sync_file(file)
        with (folder / NOTES_FILE).open("wb") as file:
            notes = {"shape": [writer.count, *shape], "notes": writer.notes}
            file.write(json.dumps(notes).encode())
            sync_file(file)
        _publish(folder, store_folder() / key)
        evict(store_folder(), keep=key)


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


def open_known(signature: Sequence[Any], write: Callable[[], tuple[str, Store]]) -> Store:
    """Open the store of files that have not changed, without reading them; else write it, and give its key.

    ``signature`` is that of the files, with what is done with them. One process writes, others wait for it.
    """
    file = cache_folder() / "known" / _digest(signature)

    def known() -> Store | None:
        try:
            return open_store(file.read_text("ascii"))
        except (OSError, ValueError):
            return None

    if (store := known()) is not None:
        return store
    with one_at_a_time(f"known/{file.name}"):
        if (store := known()) is None:  # else another process has been faster
            key, store = write()
            with disk_errors_named():
                temporary = file.with_name(f".{file.name}.{os.getpid()}")
                temporary.write_text(key, "ascii")
                temporary.replace(file)
    return store


def _digest(values: Sequence[Any]) -> str:
    """Condense what decides about the content of a file into its name."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


# Rows of numbers, one for each of many things: a folder under one key, to which more are added


def read_rows(key: str) -> tuple[dict[bytes, NDArray[np.float32]], float]:
    """Read the rows that are known under a key, by name; and how many seconds one took to compute."""
    folder = store_folder() / key
    rows: dict[bytes, NDArray[np.float32]] = {}
    most, seconds = 0, 0.0
    for file in sorted(folder.glob("*.npz")):
        try:
            with file.open("rb") as content, np.load(content, allow_pickle=False) as part:
                names, values, taken = part["names"], part["rows"], float(part["seconds"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            continue  # damaged, or gone: computed anew
        rows |= zip(map(bytes, names), values, strict=False)
        if len(values) > most:  # many say best how long one takes
            most, seconds = len(values), taken / len(values)
    with suppress(OSError):
        os.utime(folder / NOTES_FILE)
    return rows, seconds


def add_rows(key: str, names: Sequence[bytes], rows: NDArray[np.float32], seconds: float) -> None:
    """Keep rows ``(n, d)`` under a key, named by digests; all took so many ``seconds``."""
    folder = store_folder() / key
    table = np.frombuffer(b"".join(names), np.uint8).reshape(len(names), -1)
    content = pack({"names": table, "rows": rows, "seconds": np.array(seconds)})
    with disk_errors_named():
        write_file(folder / NOTES_FILE, b"{}")
        write_file(folder / f"{hashlib.sha256(table.data).hexdigest()}.npz", content)
        evict(store_folder(), keep=key)


# The size of the cache


def cache_limit() -> int:
    """Return how many bytes of decoded images are kept: 20 GB, or what ``CONVSCOPE_CACHE_GB`` says."""
    text = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_GB)
    with suppress(ValueError):
        size = float(text)
        if 0 <= size < float("inf"):
            return int(size * 2**30)
    raise UsageError(expected_got(f"a number of GB in {LIMIT_VARIABLE}", repr(text)))


def evict(stores: Path, keep: str) -> list[str]:
    """Remove the stores used least lately until the rest fit into the limit; name those that went.

    The one called ``keep`` stays, however large. A process that has one of them open goes on reading it.
    """
    limit, gone = cache_limit(), []
    entries = sorted(_entries(stores))
    total = sum(size for _, size, _ in entries)
    for _, size, folder in entries:
        if total > limit and folder.name != keep and _remove(folder):
            total -= size
            gone.append(folder.name)
    known = cache_folder() / "known"
    for file in known.iterdir() if gone and known.is_dir() else ():
        with suppress(OSError, ValueError):
            if file.read_text("ascii") in gone:
                file.unlink()
    return gone


def _entries(stores: Path) -> Iterator[tuple[int, int, Path]]:
    """Give time of use and size of each store; another process may be removing some."""
    for folder in stores.iterdir():
        if not re.fullmatch("[0-9a-f]{64}", folder.name) or folder.is_symlink():
            continue
        with suppress(OSError):
            size = sum(file.lstat().st_size for file in folder.iterdir())
            yield (folder / NOTES_FILE).stat().st_mtime_ns, size, folder


def _remove(folder: Path) -> bool:
    """Move a store out of sight, then remove it, so that nobody finds half of one."""
    with suppress(OSError), scratch_folder() as scratch:
        folder.rename(scratch / folder.name)
        return True
    return False


# Pixels on disk: a uint8 array that is read as it is needed
#
# Rows are read from the file and not through the mapping, whose pages the kernel would keep in the process's
# memory, up to two megabytes for each row touched; so a set of any size is trained on in the same memory.


class _Reader:
    """Reads from a file at any place, in any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)
        weakref.finalize(self, os.close, self._descriptor)

    def read_into(self, target: NDArray[np.uint8], start: int) -> None:
        """Fill an array with what the file holds from a byte on."""
        view = memoryview(target.data).cast("B")
        while len(view):
            count = os.preadv(self._descriptor, [view], start)
            if count == 0:
                expected = "the cached images to be whole"
                raise DataError(expected_got(expected, "a file that was cut", "Start again."))
            view, start = view[count:], start + count


class PixelStore(np.memmap[Any, np.dtype[np.uint8]]):
    """A memory-mapped uint8 array ``(n, h, w, c)`` that keeps little of itself in memory.

    Choosing rows copies them: into memory where they are few, else into a file of their own that vanishes
    with the last reference. Everything else works as for any read-only ``np.memmap``.
    """

    _reader: _Reader | None = None
    _first_byte: int = 0  # the address at which the file's first byte is mapped

    def __array_finalize__(self, origin: Any) -> None:
        super().__array_finalize__(origin)
        # A copy in memory has this type too, but neither mapping nor file.
        is_mapped = getattr(self, "_mmap", None) is not None
        self._reader = getattr(origin, "_reader", None) if is_mapped else None
        self._first_byte = getattr(origin, "_first_byte", 0)

    def __getitem__(self, index: Any) -> Any:
        in_rows = self.ndim > 1 and self.flags.c_contiguous and self.dtype == np.uint8
        if self._reader is None or not in_rows:
            return super().__getitem__(index)
        if isinstance(index, tuple) and index:
            return self._of_tuple(index)
        if isinstance(index, int | np.integer):
            return self._rows(np.array([index]))[0]
        if isinstance(index, slice):
            return self._slice(index)
        rows = np.asarray(index)
        if index is None or rows.ndim != 1 or rows.dtype.kind not in "biu":
            return super().__getitem__(index)
        return self._rows(np.flatnonzero(rows) if rows.dtype.kind == "b" else rows)

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    def _of_tuple(self, index: tuple[Any, ...]) -> Any:
        """Choose the rows first, so that only they are read."""
        rows, rest = index[0], index[1:]
        if isinstance(rows, int | np.integer):
            return self[rows][rest]
        if isinstance(rows, slice):
            return np.asarray(self[rows])[:, *rest]
        return super().__getitem__(index)

    def _slice(self, index: slice) -> Any:
        """Copy a stretch of rows if it is small; else give a view."""
        rows = range(*index.indices(len(self)))
        if len(rows) * self._row_size() > IN_MEMORY:
            return super().__getitem__(index)
        if rows.step != 1 or not hasattr(os, "preadv"):
            return self._rows(np.array(rows, np.int64))
        result = np.empty((len(rows), *self.shape[1:]), np.uint8)
        self._read_into(result, rows.start)
        return result

    def _rows(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copy rows in any order, into memory or into a file of their own."""
        if len(rows) * self._row_size() <= IN_MEMORY:
            return self._copied(rows)
        shape = (len(rows), *self.shape[1:])
        return _write_unnamed((self._copied(rows[stretch]) for stretch in _stretches(shape)), shape)

    def _copied(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copy rows into memory."""
        if not hasattr(os, "preadv"):
            return np.asarray(self)[rows]
        if len(rows) and not -len(self) <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows from {rows.min()} to {rows.max()} of {len(self)}")
        result = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for target, row in zip(result, rows.tolist(), strict=True):
            self._read_into(target, row % len(self))
        return result

    def _row_size(self) -> int:
        return math.prod(self.shape[1:])

    def _read_into(self, target: NDArray[np.uint8], row: int) -> None:
        """Fill an array with what is stored from a row on."""
        if self._reader is not None and target.size:
            begin = self.ctypes.data - self._first_byte  # a view begins somewhere inside the file
            self._reader.read_into(target, begin + row * self._row_size())


def map_pixels(
    images: NDArray[np.uint8],
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    shape: tuple[int, int, int],
) -> NDArray[np.uint8]:
    """Change images one by one into images of a shape ``(h, w, c)``.

    They come into memory where they are few, else into a file that vanishes with the last reference.
    """
    whole = (len(images), *shape)
    return _gathered(
        (np.stack([change(image) for image in images[rows]]) for rows in _stretches(whole)), whole
    )


def join_pixels(arrays: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Put images of one shape, of several arrays, behind one another; in memory or not, as ``map_pixels``."""
    whole = (sum(map(len, arrays)), *arrays[0].shape[1:])
    return _gathered((array[rows] for array in arrays for rows in _stretches(array.shape)), whole)


def _gathered(stretches: Iterable[NDArray[np.uint8]], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Put stretches of rows into memory where they are few, else into a file of their own."""
    if math.prod(shape) > IN_MEMORY:
        return _write_unnamed(stretches, shape)
    return np.concatenate([np.empty((0, *shape[1:]), np.uint8), *stretches])


def _stretches(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut rows into stretches of a size that memory hardly notices."""
    rows = max(1, COPY_BYTES // math.prod(shape[1:]))
    return (slice(start, start + rows) for start in range(0, shape[0], rows))


def _write_unnamed(stretches: Iterable[NDArray[np.uint8]], shape: tuple[int, ...]) -> PixelStore:
    """Write rows into a file that has no name, and map it."""
    _require_space(math.prod(shape))
    with disk_errors_named(), scratch_folder() as scratch, tempfile.TemporaryFile(dir=scratch) as file:
        for stretch in stretches:
            file.write(np.ascontiguousarray(stretch).data)
        file.flush()
        return open_pixels(file, shape)


def open_pixels(file: IO[bytes], shape: tuple[int, ...]) -> PixelStore:
    """Map a file of raw pixels ``(n, h, w, c)``, however large; it may be closed afterwards."""
    store = PixelStore(file, np.uint8, "r", shape=shape)
    store._reader, store._first_byte = _Reader(file.fileno()), store.ctypes.data
    return store


def read_pixels(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read raw pixels ``(n, h, w, c)`` into memory where they are few, else map them."""
    if math.prod(shape) <= IN_MEMORY:
        return np.fromfile(file, np.uint8).reshape(shape)
    with file.open("rb") as stream:
        return open_pixels(stream, shape)
