"""The run directory: named files, written whole or not at all.

A run is written into a hidden folder beside its final place and renamed into it at the end, so that a
directory with a run's name always holds a readable run. The file that locks it lies beside it, not in it: a
folder is not renamed everywhere while one of its files is open. Plain dicts, arrays and bytes go in; what
they mean is decided elsewhere.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import logging
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from convscope.errors import RunError, expected_got

RUN_FILE = "run.json"
# Where the command line writes runs, and looks for them, unless told otherwise.
RUNS_FOLDER = "runs"
# So many runs are named where one was meant.
MOST_NAMED = 5
# So many folders below the one that a person names, runs are looked for.
MOST_DEEP = 4
LOG_FILE = "log.txt"
HISTORY_FILE = "history.csv"
# How long to wait for a process that changes a file, and for one that looks whether a run is locked.
_CHANGE_SECONDS, _LOOK_SECONDS = 10.0, 1.0
# A run that is being written, or was when its process was killed; the letters at the end are tempfile's.
_LEFTOVER = re.compile(r"\.(.+)-partial-[a-z0-9_]{8}")


class RunDirectory:
    """A directory with the files of one run; ``target`` is where it belongs once it is readable.

    Reading raises RunError where a file is missing or damaged, writing where the file system refuses.
    """

    def __init__(self, path: str | Path, target: Path | None = None) -> None:
        self.path = Path(path)
        self._target = target

    @property
    def published(self) -> bool:
        """Whether the run is at its final place."""
        return self._target is None

    @property
    def target(self) -> Path:
        """The final place."""
        return self._target or self.path

    def publish(self) -> None:
        """Move a new run to its final place; from then on it is kept, whatever happens."""
        if self._target is not None:
            self.path.chmod(0o755)
            sync_folder(self.path)
            self.path.replace(self._target)
            self.path, self._target = self._target, None
            sync_folder(self.path.parent)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file, as ``write_file`` does."""
        write_file(self.path / name, content)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a dict as JSON that any parser reads: NaN and infinity become null."""
        text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
        self.write_bytes(name, text.encode())

    def update_json(
        self, name: str, change: Callable[[dict[str, Any] | None], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Read a JSON object (None where there is none), change it and write it, one process at a time."""
        with locked(self.path / name, _CHANGE_SECONDS):
            value = dict(change(self.read_json(name) if (self.path / name).is_file() else None))
            self.write_json(name, value)
        return value

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
        """Read a file."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise RunError(expected_got(f"{name} in the run {self.path}", error.strerror)) from error

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object."""
        try:
            value = json.loads(self.read_bytes(name))
        except ValueError as error:
            raise RunError(expected_got(f"{name} in {self.path} to be JSON", error)) from error
        if not isinstance(value, dict):
            raise RunError(expected_got(f"{name} in {self.path} to hold a JSON object", type(value).__name__))
        return value

    def read_arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Read the arrays of an npz file; pickled content is refused."""
        try:
            with np.load(io.BytesIO(self.read_bytes(name)), allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise RunError(expected_got(f"{name} in {self.path} to be whole", error)) from error

    def read_table(self, name: str) -> dict[str, list[float]]:
        """Read a CSV of numbers as columns."""
        rows = list(csv.reader(io.StringIO(self.read_bytes(name).decode("utf-8", "replace"))))
        try:
            header, *body = rows
            return {key: [float(row[i]) for row in body] for i, key in enumerate(header)}
        except (ValueError, IndexError) as error:
            raise RunError(expected_got(f"{name} in {self.path} to be a table of numbers", error)) from error


def write_file(target: Path, content: bytes) -> None:
    """Write a file so that it is there whole or as it was before, also after a power cut."""
    with write_errors_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                sync_file(file)
            Path(scratch).chmod(0o644)
            Path(scratch).replace(target)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise


def sync_file(file: IO[bytes]) -> None:
    """Make sure that the content is on the disk before its name is."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a folder's entries survive a power cut; systems that cannot do this do not need it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def create_run(target: Path) -> Iterator[RunDirectory]:
    """Write a run: it appears at the target when the block ends well, and not at all when it raises.

    The target must not exist; missing parents are made, and unmade on failure. A block that calls ``publish``
    itself, because what it has written so far is worth keeping, keeps it. The run is locked, under its final
    name, until the block ends.
    """
    made: list[Path] = []
    try:
        with write_errors_named(target, "Choose another --out."):
            made = _make_parents(target.parent)
            _remove_leftovers(target.parent)
            with lock_run(target):
                if target.exists():
                    found, hint = "one that is already there", "Choose another --out."
                    raise RunError(expected_got(f"a new run at {target}", found, hint))
                folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-partial-"))
                run = RunDirectory(folder, target)
                try:
                    yield run
                    run.publish()
                except BaseException:
                    if not run.published:
                        shutil.rmtree(run.path, ignore_errors=True)
                    raise
    except BaseException:
        _remove_empty(made)
        raise


