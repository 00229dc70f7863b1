"""Many files, one table: every file a row, exactly once, in order, whatever interrupts it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import prediction_kills
import pytest
from PIL import Image

import convscope
from convscope import batch_prediction
from convscope.batch_prediction import predict_to_table
from convscope.errors import RunError, UsageError
from convscope.export import load_bundle
from convscope.prediction import Failure, predict_files


@pytest.fixture
def folder(tmp_path):
    """Thirty digits in files, and two that are none."""
    place = tmp_path / "digits"
    place.mkdir()
    for number, image in enumerate(convscope.load("digits").test.images[:30]):
        Image.fromarray(image[..., 0]).save(place / f"{number:02d}.png")
    (place / "05-bad.png").write_bytes(b"nothing")
    (place / "zz.png").write_bytes(b"")
    return place


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(batch_prediction, "PART", 7)


def die(*_arguments):
    os._exit(1)


def read(file):
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_table_says_what_a_prediction_of_each_file_says(digits_run, folder, tmp_path):
    heard = []
    table = predict_to_table(
        digits_run,
        [folder],
        tmp_path / "t.csv",
        abstain=0.5,
        on_progress=lambda *counts: heard.append(counts),
    )
    bundle = load_bundle(digits_run)
    expected = list(predict_files(bundle, [folder], abstain=0.5))
    rows = read(tmp_path / "t.csv")
    assert [row["file"] for row in rows] == [one.name for one in expected]
    for row, one in zip(rows, expected, strict=True):
        if isinstance(one, Failure):
            assert (row["error"], row["label"], row["p(3)"]) == (one.reason, "", "")
            continue
        assert row["label"] == ("" if one.abstained else one.label)
        assert row["warnings"] == "; ".join(one.drift_warnings)
        found = [float(row[f"p({name})"]) for name in bundle.class_names]
        assert found == pytest.approx(one.probabilities, abs=2e-6)
    assert (table.images, table.failures, table.found_done) == (32, 2, 0)
    assert sum(table.counts.values()) == 30
    assert heard[0] == (0, 32) and heard[-1] == (32, 32)
    assert {path.name for path in tmp_path.iterdir()} == {"digits", "t.csv"}


def test_parquet_holds_the_same(digits_run, folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    predict_to_table(digits_run, [folder], tmp_path / "t.parquet")
    predict_to_table(digits_run, [folder], tmp_path / "t.csv")
    table = parquet.read_table(tmp_path / "t.parquet")
    rows = read(tmp_path / "t.csv")
    assert table.column_names == list(rows[0])
    assert table["file"].to_pylist() == [row["file"] for row in rows]
    assert [value or "" for value in table["label"].to_pylist()] == [row["label"] for row in rows]
    assert np.nan_to_num(table["p(7)"].to_numpy()) == pytest.approx(
        [float(row["p(7)"] or 0) for row in rows], abs=2e-6
    )


def test_what_was_interrupted_goes_on_and_predicts_nothing_twice(digits_run, folder, tmp_path, monkeypatch):
    whole = predict_to_table(digits_run, [folder], tmp_path / "whole.csv")
    asked = []
    ask = batch_prediction.predict_sources

    def until_third(bundle, sources, threshold):
        asked.append([source.name for source in sources])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(bundle, sources, threshold)

    monkeypatch.setattr(batch_prediction, "predict_sources", until_third)
    with pytest.raises(KeyboardInterrupt):
        predict_to_table(digits_run, [folder], tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()
    done = predict_to_table(digits_run, [folder], tmp_path / "t.csv")
    assert (done.found_done, done.images, done.counts) == (14, 32, whole.counts)
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert asked[2] == asked[3]
    assert sum(len(part) for part in asked) == 32 + len(asked[2])


@pytest.mark.parametrize("changed", ["an input", "the network", "the threshold"])
def test_parts_of_other_inputs_are_refused(digits_run, folder, tmp_path, monkeypatch, changed):
    def stopped(*_arguments):
        raise KeyboardInterrupt

    run = shutil.copytree(digits_run, tmp_path / "run")
    monkeypatch.setattr(batch_prediction, "predict_sources", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict_to_table(run, [folder], tmp_path / "t.csv")
    if changed == "an input":
        (folder / "00.png").write_bytes((folder / "01.png").read_bytes() + b"more")
    elif changed == "the network":
        (run / "weights.safetensors").write_bytes(b"others")
    abstain = 0.5 if changed == "the threshold" else None
    with pytest.raises(UsageError, match=r"to fit, got other inputs. Remove .*\.t\.csv\.parts"):
        predict_to_table(run, [folder], tmp_path / "t.csv", abstain=abstain)


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("t.txt", {}, r"ends in \.parquet or \.csv"),
        ("no/t.csv", {}, "an existing folder"),
        ("there.csv", {}, "a new file for the table"),
        ("t.csv", {"workers": 0}, "at least 1 worker"),
        ("t.csv", {"abstain": 2}, "threshold"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_predicted(tmp_path, file, settings, message):
    (tmp_path / "there.csv").write_text("mine")
    with pytest.raises(UsageError, match=message):
        predict_to_table("no-run", [], tmp_path / file, **settings)
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_the_command_writes_a_table(digits_run, folder, tmp_path, typed):
    answer = typed(
        "predict", str(digits_run), str(folder), "--out", str(tmp_path / "t.csv"), "--json", cwd=tmp_path
    )
    assert answer.returncode == 3  # two of the files are no images
    said = json.loads(answer.stdout)
    assert (said["images"], said["failures"], said["file"]) == (32, 2, str(tmp_path / "t.csv"))
    refused = typed("predict", str(digits_run), str(folder), "--workers", "2", cwd=tmp_path)
    assert (refused.returncode, "--workers beside --out" in refused.stderr) == (2, True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux lists processes there")
def test_whoever_is_killed_every_file_is_a_row_once(digits_run, folder, tmp_path):
    pytest.importorskip("pyarrow")
    # 100,000 and five kills only with CONVSCOPE_FULL=1: it takes minutes.
    count, part, kills = (100_000, 512, 5) if os.environ.get("CONVSCOPE_FULL") else (1_000, 25, 2)
    (tmp_path / "here").mkdir()
    files = [digits_run, folder, tmp_path / "here"]
    numbers = [count, 2, kills, part]  # of images, workers, kills, and images in a part
    done = subprocess.run(
        [sys.executable, prediction_kills.__file__, *map(str, [*files, *numbers])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["images"], found["once"], found["in_order"]) == (count, True, True), found
    assert found["codes"][-1] == 3  # some are no images
    assert all(code in (-signal.SIGKILL, 3) for code in found["codes"][:-1])
    assert found["found_done"] > 0
    assert found["left"] == ["images", "table.parquet"]
    assert found["peak_megabytes"] < 1_000


@pytest.mark.slow
@pytest.mark.posix("kills processes")
def test_a_worker_that_dies_ends_the_call_which_can_be_repeated(digits_run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_prediction, "_prepare", die)
    with pytest.raises(RunError, match="one that ended"):
        predict_to_table(digits_run, [folder], tmp_path / "t.csv", workers=2)
    monkeypatch.undo()
    monkeypatch.setattr(batch_prediction, "PART", 7)
    assert predict_to_table(digits_run, [folder], tmp_path / "t.csv", workers=2).images == 32
