"""Images as numbers, in NumPy's and in IDX files: which axis is which, and what range they have.

They are read without ever holding all of them in memory.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.sources.base import (
    SPLIT_NAMES,
    SPLITS,
    Pixels,
    Source,
    read_label,
    settle_splits,
    sign,
    without_labels,
)
from convscope.errors import DataError, expected_got

AXES = "images as (n, h, w), (n, h, w, c), (n, c, h, w) or flat squares, 1 or 3 channels"
IMAGE_WORDS = {"x", "images", "image", "imgs", "data", "pixels", "arr0"}
LABEL_WORDS = {"y", "labels", "label", "targets", "target", "classes", "arr1"}
CLASS_NAME_WORDS = {"classnames", "labelnames", "names"}
_WORDS = (IMAGE_WORDS, LABEL_WORDS)
NPY = ".npy"
# Bytes of images that are in memory at a time.
CHUNK_BYTES = 16 * 2**20
# Labels are read whole; more than this is no table of labels.
LABEL_BYTES = 2**30
# Enough images to tell how their numbers are ordered.
SAMPLE = 64
GZIP_MAGIC = b"\x1f\x8b"
# A few kilobytes of gzip can unpack to more than any memory holds.
CONTENT_CAP = 2 * 2**30
# The third byte of an IDX file names the type of its values (all big-endian).
IDX_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}


# Numbers → uint8 images


@dataclass
class ValueRange:
    """The smallest and the largest value of all images of a data set: one rule brings all to 8 bits."""

    low: float = np.inf
    high: float = -np.inf

    def add(self, values: NDArray[Any]) -> None:
        """Take in some values; NaN stays."""
        if values.size:  # NumPy's minimum keeps NaN, Python's loses it
            self.low = float(np.minimum(self.low, values.min()))
            self.high = float(np.maximum(self.high, values.max()))

    @property
    def depth(self) -> int:
        """How many bits whole numbers of this range take, at least 8."""
        return max(8, int(self.high).bit_length())


@dataclass(frozen=True)
class Layout:
    """How rows of numbers become images of a shape (h, w, c).

    They come plane by plane where ``channels_first``, and are multiplied by ``factor`` to reach 0 … 255; of
    whole numbers of more than 8 bits (``depth``) the upper 8 are kept.
    """

    shape: tuple[int, int, int]
    channels_first: bool
    factor: float
    depth: int = 8

    def images(self, rows: NDArray[Any]) -> NDArray[np.uint8]:
        """Turn rows (k, …), however they are shaped, into images (k, h, w, c)."""
        if self.depth > 8:
            values = rows >> (self.depth - 8)
        else:
            values = np.rint(rows * self.factor) if rows.dtype.kind == "f" or self.factor != 1 else rows
        if not self.channels_first:
            return values.astype(np.uint8, copy=False).reshape(len(rows), *self.shape)  # (k, h, w, c)
        height, width, channels = self.shape
        planes = values.astype(np.uint8, copy=False).reshape(len(rows), channels, height, width)
        return planes.transpose(0, 2, 3, 1)  # (k, h, w, c)

    @property
    def note(self) -> str:
        """What was assumed, in words."""
        height, width, channels = self.shape
        order = ", plane by plane" if self.channels_first and channels > 1 else ""
        scale = "" if self.factor == 1 else f", values times {self.factor:g}"
        if self.depth > 8:
            scale = f", of {self.depth} bits the upper 8"
        return f"The numbers were read as images of {height}×{width}×{channels}{order}{scale}."


def look_through(chunks: Iterable[NDArray[Any]], value_range: ValueRange) -> NDArray[Any] | None:
    """Take in the range of all rows; give some of the first for ``find_layout``, None if there are none."""
    sample = None
    for chunk in chunks:
        sample = chunk[:SAMPLE] if sample is None else sample
        value_range.add(chunk)
        if chunk.dtype == np.uint8 and value_range.high > 1:
            break  # there is no more to know
    return sample if sample is not None and sample.size else None


def find_layout(sample: NDArray[Any], value_range: ValueRange, source: str) -> Layout:
    """Find out how rows of numbers become images, from some rows (k, …) and the range of all.

    Flat colour images are taken plane by plane, or pixel by pixel, whichever looks smoother.
    """
    shape, channels_first = _shape(sample, source)
    factor, depth = _factor(sample.dtype, value_range, source)
    return Layout(shape, channels_first, factor, depth)


def _shape(sample: NDArray[Any], source: str) -> tuple[tuple[int, int, int], bool]:
    """Tell height, width and channels, and whether the channels come first."""
    sizes = sample.shape[1:]
    if len(sizes) == 1 and (found := _flat_shape(sample)):
        return found
    if len(sizes) == 2 and min(sizes) > 0:
        return (sizes[0], sizes[1], 1), False
    if len(sizes) == 3 and min(sizes) > 0:
        if sizes[2] in {1, 3}:
            return (sizes[0], sizes[1], sizes[2]), False
        if sizes[0] in {1, 3}:
            return (sizes[1], sizes[2], sizes[0]), True
    raise DataError(expected_got(f"{source} to hold {AXES}", f"shape {sample.shape}"))


def _flat_shape(sample: NDArray[Any]) -> tuple[tuple[int, int, int], bool] | None:
    """Tell the shape of square images that were written as one row each."""
    length = sample.shape[1]
    side = math.isqrt(length)
    if side * side == length and length > 0:
        return (side, side, 1), False
    side = math.isqrt(length // 3)
    if 3 * side * side != length or length == 0:
        return None
    values = sample.astype(np.float64)
    by_pixel = values.reshape(-1, side, side, 3)
    by_plane = values.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    return (side, side, 3), _roughness(by_plane) < _roughness(by_pixel)


def _roughness(images: NDArray[np.float64]) -> float:
    """Average the differences between each pixel and the one below it.

    Beside each other lie, where the order is mistaken, the channels of one pixel, and these are much alike.
    """
    return float(np.abs(np.diff(images, axis=1)).mean())


def _factor(dtype: np.dtype[Any], values: ValueRange, source: str) -> tuple[float, int]:
    """Tell what brings the values to 0 … 255: a factor, and the bits of which the upper 8 are kept."""
    if dtype.kind == "b":
        return 255.0, 8
    if not 0 <= values.low <= values.high <= (2**32 if dtype.kind in "iu" else 255):  # NaN neither
        found = f"{values.low:g} to {values.high:g}"
        raise DataError(
            expected_got(f"pixels of {source} from 0 to 255, or from 0 to 1", found, "Rescale them.")
        )
    return (255.0, 8) if values.high <= 1 else (1.0, values.depth)


# NumPy's files


@dataclass(frozen=True)
class _Array:
    """One array, in an archive or in a file of its own."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_size(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open it where its rows begin."""
        with ExitStack() as stack:
            if self.file.suffix.lower() == NPY:
                stream: IO[bytes] = stack.enter_context(self.file.open("rb"))
            else:
                archive = stack.enter_context(zipfile.ZipFile(self.file))
                stream = stack.enter_context(archive.open(self.name + NPY))
            _read_header(stream)
            yield stream


