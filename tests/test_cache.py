"""The cache keeps below its size, its scratch folders tidy; pixels on disk answer as those in memory do."""

import os
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from convscope.data import cache
from convscope.data.cache import (
    STALE_SECONDS,
    PixelStore,
    add_rows,
    cache_limit,
    evict,
    open_known,
    open_or_write,
    open_pixels,
    open_store,
    read_pixels,
    read_rows,
    scratch_folder,
    store_folder,
    write_store,
)
from convscope.data.dataset import Split, fingerprint
from convscope.errors import DataError, UsageError

pytestmark = pytest.mark.usefixtures("own_cache")

IMAGES = np.zeros((64, 32, 32, 1), np.uint8)  # 64 kB
KEYS = [digit * 64 for digit in "abc"]


def write(key):
    with write_store(key, (32, 32, 1)) as writer:
        writer.append(IMAGES)


def use_at(key, seconds):
    os.utime(store_folder() / key / "notes.json", (seconds, seconds))


def kept():
    return {key for key in KEYS if (store_folder() / key).exists()}


@pytest.fixture
def two_stores():
    """The first was used long after the second."""
    for key, seconds in zip(KEYS, (2_000, 1_000), strict=False):
        write(key)
        use_at(key, seconds)


def limit_to(monkeypatch, bytes_):
    monkeypatch.setenv("CONVSCOPE_CACHE_GB", str(bytes_ / 2**30))


def test_what_was_used_least_lately_makes_room(two_stores, monkeypatch):
    limit_to(monkeypatch, 150_000)
    write(KEYS[2])
    assert kept() == {KEYS[0], KEYS[2]}


def test_opening_a_store_counts_as_using_it(two_stores, monkeypatch):
    limit_to(monkeypatch, 150_000)
    open_store(KEYS[1])
    write(KEYS[2])
    assert kept() == {KEYS[1], KEYS[2]}


def test_the_new_one_stays_however_large(two_stores, monkeypatch):
    limit_to(monkeypatch, 10)
    write(KEYS[2])
    assert kept() == {KEYS[2]}


def test_below_the_limit_everything_stays(two_stores):
    write(KEYS[2])
    assert kept() == set(KEYS)


@pytest.mark.posix("symbolic links that anybody may make")
def test_nothing_that_is_not_ours_is_removed(two_stores, monkeypatch, tmp_path):
    own = tmp_path / "photographs"
    own.mkdir()
    (own / "notes.json").write_text("{}")
    (store_folder() / "holiday").mkdir()
    (store_folder() / "holiday" / "notes.json").write_text("{}")
    (store_folder() / ("d" * 64)).symlink_to(own)
    limit_to(monkeypatch, 0)
    assert set(evict(store_folder(), keep="")) == set(KEYS[:2])
    assert (own / "notes.json").exists()
    assert (store_folder() / "holiday" / "notes.json").exists()
    assert (store_folder() / ("d" * 64)).is_symlink()


def test_an_evicted_store_is_forgotten_and_made_anew(two_stores, monkeypatch):
    made = []

    def make():
        made.append(KEYS[0])
        write(KEYS[0])
        return KEYS[0], open_store(KEYS[0])

    for _ in range(2):
        assert open_known(["files"], make).images.shape == IMAGES.shape
    assert len(made) == 1
    limit_to(monkeypatch, 0)
    evict(store_folder(), keep="")
    assert open_known(["files"], make).images.shape == IMAGES.shape
    assert len(made) == 2


@pytest.mark.parametrize("text", ["-1", "much", "inf", "nan"])
def test_a_limit_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("CONVSCOPE_CACHE_GB", text)
    with pytest.raises(UsageError, match="Expected a number of GB in CONVSCOPE_CACHE_GB"):
        cache_limit()
    with pytest.raises(UsageError, match="Expected a number of GB"), write_store(KEYS[0], (32, 32, 1)):
        pass


def test_rows_are_kept_by_name_and_more_are_added(monkeypatch):
    names, rows = [b"a" * 32, b"b" * 32, b"c" * 32], np.arange(6, dtype=np.float32).reshape(3, 2)
    assert read_rows(KEYS[0]) == ({}, 0.0)
    add_rows(KEYS[0], names[:2], rows[:2], seconds=4.0)
    add_rows(KEYS[0], names[2:], rows[2:], seconds=9.0)
    known, seconds = read_rows(KEYS[0])
    assert seconds == 2.0  # as the part with most of them says
    assert {name: row.tolist() for name, row in known.items()} == dict(zip(names, rows.tolist(), strict=True))
    for file in (store_folder() / KEYS[0]).glob("*.npz"):
        file.write_bytes(file.read_bytes()[:-40])
    assert read_rows(KEYS[0]) == ({}, 0.0)  # damaged: computed anew
    assert open_store(KEYS[0]) is None
    limit_to(monkeypatch, 0)
    write(KEYS[1])
    assert kept() == {KEYS[1]}


