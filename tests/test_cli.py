"""The command line, as a person types it."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convscope.cli.parsing import read_shape
from convscope.cli.program import run
from convscope.errors import UsageError

PROGRAM = Path(sys.executable).with_name("convscope")


def in_a_process(*arguments, cwd, **environment):
    """Run the program as a shell does."""
    return subprocess.run(
        [PROGRAM, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


@pytest.fixture(scope="module")
def exercise(tmp_path_factory):
    """One short exercise on the digits, for all tests that look at what it left."""
    folder = tmp_path_factory.mktemp("exercise")
    done = in_a_process(
        "exercise", "--network", "simple", "--epochs", "1", "--data", "digits", "--json", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_the_exercise_prints_one_json_object(exercise):
    _, printed = exercise
    assert printed["data"]["name"] == "digits"
    assert printed["data"]["counts"] == {"train": 1437, "test": 360}
    assert len(printed["data"]["fingerprint"]) == 64
    (network,) = printed["networks"].values()
    assert set(network) == {"parameters", "test_loss", "test_accuracy", "seconds", "run"}
    assert network["parameters"] == 216_650
    assert 0.5 < network["test_accuracy"] <= 1
    assert {"python", "keras", "torch"} <= set(printed["versions"])


def test_the_exercise_leaves_a_whole_run(exercise):
    folder, printed = exercise
    run = folder / printed["networks"]["simple"]["run"]
    files = {file.relative_to(run).as_posix() for file in run.rglob("*") if file.is_file()}
    assert files >= {
        "run.json",
        "history.csv",
        "model.keras",
        "weights.safetensors",
        "preprocess.json",
        "preprocess.npz",
        "predictions.npz",
        "evaluation.json",
        *(
            f"figures/{name}.png"
            for name in ("history", "probability", "confusion_matrix", "worst_errors", "predictions")
        ),
    }
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "completed"
    assert record["data"]["name"] == "digits"
    assert record["data"]["counts"] == {"train": 1005, "validation": 432, "test": 360}
    assert record["command"].startswith("convscope exercise --network simple")


def test_a_run_can_be_inspected(exercise, typed):
    folder, printed = exercise
    done = typed("inspect", printed["networks"]["simple"]["run"], "--json", cwd=folder)
    assert json.loads(done.stdout)["parameters"] == 216_650


def test_inspect_prints_layers_with_their_arithmetic(tmp_path, typed):
    printed = json.loads(typed("inspect", "deep", "--json", cwd=tmp_path).stdout)
    assert printed["parameters"] == 1_199_882
    first = printed["layers"][0]
    assert first["output_shape"] == [26, 26, 32]
    assert {
        "name",
        "type",
        "input_shape",
        "output_shape",
        "weight_shapes",
        "parameters",
        "macs",
        "receptive_field",
        "arithmetic",
    } <= set(first)
    assert any("⌊(28 − 3)/1⌋ + 1 = 26" in line for line in first["arithmetic"])
    assert any("3·3·1·32 + 32 = 320" in line for line in first["arithmetic"])


def test_without_mnist_and_network_the_exercise_says_so_and_uses_the_digits(tmp_path, typed):
    done = typed(
        "exercise", "--network", "simple", "--epochs", "1",
        cwd=tmp_path, CONVSCOPE_DATA=str(tmp_path), CONVSCOPE_CACHE=str(tmp_path / "cache"), **NO_NETWORK,
    )  # fmt: skip
    assert done.returncode == 0
    assert "MNIST is not available" in done.stderr
    assert "simple on digits" in done.stdout
    assert "-exercise-digits/simple" in done.stdout
    assert "This run on digits beside" in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    report, _, *commands = done.stdout.splitlines()[-4:]
    assert report == f"Report: {(folder / 'simple' / 'report.html').as_uri()}"
    run = (folder / "simple").relative_to(tmp_path)
    expected = [f"convscope report {run} --open", f"convscope predict {run} IMAGE.png"]
    assert [line.strip() for line in commands] == expected
    assert {row["data"] for row in json.loads((folder / "comparison.json").read_text())} == {"digits"}
    assert "<title>simple on digits" in (folder / "simple" / "report.html").read_text(encoding="utf-8")


# A proxy that nobody serves makes every download fail at once, wherever the tests run.
NO_NETWORK = {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}

WRONG = {
    "no-such-command": (["exercsie"], 2, "No such command"),
    "no-such-option": (["exercise", "--epoch", "1"], 2, "No such option"),
    "no-such-network": (["exercise", "--network", "depe", "--data", "digits"], 2, "Did you mean 'deep'"),
    "no-such-path": (["train", "nowhere"], 2, "There is no file or folder of that name."),
    "no-such-dataset": (["exercise", "--data", "digit"], 2, "Did you mean 'digits'"),
    "no-such-folder": (["exercise", "--data", "./nowhere"], 3, "got nothing at nowhere"),
    "mnist-nowhere": (["exercise", "--data", "mnist"], 3, "no connection"),
    "negative-epochs": (["exercise", "--data", "digits", "--epochs", "-3"], 2, "epochs of at least 1"),
    "no-epochs": (["exercise", "--data", "digits", "--epochs", "0"], 2, "epochs of at least 1"),
    "word-for-epochs": (["exercise", "--epochs", "ten"], 2, "valid integer"),
    "no-batch": (["exercise", "--data", "digits", "--batch-size", "0"], 2, "batch_size of at least 1"),
    "negative-seed": (["exercise", "--data", "digits", "--seed", "-1"], 2, "seed of at least 0"),
    "no-such-scaling": (["exercise", "--data", "digits", "--scaling", "minmix"], 2, "Did you mean 'minmax'"),
    "no-such-engine": (["exercise", "--data", "digits", "--engine", "fsat"], 2, "Did you mean 'fast'"),
    "file-in-the-way": (["exercise", "--data", "digits", "--out", "file/x"], 3, "to be able to write"),
    "inspect-nothing": (["inspect"], 2, "Missing argument"),
    "inspect-no-network": (["inspect", "deeep"], 2, "Did you mean 'deep'"),
    "inspect-no-run": (["inspect", "."], 3, "a run directory with run.json"),
    "inspect-no-file": (
        ["inspect", "x.keras"],
        3,
        "Expected the name of a network or a .keras file, got no file x.keras. Check its path.",
    ),
    "inspect-no-such-h5": (["inspect", "x.h5"], 3, "got no file x.h5. Check its path."),
    "train-no-such-h5": (["train", "digits", "--network", "x.h5"], 3, "got no file x.h5. Check its path."),
    "train-no-such-file": (["train", "no-data", "--network", "x.keras"], 3, "got no file x.keras."),
    "inspect-too-small": (["inspect", "deep", "--input", "3x3x1"], 2, "⌊(1 − 3)/1⌋ + 1"),
    "inspect-no-shape": (["inspect", "deep", "--input", "28"], 2, "a shape such as 28x28x1"),
    "inspect-one-class": (["inspect", "deep", "--classes", "1"], 2, "at least 2 classes, got 1"),
    "train-no-time": (["train", "digits", "--within", "soon"], 2, "a time such as 60s, 2m or 1h"),
    "train-two-lengths": (["train", "digits", "--within", "9", "--epochs", "2"], 2, "--within or --epochs"),
    "train-no-accuracy": (["train", "digits", "--until", "120%"], 2, "up to 100%"),
    "train-no-patience": (["train", "digits", "--patience", "0"], 2, "patience of at least 1"),
    "train-no-such-preset": (["train", "digits", "--augment", "photo"], 2, "Did you mean 'photographs'"),
    "train-no-such-weights": (
        ["train", "digits", "--class-weights", "balance"],
        2,
        "Did you mean 'balanced'",
    ),
    "train-no-such-schedule": (["train", "digits", "--schedule", "plato"], 2, "Did you mean 'plateau'"),
    "train-two-rates": (
        ["train", "digits", "--find-learning-rate", "--learning-rate", "0.1"],
        2,
        "--find-learning-rate or --learning-rate",
    ),
    "data-no-such-name": (["data", "info", "minst"], 2, "Did you mean 'mnist'"),
    "data-fetch-offline": (["data", "fetch", "mnist"], 3, "Is there a network?"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_command_gets_one_or_two_lines_and_leaves_nothing(tmp_path, typed, arguments, code, message):
    (tmp_path / "file").write_text("in the way")
    done = typed(
        *arguments,
        cwd=tmp_path,
        CONVSCOPE_DATA=str(tmp_path),
        CONVSCOPE_CACHE=str(tmp_path / "cache"),
        **NO_NETWORK,
    )
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert "Traceback" not in done.stderr
    left = [entry.name for entry in tmp_path.iterdir() if entry.name != "cache"]
    assert left == ["file"]


@pytest.mark.slow
def test_everything_that_steers_a_training_can_be_typed_and_is_recorded(tmp_path, typed):
    command = """train digits --network simple --epochs 2 --augment digits,mixup=0.2 --no-report
        --class-weights balanced --schedule plateau --find-learning-rate --patience 2 --monitor accuracy
        --until 99% --json"""
    done = typed(*shlex.split(command), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    config = json.loads((tmp_path / run["run"] / "run.json").read_text())["config"]
    assert config["augmentation"]["mixup"] == 0.2 and config["preflight"] is True
    expected = {
        "class_weights": "balanced", "schedule": "plateau", "find_learning_rate": True, "patience": 2,
        "monitor": "accuracy", "until": 0.99, "within": None,
    }  # fmt: skip
    assert config["training"].items() >= expected.items()
    assert config["training"]["learning_rate"] > 0


def test_the_shell_gets_the_exit_code_and_the_message_on_standard_error(tmp_path):
    done = in_a_process("inspect", "deep", "--input", "28", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    hint = "Try `convscope inspect --help`."
    assert done.stderr == f"Error: Expected a shape such as 28x28x1, got '28'. {hint}\n"


def test_a_name_means_the_same_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    from convscope.cli.settings import findable

    for name in ("digits", "deep", "mine"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    found = [findable(name) for name in ("digits", "deep", "mine", "absent", None)]
    assert found == ["digits", "deep", str(tmp_path / "mine"), "absent", None]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "a damaged one"),
        (lambda raw: raw[:-8] + bytes([raw[-8] ^ 1]) + raw[-7:], "a damaged one"),
        (lambda _raw: b"\1\2\3\4" * 10, "to have the SHA-256"),
        (lambda _raw: b"", "to have the SHA-256"),
    ],
    ids=["truncated", "bit-flipped", "wrong-magic", "empty"],
)
def test_a_damaged_mnist_is_never_trained_on(tmp_path, typed, damage, message):
    import gzip

    folder = tmp_path / "mnist"
    folder.mkdir()
    raw = gzip.compress(b"\0\0\x08\3" + bytes(100))
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte.gz").write_bytes(damage(raw))
    done = typed("exercise", cwd=tmp_path, CONVSCOPE_DATA=str(tmp_path))
    assert done.returncode == 3
    assert message in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.posix("a Ctrl-C for one process alone")
def test_an_interrupted_training_leaves_a_readable_run(tmp_path, typed):
    with subprocess.Popen(
        [PROGRAM, "exercise", "--network", "simple", "--epochs", "500", "--data", "digits"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        for line in process.stdout:
            if line.startswith("Epoch 2/"):
                break
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in errors
    assert "Traceback" not in errors
    (run,) = tmp_path.glob("runs/*/simple")
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert len((run / "history.csv").read_text().splitlines()) >= 3
    again = typed("inspect", str(run), "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["parameters"] == 216_650


INTERRUPTING = {
    "plainly": "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)",
    "as another error": """
