"""CSV files: of paths and labels, or of pixels, a column for each or all of them in one."""

from __future__ import annotations

import codecs
import csv
import itertools
import os
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from convscope.data.dataset import printable
from convscope.data.decode import FORMATS, HEAD, SUFFIXES, sniff
from convscope.data.sources.arrays import Layout, ValueRange, find_layout, look_through
from convscope.data.sources.base import (
    SPLITS,
    Finding,
    Pixels,
    Source,
    file_chunks,
    find,
    last_split_in,
    make_index,
    present,
    require_classes,
    settle_splits,
    sign,
    split_in_name,
    splits_of_table,
    without_labels,
)
from convscope.errors import DataError, expected_got

SUFFIXES_OF_TABLES = (".csv", ".tsv")
LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "category", "target", "y", "species", "breed", "emotion"),
    *("diagnosis", "tag"),
)
SPLIT_COLUMNS = ("split", "subset", "partition", "part", "set", "usage")
PATH_COLUMNS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img"),
    *("img_path", "image_name", "image_id", "images", "name", "id"),
)
PIXELS_COLUMN = "pixels"
# Where the files may lie, seen from the table.
FOLDERS = ("", "images", "imgs", "img", "data", *SPLITS)
DELIMITERS = ",\t;"
SAMPLE_ROWS = 64
# What a table is read as that is neither UTF-8 nor UTF-16; Latin-1 is a part of it.
OTHER_ENCODING = "cp1252"
BLOCK = 2**20
# Rows of pixels that are in memory at a time.
CHUNK_ROWS = 2048
# A label and at least a 4×4 image: less than that is no table of pixels.
FEWEST_PIXELS = 16
# The correlation by which a pixel is more like its neighbour than a label is.
CLEARLY_LESS = 0.3
# So many values of a pixel in grey or colour tell it from a label with far fewer.
MANY_GREYS = 16


# A text has at most one control character in so many.
FEW_CONTROLS = 50
# What is found under a table's name, and what to do.
_AS_CSV = "Save it as CSV in the program that wrote it."
_NO_TABLES = {
    b"PK\x03\x04": ("a ZIP archive, such as an Excel workbook", _AS_CSV),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", _AS_CSV),
    b"\x1f\x8b": ("a gzip archive", "Unpack it: gunzip."),
    b"version https://git-lfs": ("a pointer of Git LFS", "Get the file itself: git lfs pull."),
}


class NoImagesError(DataError):
    """A table that is about something else than images."""


@dataclass(frozen=True, eq=False)
class Table:
    """How a CSV file is laid out: its header in lower case, if there is one, and some rows behind it."""

    file: Path
    delimiter: str
    header: tuple[str, ...]
    sample: list[list[str]] = field(repr=False)
    split: int  # what the file's name says
    encoding: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.file.name

    def column(self, names: Sequence[str]) -> int | None:
        """Find the first of these names in the header."""
        return next((self.header.index(name) for name in names if name in self.header), None)

    def rows(self, width: int) -> Iterator[list[str]]:
        """Iterate over the rows behind the header; each must have so many columns, and may have more."""
        with _readable(self.file), _open(self.file, self.encoding) as stream:
            if self.header:
                next(stream, None)
            lines = (line for line in stream if line.strip())
            for number, row in enumerate(csv.reader(lines, delimiter=self.delimiter), 1):
                if len(row) < width:
                    expected = f"{width} columns in row {number:,} of {self.name}"
                    raise DataError(expected_got(expected, len(row), "Mend or remove the row."))
                yield row

    def splits_in(self, column: int | None) -> dict[str, int]:
        """Read the words of a column of splits; what it says in another word may be meant for the test."""
        if column is None:
            return {}
        found: dict[str, int] = {}
        for number, row in enumerate(self.rows(1 + column), 1):
            word = row[column]
            if word not in found:
                split = split_in_name(word, entirely=True)
                if split is None:
                    where = f"in column {self.header[column]!r} in row {number:,} of {self.name}"
                    hint = "Use these words, or give the column another name if it is no column of parts."
                    raise DataError(expected_got(f"train, validation or test {where}", repr(word), hint))
                found[word] = split
        return settle_splits(found)


