"""Weights out of an HDF5 file that somebody else wrote, read by a process of its own.

The HDF5 library is large and written in C; a file made to harm can crash it or fill the memory. So this
module runs as a script, ``python -I hdf5.py WEIGHTS.h5 WEIGHTS.safetensors LIMIT``, within a limit of memory
and time, and hands over plain arrays. It imports nothing of this package.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

MOST_OBJECTS = 50_000
DEEPEST = 64
# Address space for Python, NumPy and HDF5 themselves, beside the weights.
BASE_BYTES = 2 * 2**30
CPU_SECONDS = 60


class RefusedError(Exception):
    """Something in the file that a network's weights do not need."""


def extract(source: Path, target: Path, limit: int) -> None:
    """Copy the weights of a file that Keras wrote into a safetensors file, up to a limit in bytes.

    Refused are links, compressed, external or virtual data, and data that are no numbers. The keys of the
    safetensors file are paths in the source.
    """
    import h5py
    import numpy as np
    from safetensors.numpy import save_file

    with h5py.File(source, "r") as file:
        arrays = {}
        for path, dataset in _datasets(file):
            limit -= _checked_size(path, dataset, limit)
            arrays[path] = np.asarray(dataset[()])  # a single number, such as a count, is no array by itself
        save_file(arrays, target)


def _datasets(file: Any) -> Iterator[tuple[str, Any]]:
    """Find every dataset of the network, the optimizer's left out."""
    import h5py

    pending = [("", file)]
    seen = 0
    while pending:
        prefix, group = pending.pop()
        for name in group:
            seen += 1
            path = f"{prefix}/{name}" if prefix else name
            if seen > MOST_OBJECTS or path.count("/") > DEEPEST:
                raise RefusedError("too many objects")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise RefusedError(f"a link at {path}")
            child = group[name]
            if isinstance(child, h5py.Group):
                if path != "optimizer":
                    pending.append((path, child))
            elif isinstance(child, h5py.Dataset):
                yield path, child
            else:
                raise RefusedError(f"neither group nor dataset at {path}")


def _checked_size(path: str, dataset: Any, limit: int) -> int:
    """Give the bytes of a dataset that lies in the file as plain numbers, in one piece."""
    plan = dataset.id.get_create_plist()
    if plan.get_external_count() or dataset.is_virtual:
        raise RefusedError(f"data in another file at {path}")
    if plan.get_nfilters():
        raise RefusedError(f"compressed data at {path}")
    if dataset.shape is None or dataset.dtype.kind not in "fiub":
        raise RefusedError(f"no plain numbers at {path}")
    size = int(dataset.size) * int(dataset.dtype.itemsize)
    if size > limit:
        raise RefusedError(f"{size:,} bytes at {path}")
    if dataset.id.get_storage_size() != size:
        raise RefusedError(f"fewer bytes than it says at {path}")
    return size


def _set_limits(limit: int) -> None:
    """Bound memory and time, where the operating system can."""
    try:
        import resource
    except ImportError:  # Windows; the parent's time limit still holds
        return
    limits = {"RLIMIT_AS": BASE_BYTES + 4 * limit, "RLIMIT_CPU": CPU_SECONDS, "RLIMIT_CORE": 0}
    for name, value in limits.items():
        with suppress(AttributeError, ValueError, OSError):  # macOS has some of them by name only
            resource.setrlimit(getattr(resource, name), (value, value))


def _run(arguments: list[str]) -> int:
    """Do the work; the reason for a failure goes to standard error."""
    source, target, limit = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    _set_limits(limit)
    try:
        extract(source, target, limit)
    except Exception as error:
        # h5py raises what the damage makes of it: OSError, RuntimeError, KeyError, MemoryError …
        sys.stderr.write(f"{error or type(error).__name__}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(_run(sys.argv[1:]))
