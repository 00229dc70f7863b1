"""Parquet files with encoded images in them, as dataset hubs ship them; needs pyarrow."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convscope.data.decode import ImageError
from convscope.data.names import Names, printable
from convscope.data.source import (
    PARTS,
    SETTLED_SECONDS,
    ImageSource,
    Reader,
    encode_labels,
    part_of,
    parts_of_table,
    require_classes,
    settle_parts,
    united_classes,
)
from convscope.data.table import unlabelled_tables
from convscope.errors import DataError, sentence

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "category", "class_name")
# Rows whose bytes are in memory at a time.
BATCH = 128


def read_parquet(files: Sequence[Path], name: str) -> ImageSource:
    """Find images and labels in Parquet files.

    A column holds the bytes of encoded images, plain or as ``{bytes, path}``; another the labels. Names of
    classes are taken from the metadata where they are there. The part is read off the file's name:
    ``train-00000-of-00001.parquet``.

    Parameters
    ----------
    files : sequence of Path
        In order.
    name : str
        The data's name.

    Returns
    -------
    ImageSource
        Labels have been read, images not.

    Raises
    ------
    DataError
        If pyarrow is missing, or a file is damaged or has no such columns.
    """
    found = [_labels(file) for file in files]
    used = [(file, labels) for file, labels in zip(files, found, strict=True) if labels.known]
    if not used:
        used = list(zip(files, found, strict=True))
    names: list[str] = []
    parts: list[int] = []
    part_of_file = settle_parts({_shown(file): _part(file, deep=len(files) > 1) for file, _ in used})
    for file, labels in used:
        with _opened(file) as parquet:
            names += _row_names(parquet, _columns(parquet, file)[0], file)
        parts += [part_of_file[_shown(file)]] * len(labels.values)
    numbers, class_names, united = _encode(dict(used), names)
    require_classes(class_names, name)
    shown = Names(printable(row) for row in names)
    layout = f"Parquet: {', '.join(PARTS[part] for part in sorted(set(parts)))}"
    return ImageSource(
        name=name,
        layout=layout,
        names=shown,
        labels=numbers,
        parts=parts_of_table(np.array(parts, np.int8)),
        class_names=class_names,
        signature=_signature(files),
        chunks=partial(_chunks, tuple(file for file, _ in used), shown),
        are_files=False,
        is_table=True,
        findings=(
            *unlabelled_tables([file.name for file in files if file not in dict(used)]),
            *united_classes(united),
        ),
    )


@dataclass(frozen=True)
class _Labels:
    """The labels of one file, and the names that it gives its classes."""

    values: list[Any]
    class_names: tuple[str, ...] | None

    @property
    def known(self) -> bool:
        """Whether any row has a label; hubs write -1 where a test part has none."""
        missing = {None, -1} if self.class_names else {None}
        return any(value not in missing for value in self.values)


def _labels(file: Path) -> _Labels:
    """Read the labels of one file, and no image."""
    with _opened(file) as parquet:
        _, label = _columns(parquet, file)
        return _Labels(parquet.read(columns=[label]).column(0).to_pylist(), _class_names(parquet, label))


@contextmanager
def _opened(file: Path) -> Iterator[ParquetFile]:
    """Open a Parquet file, and say in our words what is wrong with it."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        hint = "Install it: pip install 'convscope[parquet]'."
        raise DataError(sentence(f"pyarrow, to read {file.name}", "no such package", hint)) from error
    try:
        with ParquetFile(file) as parquet:
            yield parquet
    except (ArrowException, OSError) as error:
        found = str(error).splitlines()[0]
        raise DataError(sentence(f"{file} to be a whole Parquet file", found, "Get it again.")) from error


def _columns(parquet: ParquetFile, file: Path) -> tuple[str, str]:
    """Find the column of images and the column of labels."""
    import pyarrow as pa

    image = ""
    for column in parquet.schema_arrow:
        is_struct = pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
        if is_struct or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            image = image or column.name
    present = [column.name for column in parquet.schema_arrow]
    label = next((name for name in LABEL_COLUMNS if name in present), "")
    if not image or not label:
        expected = f"a column of image bytes and a column 'label' in {file.name}"
        raise DataError(sentence(expected, f"the columns {', '.join(present)}"))
    return image, label


def _row_names(parquet: ParquetFile, image: str, file: Path) -> list[str]:
    """Name each row: by the path that it brings, or by its number."""
    import pyarrow as pa

    rows = parquet.metadata.num_rows
    numbered = [f"{file.name}/{row:06d}" for row in range(rows)]
    field = parquet.schema_arrow.field(image)
    if not pa.types.is_struct(field.type) or field.type.get_field_index("path") < 0:
        return numbered
    paths = parquet.read(columns=[f"{image}.path"]).column(0).combine_chunks().field("path").to_pylist()
    return [f"{file.name}/{path}" if path else number for path, number in zip(paths, numbered, strict=True)]


def _class_names(parquet: ParquetFile, label: str) -> tuple[str, ...] | None:
    """Read the classes' names that hubs put into the metadata."""
    metadata = parquet.schema_arrow.metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
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
            raise DataError(sentence(expected, "numbers only", "Leave it out, or give it the same metadata."))
        if names is None or not of_numbers:
            values += labels.values
            continue
        for row, label in enumerate(labels.values):
            if not 0 <= label < len(names):
                expected = f"labels of {file.name} from 0 to {len(names) - 1}, as it names its classes"
                raise DataError(sentence(expected, f"{label} in row {row:,}"))
        values += [names[label] for label in labels.values]
    order = tuple(dict.fromkeys(name for names in named.values() for name in names))
    numbers, class_names, united = encode_labels(values, lambda position: f"of {printable(rows[position])}")
    if not set(class_names) <= set(order):
        return numbers, class_names, united
    places = np.array([order.index(name) for name in class_names], np.int64)
    return places[numbers], order, united


def _shown(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


def _part(file: Path, deep: bool) -> int:
    """Read the part off a file's name, or, where there are several files, off its folder's."""
    words = re.split(r"[^a-z0-9]+", (_shown(file) if deep else file.stem).lower())
    return next((part for word in reversed(words) if (part := part_of(word)) is not None), 0)


def _signature(files: Sequence[Path]) -> str:
    """Gather names, sizes and times; empty where a file has just been changed."""
    stats = [(str(file.resolve()), file.stat()) for file in files]
    if any(time.time() - stat.st_ctime < SETTLED_SECONDS for _, stat in stats):
        return ""
    return repr(
        [(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats]
    )


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
        raise ImageError("missing", sentence(f"{name} to hold an image's bytes", "nothing"), "nothing")
    return raw
