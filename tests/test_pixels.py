"""Pixels on disk: the same answers as an array in memory, in little memory."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convscope.data import cache
from convscope.data.cache import PixelStore, open_pixels, read_pixels
from convscope.data.dataset import Names, Split, fingerprint, printable
from convscope.errors import DataError

ROWS = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), np.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path):
    (tmp_path / "pixels").write_bytes(ROWS.tobytes())
    with (tmp_path / "pixels").open("rb") as file:
        return open_pixels(file, ROWS.shape)


INDICES = [
    3,
    -1,
    np.int64(7),
    slice(None),
    slice(4, 9),
    slice(None, None, -2),
    slice(5, 5),
    [3, 1, 1],
    np.array([49, 0, -2]),
    np.array([], np.int64),
    np.arange(50) % 3 == 0,
    (slice(2, 6), ..., 1),
    (slice(None), 0),
    (4, slice(1, 3), 2),
    (np.array([4, 2]), slice(1, 3)),
    (np.array([4, 2]), np.array([1, 3])),
    (..., 0),
    None,
    np.zeros(ROWS.shape, bool),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("in_memory", [2**30, 100], ids=["copies", "files"])
def test_a_store_answers_as_an_array(store, index, in_memory, monkeypatch):
    monkeypatch.setattr(cache, "IN_MEMORY", in_memory)
    answer, truth = store[index], ROWS[index]
    assert answer.shape == truth.shape
    assert (np.asarray(answer) == truth).all()


DERIVED = {
    "copy": lambda array: array.copy(),
    "flat": lambda array: array.reshape(50, -1),
    "axes": lambda array: array.transpose(0, 3, 1, 2),
    "signed": lambda array: array.view(np.int8),
    "sum": lambda array: array + np.uint8(1),
    "view": lambda array: array[7:],
    "view of a view": lambda array: array[7:][2:],
    "steps": lambda array: array[::3],
    "columns": lambda array: array[:, 1],
}


@pytest.mark.parametrize("derive", DERIVED.values(), ids=DERIVED)
@pytest.mark.parametrize("index", [3, [4, 1], slice(2, 9)], ids=str)
@pytest.mark.parametrize("in_memory", [2**30, 100], ids=["copies", "files"])
def test_what_is_made_of_a_store_answers_as_an_array_too(store, derive, index, in_memory, monkeypatch):
    monkeypatch.setattr(cache, "IN_MEMORY", in_memory)
    assert (np.asarray(derive(store)[index]) == derive(ROWS)[index]).all()


def test_rows_beyond_the_end_are_refused(store):
    with pytest.raises(IndexError, match="rows from 3 to 50 of 50"):
        store[[3, 50]]


def test_a_file_that_is_cut_while_in_use_is_said(store, tmp_path):
    with (tmp_path / "pixels").open("rb+") as file:
        file.truncate(100)
    with pytest.raises(DataError, match="the cached images to be whole, got a file that was cut"):
        store[40]


def test_few_rows_are_plain_arrays_of_their_own(store):
    assert type(store[3:5]) is type(store[[3, 4]]) is type(store[3]) is np.ndarray
    chosen = store[3:5]
    chosen[:] = 0  # a copy: torch wants to be allowed to write
    assert (store[3:5] == ROWS[3:5]).all()


def test_many_rows_go_into_a_file_that_vanishes(store, monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "IN_MEMORY", 100)
    monkeypatch.setattr(cache, "COPY_BYTES", 7 * 12)
    chosen = store[np.arange(49, -1, -1)]
    assert isinstance(chosen, PixelStore)
    assert (np.asarray(chosen) == ROWS[::-1]).all()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    assert (np.asarray(chosen[np.arange(50)][5:9]) == ROWS[::-1][5:9]).all()


@pytest.mark.parametrize("in_memory", [10**9, 100], ids=["few", "many"])
def test_changed_images_go_into_memory_or_into_a_file_that_vanishes(store, in_memory, monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "IN_MEMORY", in_memory)
    monkeypatch.setattr(cache, "COPY_BYTES", 50)
    shape = store.shape[1:]
    changed = cache.map_pixels(store, lambda image: 255 - image, shape)
    assert isinstance(changed, PixelStore) == (in_memory == 100)
    np.testing.assert_array_equal(changed, 255 - ROWS)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    assert cache.map_pixels(ROWS[:0], lambda image: image, shape).shape == (0, *shape)


def test_a_store_cannot_be_written(store):
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(store)[0] = 0


def test_rows_are_iterated_one_by_one(store):
    assert all((one == other).all() for one, other in zip(store, ROWS, strict=True))


def test_choosing_more_than_the_disk_holds_is_refused(store, monkeypatch):
    monkeypatch.setattr(cache, "IN_MEMORY", 100)
    monkeypatch.setattr("convscope.data.cache.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(DataError, match=r"GB of free space in the cache .*Make room, or set CONVSCOPE_CACHE"):
        store[np.arange(50)]


def test_small_files_are_read_and_large_ones_mapped(tmp_path, monkeypatch):
    (tmp_path / "pixels").write_bytes(ROWS.tobytes())
    assert type(read_pixels(tmp_path / "pixels", ROWS.shape)) is np.ndarray
    monkeypatch.setattr(cache, "IN_MEMORY", 100)
    assert isinstance(read_pixels(tmp_path / "pixels", ROWS.shape), PixelStore)


def resident_kilobytes():
    """Pages of this process in memory, from the kernel."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if line.startswith("VmRSS")
    )
    return int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux counts pages there")
