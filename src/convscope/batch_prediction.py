"""Many image files → one table of predictions, by several processes; stopped, it goes on where it was.

The inputs are cut into parts of some hundred. One process predicts a part and writes it to a file beside the
table, whole or not at all; parts that are there already are not predicted again. When all are there, they
become the table, in the order of the inputs, and are removed. Memory holds one part for each process.
"""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from convscope.environment import THREADS, begin_worker, require_package, share_of_threads
from convscope.errors import RunError, UsageError, expected_got
from convscope.export import Bundle, load_bundle
from convscope.prediction import (
    COLUMNS,
    Failure,
    ImageSource,
    find_sources,
    in_csv,
    predict_sources,
    require_threshold,
)
from convscope.runs import RunDirectory, locked, write_errors_named

ENDINGS = (".parquet", ".csv")
# Images in a part: predicted in some seconds, so that little is lost when a process dies.
PART = 512
# Whatever of a run or an export decides what is predicted.
_DECISIVE = ("bundle.json", "weights.safetensors", "preprocess.json", "preprocess.npz", "calibration.json")
_PLAN = "plan.json"

_Source = ImageSource | Failure


@dataclass(frozen=True)
class Table:
    """A table of predictions that is written.

    Attributes
    ----------
    file : Path
        Where it lies.
    images, failures : int
        Inputs in it, and how many of these could not be predicted; each is a row.
    found_done : int
        Inputs that an earlier, interrupted call had predicted already.
    counts : dict of str to int
        How often each label was given, and ``no label`` where the network abstained.
    """

    file: Path
    images: int
    failures: int
    found_done: int
    counts: dict[str, int]


def predict_to_table(
    network: str | Path,
    inputs: Iterable[str | Path],
    file: str | Path,
    *,
    abstain: float | None = None,
    workers: int = 1,
    standard_input: Callable[[], bytes] | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Table:
    """Predict image files into a table: a row for each, in the order of the inputs.

    The columns are ``file``, ``label``, ``probability``, the next two labels with theirs, ``abstained``,
    ``warnings``, ``error``, and ``p(CLASS)``, the probability of each class. A file that cannot be read is a
    row with its error. An interrupted call with the same arguments goes on where it was.

    Parameters
    ----------
    network : str or Path
        A run, or a folder that ``convscope export`` wrote.
    inputs : iterable of str or Path
        Files, folders, ``-``.
    file : str or Path
        A new file that ends in ``.parquet`` or ``.csv``.
    abstain : float, optional
        Above 0 and up to 1; a prediction with a lower probability abstains.
    workers : int
        Processes that predict, each with its share of the threads; 1 predicts in this one. A script that asks
        for several calls this below ``if __name__ == "__main__":``, since each of them loads it again.
    standard_input : callable, optional
        Reads it whole; without it ``-`` is a file's name.
    on_progress : callable
        Called with the number of inputs that are done, and of all.

    Returns
    -------
    Table

    Raises
    ------
    UsageError
        For an impossible threshold, number of workers or file, and where parts of another call lie.
    RunError
        If a process ends that predicts, or another is at this table.

    Examples
    --------
    >>> predict_to_table("no-run", [], "table.txt")
    Traceback (most recent call last):
    ...
    convscope.errors.UsageError: Expected a table that ends in .parquet or .csv, got table.txt.
    """
    file = Path(file)
    require_threshold(abstain)
    _require_table(file)
    if workers < 1:
        raise UsageError(expected_got("at least 1 worker", workers))
    sources = list(find_sources(inputs, standard_input))
    parts = [sources[begin : begin + PART] for begin in range(0, len(sources), PART)]
    with locked(file), write_errors_named(file):
        folder = file.absolute().with_name(f".{file.name}.parts")
        names = [folder / f"{number:06d}.jsonl" for number in range(len(parts))]
        classes = _begin(folder, Path(network), sources, abstain)
        missing = [number for number, name in enumerate(names) if not name.is_file()]
        done = found_done = len(sources) - sum(len(parts[number]) for number in missing)
        on_progress(done, len(sources))
        jobs = [(parts[number], names[number]) for number in missing]
        for count in _work(Path(network), jobs, abstain or 0.0, min(workers, len(jobs))):
            done += count
            on_progress(done, len(sources))
        counts, failures = _join(names, file, classes)
        shutil.rmtree(folder)
    return Table(file, len(sources), failures, found_done, dict(counts))


def _require_table(file: Path) -> None:
    if file.suffix.lower() not in ENDINGS:
        raise UsageError(expected_got(f"a table that ends in {' or '.join(ENDINGS)}", file))
    if file.exists():
        raise UsageError(
            expected_got("a new file for the table", f"{file}, which is there", "Choose another name.")
        )
    if not file.absolute().parent.is_dir():
        raise UsageError(expected_got("a table in an existing folder", file))
    if file.suffix.lower() == ".parquet":
        require_package("pyarrow", "parquet")


def _begin(folder: Path, network: Path, sources: Sequence[_Source], abstain: float | None) -> list[str]:
    """Make the folder of parts, or see that it belongs to the same call; give the names of the classes."""
    digest = hashlib.sha256()
    for name in _DECISIVE:
        if (network / name).is_file():
            digest.update(name.encode() + (network / name).read_bytes())
    for source in sources:
        digest.update(repr((source, _stamp(source))).encode())
    plan = {"digest": digest.hexdigest(), "abstain": abstain, "part": PART}
    if (folder / _PLAN).is_file():
        found = RunDirectory(folder).read_json(_PLAN)
        if {key: found.get(key) for key in plan} != plan:
            hint = f"Remove {folder}, or choose another name."
            raise UsageError(
                expected_got("what was predicted of this table until now to fit", "other inputs", hint)
            )
        return [str(name) for name in found["classes"]]
    classes = list(load_bundle(network).class_names)
    folder.mkdir(exist_ok=True)
    RunDirectory(folder).write_json(_PLAN, {**plan, "classes": classes})
    return classes


def _stamp(source: _Source) -> Any:
    """Say what tells a changed input."""
    if isinstance(source, Failure):
        return None
    if isinstance(source.where, bytes):
        return hashlib.sha256(source.where).hexdigest()
    try:
        status = os.stat(source.where)  # noqa: PTH116  a Path for each of many files takes time
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _work(
    network: Path, jobs: Sequence[tuple[list[_Source], Path]], threshold: float, workers: int
) -> Iterator[int]:
    """Predict parts; yields the number of inputs of each that is done."""
    if workers <= 1:
        bundle = load_bundle(network) if jobs else None
        for sources, name in jobs:
            yield _predict_part(bundle, sources, name, threshold)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, begin_worker, (share_of_threads(workers),))
    waiting = iter(jobs)
    running: set[Future[int]] = set()
    try:
        while True:
            for job in waiting:  # some more than there are processes, so that none has to wait
                running.add(pool.submit(_predict_here, network, *job, threshold))
                if len(running) > workers:
                    break
            if not running:
                return
            over, running = wait(running, return_when=FIRST_COMPLETED)
            for one in over:
                yield one.result()
    except BrokenProcessPool as error:
        hint = "It may have been killed for its memory: the same command with fewer workers goes on."
        raise RunError(expected_got("every process to go on", "one that ended", hint)) from error
    finally:
        pool.shutdown(cancel_futures=True)