def read_npz(path: Path) -> Source:
    """Find the images and labels of an ``.npz`` file by the arrays' names; nothing is unpickled.

    ``x_train``, ``train_images``, ``x``, ``images`` and the like, each with the labels that go with it;
    ``class_names`` if there are any.
    """
    return _source_of_arrays(_arrays_of(path), path.stem, path)


def read_npy(path: Path) -> Source:
    """Find images and labels among an ``.npy`` file and those beside it by their names, as in an ``.npz``."""
    return _source_of_arrays(_arrays_beside(path), path.parent.resolve().name, path.parent)


def are_paired(files: Sequence[Path]) -> bool:
    """Say whether some ``.npy`` files are named as images with their labels."""
    return bool(_pair(*(_splits_of([file.stem for file in files], words) for words in _WORDS))[0])


def _source_of_arrays(arrays: Sequence[_Array], name: str, where: Path) -> Source:
    by_name = {array.name: array for array in arrays}
    found, unused = _pair(*(_splits_of(by_name, words) for words in _WORDS))
    if not found:
        expected = f"arrays x_train and y_train, or images and labels, in {where}"
        raise DataError(expected_got(expected, ", ".join(by_name) or "no arrays"))
    pairs = {split: (by_name[images], by_name[labels]) for split, (images, labels) in found.items()}
    class_names = _class_names(arrays)
    files = tuple(dict.fromkeys(array.file for array in arrays))
    return Source(
        name=name,
        layout=f"arrays {', '.join(images.name for images, _ in pairs.values())}",
        files=files,
        signature=sign(files[0].parent, [file.name for file in files]),
        chunks=partial(_array_chunks, pairs, class_names),
        class_names=class_names,
        is_table=True,
        findings=tuple(without_labels(unused, "array", "Add an array of labels for each split.")),
    )


