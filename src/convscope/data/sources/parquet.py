"""Parquet files with encoded images in them, as dataset hubs ship them; needs pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convscope.data.dataset import Names, printable
from convscope.data.decode import ImageError
from convscope.data.sources.base import (
    Index,
    Reader,
    Source,
    encode_labels,
    last_split_in,
    present,
    require_classes,
    settle_splits,
    sign,
    splits_of_table,
    united_classes,
    without_labels,
)
from convscope.errors import DataError, expected_got

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "category", "class_name")
# Rows whose bytes are in memory at a time.
BATCH = 128


def read_parquet(files: Sequence[Path], name: str) -> Source:
    """Find images and labels in Parquet files; labels have been read, images not.

    A column holds the bytes of encoded images, plain or as ``{bytes, path}``; another the labels. Names of
    classes are taken from the metadata where they are there. The split is read off the file's name:
    ``train-00000-of-00001.parquet``.
    """
    found = [_labels(file) for file in files]
    used = {file: labels for file, labels in zip(files, found, strict=True) if labels.known}
    used = used or dict(zip(files, found, strict=True))
    names: list[str] = []
    splits: list[int] = []
    split_of = settle_splits({_shown(file): _split(file, deep=len(files) > 1) for file in used})
    for file, labels in used.items():
        names += labels.names
        splits += [split_of[_shown(file)]] * len(labels.values)
    numbers, class_names, united = _encode(used, names)
    require_classes(class_names, name)
    shown = Names(printable(row) for row in names)
    return Source(
        name=name,
        layout=f"Parquet: {present(splits)}",
        index=Index(shown, numbers, splits_of_table(np.array(splits, np.int8)), class_names),
        signature=sign(files[0].parent, [file.resolve() for file in files]),
        chunks=partial(_chunks, tuple(used), shown),
        are_files=False,
        is_table=True,
        findings=(
            *without_labels([file.name for file in files if file not in used], "file", "Add the labels."),
            *united_classes(united),
        ),
    )


@dataclass(frozen=True)
class _Labels:
    """The labels of one file, the names of its rows, and those that it gives its classes."""

    values: list[Any]
    names: list[str]
    class_names: tuple[str, ...] | None

    @property
    def known(self) -> bool:
        """Whether any row has a label; hubs write -1 where a test split has none."""
        missing = {None, -1} if self.class_names else {None}
        return any(value not in missing for value in self.values)


def _labels(file: Path) -> _Labels:
    """Read the labels of one file, and no image."""
    with _opened(file) as parquet:
        image, label = _columns(parquet, file)
        values = parquet.read(columns=[label]).column(0).to_pylist()
        return _Labels(values, _row_names(parquet, image, file), _class_names(parquet, label))


@contextmanager
def _opened(file: Path) -> Iterator[ParquetFile]:
    """Open a Parquet file, and say in our words what is wrong with it."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        hint = "Install it: pip install 'convscope[parquet]'."
        raise DataError(expected_got(f"pyarrow, to read {file.name}", "no such package", hint)) from error
    try:
        with ParquetFile(file) as parquet:
            yield parquet
    except (ArrowException, OSError) as error:
        found = str(error).splitlines()[0]
        raise DataError(expected_got(f"{file} to be a whole Parquet file", found, "Get it again.")) from error


def _columns(parquet: ParquetFile, file: Path) -> tuple[str, str]:
    """Find the column of images and the column of labels."""
    import pyarrow as pa

    image = ""
    for column in parquet.schema_arrow:
        is_struct = pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
        if is_struct or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            image = image or column.name
    names = [column.name for column in parquet.schema_arrow]
    label = next((name for name in LABEL_COLUMNS if name in names), "")
    if not image or not label:
        expected = f"a column of image bytes and a column 'label' in {file.name}"
        raise DataError(expected_got(expected, f"the columns {', '.join(names)}"))
    return image, label


def _row_names(parquet: ParquetFile, image: str, file: Path) -> list[str]:
    """Name each row: by the path that it brings, or by its number."""
    import pyarrow as pa

    numbered = [f"{file.name}/{row:06d}" for row in range(parquet.metadata.num_rows)]
    field = parquet.schema_arrow.field(image)
    if not pa.types.is_struct(field.type) or field.type.get_field_index("path") < 0:
        return numbered
    paths = parquet.read(columns=[f"{image}.path"]).column(0).combine_chunks().field("path").to_pylist()
    return [f"{file.name}/{path}" if path else number for path, number in zip(paths, numbered, strict=True)]


def _class_names(parquet: ParquetFile, label: str) -> tuple[str, ...] | None:
    """Read the classes' names that hubs put into the metadata."""
    metadata = parquet.schema_arrow.metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(printable(str(name)) for name in names) if isinstance(names, list) else None


def _encode(found: dict[Path, _Labels], rows: Sequence[str]) -> tuple[Any, tuple[str, ...], dict[str, str]]:
    """Turn labels into positions in the class names; files that list other classes are united by name."""
    named = {file: labels.class_names for file, labels in found.items() if labels.class_names is not None}
    values: list[Any] = []
    for file, labels in found.items():
        names = named.get(file)
        of_numbers = all(isinstance(label, int) for label in labels.values)
        if named and names is None and of_numbers:
            expected = f"the names of the classes in {file.name}, as in {next(iter(named)).name}"
            raise DataError(
                expected_got(expected, "numbers only", "Leave it out, or give it the same metadata.")
            )
        if names is None or not of_numbers:
            values += labels.values
            continue
        for row, label in enumerate(labels.values):
            if not 0 <= label < len(names):
                expected = f"labels of {file.name} from 0 to {len(names) - 1}, as it names its classes"
                raise DataError(expected_got(expected, f"{label} in row {row:,}"))
        values += [names[label] for label in labels.values]
    order = tuple(dict.fromkeys(name for names in named.values() for name in names))
    numbers, class_names, united = encode_labels(values, lambda position: f"of {printable(rows[position])}")
    if not set(class_names) <= set(order):
        return numbers, class_names, united
    places = np.array([order.index(name) for name in class_names], np.int64)
    return places[numbers], order, united


def _shown(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


def _split(file: Path, deep: bool) -> int:
    """Read the split off a file's name, or, where there are several files, off its folder's."""
    return last_split_in(_shown(file) if deep else file.stem) or 0


def _chunks(files: tuple[Path, ...], names: Names) -> Iterator[list[Reader]]:
    """Iterate over the bytes of all images, some at a time."""
    position = 0
    for file in files:
        with _opened(file) as parquet:
            image, _ = _columns(parquet, file)
            for batch in parquet.iter_batches(BATCH, columns=[image]):
                values = batch.column(0).to_pylist()
                yield [partial(_bytes, value, names[position + i]) for i, value in enumerate(values)]
                position += len(values)


def _bytes(value: Any, name: str) -> bytes:
    """Give the bytes of one row."""
    raw = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(raw, bytes):
        raise ImageError("missing", expected_got(f"{name} to hold an image's bytes", "nothing"), "nothing")
    return raw
