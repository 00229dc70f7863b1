"""IDX files: what they hold is read back, and what is wrong with them is said."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from convscope.data.sources import arrays as formats
from convscope.data.sources.arrays import IDX_TYPES, decompress, read_idx
from convscope.errors import DataError


def idx(array: np.ndarray) -> bytes:
    """Write an array as IDX: an independent counterpart of the reader."""
    code = {np.dtype(kind): code for code, kind in IDX_TYPES.items()}[array.dtype]
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@given(arrays.arrays(st.sampled_from(list(IDX_TYPES.values())), arrays.array_shapes(max_dims=4, max_side=5)))
def test_what_was_written_is_read_back(array):
    read = read_idx(idx(array), "example")
    assert read.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(read, array)


GOOD = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "IDX magic 00 00, got nothing", id="empty"),
        pytest.param(b"<htm" + GOOD[4:], "IDX magic 00 00, got 3c 68 74 6d", id="wrong-magic"),
        pytest.param(b"\0\0\x07\3" + GOOD[4:], "IDX type .*, got 07", id="wrong-type"),
        pytest.param(b"\0\0\x08\0" + GOOD[4:], "at least one dimension, got 0", id="no-dimension"),
        pytest.param(GOOD[:10], "hold 3 dimensions, got a file that ends before them", id="cut-header"),
        pytest.param(GOOD[:-1], "to have 40 bytes, got 39", id="cut-values"),
        pytest.param(GOOD + b"\0", "to have 40 bytes, got 41", id="too-long"),
    ],
)
def test_a_damaged_file_is_refused(content, message):
    with pytest.raises(DataError, match=message):
        read_idx(content, "example")


def test_another_number_of_dimensions_is_refused():
    with pytest.raises(DataError, match="example to have 1 dimensions, got 3"):
        read_idx(GOOD, "example", dimensions=1)


def test_gzip_is_undone_and_plain_bytes_stay():
    assert decompress(gzip.compress(GOOD), "x") == GOOD
    assert decompress(GOOD, "x") == GOOD


@pytest.mark.parametrize("cut", [3, 12, -1], ids=["header", "body", "checksum"])
def test_a_truncated_gzip_is_refused(cut):
    with pytest.raises(DataError, match=r"images\.gz to be a whole gzip file, got a damaged one"):
        decompress(gzip.compress(GOOD)[:cut], "images.gz")


def test_a_gzip_that_holds_more_than_memory_may_is_refused(monkeypatch):
    monkeypatch.setattr(formats, "CONTENT_CAP", 2**30)
    assert len(decompress(gzip.compress(bytes(1000)), "some.gz")) == 1000
    monkeypatch.setattr(formats, "CONTENT_CAP", 999)
    with pytest.raises(DataError, match=r"some\.gz to hold at most 0 GiB, got more"):
        decompress(gzip.compress(bytes(1000)), "some.gz")


def test_a_flipped_bit_in_a_gzip_is_refused():
    raw = bytearray(gzip.compress(GOOD))
    raw[-6] ^= 1  # in the checksum of the content
    with pytest.raises(DataError, match="a damaged one"):
        decompress(bytes(raw), "images.gz")