@contextmanager
def new_folder(out: Path, name: str) -> Iterator[Path]:
    """Make a folder for runs that no other process has: with a number behind its name where one has it.

    It is removed in the end if it is empty, and so is what killed processes left in the folders of ``out``.
    """
    made: list[Path] = []
    try:
        with write_errors_named(out / name, "Choose another --out."):
            made = _make_parents(out)
            for other in out.iterdir():
                if other.is_dir() and _remove_leftovers(other):
                    _remove_empty([other])
            for number in count(1):
                folder = out / (name if number == 1 else f"{name}-{number}")
                with suppress(FileExistsError):
                    folder.mkdir()
                    made.append(folder)
                    break
        yield folder
    finally:
        _remove_empty(made)


@contextmanager
def log_into(run: RunDirectory) -> Iterator[None]:
    """Append warnings and errors that the package logs, with their tracebacks, to ``log.txt`` in a run."""
    handler = _LogFile(run)
    logger = logging.getLogger("convscope")
    if handler in logger.handlers:
        yield
        return
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _LogFile(logging.Handler):
    """Opens the file for each record, because a run's folder moves, and most runs have nothing to log."""

    def __init__(self, run: RunDirectory) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._run = run

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LogFile) and other._run.path == self._run.path

    __hash__ = logging.Handler.__hash__

    def emit(self, record: logging.LogRecord) -> None:
        file = self._run.path / LOG_FILE
        with suppress(OSError), file.open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(f"{self.format(record)}\n")


@contextmanager
def lock_run(path: str | Path) -> Iterator[None]:
    """Let one process at a time train or write the run that has, or will have, this path."""
    with locked(Path(path).resolve(), _LOOK_SECONDS):
        yield