def read_tables(
    files: Sequence[Path],
    name: str,
    root: Path | None = None,
    *,
    only_paths: bool = False,
    is_there: Callable[[Path], bool] = Path.is_file,
) -> Source:
    """Read tables of pixels, else of paths, but none that only shows the form of an answer.

    There may be one for each split, by their names or those of their folders. Names of images are relative to
    ``root``, or else to the first table's folder. With ``only_paths`` tables of numbers are passed over.
    ``is_there`` tells whether there is a file that a table names.
    """
    forms = [file for file in files if len(files) > 1 and is_form(file)]
    if len(forms) == len(files):
        found = f"only {', '.join(file.name for file in forms)}, whose labels are invented"
        raise DataError(expected_got(f"a table of images and labels in {name}", found))
    tables = _look_at([file for file in files if file not in forms])
    of_pixels = [table for table in tables if is_of_pixels(table)]
    if only_paths:
        tables, of_pixels = [table for table in tables if table not in of_pixels], []
    if not tables:
        raise NoImagesError(expected_got(f"a table of paths and labels in {name}", "numbers"))
    source = _read_pixels(of_pixels, name) if of_pixels else _read_paths(tables, name, root, is_there)
    words = "that only shows the form of an answer: not used."
    unused = find("submission", "info", [file.name for file in forms], "table", words)
    return replace(source, findings=(*source.findings, *unused))


def is_form(file: Path) -> bool:
    """Tell a table that only shows the form of an answer."""
    return "submission" in file.stem.lower()


def is_of_pixels(table: Table) -> bool:
    """Tell a table of pixels from one of paths: most of its many cells are numbers."""
    numbers = sum(_is_number(cell) for cell in table.sample[0])
    return PIXELS_COLUMN in table.header or numbers >= FEWEST_PIXELS


def _look_at(files: Sequence[Path]) -> list[Table]:
    """Look at tables and settle their splits; one that is empty is passed over, if there are others."""
    tables, problem = [], None
    for file in files:
        try:
            tables.append(_look(file))
        except NoImagesError as error:
            problem = error
    if not tables and problem is not None:
        raise problem
    splits = {}
    for table in tables:
        folder = table.file.parent
        is_deep = any(other.file.parent != folder for other in tables)
        of_folder = split_in_name(folder.name, entirely=True) if is_deep else None
        splits[f"{folder.name}/{table.file.stem}"] = table.split or of_folder or 0
    return [
        replace(table, split=split)
        for table, split in zip(tables, settle_splits(splits).values(), strict=True)
    ]


def _look(file: Path) -> Table:
    """Find out how a CSV file is laid out."""
    with _readable(file), _open(file, encoding := _encoding(file)) as stream:
        _require_text(file, encoding)
        lines = [line for line in itertools.islice(stream, SAMPLE_ROWS + 1) if line.strip()]
        delimiter = max(DELIMITERS, key=lines[0].count) if lines else ","
        rows = list(csv.reader(lines, delimiter=delimiter))
    has_header = bool(rows) and not any(_is_number(cell) or _is_image_name(cell) for cell in rows[0])
    header = tuple(cell.strip().lower() for cell in rows[0]) if has_header else ()
    sample = rows[1:] if has_header else rows
    if not sample:
        raise NoImagesError(expected_got(f"rows in {file}", "none"))
    return Table(file, delimiter, header, sample, last_split_in(file.stem) or 0, encoding)


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


def _require_text(file: Path, encoding: str) -> None:
    """Refuse what is no text, whatever its name ends in."""
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    for magic, (kind, hint) in _NO_TABLES.items():
        if head.startswith(magic):
            raise DataError(expected_got(f"{file} to be a text file", kind, hint))
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    kind = sniff(head)
    controls = sum(letter < " " and not letter.isspace() for letter in text)
    if kind or FEW_CONTROLS * controls > len(text):
        found = f"a {kind} image" if kind in FORMATS else kind or "binary data"
        raise DataError(expected_got(f"{file} to be a text file", found, "Get it again."))


