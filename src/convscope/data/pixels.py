"""Pixels on disk: a uint8 array that is read as it is needed.

The pages that were read are handed back to the system as training goes along, so that a set of any size is
trained on in the same memory.
"""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.cache import disk_errors_named, require_space, scratch_folder

# Arrays up to this size are read into memory, and answers up to this size are copies in memory.
IN_MEMORY = 256 * 2**20
# Pages mapped by reading are handed back after this much.
RESIDENT = 128 * 2**20
# Touching one row maps the pages around it too (the kernel's fault_around_bytes).
AROUND = 64 * 2**10
# Rows copied at a time when a part of a store is written into a file of its own.
COPY_ROWS = 8192


@dataclass
class _Residency:
    """How many bytes of a mapping may be in memory; shared by all views of it."""

    mapping: mmap.mmap
    touched: int = 0

    def touch(self, size: int) -> None:
        """Count what is about to be read; hand the pages back when it is too much."""
        self.touched += size
        if self.touched > RESIDENT and hasattr(self.mapping, "madvise"):
            self.mapping.madvise(mmap.MADV_DONTNEED)
            self.touched = size


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

    _residency: _Residency | None = None

    def __array_finalize__(self, origin: Any) -> None:
        super().__array_finalize__(origin)
        self._residency = getattr(origin, "_residency", None)

    def __getitem__(self, index: Any) -> Any:
        if self._residency is None or self.ndim == 0:
            return super().__getitem__(index)
        if isinstance(index, tuple):
            return self._getitem_of_rows(index)
        if isinstance(index, int | np.integer):
            return self._rows(np.array([index]))[0]
        if isinstance(index, slice):
            return self._slice(index)
        rows = np.asarray(index)
        if rows.ndim == 1 and rows.dtype.kind in "biu":
            return self._rows(np.flatnonzero(rows) if rows.dtype.kind == "b" else rows)
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    def _getitem_of_rows(self, index: tuple[Any, ...]) -> Any:
        """Choose the rows first, so that only they are read."""
        if not index or index[0] is None or index[0] is Ellipsis:
            return super().__getitem__(index)
        if isinstance(index[0], int | np.integer):
            return self[index[0]][index[1:]]
        rows = self[index[0]] if isinstance(index[0], slice) else super().__getitem__(index[0])
        return np.asarray(rows)[:, *index[1:]] if isinstance(index[0], slice) else super().__getitem__(index)

    def _slice(self, index: slice) -> NDArray[np.uint8]:
        """Copy a stretch of rows if it is small; else give a view."""
        count = len(range(*index.indices(len(self))))
        size = count * self._row_size()
        view = super().__getitem__(index)
        if size > IN_MEMORY:
            return view
        self._touch(size)
        return np.array(view.view(np.ndarray))

    def _rows(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copy rows in any order, into memory or into a file of their own."""
        many = len(rows) * self._row_size() > IN_MEMORY
        return self._gathered(rows) if many else self._copied(rows)

    def _copied(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copy rows into memory, handing back what was mapped for them."""
        plain = self.view(np.ndarray)
        result = np.empty((len(rows), *self.shape[1:]), np.uint8)
        around = max(AROUND, self._row_size())
        step = max(1, RESIDENT // around)
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step]
            self._touch(len(chunk) * around)
            result[start : start + step] = plain[chunk]
        return result

    def _gathered(self, rows: NDArray[np.int64]) -> PixelStore:
        """Write rows into a file that has no name, and map it."""
        shape = (len(rows), *self.shape[1:])
        require_space(math.prod(shape))
        with disk_errors_named(), tempfile.TemporaryFile(dir=scratch_folder()) as file:
            for start in range(0, len(rows), COPY_ROWS):
                file.write(self._copied(rows[start : start + COPY_ROWS]).data)
            file.flush()
            return open_pixels(file, shape)

    def _row_size(self) -> int:
        return math.prod(self.shape[1:])

    def _touch(self, size: int) -> None:
        if self._residency is not None:
            self._residency.touch(size)


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
    store = PixelStore(file, np.uint8, "r", shape=shape)
    store._residency = _Residency(store.base)  # type: ignore[arg-type]  # a memmap's base is its mapping
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
