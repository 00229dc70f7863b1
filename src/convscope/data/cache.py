"""The cache folder as a place to write: room for scratch files, and its disk's errors in our words."""

from __future__ import annotations

import errno
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convscope.environment import cache_folder
from convscope.errors import DataError, RunError, sentence
from convscope.runs import is_lock_left, locked

# What nobody has locked, and nobody has changed for a day, was left behind.
STALE_SECONDS = 86_400


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder for files that are being written; it is removed in the end, with all that is still in it.

    It lies in the cache, because a file is renamed into place from here, and is locked, because other
    processes remove those of processes that were killed.

    Raises
    ------
    DataError
        If the cache cannot be written.
    """
    folder = cache_folder() / "scratch"
    with disk_errors_named():
        folder.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(folder)
    scratch = folder / secrets.token_hex(8)
    with locked(scratch):
        with disk_errors_named():
            scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _remove_left_behind(folder: Path) -> None:
    """Remove what killed processes left; others may be doing the same."""
    for entry in folder.iterdir():
        with suppress(OSError, RunError):
            if not is_lock_left(entry) and time.time() - entry.stat().st_mtime < STALE_SECONDS:
                continue
            with locked(entry):
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()


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
    folder = cache_folder()
    with disk_errors_named():
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < size:
        raise _no_space(f"{size / 2**30:.1f} GB of free space", f"{free / 2**30:.1f} GB")


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
        raise DataError(sentence(f"to write into the cache {cache_folder()}", found, hint)) from error


def _no_space(expected: str, found: str) -> DataError:
    """Make the error for a disk that is full."""
    hint = "Make room, or set CONVSCOPE_CACHE to a folder on another disk."
    return DataError(sentence(f"{expected} in the cache {cache_folder()}", found, hint))
