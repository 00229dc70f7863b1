"""A CSV file: its delimiter, its header, its rows."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TextIO

from convscope.data.findings import Finding, count
from convscope.data.kinds import SUFFIXES
from convscope.data.source import part_in_name, part_of
from convscope.errors import DataError, sentence

LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "category", "target", "y", "species", "breed", "emotion"),
    *("diagnosis", "tag"),
)
PART_COLUMNS = ("split", "subset", "partition", "part", "set", "usage")
DELIMITERS = ",\t;"
SAMPLE_ROWS = 64


@dataclass(frozen=True, eq=False)
class Table:
    """How a CSV file is laid out.

    Attributes
    ----------
    file : Path
        The file.
    delimiter : str
        Between cells.
    header : tuple of str
        In lower case; empty if there is none.
    sample : list of list of str
        Some rows behind the header.
    part : int
        What the file's name says: 0 training, 1 validation, 2 test.
    """

    file: Path
    delimiter: str
    header: tuple[str, ...]
    sample: list[list[str]] = field(repr=False)
    part: int

    def column(self, names: Sequence[str]) -> int | None:
        """Find the first of these names in the header."""
        return next((self.header.index(name) for name in names if name in self.header), None)

    def lines(self) -> Iterator[str]:
        """Iterate over the lines behind the header."""
        with readable(self.file), _open(self.file) as stream:
            if self.header:
                next(stream, None)
            yield from (line for line in stream if line.strip())

    def rows(self, width: int) -> Iterator[list[str]]:
        """Iterate over the rows behind the header; each must have so many columns, and may have more."""
        with readable(self.file):
            for number, row in enumerate(csv.reader(self.lines(), delimiter=self.delimiter), 1):
                if len(row) < width:
                    expected = f"{width} columns in row {number:,} of {self.file.name}"
                    raise DataError(sentence(expected, len(row), "Mend or remove the row."))
                yield row

    def part_in_row(self, column: int, row: Sequence[str], number: int) -> int:
        """Read the part off its column; what it says in another word may be meant for the test."""
        part = part_in_name(row[column], entirely=True)
        if part is None:
            name = self.header[column]
            expected = f"train, validation or test in column {name!r} in row {number:,} of {self.file.name}"
            hint = "Use these words, or give the column another name if it is no column of parts."
            raise DataError(sentence(expected, repr(row[column]), hint))
        return part


def look(file: Path) -> Table:
    """Find out how a CSV file is laid out.

    Parameters
    ----------
    file : Path
        UTF-8, of which other bytes are kept as they are, or UTF-16.

    Returns
    -------
    Table
        With a few rows of it.

    Raises
    ------
    DataError
        If it cannot be read or has no rows.
    """
    with readable(file), _open(file) as stream:
        lines = [line for _, line in zip(range(SAMPLE_ROWS + 1), stream, strict=False) if line.strip()]
        delimiter = max(DELIMITERS, key=lines[0].count) if lines else ","
        rows = list(csv.reader(lines, delimiter=delimiter))
    has_header = bool(rows) and not any(is_number(cell) or is_image_name(cell) for cell in rows[0])
    header = tuple(cell.strip().lower() for cell in rows[0]) if has_header else ()
    sample = rows[1:] if has_header else rows
    if not sample:
        raise DataError(sentence(f"rows in {file}", "none"))
    words = re.split(r"[^a-z0-9]+", file.stem.lower())
    part = next((part for word in reversed(words) if (part := part_of(word)) is not None), 0)
    return Table(file, delimiter, header, sample, part)


def unlabelled_tables(names: Sequence[str]) -> tuple[Finding, ...]:
    """Report tables that are not used because nothing can be learned from them."""
    message = f"{count(len(names), 'table')} without labels: not used."
    finding = Finding("no_labels", "warning", message, "Add a column 'label'.", tuple(names))
    return (finding,) if names else ()


def is_number(cell: str) -> bool:
    """Tell whether a cell holds a number.

    Examples
    --------
    >>> is_number(" 12.5"), is_number("cat")
    (True, False)
    """
    try:
        float(cell)
    except ValueError:
        return False
    return True


def is_image_name(cell: str) -> bool:
    """Tell whether a cell ends as an image's name does.

    Examples
    --------
    >>> is_image_name("cats/1.JPG"), is_image_name("1")
    (True, False)
    """
    return PurePosixPath(cell.strip()).suffix.lower() in SUFFIXES


def _open(file: Path) -> TextIO:
    """Open a text in UTF-8, or in UTF-16 as spreadsheets save "Unicode text"."""
    with file.open("rb") as stream:
        head = stream.read(2)
    if head in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
        return file.open(newline="", encoding="utf-16")
    if b"\0" in head:  # a first letter of which one byte is zero
        return file.open(newline="", encoding="utf-16-be" if head[:1] == b"\0" else "utf-16-le")
    return file.open(newline="", encoding="utf-8-sig", errors="surrogateescape")


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Say in our words what is wrong with a table."""
    try:
        yield
    except OSError as error:
        raise DataError(sentence(f"{file} to be readable", error.strerror or str(error))) from error
    except (csv.Error, UnicodeError) as error:
        raise DataError(sentence(f"{file} to be a CSV file", str(error))) from error