def _arrays_of(path: Path) -> list[_Array]:
    """Read the headers of all arrays in an archive, and only these."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if info.filename.endswith(NPY)]
            return [_look(path, name, partial(archive.open, name), f"{name} in {path}") for name in names]
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        hint = "Save it with np.savez."
        raise DataError(expected_got(f"{path} to be an .npz file", str(error), hint)) from error


def _arrays_beside(path: Path) -> list[_Array]:
    """Read the headers of those ``.npy`` files in a folder whose names say what they are."""
    files = sorted(file for file in path.parent.iterdir() if file.suffix.lower() == NPY and file.is_file())
    known = _splits_of([file.stem for file in files], IMAGE_WORDS | LABEL_WORDS | CLASS_NAME_WORDS)
    used = [file for file in files if file.stem in known]
    return [_look(file, file.name, partial(file.open, "rb"), str(file)) for file in used]


def _look(file: Path, name: str, open_array: Callable[[], Any], where: str) -> _Array:
    """Read the header of one array."""
    try:
        with open_array() as stream:
            shape, fortran, dtype = _read_header(stream)
    except Exception as error:
        # NumPy evaluates the header as a literal; damaged ones raise ValueError, SyntaxError, TokenError …
        found = str(error).partition("\n")[0]
        raise DataError(expected_got(f"{where} to be a NumPy array", found)) from error
    if dtype.hasobject:
        hint = "Save it as numbers or as strings of fixed length."
        raise DataError(expected_got(f"plain numbers in {where}", "Python objects", hint))
    if fortran and len(shape) > 1:
        hint = "Save it with np.ascontiguousarray."
        raise DataError(expected_got(f"{where} in row-major order", "column-major order", hint))
    return _Array(file, name[: -len(NPY)], shape, dtype)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read magic and header of the ``.npy`` format."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of the format")


def _pair(
    images: Mapping[str, int], labels: Mapping[str, int]
) -> tuple[dict[int, tuple[str, str]], list[str]]:
    """Pair names of images and of labels by their splits, the first of each; also name images left over."""
    of_images, of_labels = (
        {split: name for name, split in reversed(settle_splits(splits).items())}
        for splits in (images, labels)
    )
    pairs = {split: (of_images[split], of_labels[split]) for split in sorted(of_images) if split in of_labels}
    used = {name for name, _ in pairs.values()}
    return pairs, [name for name in images if name not in used]


def _splits_of(names: Iterable[str], words: set[str]) -> dict[str, int]:
    """Tell the split of each array whose name says images, or labels."""
    found: dict[str, int] = {}
    for name in names:
        pieces = re.split(r"[_\-. ]+", name.lower())
        if "".join(piece for piece in pieces if piece not in SPLIT_NAMES) in words:
            found[name] = next((SPLIT_NAMES[piece] for piece in pieces if piece in SPLIT_NAMES), 0)
    return found


def _labels(member: _Array, images: _Array, class_names: tuple[str, ...] | None) -> NDArray[Any]:
    """Read labels whole: (n,), (n, 1), or one-hot (n, k); with class names, as positions in them."""
    if member.row_size * (member.shape[0] if member.shape else 1) > LABEL_BYTES:
        raise DataError(expected_got(f"labels in {member.name}", f"an array of shape {member.shape}"))
    labels = np.concatenate([*_rows(member)] or [np.empty(0, np.int64)])
    if labels.ndim == 2 and labels.shape[1] > 1:
        labels = _from_one_hot(labels, member.name)
    labels = labels.reshape(-1)
    if len(labels) != images.shape[0]:
        expected = f"a label in {member.name} for each of {images.shape[0]:,} images"
        raise DataError(expected_got(expected, len(labels)))
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind not in "biufU":
        raise DataError(expected_got(f"whole numbers or names in {member.name}", str(labels.dtype)))
    values, rows, inverse = np.unique(labels, return_index=True, return_inverse=True)
    of_value: list[str | int] = [""] * len(values)
    for place in np.argsort(rows):  # so that the first row that has no class is the one refused
        where = f"{member.name}[{rows[place]}]"
        label = read_label(values[place].item(), where)
        of_value[place] = label if class_names is None else _position(label, labels.dtype, class_names, where)
    return np.array(of_value)[inverse.reshape(-1)]


def _from_one_hot(labels: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Take the largest of each row, if the rows are fractions of which one is more than half."""
    if labels.dtype.kind not in "biuf":
        raise DataError(expected_got(f"one label for each image in {name}", f"shape {labels.shape}"))
    clear = np.isclose(labels.sum(axis=1), 1) & (labels.max(axis=1) > 0.5)
    if not clear.all():
        row = int(np.flatnonzero(~clear)[0])
        found = f"{np.array2string(labels[row], threshold=8)} in {name}[{row}]"
        raise DataError(expected_got(f"one label for each image in {name}, or one-hot rows", found))
    largest: NDArray[np.int64] = np.argmax(labels, axis=1)
    return largest


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
        raise DataError(expected_got(f"{expected} in {where}", label))
    return position


