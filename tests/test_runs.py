"""Run directories: whole or absent."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from convscope.errors import RunError
from convscope.runs import (
    RunDirectory,
    create_run,
    describe_runs,
    find_run,
    is_lock_left,
    list_runs,
    lock_run,
    new_folder,
    open_run,
)


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


@pytest.mark.posix("folders that are synced as files are")
def test_a_run_s_name_is_on_the_disk_once_it_is_published(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: [done.append(os.fstat(handle).st_ino), fsync(handle)])
    monkeypatch.setattr(
        Path, "replace", lambda path, to: [done.append(f"{path.name[0]} to {to.name}"), replace(path, to)]
    )
    with create_run(tmp_path / "run") as run:
        run.write_bytes("x", b"x")
        folder = run.path.stat().st_ino
    assert done[-3:] == [folder, ". to run", tmp_path.stat().st_ino]


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
    with pytest.raises(RunError, match=r"to be able to write .*x, got broken"):
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


# Locks ----------------------------------------------------------------------------------------------------


def python(code, *arguments):
    """Start another process, which says when it is ready."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


HOLD = """
import sys, time
from pathlib import Path
from convscope.runs import create_run, lock_run

path = Path(sys.argv[1])
with lock_run(path) if path.exists() else create_run(path):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_trainer_is_refused_and_a_dead_ones_lock_frees_itself(tmp_path):
    (tmp_path / "run").mkdir()
    with python(HOLD, tmp_path / "run") as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=r"nobody else to work on .*, got another process at it"):
            lock_run(tmp_path / "run").__enter__()
        other.kill()
    with lock_run(tmp_path / "run"):
        pass
    assert entries(tmp_path) == ["run"]


def test_a_second_writer_is_refused_before_it_works_for_nothing(tmp_path):
    with python(HOLD, tmp_path / "run") as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="nobody else to work on"), create_run(tmp_path / "run"):
            pytest.fail("it began")
        other.kill()


def test_no_file_is_open_in_the_folder_that_is_renamed(tmp_path):
    with create_run(tmp_path / "run") as run:
        assert entries(run.path) == []
        assert ".run.lock" in entries(tmp_path)
        run.publish()
    assert entries(tmp_path) == ["run"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    dead, alive = tmp_path / "first/dead", tmp_path / "second/alive"
    with python(HOLD, dead) as killed, python(HOLD, alive) as living:
        assert killed.stdout.readline() == living.stdout.readline() == "held\n"
        killed.kill()
        killed.wait()
        (tmp_path / "second/.mine-partial-abcdefgh").mkdir()
        assert len(entries(dead.parent)) == 2
        with new_folder(tmp_path, "third"):
            assert entries(tmp_path) == ["second", "third"]
        assert [name for name in entries(alive.parent) if name.startswith(".alive-partial-")]
        assert ".mine-partial-abcdefgh" in entries(alive.parent)
        living.kill()
    with create_run(alive):
        pass
    assert entries(alive.parent) == [".mine-partial-abcdefgh", "alive"]


def test_two_commands_of_one_second_get_a_folder_each(tmp_path):
    with new_folder(tmp_path / "runs", "20260131-120000") as first:
        with new_folder(tmp_path / "runs", "20260131-120000") as second:
            assert [first.name, second.name] == ["20260131-120000", "20260131-120000-2"]
        (first / "run").mkdir()
    assert entries(tmp_path / "runs") == ["20260131-120000"]


COUNT = """
import sys
from convscope.runs import RunDirectory

sys.stdin.readline()
for _ in range(20):
    RunDirectory(sys.argv[1]).update_json("uses.json", lambda old: {"uses": old["uses"] + 1 if old else 1})
