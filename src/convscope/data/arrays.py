"""Images in NumPy's ``.npz`` and in IDX files, read without ever holding all of them in memory."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.formats import decompress, read_idx
from convscope.data.pixel_layout import Layout, ValueRange, find_layout
from convscope.data.pixel_source import PixelChunk, PixelSource
from convscope.data.source import PARTS, part_of, read_label, settle_parts
from convscope.errors import DataError, sentence

IMAGE_WORDS = {"x", "images", "image", "imgs", "data", "pixels", "arr0"}
LABEL_WORDS = {"y", "labels", "label", "targets", "target", "classes", "arr1"}
CLASS_NAME_WORDS = {"classnames", "labelnames", "names"}
# Bytes of images that are in memory at a time.
CHUNK_BYTES = 16 * 2**20
# Labels are read whole; more than this is no table of labels.
LABEL_BYTES = 2**30
# Enough images to tell how their numbers are ordered.
SAMPLE = 64


@dataclass(frozen=True)
class _Member:
    """One array inside an archive."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_size(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def read_npz(path: Path) -> PixelSource:
    """Find the images and labels of an ``.npz`` file.

    Arrays are told by their names: ``x_train``, ``train_images``, ``x``, ``images`` and the like, each with
    the labels that go with it; ``class_names`` if there are any. Nothing is unpickled.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    PixelSource
        To be read some at a time.

    Raises
    ------
    DataError
        If the file is damaged, or its arrays are not images and labels.
    """
    members = _members(path)
    pairs, class_names = _pair(members, path), _class_names(members)
    return PixelSource(
        name=path.stem,
        layout=f"arrays {', '.join(images.name for images, _ in pairs.values())}",
        files=(path,),
        chunks=partial(_npz_chunks, pairs, class_names),
        class_names=class_names,
    )


def _members(path: Path) -> list[_Member]:
    """Read the headers of all arrays, and only these."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if info.filename.endswith(".npy")]
            return [_header(archive, path, name) for name in names]
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(
            sentence(f"{path} to be an .npz file", str(error), "Save it with np.savez.")
        ) from error


def _header(archive: zipfile.ZipFile, path: Path, name: str) -> _Member:
    """Read the header of one array."""
    try:
        with archive.open(name) as stream:
            shape, fortran, dtype = _read_header(stream)
    except Exception as error:
        # NumPy evaluates the header as a literal; damaged ones raise ValueError, SyntaxError, TokenError …
        found = str(error).partition("\n")[0]
        raise DataError(sentence(f"{name} in {path} to be a NumPy array", found)) from error
    if dtype.hasobject:
        hint = "Save it as numbers or as strings of fixed length."
        raise DataError(sentence(f"plain numbers in {name} of {path}", "Python objects", hint))
    if fortran and len(shape) > 1:
        hint = "Save it with np.ascontiguousarray."
        raise DataError(sentence(f"{name} in {path} in row-major order", "column-major order", hint))
    return _Member(path, name.removesuffix(".npy"), shape, dtype)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read magic and header of the ``.npy`` format."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of the format")


def _pair(members: Sequence[_Member], path: Path) -> dict[int, tuple[_Member, _Member]]:
    """Find images and labels for each part."""
    images, labels = (_by_part(members, words) for words in (IMAGE_WORDS, LABEL_WORDS))
    pairs = {part: (images[part], labels[part]) for part in sorted(images) if part in labels}
    if not pairs:
        found = ", ".join(member.name for member in members) or "no arrays"
        raise DataError(sentence(f"arrays x_train and y_train, or images and labels, in {path}", found))
    return pairs


def _by_part(members: Sequence[_Member], words: set[str]) -> dict[int, _Member]:
    """Pick the arrays whose names say images, or labels, and for which part."""
    found: dict[str, int] = {}
    for member in members:
        pieces = re.split(r"[_\-. ]+", member.name.lower())
        parts = [part for piece in pieces if (part := part_of(piece)) is not None]
        rest = "".join(piece for piece in pieces if part_of(piece) is None)
        if rest in words:
            found[member.name] = parts[0] if parts else 0
    settled = settle_parts(found)
    return {settled[member.name]: member for member in reversed(members) if member.name in settled}


def _labels(member: _Member, len_of: _Member, class_names: tuple[str, ...] | None) -> NDArray[Any]:
    """Read labels whole: (n,), (n, 1), or one-hot (n, k); with class names, as positions in them."""
    if member.row_size * (member.shape[0] if member.shape else 1) > LABEL_BYTES:
        raise DataError(sentence(f"labels in {member.name}", f"an array of shape {member.shape}"))
    labels = np.concatenate([*_rows(member)] or [np.empty(0, np.int64)])
    if labels.ndim == 2 and labels.shape[1] > 1:
        labels = _from_one_hot(labels, member.name)
    labels = labels.reshape(-1)
    if len(labels) != len_of.shape[0]:
        raise DataError(
            sentence(f"a label in {member.name} for each of {len_of.shape[0]:,} images", len(labels))
        )
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind not in "biufU":
        raise DataError(sentence(f"whole numbers or names in {member.name}", str(labels.dtype)))
    return _read_labels(labels, class_names, member.name)


def _from_one_hot(labels: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Take the largest of each row, if the rows are shares of which one is more than half."""
    if labels.dtype.kind not in "biuf":
        raise DataError(sentence(f"one label for each image in {name}", f"shape {labels.shape}"))
    clear = np.isclose(labels.sum(axis=1), 1) & (labels.max(axis=1) > 0.5)
    if not clear.all():
        row = int(np.flatnonzero(~clear)[0])
        found = f"{np.array2string(labels[row], threshold=8)} in {name}[{row}]"
        raise DataError(sentence(f"one label for each image in {name}, or one-hot rows", found))
    largest: NDArray[np.int64] = np.argmax(labels, axis=1)
    return largest