def _class_names(members: Iterable[_Array]) -> tuple[str, ...] | None:
    """Read the names of the classes, if the file has them."""
    for member in members:
        if member.name.lower().replace("_", "") in CLASS_NAME_WORDS and member.dtype.kind in "US":
            found = np.concatenate([*_rows(member)] or [np.empty(0, "U1")]).reshape(-1)
            text = np.char.decode(found, "utf-8", "replace") if found.dtype.kind == "S" else found
            names = [read_label(str(name), f"in {member.name}", is_name=True) for name in text]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                expected = f"a different name for each class in {member.name}"
                raise DataError(expected_got(expected, f"{twice!r} twice"))
            return tuple(names)
    return None


def _layouts(members: Sequence[_Array]) -> list[Layout]:
    """Look at all values of all splits for their one range, and at some of each for their order."""
    samples = []
    ranges = {True: ValueRange(), False: ValueRange()}  # of floating-point arrays, and of whole numbers
    for member in members:
        if member.dtype.kind not in "biuf":
            raise DataError(expected_got(f"numbers in {member.name}", str(member.dtype)))
        sample = look_through(_rows(member), ranges[member.dtype.kind == "f"])
        if sample is None:
            raise DataError(expected_got(f"images in {member.name}", f"shape {member.shape}"))
        samples.append(sample)
    return [
        find_layout(sample, ranges[member.dtype.kind == "f"], f"{member.file.name}/{member.name}")
        for sample, member in zip(samples, members, strict=True)
    ]


