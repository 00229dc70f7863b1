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

from convscope.data.decode import SUFFIXES
from convscope.data.findings import Finding, count
from convscope.data.names import Names, printable
from convscope.data.source import (
    PARTS,
    SETTLED_SECONDS,
    ImageSource,
    encode_labels,
    file_chunks,
    part_in_name,
    parts_of_table,
    require_classes,
    settle_parts,
    united_classes,
)
from convscope.data.table import (
    LABEL_COLUMNS,
    OTHER_ENCODING,
    PART_COLUMNS,
    NoImagesError,
    Table,
    is_image_name,
    other_encodings,
    unlabelled_tables,
)
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


@dataclass(frozen=True)
class _Way:
    """What leads from a cell to its file: the folder, the ending, and how the cell is written."""

    folder: str
    suffix: str
    separator: str
    encoding: str

    def file(self, cell: str) -> str:
        """Name the file, relative to the table's folder."""
        name = cell.strip().replace(self.separator, "/") + self.suffix
        if self.encoding:  # the name on the disk is in the table's bytes, which are no UTF-8
            name = os.fsdecode(name.encode(self.encoding, "surrogateescape"))
        return os.path.join(self.folder, name)  # noqa: PTH118  strings, many


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


def read_paths(tables: Sequence[Table], name: str, root: Path | None = None) -> ImageSource:
    """Make a source of tables of paths and labels.

    Parameters
    ----------
    tables : sequence of Table
        One, or one for each part. One without labels, and one whose files are not there beside one whose are,
        is passed over, and that is said.
    name : str
        The data's name.
    root : Path, optional
        What names are relative to; without it the first table's folder.

    Returns
    -------
    ImageSource
        Without a column of parts, and tables named after parts, the folders in the paths tell them.

    Raises
    ------
    DataError
        If a column is missing, a row has no label, or there are fewer than two classes.
    """
    columns = {table: found for table in tables if (found := _columns(table, one_of=len(tables))) is not None}
    if not columns:
        raise _no_columns(tables[0])
    unlabelled = [table.file.name for table in tables if table not in columns]
    ways = {table: way for table, found in columns.items() if (way := _way(table, found.path)) is not None}
    if not ways:
        raise _no_files(*next(iter(columns.items())))
    lost = [table.file.name for table in columns if table not in ways]
    rows = _Rows()
    root = root or next(iter(ways)).file.parent
    for table, way in ways.items():
        _read_rows(table, columns[table], way, root, rows)
    if not any(rows.parts) and all(columns[table].part is None for table in ways):
        rows.parts = _parts_of_folders(rows.files) or rows.parts
    labels, class_names, united = encode_labels(rows.labels, rows.where)
    require_classes(class_names, name)
    names = Names(printable(file) for file in rows.files)
    files = ", ".join(table.file.name for table in ways)
    present = ", ".join(PARTS[part] for part in sorted(set(rows.parts)))
    return ImageSource(
        name=name,
        layout=f"a table of paths and labels ({files}): {present}",
        names=names,
        labels=labels,
        parts=parts_of_table(np.array(rows.parts, np.int8)),
        class_names=class_names,
        signature=_signature(root, rows.files),
        chunks=partial(file_chunks, root, rows.files, names),
        is_table=True,
        findings=(
            *unlabelled_tables(unlabelled),
            *_lost_tables(lost),
            *other_encodings(ways),
            *united_classes(united),
        ),
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
    return NoImagesError(sentence(f"a column of paths and one of labels in {table.file}", found, hint))


def _read_rows(table: Table, columns: _Columns, way: _Way, root: Path, rows: _Rows) -> None:
    """Take in the rows of one table."""
    offset = os.path.relpath(table.file.parent, root)
    parts = table.parts_in(columns.part)
    width = 1 + max(columns.path, columns.label, columns.part or 0)
    rows.starts[os.path.relpath(table.file, root)] = len(rows.files)
    for number, row in enumerate(table.rows(width), 1):
        label = row[columns.label].strip()
        if not label:
            expected = f"a label in row {number:,} of {table.file.name}"
            raise DataError(sentence(expected, "an empty cell", "Fill or remove the row."))
        part = table.part if columns.part is None else parts[row[columns.part]]
        file = os.path.join(offset, way.file(row[columns.path]))  # noqa: PTH118  strings, many
        rows.files.append(os.path.normpath(file).replace(os.sep, "/"))
        rows.labels.append(label)
        rows.parts.append(part)


def _cells(table: Table, column: int) -> list[str]:
    """Give some cells of a column that are not empty."""
    return [cell for row in table.sample if len(row) > column and (cell := row[column].strip())]


def _way(table: Table, path: int) -> _Way | None:
    """Find the folder, the ending and the separator, which may be that of Windows, that lead to files."""
    cells = _cells(table, path)
    encodings = ("", OTHER_ENCODING) if table.encoding == OTHER_ENCODING else ("",)
    for encoding, suffix, separator, folder in itertools.product(
        encodings, ("", *SUFFIXES), ("/", "\\"), FOLDERS
    ):
        way = _Way(folder, suffix, separator, encoding)
        if any((table.file.parent / way.file(cell)).is_file() for cell in cells):
            return way
    return None


def _no_files(table: Table, columns: _Columns) -> DataError:
    """Say that none of the files is there."""
    expected = f"the files that {table.file} names, relative to its folder"
    cells = _cells(table, columns.path)
    return NoImagesError(sentence(expected, f"no {cells[0] if cells else 'paths'}", "Check the paths."))


def _lost_tables(names: Sequence[str]) -> tuple[Finding, ...]:
    """Report tables that speak of files that are not there."""
    message = f"{count(len(names), 'table')} whose files are not there: not used."
    return (Finding("lost_table", "warning", message, "Check its paths.", tuple(names)),) if names else ()


def _parts_of_folders(files: Sequence[str]) -> list[int] | None:
    """Read the parts off the folders in the paths; None unless each path has one, and they differ."""
    words: dict[str, str | None] = {}
    for file in files:
        folder = os.path.dirname(file)  # noqa: PTH120  strings, many
        if folder not in words:
            steps = folder.split("/")
            words[folder] = next(
                (step for step in steps if part_in_name(step, entirely=True) is not None), None
            )
    known = [word for word in words.values() if word is not None]
    parts = settle_parts({word: part_in_name(word, entirely=True) or 0 for word in known})
    if len(known) < len(words) or 0 not in parts.values() or len(set(parts.values())) < 2:
        return None
    return [parts[words[os.path.dirname(file)] or ""] for file in files]  # noqa: PTH120  strings, many


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
