"""CSV files of pixels: a column for each, or one column of numbers with blanks between them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from convscope.data.pixel_layout import Layout, ValueRange, find_layout
from convscope.data.pixel_source import PixelChunk, PixelSource
from convscope.data.source import PARTS
from convscope.data.table import (
    LABEL_COLUMNS,
    PART_COLUMNS,
    Table,
    is_number,
    other_encodings,
    unlabelled_tables,
)
from convscope.errors import DataError, sentence

PIXELS_COLUMN = "pixels"
# Rows that are in memory at a time.
CHUNK_ROWS = 2048
# A label and at least a 4×4 image: less than that is no table of pixels.
FEWEST_PIXELS = 16
# The correlation by which a pixel is more like its neighbour than a label is.
CLEARLY_LESS = 0.3
# So many values of a pixel in grey or colour tell it from a label with far fewer.
MANY_GREYS = 16


@dataclass(frozen=True)
class _Columns:
    """Which columns are which; ``packed`` if the pixels are in one."""

    label: int
    part: int | None
    pixels: list[int]
    packed: bool


def is_of_pixels(table: Table) -> bool:
    """Tell a table of pixels from one of paths.

    Parameters
    ----------
    table : Table
        Its header and some rows.

    Returns
    -------
    bool
        Whether most of its many cells are numbers, or a column is called ``pixels``.
    """
    numbers = sum(is_number(cell) for cell in table.sample[0])
    return PIXELS_COLUMN in table.header or numbers >= FEWEST_PIXELS


def read_pixel_tables(tables: Sequence[Table], name: str) -> PixelSource:
    """Make a source of tables of pixels.

    Parameters
    ----------
    tables : sequence of Table
        One, or one for each part. One without labels is passed over, and that is said.
    name : str
        The data's name.

    Returns
    -------
    PixelSource
        To be read some at a time.

    Raises
    ------
    DataError
        If no table has labels, or cells are not pixels.
    """
    columns = {table: found for table in tables if (found := _columns(table)) is not None}
    unlabelled = [table.file.name for table in tables if table not in columns]
    if not columns:
        expected = f"a column 'label' in {name}"
        raise DataError(sentence(expected, "pixels only", "Without labels there is nothing to learn."))
    return PixelSource(
        name=name,
        layout=f"a table of pixels: {', '.join(PARTS[part] for part in sorted({t.part for t in columns}))}",
        files=tuple(table.file for table in columns),
        chunks=partial(_chunks, columns),
        findings=(*unlabelled_tables(unlabelled), *other_encodings(columns)),
    )


def _columns(table: Table) -> _Columns | None:
    """Find the columns; None if there is no label."""
    label = table.column(LABEL_COLUMNS)
    part = table.column(PART_COLUMNS)
    if PIXELS_COLUMN in table.header:
        packed = [table.header.index(PIXELS_COLUMN)]
        return None if label is None else _Columns(label, part, packed, packed=True)
    if label is None:
        if table.header:
            return None
        label = _label_without_header(table)
    taken = {label, part, table.column(("id", "index", "image_id", ""))}
    numeric = [number for number, cell in enumerate(table.sample[0]) if is_number(cell)]
    return _Columns(label, part, [number for number in numeric if number not in taken], packed=False)


def _label_without_header(table: Table) -> int:
    """Tell by their content whether the first column holds the label or the last.

    Words are no pixels. Of two columns of whole numbers the label is the one that is less like the column
    beside it, since neighbouring pixels are much alike; else the one with far fewer values.
    """
    first = table.sample[0]
    places = (0, len(first) - 1)
    words = [place for place in places if not is_number(first[place])]
    if words:
        return words[0]
    cells = (*places, 1, len(first) - 2)
    try:
        columns = np.array([[float(row[cell]) for cell in cells] for row in table.rows(len(first))])
    except ValueError:
        return 0  # told with its row where all cells are read
    likeness, kinds = {}, {}
    for place, values, beside in zip(places, columns[:, :2].T, columns[:, 2:].T, strict=True):
        if np.ptp(values) > 0 and (values == np.rint(values)).all():
            likeness[place] = abs(np.corrcoef(values, beside)[0, 1]) if np.ptp(beside) > 0 else 0.0
            kinds[place] = len(np.unique(values))
    ranked = sorted(likeness, key=lambda place: likeness[place])
    if len(ranked) == 2 and likeness[ranked[1]] - likeness[ranked[0]] < CLEARLY_LESS:
        ranked = sorted(kinds, key=lambda place: kinds[place])
        if kinds[ranked[1]] < max(MANY_GREYS, 2 * kinds[ranked[0]]):
            ranked = []
    if not ranked:
        expected = f"the label in the first or the last column of {table.file.name}, which has no header"
        found = f"{len(kinds) or 'no'} columns that might be it"
        raise DataError(sentence(expected, found, "Name it: a first row with 'label' in its column."))
    return ranked[0]


def _layouts(columns: dict[Table, _Columns]) -> list[Layout]:
    """Look at the range of all rows of all tables, and at the order of some of each."""
    samples, value_range = [], ValueRange()
    for table, found in columns.items():
        sample = None
        for _, values in _values(table, found):
            sample = values[:64] if sample is None else sample
            value_range.add(values)
        if sample is None or not sample.size:
            raise DataError(sentence(f"pixels in {table.file}", "none"))
        samples.append(sample)
    return [
        find_layout(sample, value_range, table.file.name)
        for sample, table in zip(samples, columns, strict=True)
    ]


def _chunks(columns: dict[Table, _Columns]) -> Iterator[PixelChunk]:
    """Read all images of all tables."""
    for (table, found), layout in zip(columns.items(), _layouts(columns), strict=True):
        parts = table.parts_in(found.part)
        for rows, values in _values(table, found):
            labels = np.array([row[found.label].strip() for row in rows])
            chunk = PixelChunk(table.part, layout.images(values), labels, layout)
            yield from _by_part(chunk, found, rows, parts)


def _by_part(
    chunk: PixelChunk, columns: _Columns, rows: list[list[str]], part_of_word: dict[str, int]
) -> Iterator[PixelChunk]:
    """Divide a chunk by what its column of parts says."""
    if columns.part is None:
        yield chunk
        return
    parts = np.array([part_of_word[row[columns.part]] for row in rows])
    for part in np.unique(parts):
        chosen = parts == part
        yield PixelChunk(int(part), chunk.images[chosen], chunk.labels[chosen], chunk.layout)


def _values(table: Table, columns: _Columns) -> Iterator[tuple[list[list[str]], NDArray[np.float64]]]:
    """Read rows and the numbers in their columns of pixels."""
    rows = table.rows(1 + max(columns.label, columns.part or 0, *columns.pixels))
    first = 1
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        try:
            yield chunk, _numbers(chunk, columns)
        except (ValueError, IndexError) as error:
            expected = f"as many numbers in each row of {table.file.name}"
            found = f"something else in rows {first:,} to {first + len(chunk) - 1:,} ({error})"
            raise DataError(sentence(expected, found)) from error
        first += len(chunk)


def _numbers(rows: list[list[str]], columns: _Columns) -> NDArray[np.float64]:
    """Parse the pixels of some rows."""
    if columns.packed:
        return np.array([row[columns.pixels[0]].split() for row in rows], np.float64)
    lines = [",".join(row) for row in rows]
    return np.loadtxt(lines, np.float64, delimiter=",", comments=None, usecols=columns.pixels, ndmin=2)
