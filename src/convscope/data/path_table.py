"""CSV files of paths and labels."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from convscope.data.kinds import SUFFIXES
from convscope.data.names import Names, printable
from convscope.data.source import (
    PARTS,
    SETTLED_SECONDS,
    ImageSource,
    encode_labels,
    file_chunks,
    parts_of_table,
    require_classes,
    united_classes,
)
from convscope.data.table import LABEL_COLUMNS, PART_COLUMNS, Table, is_image_name, unlabelled_tables
from convscope.errors import DataError, sentence

PATH_COLUMNS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img"),
    *("img_path", "image_name", "image_id", "images", "name", "id"),
)
# Where the files may lie, seen from the table; and what the table may leave off their names.
FOLDERS = ("", "images", "imgs", "img", "data", *PARTS)


@dataclass(frozen=True)
class _Columns:
    """Which column is which; None where there is none."""

    path: int
    label: int
    part: int | None


@dataclass
class _Rows:
    """What the rows of all tables say, and at which position each table begins."""

    files: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)

    def where(self, position: int) -> str:
        """Say in which row of which table something stands, and of which file it speaks."""
        table, start = [item for item in self.starts.items() if item[1] <= position][-1]
        return f"of {printable(self.files[position])} in row {position - start + 1:,} of {table}"


def read_paths(tables: Sequence[Table], name: str) -> ImageSource:
    """Make a source of tables of paths and labels.

    Parameters
    ----------
    tables : sequence of Table
        One, or one for each part. One without labels is passed over, and that is said.
    name : str
        The data's name.

    Returns
    -------
    ImageSource
        Paths are relative to the first table's folder.

    Raises
    ------
    DataError
        If a column is missing, a row has no label, or there are fewer than two classes.
    """
    columns = {table: found for table in tables if (found := _columns(table, one_of=len(tables))) is not None}
    if not columns:
        raise _no_columns(tables[0])
    unlabelled = [table.file.name for table in tables if table not in columns]
    rows = _Rows()
    root = next(iter(columns)).file.parent
    for table, found in columns.items():
        _read_rows(table, found, root, rows)
    labels, class_names, united = encode_labels(rows.labels, rows.where)
    require_classes(class_names, name)
    names = Names(printable(file) for file in rows.files)
    return ImageSource(
        name=name,
        layout=f"a table of paths and labels: {', '.join(PARTS[part] for part in sorted(set(rows.parts)))}",
        names=names,
        labels=labels,
        parts=parts_of_table(np.array(rows.parts, np.int8)),
        class_names=class_names,
        signature=_signature(root, rows.files),
        chunks=partial(file_chunks, root, rows.files, names),
        is_table=True,
        findings=(*unlabelled_tables(unlabelled), *united_classes(united)),
    )


def _columns(table: Table, one_of: int) -> _Columns | None:
    """Find the columns by the header, or by what is in them; None if paths or labels are not there.

    Of one of several tables, such as the ``test.csv`` of a competition, all labels may be empty.
    """
    first = table.sample[0]
    label = table.column(LABEL_COLUMNS)
    path = table.column(PATH_COLUMNS)
    by_content = [number for number, cell in enumerate(first) if is_image_name(cell)]
    if by_content and path not in by_content:
        path = by_content[0]
    if label is None and not table.header:
        label = next((number for number in range(len(first)) if number != path), None)
    if path is None or label is None:
        return None
    if one_of > 1 and not any(row[label].strip() for row in table.sample if len(row) > label):
        return None
    return _Columns(path, label, table.column(PART_COLUMNS))


def _no_columns(table: Table) -> DataError:
    """Say that a table is none of paths and labels."""
    first = table.sample[0]
    found = f"the columns {', '.join(table.header)}" if table.header else f"the row {', '.join(first)}"
    hint = "Name them 'path' and 'label'."
    return DataError(sentence(f"a column of paths and one of labels in {table.file}", found, hint))


def _read_rows(table: Table, columns: _Columns, root: Path, rows: _Rows) -> None:
    """Take in the rows of one table."""
    folder, suffix, separator = _whereabouts(table, columns.path)
    offset = os.path.relpath(table.file.parent, root)
    width = 1 + max(columns.path, columns.label, columns.part or 0)
    rows.starts[table.file.name] = len(rows.files)
    for number, row in enumerate(table.rows(width), 1):
        label = row[columns.label].strip()
        if not label:
            expected = f"a label in row {number:,} of {table.file.name}"
            raise DataError(sentence(expected, "an empty cell", "Fill or remove the row."))
        part = table.part if columns.part is None else table.part_in_row(columns.part, row, number)
        name = row[columns.path].strip().replace(separator, "/") + suffix
        file = os.path.join(offset, folder, name)  # noqa: PTH118  strings, many
        rows.files.append(os.path.normpath(file).replace(os.sep, "/"))
        rows.labels.append(label)
        rows.parts.append(part)


def _whereabouts(table: Table, path: int) -> tuple[str, str, str]:
    """Find the folder, the ending and the separator, which may be that of Windows, that lead to files."""
    cells = [cell for row in table.sample if len(row) > path and (cell := row[path].strip())]
    for suffix, separator, folder in itertools.product(("", *SUFFIXES), ("/", "\\"), FOLDERS):
        at = table.file.parent / folder
        if any((at / (cell.replace(separator, "/") + suffix)).is_file() for cell in cells):
            return folder, suffix, separator
    expected = f"the files that {table.file} names, relative to its folder"
    raise DataError(sentence(expected, f"no {cells[0] if cells else 'paths'}", "Check the paths."))


def _signature(root: Path, files: Sequence[str]) -> str:
    """Condense names, sizes and times; empty where a file has just been changed."""
    digest = hashlib.sha256(os.fsencode(root.resolve()))
    newest = 0.0
    for file in files:
        try:
            status = os.stat(os.path.join(root, file))  # noqa: PTH116, PTH118  a Path for each is slow
        except (OSError, ValueError):
            digest.update(os.fsencode(file) + b"missing")
            continue
        newest = max(newest, status.st_ctime)
        times = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(os.fsencode(file) + repr(times).encode())
    return digest.hexdigest() if time.time() - newest > SETTLED_SECONDS else ""
