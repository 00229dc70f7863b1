"""Sixty wrong commands: a line or two, before anything large is loaded, and nothing is left behind."""

import json
import os
import subprocess
import sys

import pytest

DEEP = ["inspect", "deep"]
PREDICT = ["predict", "run", "photo.png"]
TRAIN = ["train", "digits"]

# arguments → exit code, and what the message holds. The folder has a completed run, some odd files, no data.
WRONG = {
    ("trian",): (2, "No such command 'trian'"),
    ("--versoin",): (2, "No such option: --versoin"),
    ("train",): (2, "Missing argument 'data'"),
    ("train", "minst"): (2, "Did you mean 'mnist'?"),
    ("train", "no/where"): (3, "got nothing at no/where. Check the path."),
    ("train", "empty"): (3, "got no files"),
    ("train", "notes.txt"): (3, "got notes.txt"),
    ("train", "broken.npz"): (3, "broken.npz"),
    ("train", "one-class"): (3, "at least 2 classes"),
    ("train", "unreadable"): (3, "at least one usable image in unreadable, got 4 images: empty"),
    ("train", "table.csv"): (3, "table.csv"),
    ("train", "photos.zip"): (3, "photos.zip to be a whole archive"),
    (*TRAIN, "--network", "deeep"): (2, "Did you mean 'deep'?"),
    (*TRAIN, "--recipe", "swfit"): (2, "Did you mean 'swift'?"),
    (*TRAIN, "--epochs", "0"): (2, "epochs of at least 1, a whole number, got 0"),
    (*TRAIN, "--epochs", "ten"): (2, "as an integer. Try `convscope train --help`."),
    (*TRAIN, "--batch-size", "-5"): (2, "batch_size of at least 1"),
    (*TRAIN, "--optimizer", "adma"): (2, "Did you mean 'adam'?"),
    (*TRAIN, "--learning-rate", "-1"): (2, "a learning rate above 0, got -1.0"),
    (*TRAIN, "--learning-rate", "nan"): (2, "a learning rate above 0, got nan"),
    (*TRAIN, "--schedule", "cosin"): (2, "Did you mean 'cosine'?"),
    (*TRAIN, "--label-smoothing", "1"): (2, "label smoothing from 0 to below 1"),
    (*TRAIN, "--validation-share", "1"): (2, "a validation share from 0 to below 1, got 1.0"),
    (*TRAIN, "--scaling", "minmix"): (2, "Did you mean 'minmax'?"),
    (*TRAIN, "--data-format", "channels_lst"): (2, "Did you mean 'channels_last'?"),
    (*TRAIN, "--resize", "strech"): (2, "Did you mean 'stretch'?"),
    (*TRAIN, "--size", "20"): (2, "no size or channels for digits"),
    (*TRAIN, "--engine", "fsat"): (2, "Did you mean 'fast'?"),
    (*TRAIN, "--precision", "float16"): (2, "float32"),
    (*TRAIN, "--seed", "-1"): (2, "seed of at least 0"),
    (*TRAIN, "--seeds", "0"): (2, "seeds of at least 1, got 0"),
    (*TRAIN, "--seeds", "2", "--workers", "0"): (2, "workers of at least 1, got 0"),
    ("sweep", "digits"): (2, "Missing option '--space'"),
    ("sweep", "digits", "--space", "no.toml"): (3, "a TOML file for --space, got nothing at no.toml"),
    ("sweep", "digits", "--space", "notes.txt"): (2, "notes.txt to be TOML"),
    ("sweep", "digits", "--space", "space.toml"): (2, "space.toml, epochs: Expected epochs of at least 1"),
    ("sweep", "digits", "--space", "space.toml", "--workers", "0"): (2, "workers of at least 1, got 0"),
    ("train", "two-classes", "--size", "99999"): (2, "from 1 to 4096 pixels, got 99999"),
    ("train", "two-classes", "--workers", "-2"): (2, "from 0 to 64 workers, got -2"),
    ("exercise", "--network", "deeep"): (2, "Did you mean 'deep'?"),
    ("exercise", "--data", "digit"): (2, "Did you mean 'digits'?"),
    ("exercise", "--data", "digits", "--epochs", "-3"): (2, "epochs of at least 1"),
    ("exercise", "--data", "digits", "--scaling", "unti"): (2, "Did you mean 'unit'?"),
    ("resume",): (2, "Missing argument 'run'. Try `convscope resume --help`."),
    ("resume", "nowhere"): (3, "a run directory with run.json, got nowhere"),
    ("resume", "run"): (3, "an unfinished run at run, got a completed one"),
    ("resume", "damaged-run"): (3, "run.json in damaged-run to be JSON"),
    ("evaluate", "nowhere"): (3, "a run directory with run.json"),
    ("evaluate", "run", "--part", "tset"): (2, "the part validation or test, got 'tset'"),
    ("report", "two-classes"): (3, "a run directory with run.json, got two-classes"),
    ("compare", "run"): (2, "two runs, got 1"),
    ("compare", "run", "nowhere"): (3, "got nowhere"),
    ("inspect",): (2, "Missing argument 'target'"),
    ("inspect", "deeep"): (2, "Did you mean 'deep'?"),
    ("inspect", "broken.keras"): (3, "broken.keras to be a Keras model"),
    (*DEEP, "--input", "28"): (2, "a shape such as 28x28x1, got '28'"),
    (*DEEP, "--classes", "1"): (2, "at least 2 classes, got 1"),
    ("inspect", "nowhere", "--image", "0"): (3, "a run directory with run.json"),
    ("predict", "run"): (2, "Missing argument 'files'"),
    ("predict", "nowhere", "photo.png"): (3, "a run directory with run.json, got nowhere"),
    ("predict", "run", "no.png", "none.png"): (3, "no.png and 1 more to be an image, got no such files"),
    (*PREDICT, "--abstain", "7"): (2, "a threshold above 0 and up to 1, got 7.0"),
    (*PREDICT, "--csv", "--json"): (2, "--csv or --json, got both"),
    (*PREDICT, "--show", "photo.png"): (2, "a new file for --show"),
    (*PREDICT, "--show", "sheet.jpg"): (2, "a file that ends in .png for --show"),
    ("export", "nowhere"): (3, "a run directory with run.json"),
    ("export", "run", "--format", "onxn"): (2, "Did you mean 'onnx'?"),
    ("export", "run", "--format", "torch", "--int8"): (2, "--format onnx with --int8, got torch"),
    ("export", "run", "--out", "empty"): (3, "a new folder empty, got one that is there"),
    ("data", "check"): (2, "Missing argument 'path'"),
    ("data", "check", "no/where"): (3, "got nothing at no/where"),
    ("data", "info", "minst"): (2, "Did you mean 'mnist'?"),
    ("data", "fetch", "mnist", "--jsno"): (2, "No such option: --jsno"),
}