def _open(file: Path, encoding: str) -> TextIO:
    """Open a text; the five bytes that Windows-1252 does not know are kept as they are."""
    errors = "surrogateescape" if encoding == OTHER_ENCODING else "strict"
    return file.open(newline="", encoding=encoding, errors=errors)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Say in our words what is wrong with a table."""
    try:
        yield
    except OSError as error:
        raise DataError(expected_got(f"{file} to be readable", error.strerror or str(error))) from error
    except (csv.Error, UnicodeError) as error:
        hint = "Save images of so many pixels as files, or as .npz." if "field limit" in str(error) else ""
        raise DataError(expected_got(f"{file} to be a CSV file", str(error), hint)) from error


def _unlabelled(tables: Iterable[Table], used: Container[Table]) -> list[Finding]:
    """Report tables that lack labels."""
    names = [table.name for table in tables if table not in used]
    return without_labels(names, "table", "Add a column 'label'.")


def _other_encodings(tables: Iterable[Table]) -> list[Finding]:
    """Report tables whose letters had to be guessed."""
    names = [table.name for table in tables if table.encoding == OTHER_ENCODING]
    words = "not in UTF-8: read as Windows-1252 (Western European)."
    return find("encoding", "warning", names, "table", words, "Save it as UTF-8 if names come out wrong.")


def _is_number(cell: str) -> bool:
    """Tell whether a cell holds a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_image_name(cell: str) -> bool:
    """Tell whether a cell ends as an image's name does."""
    return PurePosixPath(cell.strip()).suffix.lower() in SUFFIXES


# Tables of paths and labels


@dataclass(frozen=True)
class _Columns:
    """Which column is which."""

    path: int
    label: int
    split: int | None


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
    splits: list[int] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)

    def where(self, position: int) -> str:
        """Say in which row of which table something stands, and of which file it speaks."""
        table, start = [item for item in self.starts.items() if item[1] <= position][-1]
        return f"of {printable(self.files[position])} in row {position - start + 1:,} of {table}"


def _read_paths(
    tables: Sequence[Table], name: str, root: Path | None, is_there: Callable[[Path], bool]
) -> Source:
    """Make a source of tables of paths and labels; those that lack labels or files are passed over."""
    columns = {table: found for table in tables if (found := _columns(table, one_of=len(tables))) is not None}
    if not columns:
        raise _no_columns(tables[0])
    found_ways = {table: _way(table, found.path, is_there) for table, found in columns.items()}
    ways = {table: way for table, way in found_ways.items() if way is not None}
    if not ways:
        raise _no_files(*next(iter(columns.items())))
    rows = _Rows()
    root = root or next(iter(ways)).file.parent
    for table, way in ways.items():
        _read_rows(table, columns[table], way, root, rows, is_there)
    if not any(rows.splits) and all(columns[table].split is None for table in ways):
        rows.splits = _splits_of_folders(rows.files) or rows.splits
    splits = splits_of_table(np.array(rows.splits, np.int8))
    index, united = make_index(rows.files, rows.labels, splits, rows.where)
    require_classes(index.class_names, name)
    files = ", ".join(table.name for table in ways)
    lost, why = [table.name for table in columns if table not in ways], "whose files are not there: not used."
    return Source(
        name=name,
        layout=f"a table of paths and labels ({files}): {present(rows.splits)}",
        index=index,
        signature=sign(root, rows.files),
        chunks=partial(file_chunks, root, rows.files, index.names),
        is_table=True,
        findings=(
            *_unlabelled(tables, columns),
            *find("lost_table", "warning", lost, "table", why, "Check its paths."),
            *_other_encodings(ways),
            *united,
        ),
    )


def _columns(table: Table, one_of: int) -> _Columns | None:
    """Find the columns by the header, or by what is in them; None if paths or labels are not there.

    Of one of several tables, such as the ``test.csv`` of a competition, all labels may be empty.
    """
    first = table.sample[0]
    label = table.column(LABEL_COLUMNS)
    path = table.column(PATH_COLUMNS)
    by_content = [number for number, cell in enumerate(first) if _is_image_name(cell)]
    if by_content and path not in by_content:
        path = by_content[0]
    if label is None and not table.header:
        label = next((number for number in range(len(first)) if number != path), None)
    if path is None or label is None:
        return None
    if one_of > 1 and not _cells(table, label):
        return None
    return _Columns(path, label, table.column(SPLIT_COLUMNS))