def _read_labels(labels: NDArray[Any], class_names: tuple[str, ...] | None, name: str) -> NDArray[Any]:
    """Turn labels into names, or positions in the class names; the first row that has none is refused."""
    values, rows, inverse = np.unique(labels, return_index=True, return_inverse=True)
    of_value: list[str | int] = [""] * len(values)
    for place in np.argsort(rows):
        where = f"{name}[{rows[place]}]"
        label = read_label(values[place].item(), where)
        of_value[place] = label if class_names is None else _position(label, labels.dtype, class_names, where)
    return np.array(of_value)[inverse.reshape(-1)]


def _position(label: str, dtype: np.dtype[Any], class_names: tuple[str, ...], where: str) -> int:
    """Find a label among the names that the file gives its classes, or its number among their positions."""
    if dtype.kind == "U":
        expected, position = f"one of the names {', '.join(class_names)}", -1
        if label in class_names:
            position = class_names.index(label)
    else:
        expected = f"a label from 0 to {len(class_names) - 1}, as the file names its classes,"
        position = ("False", "True").index(label) if dtype.kind == "b" else int(label)
    if not 0 <= position < len(class_names):
        raise DataError(sentence(f"{expected} in {where}", label))
    return position


def _class_names(members: Sequence[_Member]) -> tuple[str, ...] | None:
    """Read the names of the classes, if the file has them."""
    for member in members:
        if member.name.lower().replace("_", "") in CLASS_NAME_WORDS and member.dtype.kind in "US":
            found = np.concatenate([*_rows(member)] or [np.empty(0, "U1")]).reshape(-1)
            text = np.char.decode(found, "utf-8", "replace") if found.dtype.kind == "S" else found
            names = [read_label(str(name), f"in {member.name}", is_name=True) for name in text]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise DataError(
                    sentence(f"a different name for each class in {member.name}", f"{twice!r} twice")
                )
            return tuple(names)
    return None


def _layouts(members: Sequence[_Member]) -> list[Layout]:
    """Look at all values of all parts for their one range, and at some of each part for their order."""
    samples = []
    ranges = {True: ValueRange(), False: ValueRange()}  # of floating-point arrays, and of whole numbers
    for member in members:
        if member.dtype.kind not in "biuf":
            raise DataError(sentence(f"numbers in {member.name}", str(member.dtype)))
        sample = next(_rows(member), None)
        if sample is None or not sample.size:
            raise DataError(sentence(f"images in {member.name}", f"shape {member.shape}"))
        samples.append(sample[:SAMPLE])
        value_range = ranges[member.dtype.kind == "f"]
        for chunk in _rows(member):
            value_range.add(chunk)
            if member.dtype == np.uint8 and value_range.high > 1:
                break  # there is no more to know
    return [
        find_layout(sample, ranges[member.dtype.kind == "f"], f"{member.file.name}/{member.name}")
        for sample, member in zip(samples, members, strict=True)
    ]


