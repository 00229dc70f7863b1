"""The cache keeps below its size and its scratch folders tidy; what is in use, or not ours, stays."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from convscope.data.cache import (
    STALE_SECONDS,
    cache_limit,
    evict,
    known_store,
    open_or_write,
    open_store,
    remember_store,
    scratch_folder,
    store_folder,
    write_store,
)
from convscope.errors import UsageError

IMAGES = np.zeros((64, 32, 32, 1), np.uint8)  # 64 kB
KEYS = [digit * 64 for digit in "abc"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path / "cache"))


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
    remember_store(["files"], KEYS[0])
    limit_to(monkeypatch, 0)
    evict(store_folder(), keep="")
    assert known_store(["files"]) is None
    write(KEYS[0])
    assert open_store(KEYS[0]).images.shape == IMAGES.shape


@pytest.mark.parametrize("text", ["-1", "much", "inf", "nan"])
def test_a_limit_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("CONVSCOPE_CACHE_GB", text)
    with pytest.raises(UsageError, match="Expected a number of GB in CONVSCOPE_CACHE_GB"):
        cache_limit()
    with pytest.raises(UsageError, match="Expected a number of GB"), write_store(KEYS[0], (32, 32, 1)):
        pass


# Scratch folders, and two processes ----------------------------------------------------------------------

HOLD = """
import time
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
