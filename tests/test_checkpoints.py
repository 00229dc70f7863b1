"""Checkpoints: whatever is cut off, the old or the new state is read."""

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from convscope.errors import RunError
from convscope.training.checkpoint import ARRAYS, MANIFEST, load_checkpoint, save_checkpoint

OLD = {"weights": np.arange(6, dtype=np.float32).reshape(2, 3), "position": np.array([1, 2, 0])}
NEW = {"weights": np.ones((2, 3), np.float32), "position": np.array([1, 3, 0])}


def assert_is(found, expected):
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_what_was_saved_is_loaded(tmp_path):
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, (1, 0), OLD)
    assert_is(load_checkpoint(tmp_path), OLD)


def test_a_newer_one_takes_the_place_of_the_older(tmp_path):
    save_checkpoint(tmp_path, (9, 0), OLD)
    save_checkpoint(tmp_path, (10, 3), NEW)
    assert_is(load_checkpoint(tmp_path), NEW)
    assert len(list((tmp_path / "checkpoint").iterdir())) == 1


class Cut(BaseException):
    """The power goes."""


def operations(monkeypatch, at):
    """Let the operation of that number, and everything after it, not happen."""
    count = 0

    def guard(real):
        def call(*arguments, **keywords):
            nonlocal count
            count += 1
            if count >= at:
                raise Cut
            return real(*arguments, **keywords)

        return call

    monkeypatch.setattr(os, "fsync", guard(os.fsync))
    monkeypatch.setattr(Path, "open", guard(Path.open))
    monkeypatch.setattr(Path, "replace", guard(Path.replace))
    # A process that is gone cleans nothing up.
    monkeypatch.setattr(shutil, "rmtree", guard(shutil.rmtree))


@pytest.mark.parametrize("at", range(1, 12))
def test_a_cut_at_any_operation_leaves_the_old_or_the_new_state(tmp_path, monkeypatch, at):
    save_checkpoint(tmp_path, (2, 0), OLD)
    with monkeypatch.context() as patch:
        operations(patch, at)
        with contextlib.suppress(Cut):
            save_checkpoint(tmp_path, (3, 0), NEW)
    found = load_checkpoint(tmp_path)
    assert_is(found, NEW if found["position"][1] == 3 else OLD)
    # And the next save works on what was left.
    save_checkpoint(tmp_path, (4, 0), NEW)
    assert_is(load_checkpoint(tmp_path), NEW)


def test_the_cuts_reach_from_before_the_first_to_after_the_last_operation(tmp_path, monkeypatch):
    """The range of the test above begins with the old state and ends with the new one."""
    states = []
    for at in (1, 11):
        folder = tmp_path / str(at)
        folder.mkdir()
        save_checkpoint(folder, (2, 0), OLD)
        with monkeypatch.context() as patch:
            operations(patch, at)
            with contextlib.suppress(Cut):
                save_checkpoint(folder, (3, 0), NEW)
        states.append(int(load_checkpoint(folder)["position"][1]))
    assert states == [2, 3]


@pytest.mark.parametrize("size", range(0, 400, 8))
def test_a_full_disk_at_any_offset_keeps_the_previous_checkpoint(tmp_path, monkeypatch, size):
    save_checkpoint(tmp_path, (2, 0), OLD)
    real_open = Path.open

    class Full:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

        def write(self, content):
            self.stream.write(content[:size])
            if len(content) > size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name):
            return getattr(self.stream, name)

    with monkeypatch.context() as patch:
        patch.setattr(
            Path,
            "open",
            lambda path, mode="r": Full(real_open(path, mode)) if "x" in mode else real_open(path, mode),
        )
        try:
            save_checkpoint(tmp_path, (3, 0), NEW)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    found = load_checkpoint(tmp_path)
    assert_is(found, NEW if found["position"][1] == 3 else OLD)
    assert len(list((tmp_path / "checkpoint").iterdir())) == 1


@pytest.mark.parametrize("name", [ARRAYS, MANIFEST])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, name):
    save_checkpoint(tmp_path, (2, 0), OLD)
    shutil.copytree(tmp_path / "checkpoint/000002-00000000", tmp_path / "checkpoint/000003-00000000")
    file = tmp_path / "checkpoint/000003-00000000" / name
    file.write_bytes(file.read_bytes()[:-1])
    assert_is(load_checkpoint(tmp_path), OLD)


def test_damaged_checkpoints_only_are_said(tmp_path):
    folder = save_checkpoint(tmp_path, (2, 0), OLD)
    (folder / ARRAYS).write_bytes(b"x")
    with pytest.raises(RunError, match=r"a whole checkpoint in .* got damaged ones only"):
        load_checkpoint(tmp_path)


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    folder = save_checkpoint(tmp_path, (2, 0), OLD)
    (folder / MANIFEST).write_text(json.dumps({"files": {"../../../etc/passwd": "0"}}))
    with pytest.raises(RunError, match="damaged ones only"):
        load_checkpoint(tmp_path)
