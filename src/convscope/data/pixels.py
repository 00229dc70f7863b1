"""Pixels on disk: a uint8 array that is read as it is needed.

Rows are read from the file and not through the mapping, whose pages the kernel would keep in the process's
memory, up to two megabytes for each row touched; so a set of any size is trained on in the same memory.
"""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.cache import disk_errors_named, require_space, scratch_folder
from convscope.errors import DataError, sentence

# Arrays up to this size are read into memory, and answers up to this size are copies in memory.
IN_MEMORY = 256 * 2**20
# Bytes held in memory at a time when rows are written into a file of their own.
COPY_BYTES = 16 * 2**20


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
                raise DataError(
                    sentence("the cached images to be whole", "a file that was cut", "Start again.")
                )
            view, start = view[count:], start + count


class PixelStore(np.memmap[Any, np.dtype[np.uint8]]):
    """A memory-mapped uint8 array ``(n, h, w, c)`` that keeps little of itself in memory.

    Choosing rows copies them: into memory where they are few, else into a file of their own that vanishes
    with the last reference. Everything else works as for any read-only ``np.memmap``.

    Examples
    --------
    >>> with tempfile.TemporaryFile() as file:
    ...     _ = file.write(bytes(range(8)))
    ...     store = open_pixels(file, (2, 2, 2, 1))
    >>> store[1].ravel().tolist(), type(store[np.array([1, 0])]).__name__
    ([4, 5, 6, 7], 'ndarray')
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
        many = len(rows) * self._row_size() > IN_MEMORY
        return self._gathered(rows) if many else self._copied(rows)

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

    def _gathered(self, rows: NDArray[np.int64]) -> PixelStore:
        """Write rows into a file that has no name, and map it."""
        shape = (len(rows), *self.shape[1:])
        return _write_unnamed((self._copied(rows[stretch]) for stretch in _stretches(shape)), shape)

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
    """Change images one by one, into memory where they are few, else into a file that nobody sees.

    Parameters
    ----------
    images : ndarray of shape (n, h, w, c), uint8
        In memory or not.
    change : callable
        Takes an image ``(h, w, c)`` and returns one of the given shape.
    shape : tuple of int
        Height, width and channels of a changed image.

    Returns
    -------
    ndarray of shape (n, *shape), uint8
        Memory-mapped where it is large; its file vanishes with the last reference.

    Raises
    ------
    DataError
        If the cache's disk is full.

    Examples
    --------
    >>> images = np.arange(4, dtype=np.uint8).reshape(2, 1, 2, 1)
    >>> map_pixels(images, lambda image: image[:, ::-1], (1, 2, 1)).ravel().tolist()
    [1, 0, 3, 2]
    """
    whole = (len(images), *shape)
    stretches = (np.stack([change(image) for image in images[rows]]) for rows in _stretches(whole))
    if math.prod(whole) > IN_MEMORY:
        return _write_unnamed(stretches, whole)
    return np.concatenate([np.empty((0, *shape), np.uint8), *stretches])


def _stretches(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut rows into stretches of a size that memory hardly notices."""
    rows = max(1, COPY_BYTES // math.prod(shape[1:]))
    return (slice(start, start + rows) for start in range(0, shape[0], rows))


def _write_unnamed(stretches: Iterable[NDArray[np.uint8]], shape: tuple[int, ...]) -> PixelStore:
    """Write rows into a file that has no name, and map it."""
    require_space(math.prod(shape))
    with disk_errors_named(), scratch_folder() as scratch, tempfile.TemporaryFile(dir=scratch) as file:
        for stretch in stretches:
            file.write(np.ascontiguousarray(stretch).data)
        file.flush()
        return open_pixels(file, shape)


def open_pixels(file: IO[bytes] | Path, shape: tuple[int, ...]) -> PixelStore:
    """Map a file of raw pixels, however large.

    Parameters
    ----------
    file : binary file or Path
        Holds the pixels in row-major order; may be closed afterwards.
    shape : tuple of int
        ``(n, h, w, c)``, n at least 1.

    Returns
    -------
    PixelStore
        Read-only.
    """
    if isinstance(file, Path):
        with file.open("rb") as stream:
            return open_pixels(stream, shape)
    store = PixelStore(file, np.uint8, "r", shape=shape)
    store._reader, store._first_byte = _Reader(file.fileno()), store.ctypes.data
    return store


def read_pixels(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read raw pixels into memory where they are few, else map them.

    Parameters
    ----------
    file : Path
        Holds the pixels in row-major order.
    shape : tuple of int
        ``(n, h, w, c)``.

    Returns
    -------
    ndarray of that shape, uint8
    """
    if math.prod(shape) <= IN_MEMORY:
        return np.fromfile(file, np.uint8).reshape(shape)
    return open_pixels(file, shape)
