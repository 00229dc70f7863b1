"""The cache folder as a place to write: room for scratch files, and its disk's errors in our words."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convscope.data.fetch import cache_folder
from convscope.errors import DataError, sentence

# What a process that was killed left behind is removed after a day.
STALE_SECONDS = 86_400


def scratch_folder() -> Path:
    """Make and return the folder for files that are being written.

    It lies in the cache, because a file is renamed into place from here.
    """
    folder = cache_folder() / "scratch"
    with disk_errors_named():
        folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    return folder


def _remove_stale(folder: Path) -> None:
    """Remove what a killed process left behind; others may be doing the same."""
    for entry in folder.iterdir():
        with suppress(OSError):
            if time.time() - entry.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)


def require_space(size: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Parameters
    ----------
    size : int
        Bytes to be written into the cache.

    Raises
    ------
    DataError
        If there is less space than that.
    """
    folder = scratch_folder()
    free = shutil.disk_usage(folder).free
    if free < size:
        raise _no_space(f"{size / 2**30:.1f} GB of free space", f"{free / 2**30:.1f} GB")


@contextmanager
def disk_errors_named() -> Iterator[None]:
    """Say in our words what is wrong with the cache's disk."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise _no_space("free space", "a full disk") from error
        found = error.strerror or str(error)
        hint = "Set CONVSCOPE_CACHE to a folder of your own."
        raise DataError(sentence(f"to write into the cache {cache_folder()}", found, hint)) from error


def _no_space(expected: str, found: str) -> DataError:
    """Make the error for a disk that is full."""
    hint = "Make room, or set CONVSCOPE_CACHE to a folder on another disk."
    return DataError(sentence(f"{expected} in the cache {cache_folder()}", found, hint))
