"""Many image files → one table of predictions, by several processes; stopped, it goes on where it was.

The inputs are cut into parts of some hundred, whose rows are kept beside the table until all are there.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convscope.data.dataset import printable
from convscope.export import Bundle, load_bundle
from convscope.export.bundle_files import digest_of_network
from convscope.parts import file_stamp, in_parts, part_file, part_size, parts_of, require_new, require_workers
from convscope.prediction import (
    COLUMNS,
    Failure,
    ImageSource,
    find_sources,
    in_csv,
    predict_sources,
    require_threshold,
)

if TYPE_CHECKING:
    import pyarrow

ENDINGS = (".parquet", ".csv")
# Images in a part, at most: predicted in some seconds, so that little is lost when a process dies.
PART = 512

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
    require_new(file, ENDINGS)
    require_workers(workers)
    sources = list(find_sources(inputs, standard_input))
    size = part_size(len(sources), PART)
    parts = [sources[begin : begin + size] for begin in range(0, len(sources), size)] or [[]]
    counts: Counter[str] = Counter()
    failures = done = 0

    def rows(contents: Iterable[bytes]) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
        nonlocal failures, done
        for part, content in zip(parts, contents, strict=True):
            found = json.loads(content)
            columns = [f"p({name})" for name in found["classes"]]
            for row in found["rows"]:
                row.update(zip(columns, row.pop("all", []), strict=False))
                if "error" in row:
                    failures += 1
                else:
                    counts[row["label"] or "no label"] += 1
            yield [*COLUMNS, *columns], found["rows"]
            done += len(part)
            on_progress(done, len(sources))

    with parts_of(file, _plan(Path(network), sources, abstain)) as folder:
        found_done = sum(
            len(part) for number, part in enumerate(parts) if part_file(folder, number).is_file()
        )
        on_progress(0, len(sources))
        prepare = partial(_prepare, Path(network), abstain or 0.0)
        contents = in_parts(parts, prepare, folder, min(workers, len(parts)))
        write = _write_parquet if file.suffix.lower() == ".parquet" else _write_csv
        write(folder / "table", rows(contents))
        (folder / "table").replace(file)
    return Table(file, len(sources), failures, found_done, dict(counts))


def _plan(network: Path, sources: Sequence[_Source], abstain: float | None) -> dict[str, Any]:
    """Say what the parts of a table come of."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(repr((source, _stamp(source))).encode())
    return {
        "network": digest_of_network(network),
        "inputs": digest.hexdigest(),
        "abstain": abstain,
        "part": part_size(len(sources), PART),
    }


def _stamp(source: _Source) -> Any:
    """Say what tells a changed input."""
    if isinstance(source, Failure):
        return None
    if isinstance(source.where, bytes):
        return hashlib.sha256(source.where).hexdigest()
    return file_stamp(source.where)


def _prepare(network: Path, threshold: float) -> Callable[[Sequence[_Source]], bytes]:
    """Open the network, once in each process; what comes of a part are its rows as JSON."""
    bundle = load_bundle(network)

    def work(sources: Sequence[_Source]) -> bytes:
        rows = _predict_rows(bundle, sources, threshold)
        return json.dumps({"classes": bundle.class_names, "rows": rows}).encode()

    return work


def _predict_rows(bundle: Bundle, sources: Iterable[_Source], threshold: float) -> list[dict[str, Any]]:
    """Predict; a row has its probabilities of all classes as one list."""
    rows = []
    for one in predict_sources(bundle, sources, threshold):
        row = one.to_row()
        if not isinstance(one, Failure):
            row["all"] = [float(value) for value in one.probabilities]
        rows.append(row)
    return rows


def predict_to_arrow(
    bundle: Bundle, images: Iterable[tuple[str, bytes]], *, abstain: float | None = None
) -> pyarrow.Table:
    """Predict image files that were read already: the rows that `predict_to_table` writes.

    Parameters
    ----------
    bundle : Bundle
        The network and what it needs; see ``load_bundle``.
    images : iterable of (str, bytes)
        The name of each file, and its content.
    abstain : float, optional
        Above 0 and up to 1; a prediction with a lower probability abstains.

    Returns
    -------
    pyarrow.Table
        In the order of the images.
    """
    import pyarrow

    require_threshold(abstain)
    sources = [ImageSource(printable(name), content) for name, content in images]
    rows = _predict_rows(bundle, sources, abstain or 0.0)
    names = [f"p({name})" for name in bundle.class_names]
    for row in rows:
        row.update(zip(names, row.pop("all", []), strict=False))
    return pyarrow.Table.from_pylist(rows, _schema([*COLUMNS, *names]))


def _schema(columns: Sequence[str]) -> pyarrow.Schema:
    import pyarrow

    texts = ("file", "label", "second", "third", "warnings", "error")
    types = {name: pyarrow.string() for name in texts} | {"abstained": pyarrow.bool_()}
    return pyarrow.schema([(name, types.get(name, pyarrow.float32())) for name in columns])


_Rows = Iterator[tuple[list[str], list[dict[str, Any]]]]  # of each part: the columns, and its rows


def _write_csv(file: Path, parts: _Rows) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = None
        for columns, rows in parts:
            if writer is None:
                writer = csv.DictWriter(stream, columns, lineterminator="\n")
                writer.writeheader()
            writer.writerows(map(in_csv, rows))


def _write_parquet(file: Path, parts: _Rows) -> None:
    import pyarrow
    from pyarrow import parquet

    with ExitStack() as stack:
        writer = None
        for columns, rows in parts:
            if writer is None:
                writer = stack.enter_context(parquet.ParquetWriter(file, _schema(columns)))
            writer.write_table(pyarrow.Table.from_pylist(rows, writer.schema))