# Runs the commands one after the other in a process that has loaded nothing yet.
TYPIST = """
import contextlib, io, json, os, sys, time
from pathlib import Path
from convscope.cli import main
HEAVY = {"torch", "keras", "sklearn", "matplotlib"}
rows = []
for arguments in json.load(sys.stdin):
    out, err, code, began = io.StringIO(), io.StringIO(), 0, time.process_time()
    known = set(sys.modules)
    sys.argv = ["convscope", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
    rows.append({
        "code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": time.process_time() - began,
        "heavy": sorted(HEAVY & (set(sys.modules) - known)), "files": sorted(map(str, Path().rglob("*"))),
    })
json.dump(rows, sys.stdout)
"""


def set_up(folder):
    """Make what the commands are wrong about."""
    for name in ("empty", "run", "damaged-run", "one-class/cat", "unreadable/cat", "unreadable/dog"):
        (folder / name).mkdir(parents=True)
    for name in ("two-classes/cat", "two-classes/dog"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.png").write_bytes(b"")
    (folder / "run" / "run.json").write_text('{"status": "completed"}')
    (folder / "damaged-run" / "run.json").write_text('{"status": ')
    for name in ("cat/a", "cat/b", "dog/a", "dog/b"):
        (folder / "unreadable" / f"{name}.png").write_bytes(b"")
    for name in ("one-class/cat/a.png", "photo.png", "notes.txt", "broken.npz", "broken.keras", "photos.zip"):
        (folder / name).write_bytes(b"nothing of the kind")
    (folder / "space.toml").write_text("epochs = {low = 0, high = 3}")
    (folder / "table.csv").write_text("price,quantity\n1,2\n3,4\n")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """All of them, typed into one process."""
    folder = tmp_path_factory.mktemp("wrong")
    set_up(folder)
    before = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", TYPIST],
        input=json.dumps(list(WRONG)),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"CONVSCOPE_CACHE": str(tmp_path_factory.mktemp("cache"))},
    )
    return before, dict(zip(WRONG, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_a_wrong_command_gets_a_line_or_two_and_leaves_nothing(answers, arguments):
    before, rows = answers
    row, (code, message) = rows[arguments], WRONG[arguments]
    assert message in row["err"]
    assert row["code"] == code
    assert 1 <= len(row["err"].strip().splitlines()) <= 2
    assert "Traceback" not in row["err"]
    assert row["files"] == before
    assert row["heavy"] == []  # loading these takes the seconds that a wrong command should not
    assert row["seconds"] < 2


def test_there_are_sixty_of_them():
    assert len(WRONG) >= 60
