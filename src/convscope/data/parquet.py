"""Parquet files with encoded images in them, as dataset hubs ship them; needs pyarrow."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convscope.data.images import ImageError
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
)
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
    labels: list[Any] = []
    names: list[str] = []
    parts: list[int] = []
    for file in files:
        with _opened(file) as parquet:
            image, label = _columns(parquet, file)
            labels += parquet.read(columns=[label]).column(0).to_pylist()
            rows = parquet.metadata.num_rows
            names += _row_names(parquet, image, file)
            parts += [_part(file, deep=len(files) > 1)] * rows
            known = _class_names(parquet, label)
    if None in labels:
        raise DataError(sentence(f"a label in each row of {name}", f"none in row {labels.index(None):,}"))
    numbers, class_names = _encode(labels, known, name)
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
        chunks=partial(_chunks, tuple(files), shown),
        are_files=False,
        is_table=True,
    )


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


def _encode(labels: list[Any], known: tuple[str, ...] | None, name: str) -> tuple[Any, tuple[str, ...]]:
    """Turn labels into positions in the class names."""
    if known is None or not all(isinstance(label, int) for label in labels):
        return encode_labels([printable(str(label)) for label in labels])
    if not all(0 <= label < len(known) for label in labels):
        expected = f"labels of {name} from 0 to {len(known) - 1}, as it names its classes"
        raise DataError(sentence(expected, f"{min(labels)} to {max(labels)}"))
    return np.array(labels, np.int64), known


def _part(file: Path, deep: bool) -> int:
    """Read the part off a file's name, or, where there are several files, off its folder's."""
    words = re.split(r"[^a-z0-9]+", (f"{file.parent.name}/{file.stem}" if deep else file.stem).lower())
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