def _rows(member: _Array) -> Iterator[NDArray[Any]]:
    """Read an array some rows at a time."""
    size = max(1, member.row_size)
    step = max(1, CHUNK_BYTES // size)
    try:
        with member.open() as stream:
            for start in range(0, member.shape[0] if member.shape else 0, step):
                rows = min(step, member.shape[0] - start)
                raw = stream.read(rows * member.row_size)
                if len(raw) != rows * member.row_size:
                    raise EOFError("the array ends early")
                yield np.frombuffer(raw, member.dtype).reshape(rows, *member.shape[1:])
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        message = expected_got(f"{member.name} in {member.file} to be whole", str(error), "Get it again.")
        raise DataError(message) from error


def _array_chunks(
    pairs: dict[int, tuple[_Array, _Array]], class_names: tuple[str, ...] | None
) -> Iterator[Pixels]:
    """Read all images of all splits."""
    layouts = _layouts([images for images, _ in pairs.values()])
    for (split, (images, labels_member)), layout in zip(pairs.items(), layouts, strict=True):
        labels = _labels(labels_member, images, class_names)
        start = 0
        for rows in _rows(images):
            stop = start + len(rows)
            yield Pixels(split, layout.images(rows), labels[start:stop], layout.note, layout.depth)
            start = stop


# IDX, the format of the MNIST files


def decompress(raw: bytes, source: str) -> bytes:
    """Undo gzip where the bytes are gzip, else return them as they are; messages call them ``source``."""
    if not raw.startswith(GZIP_MAGIC):
        return raw
    try:
        with gzip.open(io.BytesIO(raw)) as stream:
            content = stream.read(CONTENT_CAP + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = expected_got(
            f"{source} to be a whole gzip file", f"a damaged one ({error})", "Get it again."
        )
        raise DataError(message) from error
    if len(content) > CONTENT_CAP:
        expected = f"{source} to hold at most {CONTENT_CAP // 2**30} GiB"
        raise DataError(expected_got(expected, "more", "Unpack it."))
    return content


def read_decompressed(file: Path) -> bytes:
    """Read a file whole, gzip undone."""
    try:
        return decompress(file.read_bytes(), str(file))
    except OSError as error:
        raise DataError(expected_got(f"{file} to be readable", error.strerror or str(error))) from error


def read_idx(content: bytes, source: str, dimensions: int | None = None) -> NDArray[np.generic]:
    """Read an array of so many dimensions in the IDX format, in the machine's byte order.

    The format: two zero bytes, a type byte, the number of dimensions, each dimension as a big-endian
    32-bit integer, then the values in row-major order (LeCun, Cortes & Burges, THE MNIST DATABASE).
    """
    kind, rank = _idx_magic(content, source)
    if dimensions is not None and rank != dimensions:
        raise DataError(expected_got(f"{source} to have {dimensions} dimensions", f"{rank}"))
    start = 4 + 4 * rank
    if len(content) < start:
        raise DataError(expected_got(f"{source} to hold {rank} dimensions", "a file that ends before them"))
    shape = struct.unpack(f">{rank}I", content[4:start])
    expected = start + math.prod(shape) * kind.itemsize
    if len(content) != expected:
        wanted = f"{source} of shape {shape} to have {expected:,} bytes"
        hint = "The file is truncated or not what its header says."
        raise DataError(expected_got(wanted, f"{len(content):,}", hint))
    array = np.frombuffer(content, dtype=kind, offset=start).reshape(shape)
    return array.astype(kind.newbyteorder("="), copy=False)


def _idx_magic(content: bytes, source: str) -> tuple[np.dtype[Any], int]:
    """Check the four bytes that open an IDX file: value type and number of dimensions."""
    if len(content) < 4 or content[:2] != b"\x00\x00":
        found = content[:4].hex(" ") or "nothing"
        raise DataError(expected_got(f"{source} to begin with the IDX magic 00 00", found))
    if content[2] not in IDX_TYPES:
        valid = ", ".join(f"{code:02x}" for code in IDX_TYPES)
        raise DataError(expected_got(f"{source} to name an IDX type ({valid})", f"{content[2]:02x}"))
    if content[3] == 0:
        raise DataError(expected_got(f"{source} to have at least one dimension", "0"))
    return IDX_TYPES[content[2]], content[3]


_IDX_NAME = re.compile(r"^(?P<stem>.*?)(?P<what>images|labels).*idx\d.*$", re.IGNORECASE)


def find_idx(folder: Path) -> Source | None:
    """Make a source of the IDX files of a folder, if some are named as those of MNIST and its relatives."""
    found: dict[str, dict[str, int]] = {"images": {}, "labels": {}}
    for file in sorted(folder.iterdir()):
        match = _IDX_NAME.match(file.name)
        if match and file.is_file():
            words = re.split(r"[^a-z0-9]+", match["stem"].lower().replace("t10k", "test"))
            known = [SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES]
            found[match["what"].lower()][file.name] = known[-1] if known else 0
    named, unused = _pair(**found)
    if not named:
        return None
    pairs = {split: (folder / images, folder / labels) for split, (images, labels) in named.items()}
    files = tuple(file for pair in pairs.values() for file in pair)
    return Source(
        name=folder.resolve().name,
        layout=f"IDX: {', '.join(SPLITS[split] for split in pairs)}",
        files=files,
        signature=sign(folder, [file.name for file in files]),
        chunks=partial(_idx_chunks, pairs),
        is_table=True,
        findings=tuple(without_labels(unused, "file", "Add a file of labels for each split.")),
    )


def _idx_chunks(files: dict[int, tuple[Path, Path]]) -> Iterator[Pixels]:
    """Read all images of all splits."""
    value_range = ValueRange()
    arrays = {
        split: [read_idx(read_decompressed(file), str(file)) for file in pair]
        for split, pair in files.items()
    }
    for images, _ in arrays.values():
        value_range.add(images)
    for split, (images, labels) in arrays.items():
        images_file, labels_file = files[split]
        if labels.ndim != 1 or len(labels) != len(images):
            expected = f"a label in {labels_file.name} for each of {len(images):,} images"
            raise DataError(expected_got(expected, f"shape {labels.shape}"))
        if not images.size:
            continue
        layout = find_layout(images[:SAMPLE], value_range, images_file.name)
        step = max(1, CHUNK_BYTES // math.prod(images.shape[1:]))
        for start in range(0, len(images), step):
            rows = slice(start, start + step)
            yield Pixels(split, layout.images(images[rows]), labels[rows], layout.note, layout.depth)
