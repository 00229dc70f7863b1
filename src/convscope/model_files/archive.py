"""A ``.keras`` file: a ZIP archive of three known members, read into memory within limits, never unpacked."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import DataError, sentence

CONFIG = "config.json"
METADATA = "metadata.json"
WEIGHTS = "model.weights.h5"
# The members of a .keras file and how many bytes each may have; VGG16's weights take 0.55 GB.
MEMBERS = {METADATA: 2**20, CONFIG: 2**24, WEIGHTS: 2**31}
# Arrays of preprocessing, statistics and predictions.
ARRAY_BYTES = 2**28
# Keras stores its members as they are; one that shrinks a hundredfold is there to fill the memory.
LARGEST_RATIO = 100
SMALL = 2**20


def read_archive(file: Path, wanted: Iterable[str] = (CONFIG, WEIGHTS)) -> dict[str, bytes]:
    """Read members of a ``.keras`` file, checked against their checksums.

    What is no such archive, is damaged, or holds other or larger members than a network needs is refused.
    """
    try:
        with _open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            members = _checked_members(archive, file)
            return {name: _read_member(archive, members, name, file) for name in wanted}
    except DataError:
        raise
    # Python's zipfile raises almost anything on damaged bytes: BadZipFile, zlib.error, EOFError,
    # NotImplementedError, RuntimeError, struct.error …
    except Exception as error:
        raise not_a_network(file, error) from error


def read_arrays(content: bytes, name: str) -> dict[str, NDArray[Any]]:
    """Read the arrays of an npz file that somebody else may have written; none holds Python objects."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > ARRAY_BYTES:
            raise DataError(sentence(f"{name} to hold at most {_megabytes(ARRAY_BYTES)}", _megabytes(size)))
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except DataError:
        raise
    except Exception as error:  # as above: zipfile and NumPy's header reader raise almost anything
        raise DataError(sentence(f"{name} to hold NumPy arrays", reason(error))) from error


def reason(error: BaseException) -> str:
    """Say in one short line why a library failed."""
    # Keras wraps an error once for each layer of its own; what happened stands behind the last of these.
    innermost = str(error).rsplit("Exception encountered:", maxsplit=1)[-1]
    lines = [line.strip() for line in innermost.splitlines() if line.strip()]
    text = lines[0].rstrip(".") if lines else type(error).__name__
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= 200 else f"{shown[:199]}…"


def not_a_network(file: Path, error: BaseException) -> DataError:
    """Make the error for a file that holds no Keras network."""
    return DataError(sentence(f"{file} to be a Keras model", reason(error), "Save it again."))


def _open_regular(file: Path) -> IO[bytes]:
    """Open a file; a pipe or a device would never end."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise DataError(sentence(f"{file} to be a Keras model", "something that is no regular file"))
        return file.open("rb")
    except FileNotFoundError as error:
        raise DataError(sentence("a Keras model", f"no file {file}", "Check its path.")) from error
    except OSError as error:
        raise DataError(sentence(f"to be able to read {file}", error.strerror)) from error


def _checked_members(archive: zipfile.ZipFile, file: Path) -> dict[str, zipfile.ZipInfo]:
    """List the members by name, if they are those of a ``.keras`` file and of a sensible size."""
    infos = archive.infolist()
    names = [info.filename for info in infos]
    if strange := sorted(set(names) - set(MEMBERS)):
        expected = f"only {', '.join(MEMBERS)} in {file}"
        hint = "Layers that need more files are not those of image classifiers."
        raise DataError(sentence(expected, reason(ValueError(strange[0])), hint))
    if len(set(names)) != len(names):
        raise DataError(sentence(f"each member once in {file}", f"{len(names)} members"))
    for info in infos:
        limit = MEMBERS[info.filename]
        if info.file_size > limit:
            expected = f"{info.filename} in {file} to have at most {_megabytes(limit)}"
            raise DataError(sentence(expected, _megabytes(info.file_size)))
        if info.file_size > max(SMALL, LARGEST_RATIO * info.compress_size):
            expected = f"{info.filename} in {file} to be compressed at most {LARGEST_RATIO}-fold"
            raise DataError(sentence(expected, f"{info.file_size:,} bytes out of {info.compress_size:,}"))
    return {info.filename: info for info in infos}


def _read_member(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, file: Path
) -> bytes:
    """Read one member whole; zipfile checks its CRC at the end."""
    if name not in members:
        raise DataError(sentence(f"{name} in {file}", "an archive without it", "Save the model again."))
    with archive.open(members[name]) as stream:
        content = stream.read(members[name].file_size)
        # Asking for one byte more makes zipfile notice what is beyond the declared size, and check the CRC.
        if stream.read(1) or len(content) != members[name].file_size:
            raise DataError(sentence(f"{name} in {file} to be whole", f"{len(content):,} bytes"))
    return content


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"