@cache
def _open(network: Path) -> Bundle:
    """Open the network of a process that predicts, once."""
    torch.set_num_threads(int(os.environ[THREADS[0]]))
    return load_bundle(network)


def _predict_here(network: Path, sources: list[_Source], name: Path, threshold: float) -> int:
    return _predict_part(_open(network), sources, name, threshold)


def _predict_part(bundle: Bundle | None, sources: list[_Source], name: Path, threshold: float) -> int:
    if bundle is None:
        raise ValueError("no network was opened")
    lines = []
    for one in predict_sources(bundle, sources, threshold):
        row = one.to_row()
        if not isinstance(one, Failure):
            row["all"] = [float(value) for value in one.probabilities]
        lines.append(json.dumps(row))
    RunDirectory(name.parent).write_bytes(name.name, "".join(f"{line}\n" for line in lines).encode())
    return len(sources)


def _join(names: Sequence[Path], file: Path, classes: Sequence[str]) -> tuple[Counter[str], int]:
    """Write the table from its parts, whole or not at all; count labels and failures."""
    counts: Counter[str] = Counter()
    failures = 0
    columns = [*COLUMNS, *(f"p({name})" for name in classes)]

    def rows(name: Path) -> list[dict[str, Any]]:
        nonlocal failures
        found = []
        for line in name.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            row |= zip(columns[len(COLUMNS) :], row.pop("all", []), strict=False)
            found.append(row)
            if "error" in row:
                failures += 1
            else:
                counts[row["label"] or "no label"] += 1
        return found

    unfinished = file.absolute().with_name(f".{file.name}.unfinished")
    write = _write_parquet if file.suffix.lower() == ".parquet" else _write_csv
    write(unfinished, columns, map(rows, names))
    unfinished.replace(file)
    return counts, failures


def _write_csv(file: Path, columns: Sequence[str], parts: Iterable[list[dict[str, Any]]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        for rows in parts:
            writer.writerows(map(in_csv, rows))


def _write_parquet(file: Path, columns: Sequence[str], parts: Iterable[list[dict[str, Any]]]) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = ("file", "label", "second", "third", "warnings", "error")
    types = {name: pyarrow.string() for name in texts} | {"abstained": pyarrow.bool_()}
    schema = pyarrow.schema([(name, types.get(name, pyarrow.float32())) for name in columns])
    with parquet.ParquetWriter(file, schema) as writer:
        for rows in parts:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