def _cells(table: Table, column: int) -> list[str]:
    """Give some cells of a column that are not empty."""
    return [cell for row in table.sample if len(row) > column and (cell := row[column].strip())]


def _way(table: Table, path: int, is_there: Callable[[Path], bool]) -> _Way | None:
    """Find the folder, the ending and the separator, which may be that of Windows, that lead to files."""
    cells = _cells(table, path)
    encodings = ("", OTHER_ENCODING) if table.encoding == OTHER_ENCODING else ("",)
    choices = itertools.product(encodings, ("", *SUFFIXES), ("/", "\\"), FOLDERS)
    for encoding, suffix, separator, folder in choices:
        way = _Way(folder, suffix, separator, encoding)
        if any(_on_disk(way.file(cell), table.file.parent, is_there) for cell in cells):
            return way
    return None


def _on_disk(name: str, folder: Path, is_there: Callable[[Path], bool]) -> str | None:
    """Spell a name as its file does, where there is one: on a Mac's, ä may be two characters."""
    forms = [name]
    if not name.isascii():
        forms += [unicodedata.normalize("NFD", name), unicodedata.normalize("NFC", name)]
    return next((form for form in forms if is_there(folder / form)), None)


def _read_rows(
    table: Table, columns: _Columns, way: _Way, root: Path, rows: _Rows, is_there: Callable[[Path], bool]
) -> None:
    """Take in the rows of one table."""
    offset = os.path.relpath(table.file.parent, root)
    splits = table.splits_in(columns.split)
    width = 1 + max(columns.path, columns.label, columns.split or 0)
    rows.starts[os.path.relpath(table.file, root)] = len(rows.files)
    for number, row in enumerate(table.rows(width), 1):
        label = row[columns.label].strip()
        if not label:
            expected = f"a label in row {number:,} of {table.name}"
            raise DataError(expected_got(expected, "an empty cell", "Fill or remove the row."))
        name = way.file(row[columns.path])
        if not name.isascii():
            name = _on_disk(name, table.file.parent, is_there) or name
        file = os.path.join(offset, name)  # noqa: PTH118  strings, many
        rows.files.append(os.path.normpath(file).replace(os.sep, "/"))
        rows.labels.append(label)
        rows.splits.append(table.split if columns.split is None else splits[row[columns.split]])


def _splits_of_folders(files: Sequence[str]) -> list[int] | None:
    """Read the splits off the folders in the paths; None unless each path has one, and they differ."""
    folders = [os.path.dirname(file) for file in files]  # noqa: PTH120  strings, many
    words = {
        folder: next(
            (step for step in folder.split("/") if split_in_name(step, entirely=True) is not None), None
        )
        for folder in set(folders)
    }
    found = {word: split_in_name(word, entirely=True) or 0 for word in words.values() if word is not None}
    splits = settle_splits(found)
    if None in words.values() or 0 not in splits.values() or len(set(splits.values())) < 2:
        return None
    return [splits[words[folder] or ""] for folder in folders]


def _no_columns(table: Table) -> DataError:
    """Say that a table is none of paths and labels."""
    first = table.sample[0]
    found = f"the columns {', '.join(table.header)}" if table.header else f"the row {', '.join(first)}"
    hint = "Name them 'path' and 'label'."
    return NoImagesError(expected_got(f"a column of paths and one of labels in {table.file}", found, hint))


def _no_files(table: Table, columns: _Columns) -> DataError:
    """Say that none of the files is there."""
    expected = f"the files that {table.file} names, relative to its folder"
    cells = _cells(table, columns.path)
    return NoImagesError(expected_got(expected, f"no {cells[0] if cells else 'paths'}", "Check the paths."))


# Tables of pixels


@dataclass(frozen=True)
class _PixelColumns:
    """Which columns are which; ``packed`` if the pixels are in one."""

    label: int
    split: int | None
    pixels: list[int]
    packed: bool


def _read_pixels(tables: Sequence[Table], name: str) -> Source:
    """Make a source of tables of pixels; those without labels are passed over."""
    columns = {table: found for table in tables if (found := _pixel_columns(table)) is not None}
    if not columns:
        expected = f"a column 'label' in {name}"
        raise DataError(expected_got(expected, "pixels only", "Without labels there is nothing to learn."))
    files = tuple(table.file for table in columns)
    return Source(
        name=name,
        layout=f"a table of pixels: {present(table.split for table in columns)}",
        files=files,
        signature=sign(files[0].parent, [file.resolve() for file in files]),
        chunks=partial(_pixel_chunks, columns),
        is_table=True,
        findings=(*_unlabelled(tables, columns), *_other_encodings(columns)),
    )


