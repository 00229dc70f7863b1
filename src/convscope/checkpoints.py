"""Checkpoints: the state of a training, written so that a crash at any moment leaves the old or the new.

Each checkpoint is a folder of its own: the arrays are written and synced, then the manifest with their
hashes, then the folder is renamed into place and its parent synced. Reading takes the newest folder whose
manifest holds; older ones are removed only after a newer one is in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import RunError, sentence

FOLDER = "checkpoint"
ARRAYS = "state.safetensors"
MANIFEST = "manifest.json"

Arrays = Mapping[str, NDArray[Any]]


def save_checkpoint(run: Path, position: tuple[int, int], arrays: Arrays) -> Path:
    """Write a checkpoint into a run and remove the older ones.

    Parameters
    ----------
    run : Path
        The run directory.
    position : tuple of two int
        Epochs that are over, and steps inside the one that has begun; the newest checkpoint is the highest.
    arrays : mapping of str to ndarray
        The whole state.

    Returns
    -------
    Path
        The checkpoint's folder.

    Raises
    ------
    OSError
        If the file system refuses; the previous checkpoint is still there.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as run:
    ...     _ = save_checkpoint(Path(run), (1, 0), {"x": np.arange(3)})
    ...     load_checkpoint(Path(run))["x"].tolist()
    [0, 1, 2]
    """
    from safetensors.numpy import save

    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    target = folder / f"{position[0]:06d}-{position[1]:08d}"
    if not _is_whole(target):
        content = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=".saving-"))
        try:
            _write_synced(scratch / ARRAYS, content)
            manifest = {"files": {ARRAYS: hashlib.sha256(content).hexdigest()}}
            _write_synced(scratch / MANIFEST, json.dumps(manifest).encode())
            _sync_folder(scratch)
            shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same position
            scratch.replace(target)
            _sync_folder(folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    for other in folder.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)
    return target


def load_checkpoint(run: Path) -> dict[str, NDArray[Any]] | None:
    """Read the newest whole checkpoint of a run.

    Parameters
    ----------
    run : Path
        The run directory.

    Returns
    -------
    dict of str to ndarray, or None
        None where the run has no checkpoint.

    Raises
    ------
    RunError
        If there are checkpoints and every one is damaged.
    """
    from safetensors.numpy import load

    folder = run / FOLDER
    found = sorted(path for path in folder.glob("[0-9]*") if path.is_dir()) if folder.is_dir() else []
    for path in reversed(found):
        if _is_whole(path):
            return dict(load((path / ARRAYS).read_bytes()))
    if found:
        raise RunError(sentence(f"a whole checkpoint in {folder}", "damaged ones only", "Train anew."))
    return None


def remove_checkpoints(run: Path) -> None:
    """Remove all checkpoints of a run that is completed."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def _is_whole(path: Path) -> bool:
    """Say whether a checkpoint's manifest is there and its hashes hold."""
    try:
        files = json.loads((path / MANIFEST).read_bytes())["files"]
        return bool(files) and all(
            hashlib.sha256((path / Path(name).name).read_bytes()).hexdigest() == digest
            for name, digest in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _write_synced(file: Path, content: bytes) -> None:
    with file.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a folder's entries survive a power cut; systems that cannot do this do not need it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
