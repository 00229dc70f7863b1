"""File formats: bytes → arrays. Pure functions; they read no file and know no dataset."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import DataError, sentence

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


def decompress(raw: bytes, source: str) -> bytes:
    """Undo gzip where the bytes are gzip, else return them as they are.

    Parameters
    ----------
    raw : bytes
        A whole file.
    source : str
        The file's name, for messages.

    Returns
    -------
    bytes
        The content.

    Raises
    ------
    DataError
        If the gzip stream is truncated or damaged, or holds more than ``CONTENT_CAP``.

    Examples
    --------
    >>> decompress(gzip.compress(b"abc"), "example.gz")
    b'abc'
    """
    if not raw.startswith(GZIP_MAGIC):
        return raw
    try:
        with gzip.open(io.BytesIO(raw)) as stream:
            content = stream.read(CONTENT_CAP + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = sentence(f"{source} to be a whole gzip file", f"a damaged one ({error})", "Get it again.")
        raise DataError(message) from error
    if len(content) > CONTENT_CAP:
        raise DataError(
            sentence(f"{source} to hold at most {CONTENT_CAP // 2**30} GiB", "more", "Unpack it.")
        )
    return content


def read_idx(content: bytes, source: str, dimensions: int | None = None) -> NDArray[np.generic]:
    """Read an array in the IDX format of the MNIST files.

    The format: two zero bytes, a type byte, the number of dimensions, each dimension as a big-endian
    32-bit integer, then the values in row-major order (LeCun, Cortes & Burges, THE MNIST DATABASE).

    Parameters
    ----------
    content : bytes
        The decompressed file.
    source : str
        The file's name, for messages.
    dimensions : int or None
        How many dimensions the array must have; None accepts any.

    Returns
    -------
    ndarray
        Of the file's shape and type, in the machine's byte order.

    Raises
    ------
    DataError
        If magic, type, dimensions or length are not as they must be.

    Examples
    --------
    >>> read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]), "three")
    array([7, 8, 9], dtype=uint8)
    """
    kind, rank = _idx_magic(content, source)
    if dimensions is not None and rank != dimensions:
        raise DataError(sentence(f"{source} to have {dimensions} dimensions", f"{rank}"))
    start = 4 + 4 * rank
    if len(content) < start:
        raise DataError(sentence(f"{source} to hold {rank} dimensions", "a file that ends before them"))
    shape = struct.unpack(f">{rank}I", content[4:start])
    expected = start + math.prod(shape) * kind.itemsize
    if len(content) != expected:
        wanted = f"{source} of shape {shape} to have {expected:,} bytes"
        raise DataError(
            sentence(wanted, f"{len(content):,}", "The file is truncated or not what its header says.")
        )
    array = np.frombuffer(content, dtype=kind, offset=start).reshape(shape)
    return array.astype(kind.newbyteorder("="), copy=False)


def _idx_magic(content: bytes, source: str) -> tuple[np.dtype[Any], int]:
    """Check the four bytes that open an IDX file: value type and number of dimensions."""
    if len(content) < 4 or content[:2] != b"\x00\x00":
        raise DataError(
            sentence(f"{source} to begin with the IDX magic 00 00", content[:4].hex(" ") or "nothing")
        )
    if content[2] not in IDX_TYPES:
        valid = ", ".join(f"{code:02x}" for code in IDX_TYPES)
        raise DataError(sentence(f"{source} to name an IDX type ({valid})", f"{content[2]:02x}"))
    if content[3] == 0:
        raise DataError(sentence(f"{source} to have at least one dimension", "0"))
    return IDX_TYPES[content[2]], content[3]