"""


def test_no_change_of_a_file_is_lost_between_processes(tmp_path):
    command = [sys.executable, "-c", COUNT, str(tmp_path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert RunDirectory(tmp_path).read_json("uses.json") == {"uses": 60}
    assert entries(tmp_path) == ["uses.json"]


@pytest.mark.posix("files that are removed while they are open")
def test_a_lock_goes_while_it_is_held(tmp_path, monkeypatch):
    gone, release = [], FileLock.release

    def watched(lock, *arguments, **keywords):
        gone.append(not Path(lock.lock_file).exists())
        release(lock, *arguments, **keywords)

    monkeypatch.setattr(FileLock, "release", watched)
    with lock_run(tmp_path / "run"):
        assert is_lock_left(tmp_path / "run")
    assert gone
    assert all(gone)


def test_a_change_waits_for_the_one_that_has_begun(tmp_path):
    run = RunDirectory(tmp_path)
    second = threading.Thread(target=lambda: run.update_json("uses.json", one_more))

    def first(old):
        second.start()
        second.join(0.5)
        return one_more(old)

    run.update_json("uses.json", first)
    second.join()
    assert run.read_json("uses.json") == {"uses": 2}


def one_more(old):
    return {"uses": old["uses"] + 1 if old else 1}


@pytest.fixture
def several(tmp_path, monkeypatch):
    """Three runs, the one whose name comes first being the last that began; and what is none."""
    monkeypatch.chdir(tmp_path)
    for name, began in (("b-mnist/deep", "11"), ("b-mnist/simple", "10"), ("a-mnist/deep", "12")):
        with create_run(tmp_path / "runs" / name) as run:
            run.write_json("run.json", {"began": f"2026-01-31T{began}:00:00+00:00", "status": "completed"})
    hidden = tmp_path / "runs/b-mnist/.dense-partial-abcdefgh"
    hidden.mkdir()
    (hidden / "run.json").write_text("{}")


FOUND = {
    "runs/b-mnist/simple": "b-mnist/simple",
    "b-mnist/simple": "b-mnist/simple",
    "simple": "b-mnist/simple",
    "si": "b-mnist/simple",
    "b-mnist/d": "b-mnist/deep",
    "runs/a": "a-mnist/deep",
    "runs/a-mnist": "a-mnist/deep",
    "latest": "a-mnist/deep",
    "runs/latest": "a-mnist/deep",
    "runs/b-mnist/latest": "b-mnist/deep",
}


@pytest.mark.parametrize("name", FOUND)
def test_a_run_is_found_by_what_a_person_types(several, name):
    assert find_run(name).as_posix() == f"runs/{FOUND[name]}"


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("b-mnist/", ["runs/b-mnist/deep", "runs/b-mnist/simple"]),
        ("deep", ["runs/a-mnist/deep", "runs/b-mnist/deep"]),
        ("runs", ["runs/a-mnist/deep", "runs/b-mnist/deep", "runs/b-mnist/simple"]),
    ],
    ids=["folder", "last part", "all"],
)
def test_what_stands_for_several_runs_names_them(several, name, named):
    with pytest.raises(RunError, match=f"^Expected one run for {name.rstrip('/')}.*, got ") as error:
        find_run(name)
    assert all(str(Path(run)) in str(error.value) for run in named)


@pytest.mark.parametrize("name", ["nowhere", "no/where", "elsewhere/latest", "dense", "mnist"])
def test_what_stands_for_no_run_is_refused(several, name):
    with pytest.raises(RunError, match=f"a run directory with run.json, got {name}. .*convscope runs"):
        find_run(name)


def test_runs_are_found_four_folders_deep_but_not_in_a_run(several, tmp_path):
    for name in ("1/2/3/deep", "1/2/3/4/too-deep", "a-mnist/deep/copy", "1/.hidden/deep"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
    found = {run.path.relative_to("runs").as_posix() for run in list_runs("runs")}
    assert found == {"a-mnist/deep", "b-mnist/deep", "b-mnist/simple", "1/2/3/deep"}


def test_runs_are_described_newest_first_and_damaged_ones_too(several, tmp_path):
    (tmp_path / "runs/broken").mkdir()
    (tmp_path / "runs/broken/run.json").write_text("{")
    described = describe_runs("runs")
    assert [one["status"] for one in described] == ["?", "completed", "completed", "completed"]
    assert [Path(one["run"]).as_posix() for one in described[1:]] == [
        f"runs/{name}" for name in ("a-mnist/deep", "b-mnist/deep", "b-mnist/simple")
    ]


def test_a_run_whose_process_is_gone_is_listed_as_interrupted(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"status": "running"}))
    with lock_run(run):
        assert [one["status"] for one in describe_runs(tmp_path)] == ["running"]
    assert [one["status"] for one in describe_runs(tmp_path)] == ["interrupted"]
