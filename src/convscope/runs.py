"""The run directory: named files, written whole or not at all.

A run is written into a hidden folder beside its final place and renamed into it at the end, so that a
directory with a run's name always holds a readable run. Plain dicts, arrays and bytes go in; what they mean
is decided elsewhere.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import RunError, sentence

RUN_FILE = "run.json"


class RunDirectory:
    """A directory with the files of one run.

    Parameters
    ----------
    path : str or Path
        An existing directory.
    target : Path, optional
        Where it belongs once it is readable.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as root:
    ...     with create_run(Path(root) / "first") as run:
    ...         run.write_json("run.json", {"status": "completed"})
    ...     RunDirectory(Path(root) / "first").read_json("run.json")["status"]
    'completed'
    """

    def __init__(self, path: str | Path, target: Path | None = None) -> None:
        self.path = Path(path)
        self._target = target

    @property
    def published(self) -> bool:
        """Whether the run is at its final place."""
        return self._target is None

    def publish(self) -> None:
        """Move a new run to its final place; from then on it is kept, whatever happens."""
        if self._target is not None:
            self.path.chmod(0o755)
            self.path.replace(self._target)
            self.path, self._target = self._target, None

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file so that it is there whole or not at all, also after a power cut."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(scratch).chmod(0o644)
            Path(scratch).replace(target)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a dict as JSON that any parser reads: NaN and infinity become null."""
        text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
        self.write_bytes(name, text.encode())

    def write_arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write arrays as NumPy's compressed npz; none of them may hold Python objects."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
        self.write_bytes(name, buffer.getvalue())

    def write_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Write columns of equal length as CSV with a header."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        self.write_bytes(name, buffer.getvalue().encode())

    def read_bytes(self, name: str) -> bytes:
        """Read a file.

        Raises
        ------
        RunError
            If it is not there or cannot be read.
        """
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise RunError(sentence(f"{name} in the run {self.path}", error.strerror)) from error

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object.

        Raises
        ------
        RunError
            If it is not there or not a JSON object.
        """
        try:
            value = json.loads(self.read_bytes(name))
        except ValueError as error:
            raise RunError(sentence(f"{name} in {self.path} to be JSON", error)) from error
        if not isinstance(value, dict):
            raise RunError(sentence(f"{name} in {self.path} to hold a JSON object", type(value).__name__))
        return value

    def read_arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Read the arrays of an npz file; pickled content is refused.

        Raises
        ------
        RunError
            If it is not there or damaged.
        """
        try:
            with np.load(io.BytesIO(self.read_bytes(name)), allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise RunError(sentence(f"{name} in {self.path} to be whole", error)) from error

    def read_table(self, name: str) -> dict[str, list[float]]:
        """Read a CSV of numbers as columns.

        Raises
        ------
        RunError
            If it is not there or holds something else.
        """
        rows = list(csv.reader(io.StringIO(self.read_bytes(name).decode("utf-8", "replace"))))
        try:
            header, *body = rows
            return {key: [float(row[i]) for row in body] for i, key in enumerate(header)}
        except (ValueError, IndexError) as error:
            raise RunError(sentence(f"{name} in {self.path} to be a table of numbers", error)) from error


@contextmanager
def create_run(target: Path) -> Iterator[RunDirectory]:
    """Write a run: it appears at the target when the block ends well, and not at all when it raises.

    A block that calls ``publish`` itself, because what it has written so far is worth keeping, keeps it.

    Parameters
    ----------
    target : Path
        Where the run will be; must not exist yet. Missing parents are made, and unmade on failure.

    Yields
    ------
    RunDirectory
        A folder beside the target to write into.

    Raises
    ------
    RunError
        If the target exists or the file system refuses (no permission, no room).
    """
    if target.exists():
        raise RunError(
            sentence(f"a new run at {target}", "one that is already there", "Choose another --out.")
        )
    made: list[Path] = []
    try:
        made = _make_parents(target.parent)
        run = RunDirectory(
            Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-partial-")), target
        )
        try:
            yield run
            run.publish()
        except BaseException:
            if not run.published:
                shutil.rmtree(run.path, ignore_errors=True)
            raise
    except BaseException as error:
        _remove_empty(made)
        if isinstance(error, OSError):
            expected = f"to be able to write {target}"
            raise RunError(sentence(expected, error.strerror or error, "Choose another --out.")) from error
        raise


def open_run(path: str | Path) -> RunDirectory:
    """Open an existing run.

    Parameters
    ----------
    path : str or Path
        The run's directory.

    Returns
    -------
    RunDirectory
        Whose ``run.json`` is readable.

    Raises
    ------
    RunError
        If there is no run.
    """
    run = RunDirectory(path)
    if not (run.path / RUN_FILE).is_file():
        raise RunError(
            sentence(f"a run directory with {RUN_FILE}", f"{path}", "Name the directory of a run.")
        )
    return run


def open_unfinished(path: str | Path) -> RunDirectory:
    """Open a run whose training can still go on.

    Parameters
    ----------
    path : str or Path
        The run's directory.

    Returns
    -------
    RunDirectory
        Of a run that is not completed.

    Raises
    ------
    RunError
        If there is no run, or a completed one.
    """
    run = open_run(path)
    if run.read_json(RUN_FILE).get("status") == "completed":
        raise RunError(sentence(f"an unfinished run at {run.path}", "a completed one"))
    return run


def _make_parents(folder: Path) -> list[Path]:
    """Make a folder; return the ones that were not there, outermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders that were made for nothing, innermost first."""
    for folder in reversed(folders):
        try:
            folder.rmdir()
        except OSError:
            return


def _plain(value: Any) -> Any:
    """Turn NumPy scalars and arrays, tuples and non-finite numbers into what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