def _rows(member: _Member) -> Iterator[NDArray[Any]]:
    """Read an array some rows at a time."""
    size = max(1, member.row_size)
    step = max(1, CHUNK_BYTES // size)
    try:
        with zipfile.ZipFile(member.file) as archive, archive.open(f"{member.name}.npy") as stream:
            _read_header(stream)
            for start in range(0, member.shape[0] if member.shape else 0, step):
                count = min(step, member.shape[0] - start)
                raw = stream.read(count * member.row_size)
                if len(raw) != count * member.row_size:
                    raise EOFError("the array ends early")
                yield np.frombuffer(raw, member.dtype).reshape(count, *member.shape[1:])
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        message = sentence(f"{member.name} in {member.file} to be whole", str(error), "Get it again.")
        raise DataError(message) from error


def _npz_chunks(
    pairs: dict[int, tuple[_Member, _Member]], class_names: tuple[str, ...] | None
) -> Iterator[PixelChunk]:
    """Read all images of all parts."""
    layouts = _layouts([images for images, _ in pairs.values()])
    for (part, (images, labels_member)), layout in zip(pairs.items(), layouts, strict=True):
        labels = _labels(labels_member, images, class_names)
        start = 0
        for rows in _rows(images):
            stop = start + len(rows)
            yield PixelChunk(part, layout.images(rows), labels[start:stop], layout)
            start = stop


_IDX_NAME = re.compile(r"^(?P<stem>.*?)(?P<what>images|labels).*idx\d.*$", re.IGNORECASE)


def find_idx(folder: Path) -> dict[int, tuple[Path, Path]]:
    """Find IDX files of images and labels in a folder.

    Parameters
    ----------
    folder : Path
        Where they lie.

    Returns
    -------
    dict of int to (Path, Path)
        Images and labels of each part; names are as those of MNIST and its relatives.
    """
    found: dict[str, dict[str, int]] = {"images": {}, "labels": {}}
    for file in sorted(folder.iterdir()):
        match = _IDX_NAME.match(file.name)
        if match and file.is_file():
            words = re.split(r"[^a-z0-9]+", match["stem"].lower())
            parts = [2 if word == "t10k" else part_of(word) for word in words]
            known = [part for part in parts if part is not None]
            found[match["what"].lower()][file.name] = known[-1] if known else 0
    images, labels = (
        {part: folder / name for name, part in reversed(settle_parts(parts).items())}
        for parts in found.values()
    )
    return {part: (images[part], labels[part]) for part in sorted(images) if part in labels}


def read_idx_files(folder: Path, files: dict[int, tuple[Path, Path]]) -> PixelSource:
    """Make a source of IDX files.

    Parameters
    ----------
    folder : Path
        Gives the name.
    files : dict of int to (Path, Path)
        As ``find_idx`` gives them.

    Returns
    -------
    PixelSource
        To be read some at a time.
    """
    return PixelSource(
        name=folder.resolve().name,
        layout=f"IDX: {', '.join(PARTS[part] for part in files)}",
        files=tuple(file for pair in files.values() for file in pair),
        chunks=partial(_idx_chunks, files),
    )


def _idx_chunks(files: dict[int, tuple[Path, Path]]) -> Iterator[PixelChunk]:
    """Read all images of all parts."""
    value_range = ValueRange()
    parts = {part: tuple(_read_idx(file) for file in pair) for part, pair in files.items()}
    for images, _ in parts.values():
        value_range.add(images)
    for part, (images, labels) in parts.items():
        images_file, labels_file = files[part]
        if labels.ndim != 1 or len(labels) != len(images):
            expected = f"a label in {labels_file.name} for each of {len(images):,} images"
            raise DataError(sentence(expected, f"shape {labels.shape}"))
        if not images.size:
            continue
        layout = find_layout(images[:SAMPLE], value_range, images_file.name)
        step = max(1, CHUNK_BYTES // math.prod(images.shape[1:]))
        for start in range(0, len(images), step):
            chunk = slice(start, start + step)
            yield PixelChunk(part, layout.images(images[chunk]), labels[chunk], layout)


def _read_idx(file: Path) -> NDArray[Any]:
    """Read one IDX file, compressed or plain."""
    try:
        return read_idx(decompress(file.read_bytes(), str(file)), str(file))
    except OSError as error:
        raise DataError(sentence(f"{file} to be readable", error.strerror or str(error))) from error
