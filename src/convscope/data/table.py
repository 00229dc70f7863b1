"""A CSV file: its delimiter, its header, its rows."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TextIO

from convscope.data.decode import SUFFIXES
from convscope.data.findings import Finding, count
from convscope.data.source import part_in_name, part_of, settle_parts
from convscope.errors import DataError, sentence

LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "category", "target", "y", "species", "breed", "emotion"),
    *("diagnosis", "tag"),
)
PART_COLUMNS = ("split", "subset", "partition", "part", "set", "usage")
DELIMITERS = ",\t;"
SAMPLE_ROWS = 64
# What a table is read as that is neither UTF-8 nor UTF-16.
OTHER_ENCODING = "cp1252"
BLOCK = 2**20


class NoImagesError(DataError):
    """A table that is about something else than images."""


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
    encoding : str
        Of the file.
    """

    file: Path
    delimiter: str
    header: tuple[str, ...]
    sample: list[list[str]] = field(repr=False)
    part: int
    encoding: str = "utf-8-sig"

    def column(self, names: Sequence[str]) -> int | None:
        """Find the first of these names in the header."""
        return next((self.header.index(name) for name in names if name in self.header), None)

    def lines(self) -> Iterator[str]:
        """Iterate over the lines behind the header."""
        with readable(self.file), _open(self.file, self.encoding) as stream:
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

    def parts_in(self, column: int | None) -> dict[str, int]:
        """Read the words of a column of parts; what it says in another word may be meant for the test."""
        found: dict[str, int] = {}
        for number, row in enumerate(self.rows(1 + (column or 0)) if column is not None else (), 1):
            word = row[column or 0]
            if word not in found:
                part = part_in_name(word, entirely=True)
                if part is None:
                    where = f"in column {self.header[column or 0]!r} in row {number:,} of {self.file.name}"
                    hint = "Use these words, or give the column another name if it is no column of parts."
                    raise DataError(sentence(f"train, validation or test {where}", repr(word), hint))
                found[word] = part
        return settle_parts(found)


def look(file: Path) -> Table:
    """Find out how a CSV file is laid out.

    Parameters
    ----------
    file : Path
        UTF-8 or UTF-16; anything else is taken for Windows-1252, of which Latin-1 is a part.

    Returns
    -------
    Table
        With a few rows of it.

    Raises
    ------
    DataError
        If it cannot be read or has no rows.
    """
    with readable(file), _open(file, encoding := _encoding(file)) as stream:
        lines = [line for _, line in zip(range(SAMPLE_ROWS + 1), stream, strict=False) if line.strip()]
        delimiter = max(DELIMITERS, key=lines[0].count) if lines else ","
        rows = list(csv.reader(lines, delimiter=delimiter))
    has_header = bool(rows) and not any(is_number(cell) or is_image_name(cell) for cell in rows[0])
    header = tuple(cell.strip().lower() for cell in rows[0]) if has_header else ()
    sample = rows[1:] if has_header else rows
    if not sample:
        raise NoImagesError(sentence(f"rows in {file}", "none"))
    words = re.split(r"[^a-z0-9]+", file.stem.lower())
    part = next((part for word in reversed(words) if (part := part_of(word)) is not None), 0)
    return Table(file, delimiter, header, sample, part, encoding)


def unlabelled_tables(names: Sequence[str]) -> tuple[Finding, ...]:
    """Report tables that are not used because nothing can be learned from them."""
    message = f"{count(len(names), 'table')} without labels: not used."
    finding = Finding("no_labels", "warning", message, "Add a column 'label'.", tuple(names))
    return (finding,) if names else ()


def other_encodings(tables: Iterable[Table]) -> tuple[Finding, ...]:
    """Report tables whose letters had to be guessed."""
    names = tuple(table.file.name for table in tables if table.encoding == OTHER_ENCODING)
    message = f"{count(len(names), 'table')} not in UTF-8: read as Windows-1252 (Western European)."
    finding = Finding("encoding", "warning", message, "Save it as UTF-8 if names come out wrong.", names)
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


def _encoding(file: Path) -> str:
    """Tell UTF-8, UTF-16 as spreadsheets save "Unicode text", and what is neither."""
    with file.open("rb") as stream:
        head = stream.read(2)
        if head in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
            return "utf-16"
        if b"\0" in head:  # a first letter of which one byte is zero
            return "utf-16-be" if head[:1] == b"\0" else "utf-16-le"
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            decoder.decode(head)
            while block := stream.read(BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return OTHER_ENCODING
    return "utf-8-sig"


def _open(file: Path, encoding: str) -> TextIO:
    """Open a text; the five bytes that Windows-1252 does not know are kept as they are."""
    errors = "surrogateescape" if encoding == OTHER_ENCODING else "strict"
    return file.open(newline="", encoding=encoding, errors=errors)


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Say in our words what is wrong with a table."""
    try:
        yield
    except OSError as error:
        raise DataError(sentence(f"{file} to be readable", error.strerror or str(error))) from error
    except (csv.Error, UnicodeError) as error:
        raise DataError(sentence(f"{file} to be a CSV file", str(error))) from error
