"""The cache of decoded images stays below a size: what was used least lately goes first.

Only what convscope itself made is ever removed: a folder of the cache that is named after 64 hexadecimal
digits and holds a store. Removing one loses nothing but the time to decode its images again.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from convscope.data.cache import scratch_folder
from convscope.environment import cache_folder
from convscope.errors import UsageError, sentence

LIMIT_VARIABLE = "CONVSCOPE_CACHE_GB"
DEFAULT_GB = 20.0
# A store's notes: their time says when the store was last used.
NOTES_FILE = "notes.json"


@dataclass(frozen=True)
class _Entry:
    folder: Path
    size: int
    used: int


def cache_limit() -> int:
    """Return how many bytes of decoded images are kept.

    ``CONVSCOPE_CACHE_GB`` names another size than 20 GB.

    Raises
    ------
    UsageError
        If it names none.

    Examples
    --------
    >>> cache_limit() > 0
    True
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_GB)
    with suppress(ValueError):
        size = float(text)
        if 0 <= size < float("inf"):
            return int(size * 2**30)
    raise UsageError(sentence(f"a number of GB in {LIMIT_VARIABLE}", repr(text)))


def mark_used(store: Path) -> None:
    """Note that a store has just been used.

    Parameters
    ----------
    store : Path
        Its folder; one that cannot be written keeps its time.
    """
    with suppress(OSError):
        os.utime(store / NOTES_FILE)


def evict(stores: Path, keep: str) -> list[str]:
    """Remove the stores used least lately until the rest fit into the limit.

    A process that has one of them open goes on reading it.

    Parameters
    ----------
    stores : Path
        The folder that holds them.
    keep : str
        The name of one that stays, however large.

    Returns
    -------
    list of str
        The names of those that went.
    """
    limit, gone = cache_limit(), []
    entries = sorted(_entries(stores), key=lambda entry: entry.used)
    total = sum(entry.size for entry in entries)
    for entry in entries:
        if total > limit and entry.folder.name != keep and _remove(entry.folder):
            total -= entry.size
            gone.append(entry.folder.name)
    if gone:
        _forget(cache_folder() / "known", set(gone))
    return gone


def _entries(stores: Path) -> list[_Entry]:
    """List the stores of a folder; another process may be removing some."""
    found = []
    for folder in stores.iterdir():
        if not re.fullmatch("[0-9a-f]{64}", folder.name) or folder.is_symlink():
            continue
        with suppress(OSError):
            size = sum(file.lstat().st_size for file in folder.iterdir())
            found.append(_Entry(folder, size, (folder / NOTES_FILE).stat().st_mtime_ns))
    return found


def _remove(folder: Path) -> bool:
    """Move a store out of sight, then remove it, so that nobody finds half of one."""
    with suppress(OSError), scratch_folder() as scratch:
        folder.rename(scratch / folder.name)
        return True
    return False


def _forget(known: Path, gone: set[str]) -> None:
    """Remove the notes of which files belong to a store that went."""
    if not known.is_dir():
        return
    for file in known.iterdir():
        with suppress(OSError, ValueError):
            if file.read_text("ascii") in gone:
                file.unlink()
