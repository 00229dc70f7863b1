"""Run directories: whole or absent."""

import errno
import os

import numpy as np
import pytest

from convscope.errors import RunError
from convscope.runs import RunDirectory, create_run, open_run


def entries(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_run_appears_with_all_its_files(tmp_path):
    with create_run(tmp_path / "a/b/run") as run:
        run.write_json("run.json", {"x": np.float32(0.5), "y": float("nan"), "z": (1, 2)})
        run.write_arrays("a.npz", {"values": np.arange(3)})
        run.write_table("history.csv", {"epoch": [1, 2], "loss": [0.5, 0.25]})
        run.write_bytes("figures/x.png", b"png")
        assert not (tmp_path / "a/b/run").exists()
    run = open_run(tmp_path / "a/b/run")
    assert run.read_json("run.json") == {"x": 0.5, "y": None, "z": [1, 2]}
    assert run.read_arrays("a.npz")["values"].tolist() == [0, 1, 2]
    assert run.read_table("history.csv") == {"epoch": [1, 2], "loss": [0.5, 0.25]}
    assert entries(run.path) == ["a.npz", "figures", "history.csv", "run.json"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_nothing_is_left_when_the_block_raises(tmp_path, error):
    with pytest.raises(type(error)), create_run(tmp_path / "a/b/run") as run:
        run.write_bytes("half", b"x")
        raise error
    assert entries(tmp_path) == []


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def no_room(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(RunError, match="No space left on device"), create_run(tmp_path / "run") as run:
        run.write_bytes("x", b"x")
    assert entries(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="to be able to write"), create_run(tmp_path / "file/run"):
        pass
    assert entries(tmp_path) == ["file"]


def test_an_existing_run_is_never_overwritten(tmp_path):
    with create_run(tmp_path / "run") as run:
        run.write_json("run.json", {"first": True})
    with pytest.raises(RunError, match="one that is already there"), create_run(tmp_path / "run"):
        pass
    assert open_run(tmp_path / "run").read_json("run.json") == {"first": True}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)
    run.write_bytes("x", b"old")
    monkeypatch.setattr(os, "fsync", lambda _handle: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        run.write_bytes("x", b"new")
    assert run.read_bytes("x") == b"old"
    assert entries(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("run.json", b"{", "read_json"),
        ("run.json", b"[1]", "read_json"),
        ("a.npz", b"PK\x03\x04", "read_arrays"),
        ("h.csv", b"epoch,loss\n1,x\n", "read_table"),
        ("h.csv", b"", "read_table"),
    ],
    ids=["cut-json", "json-list", "cut-npz", "word-in-table", "empty-table"],
)
def test_a_damaged_file_is_named(tmp_path, name, content, read):
    run = RunDirectory(tmp_path)
    run.write_bytes(name, content)
    with pytest.raises(RunError, match=name):
        getattr(run, read)(name)


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", values=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(RunError, match=r"a\.npz"):
        RunDirectory(tmp_path).read_arrays("a.npz")


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(RunError, match=r"a run directory with run\.json, got"):
        open_run(tmp_path)