# Scratch folders, and two processes ----------------------------------------------------------------------

HOLD = """
import time
import tracemalloc
from convscope.data.cache import scratch_folder

with scratch_folder() as scratch:
    print(scratch, flush=True)
    time.sleep(60)
"""


def begin(code):
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_scratch_folder_stays_while_it_is_in_use_however_old_and_goes_with_its_process():
    with begin(HOLD) as other:
        scratch = Path(other.stdout.readline().strip())
        os.utime(scratch, (1, 1))
        with scratch_folder() as own:
            assert scratch.is_dir() and own.is_dir()
        assert not own.exists()
        other.kill()
        other.wait()
    with scratch_folder() as own:
        assert [entry.name for entry in own.parent.iterdir() if entry.is_dir()] == [own.name]


def test_what_nobody_locked_is_removed_after_a_day():
    with scratch_folder() as own:
        folder = own.parent
    for name, age in {"old": STALE_SECONDS + 60, "new": 60}.items():
        (folder / name).mkdir()
        (folder / f"{name}-file").write_bytes(b"")
        for path in (folder / name, folder / f"{name}-file"):
            os.utime(path, (time.time() - age,) * 2)
    with scratch_folder():
        assert {path.name for path in folder.iterdir()} & {"old", "old-file"} == set()
        assert {"new", "new-file"} <= {path.name for path in folder.iterdir()}


DECODE = """
import sys, time
import numpy as np
from convscope.data.cache import open_or_write, write_store

KEY = "e" * 64

def write():
    print("wrote", flush=True)
    time.sleep(2)
    with write_store(KEY, (2, 2, 1)) as writer:
        writer.append(np.ones((3, 2, 2, 1), np.uint8))

print(open_or_write(KEY, write).images.sum())
"""


def test_two_processes_decode_a_data_set_once():
    with begin(DECODE) as first, begin(DECODE) as second:
        outputs = [process.communicate()[0].split() for process in (first, second)]
    assert sorted(outputs, key=len) == [["12"], ["wrote", "12"]]


def test_a_store_whose_writer_was_killed_is_written_by_who_waited():
    with begin(DECODE) as first:
        assert first.stdout.readline() == "wrote\n"
        with begin(DECODE) as second:
            time.sleep(1)
            first.kill()
            assert second.communicate()[0].split() == ["wrote", "12"]


def test_a_store_that_is_there_is_opened_and_not_written(two_stores):
    assert open_or_write(KEYS[0], lambda: pytest.fail("written")).images.shape == IMAGES.shape


# Pixels on disk

ROWS = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), np.uint8)


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


def mapped_kilobytes():
    """Pages of files that this process has in memory, from the kernel."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return sum(int(size) for size in re.findall(r"Rss(?:File|Shmem):\s*(\d+)", status))


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
        before, peak, total = mapped_kilobytes(), 0, 0
        if order == "part":
            store = store[chosen]
        tracemalloc.start()  # what the allocator keeps of memory that was freed does not count
        for start in range(0, rows, 128):
            batch = store[start : start + 128] if order == "slices" else store[chosen[start : start + 128]]
            if order == "in turn":
                batch = np.stack([store[int(row)] for row in range(start, min(rows, start + 128))])
            total += int(batch.sum(dtype=np.int64))
            peak = max(peak, mapped_kilobytes() - before)
        peak += tracemalloc.get_traced_memory()[1] // 1024
        tracemalloc.stop()
        assert total == int(np.asarray(store).sum(dtype=np.int64))
    assert peak < 25_000


def test_a_fingerprint_does_not_depend_on_where_the_pixels_lie(store):
    labels, names = np.arange(50) % 2, [str(number) for number in range(50)]
    in_memory, on_disk = Split(ROWS, labels, names), Split(store, labels, names)
    assert fingerprint(on_disk, class_names="ab") == fingerprint(in_memory, class_names="ab")
    assert (on_disk.take(np.array([5, 2])).images == in_memory.take(np.array([5, 2])).images).all()