@pytest.mark.parametrize("order", ["random", "in turn", "slices", "part"])
def test_reading_all_of_a_large_store_keeps_little_of_it_in_memory(order, monkeypatch):
    monkeypatch.setattr(cache, "IN_MEMORY", 8 * 2**20)
    rows, size = 10_000, 5_000  # 50 MB
    with tempfile.TemporaryFile() as file:
        for _ in range(10):
            file.write(np.random.default_rng(0).bytes(size * 1000))
        file.flush()
        store = open_pixels(file, (rows, size, 1, 1))
        chosen = np.random.default_rng(0).permutation(rows)
        before, peak, total = resident_kilobytes(), 0, 0
        if order == "part":
            store = store[chosen]
        for start in range(0, rows, 128):
            batch = store[start : start + 128] if order == "slices" else store[chosen[start : start + 128]]
            if order == "in turn":
                batch = np.stack([store[int(row)] for row in range(start, min(rows, start + 128))])
            total += int(batch.sum(dtype=np.int64))
            peak = max(peak, resident_kilobytes() - before)
        assert total == int(np.asarray(store).sum(dtype=np.int64))
    assert peak < 25_000


def test_a_fingerprint_does_not_depend_on_where_the_pixels_lie(store):
    labels, names = np.arange(50) % 2, [str(number) for number in range(50)]
    in_memory, on_disk = Split(ROWS, labels, names), Split(store, labels, names)
    assert fingerprint(on_disk, class_names="ab") == fingerprint(in_memory, class_names="ab")
    assert (on_disk.take(np.array([5, 2])).images == in_memory.take(np.array([5, 2])).images).all()


def test_groups_follow_their_images():
    split = Split(ROWS, np.arange(50) % 2, Names(map(str, range(50))), np.arange(50) // 2)
    taken = split.take(np.array([7, 3]))
    assert taken.groups.tolist() == [3, 1]
    assert list(taken.names) == ["7", "3"]


@given(st.lists(st.text("aß/.\udce9\n", max_size=5), max_size=8), st.data())
def test_names_are_a_sequence_of_strings(names, data):
    kept = Names(names)
    assert list(kept) == names
    assert (kept, len(kept), [kept[number] for number in range(len(kept))]) == (names, len(names), names)
    if names:
        indices = np.array(data.draw(st.lists(st.integers(0, len(names) - 1), max_size=9)), np.int64)
        assert list(kept.take(indices)) == [names[number] for number in indices]
    assert kept[1:3] == names[1:3]


def test_names_beyond_the_end_are_refused():
    with pytest.raises(IndexError):
        Names(["a"])[1]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Füße/猫.jpg", "Füße/猫.jpg"),
        ("a\udcff\udc80.jpg", r"a\xff\x80.jpg"),
        ("a\x1b[31m\n.jpg", r"a\x1b[31m\n.jpg"),
        ("a\u202egpj.exe", r"a\u202egpj.exe"),
    ],
    ids=["text", "bytes", "control", "direction"],
)
def test_names_are_shown_without_harm(name, shown):
    assert printable(name) == shown
    assert shown.encode()