@contextmanager
def locked(path: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock of a path, of which one process at a time has it; a dead process's lock frees itself.

    The lock is a file beside the path, which need not exist. Another process is waited for so many seconds;
    below 0 for ever.
    """
    file = _lock_file(path)
    lock = FileLock(file, timeout=seconds)
    with write_errors_named(path):
        try:
            lock.acquire()
        except Timeout as error:
            found, hint = "another process at it", "Wait for it, or stop it."
            raise RunError(expected_got(f"nobody else to work on {path}", found, hint)) from error
    try:
        yield
    finally:
        # Removed while it is held, so that nobody can hold a file that is gone beside the next one.
        with suppress(OSError):  # Windows refuses, and removes it when it is released
            file.unlink()
        lock.release()


def _lock_file(path: Path) -> Path:
    return path.absolute().with_name(f".{path.name}.lock")


def is_lock_left(path: Path) -> bool:
    """Say whether a path is locked, or was locked by a process that was killed."""
    return _lock_file(path).is_file()


@contextmanager
def write_errors_named(path: Path, hint: str = "") -> Iterator[None]:
    """Turn an OSError into a RunError that names the path, and the file where that is another one."""
    try:
        yield
    except ConnectionError:  # nothing of the disk's: whoever read our output is gone
        raise
    except OSError as error:
        found = str(error.strerror or error)
        if error.filename is not None and path.absolute().parent not in Path(str(error.filename)).parents:
            found = f"{found}: {error.filename}"
        raise RunError(expected_got(f"to be able to write {path}", found, hint)) from error


def open_run(path: str | Path) -> RunDirectory:
    """Open an existing run, whose ``run.json`` is there."""
    run = RunDirectory(path)
    if not (run.path / RUN_FILE).is_file():
        raise RunError(
            expected_got(f"a run directory with {RUN_FILE}", f"{path}", "Name the directory of a run.")
        )
    return run


def list_runs(folder: str | Path) -> list[RunDirectory]:
    """List the runs in a folder and below it, the newest first."""
    runs = _runs_below(Path(folder), MOST_DEEP)
    return [RunDirectory(path) for path in sorted(runs, key=_when, reverse=True)]


def _runs_below(folder: Path, levels: int) -> Iterator[Path]:
    """Look for runs so many levels deep, not in a run and in nothing hidden."""
    if (folder / RUN_FILE).is_file():
        yield folder
    elif levels:
        with suppress(OSError):  # no folder, or one that may not be read
            for entry in os.scandir(folder):
                if not entry.name.startswith(".") and entry.is_dir():
                    yield from _runs_below(folder / entry.name, levels - 1)


def _when(run: Path) -> tuple[float, str]:
    """Say when a run began, as its record says it; an older one, when that was written last."""
    try:
        began = datetime.fromisoformat(RunDirectory(run).read_json(RUN_FILE)["began"]).timestamp()
    except (RunError, KeyError, TypeError, ValueError):
        began = (run / RUN_FILE).stat().st_mtime
    return began, str(run)


def find_run(name: str | Path) -> Path:
    """Find the one run that a person means; several are named, by ``matching_runs``."""
    found = matching_runs(name)
    if len(found) == 1:
        return found[0]
    if not found:
        hint = "Name the directory of a run; `convscope runs` lists them."
        raise RunError(expected_got(f"a run directory with {RUN_FILE}", str(name), hint))
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    several = ", ".join(map(str, found[:MOST_NAMED])) + more
    raise RunError(expected_got(f"one run for {name}", several, "Name one of them."))


def matching_runs(name: str | Path) -> list[Path]:
    """List the runs that a name can mean.

    It is a run directory; a folder that holds runs; ``latest``, in ``runs`` or in the folder before it; or
    the beginning of a run's path or of the last part of it.
    """
    path = Path(name)
    if (path / RUN_FILE).is_file():
        return [path]
    if path.is_dir():
        return [run.path for run in list_runs(path)]
    if path.name == "latest":
        return [run.path for run in list_runs(path.parent if path.parent.name else RUNS_FOLDER)[:1]]
    folders = [Path(RUNS_FOLDER), *path.parent.glob(f"{glob.escape(path.name)}*")]
    runs = list(dict.fromkeys(run.path for folder in folders for run in list_runs(folder)))
    names = {run: (str(run), str(run.relative_to(run.parts[0])), run.name) for run in runs}
    same = [run for run in runs if str(path) in names[run]]
    return same or [run for run in runs if any(one.startswith(str(path)) for one in names[run])]


def write_history(run: RunDirectory, history: Mapping[str, Sequence[float]]) -> None:
    """Write the values of each epoch, (epochs,) a metric."""
    epochs = max(map(len, history.values()), default=0)
    run.write_table(HISTORY_FILE, {"epoch": range(1, epochs + 1), **history})


def describe_runs(folder: str | Path) -> list[dict[str, Any]]:
    """Say of each run in a folder what it is, the newest first; what a damaged one does not say is ``?``.

    The accuracy is that on the validation images, since a list is there to choose from; of a run that is not
    finished, that of its best epoch so far.
    """
    return [_describe(run) for run in list_runs(folder)]


def _describe(run: RunDirectory) -> dict[str, Any]:
    record: dict[str, Any] = {}
    accuracy = None
    with suppress(RunError):
        record = run.read_json(RUN_FILE)
        if (run.path / "evaluation.json").is_file():
            accuracy = run.read_json("evaluation.json").get("validation", {}).get("accuracy")
        else:
            accuracy = max(run.read_table(HISTORY_FILE).get("val_accuracy", []), default=None)
    began = datetime.fromtimestamp(_when(run.path)[0]).astimezone()
    return {
        "run": str(run.path),
        "began": began.isoformat(timespec="seconds"),
        "data": str(_within(record, "data", "name")),
        "network": str(_within(record, "network", "name")),
        "validation_accuracy": accuracy,
        "bytes": sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file()),
        "status": _status(run.path, record),
    }


def _status(run: Path, record: Mapping[str, Any]) -> str:
    """Say how far a run has come; where nobody has its lock any more, nobody goes on with it."""
    status = str(record.get("status", "?"))
    if status != "running":
        return status
    with suppress(RunError), locked(run.resolve()):
        return "interrupted"
    return status


def _within(record: Mapping[str, Any], part: str, name: str) -> object:
    found = record.get(part)
    return found.get(name, "?") if isinstance(found, dict) else "?"


def open_unfinished(path: str | Path) -> RunDirectory:
    """Open a run whose training can still go on."""
    run = open_run(path)
    if run.read_json(RUN_FILE).get("status") == "completed":
        raise RunError(
            expected_got(f"an unfinished run at {run.path}", "a completed one", "Nothing is left to do.")
        )
    return run


def _make_parents(folder: Path) -> list[Path]:
    """Make a folder; return the ones that were not there, outermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_leftovers(folder: Path) -> bool:
    """Remove what processes left that were killed while they wrote a run; a living one holds its lock."""
    found = []
    with suppress(OSError):
        found = [match for path in folder.iterdir() if (match := _LEFTOVER.fullmatch(path.name))]
    for match in found:
        run = folder / match[1]
        if is_lock_left(run):  # else it is something of the user's
            with suppress(RunError), locked(run):
                shutil.rmtree(folder / match[0], ignore_errors=True)
    return bool(found)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders that were made for nothing, innermost first."""
    for folder in reversed(folders):
        try:
            folder.rmdir()
        except OSError:
            return


def as_json(record: Any) -> dict[str, Any]:
    """Give the fields of a dataclass, and of those in it, as JSON values."""
    return {name: _plain(value) for name, value in asdict(record).items()}


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