def _pixel_columns(table: Table) -> _PixelColumns | None:
    """Find the columns; None if there is no label."""
    label = table.column(LABEL_COLUMNS)
    split = table.column(SPLIT_COLUMNS)
    if PIXELS_COLUMN in table.header:
        packed = [table.header.index(PIXELS_COLUMN)]
        return None if label is None else _PixelColumns(label, split, packed, packed=True)
    if label is None:
        if table.header:
            return None
        label = _label_without_header(table)
    taken = {label, split, table.column(("id", "index", "image_id", ""))}
    numeric = [number for number, cell in enumerate(table.sample[0]) if _is_number(cell)]
    return _PixelColumns(label, split, [number for number in numeric if number not in taken], packed=False)


def _label_without_header(table: Table) -> int:
    """Tell by their content whether the first column holds the label or the last.

    Words are no pixels. Of two columns of whole numbers the label is the one that is less like the column
    beside it, since neighbouring pixels are much alike; else the one with far fewer values.
    """
    first = table.sample[0]
    places = (0, len(first) - 1)
    words = [place for place in places if not _is_number(first[place])]
    if words:
        return words[0]
    cells = (*places, 1, len(first) - 2)
    try:
        columns = np.array([[float(row[cell]) for cell in cells] for row in table.rows(len(first))])
    except ValueError:
        return 0  # refused with its row where all cells are read
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
        expected = f"the label in the first or the last column of {table.name}, which has no header"
        found = f"{len(kinds) or 'no'} columns that might be it"
        raise DataError(expected_got(expected, found, "Name it: a first row with 'label' in its column."))
    return ranked[0]


def _pixel_layouts(columns: dict[Table, _PixelColumns]) -> list[Layout]:
    """Look at the range of all rows of all tables, and at the order of some of each."""
    samples, value_range = [], ValueRange()
    for table, found in columns.items():
        sample = look_through((values for _, values in _values(table, found)), value_range)
        if sample is None:
            raise DataError(expected_got(f"pixels in {table.file}", "none"))
        samples.append(sample)
    return [
        find_layout(sample, value_range, table.name) for sample, table in zip(samples, columns, strict=True)
    ]


def _pixel_chunks(columns: dict[Table, _PixelColumns]) -> Iterator[Pixels]:
    """Read all images of all tables."""
    for (table, found), layout in zip(columns.items(), _pixel_layouts(columns), strict=True):
        split_of_word = table.splits_in(found.split)
        for rows, values in _values(table, found):
            images, labels = layout.images(values), np.array([row[found.label].strip() for row in rows])
            words = [] if found.split is None else [row[found.split] for row in rows]
            splits = np.array([split_of_word[word] for word in words] or [table.split] * len(rows))
            for split in np.unique(splits):
                chosen = splits == split
                yield Pixels(int(split), images[chosen], labels[chosen], layout.note, layout.depth)


def _values(table: Table, columns: _PixelColumns) -> Iterator[tuple[list[list[str]], NDArray[np.float64]]]:
    """Read rows and the numbers in their columns of pixels."""
    rows = table.rows(1 + max(columns.label, columns.split or 0, *columns.pixels))
    first = 1
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        try:
            yield chunk, _numbers(chunk, columns)
        except (ValueError, IndexError) as error:
            expected = f"as many numbers in each row of {table.name}"
            found = f"something else in rows {first:,} to {first + len(chunk) - 1:,} ({error})"
            raise DataError(expected_got(expected, found)) from error
        first += len(chunk)


def _numbers(rows: list[list[str]], columns: _PixelColumns) -> NDArray[np.float64]:
    """Parse the pixels of some rows."""
    if columns.packed:
        return np.array([row[columns.pixels[0]].split() for row in rows], np.float64)
    lines = [",".join(row) for row in rows]
    return np.loadtxt(lines, np.float64, delimiter=",", comments=None, usecols=columns.pixels, ndmin=2)