try:
    os.kill(os.getpid(), signal.SIGINT); time.sleep(9)
except KeyboardInterrupt:
    raise ImportError("a part of it cannot be loaded") from None
""",
}


@pytest.mark.parametrize("code", INTERRUPTING.values(), ids=INTERRUPTING)
@pytest.mark.posix("a Ctrl-C for one process alone")
def test_an_interrupted_import_is_no_traceback(tmp_path, code):
    (tmp_path / "typer.py").write_text(f"import os, signal, time\n{code}", encoding="utf-8")
    # A program started in the background ignores the signal, and what it starts does too.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from convscope.cli import main; main()"
    command = [sys.executable, "-c", f"{listen}; {start}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def test_a_part_that_cannot_be_loaded_is_no_traceback(tmp_path):
    (tmp_path / "typer.py").write_text("raise ImportError('half of it is missing')", encoding="utf-8")
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from convscope.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: ImportError: half of it is missing\nA part of convscope cannot be loaded. Install it again.\n"
    )


def test_what_a_locale_has_no_character_for_is_written_all_the_same(tmp_path):
    """As on Windows, where a pipe has the encoding of the region."""
    locale = {
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii:strict",
    }
    for arguments in (["data", "list"], ["data", "list", "--json"], ["inspect", "depe"]):
        done = subprocess.run(
            [PROGRAM, *arguments], cwd=tmp_path, capture_output=True, check=False, env=os.environ | locale
        )
        assert done.returncode == (2 if "depe" in arguments else 0), done.stderr
        assert "28×28" in done.stdout.decode() or arguments != ["data", "list"]


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """Break a command in a way that nobody foresaw."""

    def fail(_path):
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr("convscope.runs.find_run", fail)
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path / "cache"))


def test_what_nobody_foresaw_ends_in_two_lines_that_name_a_log(tmp_path, typed, broken):
    done = typed("evaluate", "run", cwd=tmp_path)
    assert done.returncode == 1
    log = tmp_path / "cache/log.txt"
    assert done.stderr == (
        f"Error: ZeroDivisionError: nothing to divide by\nNobody foresaw this. Its traceback is in {log}.\n"
    )
    assert "Traceback (most recent call last)" in log.read_text(encoding="utf-8")
    assert "convscope" in log.read_text(encoding="utf-8").splitlines()[0]


def test_without_a_cache_the_traceback_is_kept_elsewhere(tmp_path, typed, broken, monkeypatch):
    (tmp_path / "cache").write_text("in the way", encoding="utf-8")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = typed("evaluate", "run", cwd=tmp_path)
    (log,) = tmp_path.glob("convscope-*/log.txt")
    assert str(log) in done.stderr


def test_debug_shows_tracebacks_and_leaves_the_log_as_it_was(tmp_path, typed, broken):
    done = typed("--debug", "evaluate", "run", cwd=tmp_path)
    assert "Traceback (most recent call last)" in done.stderr
    known = typed("--debug", "inspect", "depe", cwd=tmp_path)
    assert known.returncode == 2
    assert "Traceback (most recent call last)" in known.stderr
    assert "Traceback" not in typed("inspect", "depe", cwd=tmp_path).stderr


@pytest.mark.parametrize(
    "command",
    [[], ["exercise"], ["inspect"], ["data"], ["data", "list"], ["data", "fetch"], ["data", "info"]],
    ids=" ".join,
)
def test_every_command_has_help(tmp_path, typed, command):
    done = typed(*command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"Usage: convscope {' '.join(command)}".strip() in done.stdout


@pytest.mark.parametrize("command", [[], ["data"]], ids=["the program", "a group"])
def test_without_a_command_there_is_help(tmp_path, typed, command):
    done = typed(*command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == typed(*command, "--help", cwd=tmp_path).stdout
    assert "..." not in done.stdout.partition("Commands:")[2]  # none is cut off


def test_runs_are_listed(exercise, typed):
    folder, printed = exercise
    (one,) = json.loads(typed("runs", "--json", cwd=folder).stdout)["runs"]
    assert one["run"] == printed["networks"]["simple"]["run"]
    assert (one["data"], one["network"], one["status"]) == ("digits", "simple", "completed")
    assert 0 < one["validation_accuracy"] <= 1 and one["bytes"] > 1e6
    shown = typed("runs", cwd=folder).stdout
    assert Path(one["run"]).relative_to("runs").as_posix() in shown and one["run"] not in shown
    assert "validation" in shown and "accuracy" not in shown


def test_a_report_that_is_there_is_opened_and_not_written_anew(exercise, typed, monkeypatch):
    folder, printed = exercise
    file = folder / printed["networks"]["simple"]["run"] / "report.html"
    shown, before = [], file.stat().st_mtime_ns
    monkeypatch.setattr("webbrowser.open", shown.append)
    assert typed("report", "latest", "--open", cwd=folder).returncode == 0
    assert (shown, file.stat().st_mtime_ns) == ([file.as_uri()], before)


def test_datasets_are_listed(tmp_path, typed):
    listed = json.loads(typed("data", "list", "--json", cwd=tmp_path).stdout)["datasets"]
    assert {entry["name"]: entry["state"] for entry in listed}["digits"] == "ready"


def test_a_dataset_is_described(tmp_path, typed):
    described = json.loads(typed("data", "info", "digits", "--json", cwd=tmp_path).stdout)
    assert described["input_shape"] == [28, 28, 1]
    assert sum(described["per_class"]["test"]) == 360


@pytest.mark.parametrize(("text", "shape"), [("28x28x1", (28, 28, 1)), ("32×48×3", (32, 48, 3))])
def test_shapes_are_read(text, shape):
    assert read_shape(text) == shape


@pytest.mark.parametrize("text", ["28", "28x28", "0x1x1", "axbxc", "-1x2x3", "1x2x3x4", ""])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(UsageError, match="a shape such as 28x28x1"):
        read_shape(text)


@pytest.mark.parametrize(
    ("typed", "code", "advice"),
    [
        (["train", "digits", "--schedule", "foo"], 2, "Try `convscope train --help`."),
        (["report", "latest", "--open=3"], 2, "Try `convscope report --help`."),
        (["data", "check", "a", "--nothing"], 2, "Try `convscope data check --help`."),
        (["runs", "no-such-folder"], 3, "no-such-folder, which is none"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_an_error_points_to_the_help_of_its_own_command(typed, code, advice, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["convscope", *typed])
    assert run() == code
    assert advice in " ".join(capsys.readouterr().err.split())
