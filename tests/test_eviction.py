"""The cache keeps below its size; the stores used least lately go, and nothing that is not ours."""

import os

import numpy as np
import pytest

from convscope.data.eviction import cache_limit, evict
from convscope.data.store import known_store, open_store, remember_store, store_folder, write_store
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
