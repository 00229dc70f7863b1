"""Work on many things, part after part, by several processes; stopped, it goes on where it was.

What comes of a part is bytes. Where a folder keeps them, each part is a file in it, whole or not there, and
a part that is there is not done again. Memory holds a few parts for each process.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from convscope.environment import THREADS, begin_worker, require_package, share_of_threads
from convscope.errors import RunError, UsageError, expected_got
from convscope.runs import RunDirectory, locked, write_errors_named

_PLAN = "plan.json"
_SMALLEST_PART, _PARTS = 32, 16

_Job = TypeVar("_Job")
Work = Callable[[_Job], bytes]


def in_parts(
    jobs: Iterable[_Job], prepare: Callable[[], Work[_Job]], folder: Path | None = None, workers: int = 1
) -> Iterator[bytes]:
    """Yield what comes of each job, in their order.

    ``prepare`` gives the function that does them; each process calls it once, when it has something to do.
    More than one worker are processes, each with its share of the threads: jobs and ``prepare`` are sent to
    them, so these are made of modules' functions.
    """
    files = (None if folder is None else part_file(folder, number) for number in count())
    if workers <= 1:
        do = _keeping(prepare)
        for job, file in zip(jobs, files, strict=False):
            yield file.read_bytes() if file is not None and file.is_file() else do(job, file)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, begin_worker, (share_of_threads(workers),))
    waiting: deque[Future[bytes] | Path] = deque()
    try:
        for job, file in zip(jobs, files, strict=False):
            if file is not None and file.is_file():
                waiting.append(file)
            else:
                waiting.append(pool.submit(_do, prepare, job, file))
            if len(waiting) > 2 * workers:  # so that none has to wait for its next one
                yield _content(waiting.popleft())
        while waiting:
            yield _content(waiting.popleft())
    except BrokenProcessPool as error:
        hint = "It may have been killed for its memory: the same command with fewer workers goes on."
        raise RunError(expected_got("every process to go on", "one that ended", hint)) from error
    finally:
        pool.shutdown(cancel_futures=True)


def part_size(inputs: int, most: int) -> int:
    """Say how many of the inputs are a part: fewer where they are few, so that all processes have some."""
    return min(most, max(_SMALLEST_PART, -(-inputs // _PARTS)))


def part_file(folder: Path, number: int) -> Path:
    """Name the file of a part."""
    return folder / f"{number:06d}"


def require_workers(workers: int) -> None:
    """Refuse less than one."""
    if workers < 1:
        raise UsageError(expected_got("at least 1 worker", workers))


def require_new(file: Path, endings: Sequence[str]) -> None:
    """Refuse to write over a file, or one that is no table."""
    if file.suffix.lower() not in endings:
        raise UsageError(expected_got(f"a table that ends in {' or '.join(endings)}", file))
    if file.exists():
        raise UsageError(
            expected_got("a new file for the table", f"{file}, which is there", "Choose another name.")
        )
    if not file.absolute().parent.is_dir():
        raise UsageError(expected_got("a table in an existing folder", file))
    if file.suffix.lower() == ".parquet":
        require_package("pyarrow", "parquet")


@contextmanager
def parts_of(file: Path, plan: Mapping[str, Any]) -> Iterator[Path]:
    """Give the folder for parts of a file that is being written; it goes when the block ends well.

    It lies hidden beside the file, and one that an interrupted call with the same plan left is taken over.
    """
    folder = file.absolute().with_name(f".{file.name}.parts")
    with locked(file), write_errors_named(file):
        if (folder / _PLAN).is_file():
            if RunDirectory(folder).read_json(_PLAN) != plan:
                hint = f"Remove {folder}, or choose another name."
                expected = f"what was done of {file.name} until now to fit"
                raise UsageError(expected_got(expected, "other inputs", hint))
        else:
            folder.mkdir(exist_ok=True)
            RunDirectory(folder).write_json(_PLAN, plan)
        yield folder
        shutil.rmtree(folder)


def file_stamp(path: str | Path) -> list[int] | None:
    """Say what tells a file that was changed: its size and time; None where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116  a Path for each of many files takes time
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Make bytes of arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(arrays))
    return buffer.getvalue()


def unpack(content: bytes) -> dict[str, NDArray[Any]]:
    """Make arrays of what ``pack`` gave."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _content(one: Future[bytes] | Path) -> bytes:
    return one.read_bytes() if isinstance(one, Path) else one.result()


def _keeping(prepare: Callable[[], Work[_Job]]) -> Callable[[_Job, Path | None], bytes]:
    """Make a function that does a job and keeps what comes of it."""
    work: Work[_Job] | None = None

    def do(job: _Job, file: Path | None) -> bytes:
        nonlocal work
        work = work or prepare()
        content = work(job)
        if file is not None:
            RunDirectory(file.parent).write_bytes(file.name, content)
        return content

    return do


# What a process of a pool does; the pool, and so its processes, belong to one call.
_done_by: Callable[[Any, Path | None], bytes] | None = None


def _do(prepare: Callable[[], Work[_Job]], job: _Job, file: Path | None) -> bytes:
    global _done_by  # noqa: PLW0603  a process of its own
    if _done_by is None:
        if torch := sys.modules.get("torch"):  # a script that is loaded again may have loaded it before
            torch.set_num_threads(int(os.environ[THREADS[0]]))
        _done_by = _keeping(prepare)
    return _done_by(job, file)
