"""Trainings followed by MLflow, TensorBoard and Weights & Biases, and what happens where these fail."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from run_cases import assert_same_training, interrupt_at

import convscope
from convscope.data.loading import load
from convscope.errors import DivergedError, InterruptedRunError, UnknownNameError, UsageError
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.running import resume_experiment, run_experiment
from convscope.runs import open_run
from convscope.tracking import Tracking, follow, followed_by, read_targets
from convscope.tracking.following import TRACKING_FILE
from convscope.tracking.tools import Target, without_credentials
from convscope.training.events import EpochEnd, StepEnd

CONFIG = ExperimentConfig(
    "simple", data="digits", training=TrainingConfig(epochs=3, batch_size=256, deterministic=True)
)


class Recorder:
    """A tool that keeps what it is told, and can be out of order."""

    place = "Recorder at home"

    def __init__(self):
        self.told, self.working = [], True

    def _note(self, *what):
        if not self.working:
            raise ConnectionError("nobody answers at http://ann:secret@host:1/path\nmore")
        self.told.append(what)

    def begin(self, name, settings, earlier):
        self._note("begin", name, settings, earlier)
        return "number-1"

    def log(self, epoch, metrics, when):
        assert abs(when - time.time()) < 60
        self._note("log", epoch, metrics)

    def conclude(self, scores, epochs, folder):
        self._note("conclude", scores, epochs, sorted(one.name for one in folder.iterdir()))

    def end(self, status):
        self._note("end", status)

    @property
    def words(self):
        return [what[0] if what[0] != "end" else what for what in self.told]


@pytest.fixture
def recorder(monkeypatch):
    tool = Recorder()
    monkeypatch.setattr(Target, "open", lambda _: tool)
    return tool


def train(folder, digits, *listeners, say=pytest.fail, config=CONFIG):
    tracking = follow([Target("mlflow", "http://host:1")], say)
    return run_experiment(config, digits, folder / "several" / "run", [*tracking, *listeners])


def test_a_run_is_told_of_from_its_begin_to_its_files(tmp_path, digits, recorder, no_figures):
    result = train(tmp_path, digits)
    assert recorder.words == ["begin", "log", "log", "log", "conclude", ("end", "completed")]
    _, name, settings, earlier = recorder.told[0]
    assert (name, earlier) == ("several/run", None)
    assert settings["epochs"] == 3 and settings["network.parameters"] == result.parameters
    assert settings["data.fingerprint"] == digits.fingerprint
    assert all(isinstance(value, str | int | float) for value in settings.values())
    epochs, logs = zip(*((epoch, logs) for _, epoch, logs in recorder.told[1:4]), strict=True)
    assert epochs == (1, 2, 3)
    assert [one["val_loss"] for one in logs] == result.history["val_loss"]
    _, scores, last, files = recorder.told[4]
    low, high = result.test.accuracy_interval
    assert last == 3
    assert (scores["test/accuracy"], scores["validation/loss"]) == (
        result.test.accuracy, result.validation.loss,
    )  # fmt: skip
    assert (scores["test/accuracy_low"], scores["test/accuracy_high"]) == (low, high)
    assert {"report.html", "model.keras", "weights.safetensors", "run.json"} <= set(files)


def test_a_tool_that_fails_is_told_of_once_and_gets_the_rest_in_the_end(
    tmp_path, digits, recorder, no_figures
):
    said = []

    def out_of_order(event):
        if isinstance(event, EpochEnd):
            recorder.working = event.epoch == 2

    recorder.working = False
    train(tmp_path, digits, out_of_order, say=said.append)
    assert said[0].startswith("Recorder at home cannot be told: nobody answers at http://host:1/path. The")
    assert said[1:] == ["Recorder at home answers again, and has been told everything."]
    assert recorder.words == ["begin", "log", "log", "log", "conclude", ("end", "completed")]
    assert [what[1] for what in recorder.told[1:4]] == [1, 2, 3]


def test_a_tool_that_never_answers_changes_nothing(tmp_path, digits, recorder, no_figures):
    said = []
    recorder.working = False
    result = train(tmp_path, digits, say=said.append)
    assert len(said) == 1 and not recorder.told
    assert open_run(result.run).read_json("run.json")["status"] == "completed"
    alone = run_experiment(CONFIG, digits, tmp_path / "alone")
    assert_same_training(result.run, alone.run)
    assert not (result.run / TRACKING_FILE).exists() and not (alone.run / TRACKING_FILE).exists()
    for file in result.run.rglob("*"):
        assert not file.is_file() or b"secret" not in file.read_bytes()


def test_an_interrupted_run_goes_on_with_the_tracked_run_that_it_knows(
    tmp_path, digits, recorder, no_figures
):
    with pytest.raises(InterruptedRunError):
        train(tmp_path, digits, interrupt_at(StepEnd, 1, 1))
    run = tmp_path / "several" / "run"
    assert recorder.words == ["begin", "log", ("end", "interrupted")]
    assert open_run(run).read_json(TRACKING_FILE) == {
        "mlflow": {"address": "http://host:1", "id": "number-1"}
    }
    targets = followed_by(run, pytest.fail)
    assert targets == [Target("mlflow", "http://host:1")]
    resume_experiment(run, follow(targets, pytest.fail))
    assert recorder.words[3:] == ["begin", "log", "log", "conclude", ("end", "completed")]
    assert recorder.told[3][3] == ("number-1", 1)
    assert [what[1] for what in recorder.told if what[0] == "log"] == [1, 2, 3]


def test_elsewhere_it_begins_a_tracked_run_of_its_own(tmp_path, digits, recorder, no_figures):
    with pytest.raises(InterruptedRunError):
        train(tmp_path, digits, interrupt_at(EpochEnd, 0))
    resume_experiment(tmp_path / "several" / "run", follow([Target("mlflow", "http://other")], pytest.fail))
    assert [what[3] for what in recorder.told if what[0] == "begin"] == [None, None]


def test_a_training_that_diverges_ends_as_such(tmp_path, digits, recorder, no_figures):
    training = replace(CONFIG.training, optimizer="sgd", learning_rate=1e30, engine="keras")
    with pytest.raises(DivergedError):
        train(tmp_path, digits, config=replace(CONFIG, training=training))
    assert recorder.words[-1] == ("end", "diverged")


def test_a_package_that_is_not_here_is_told_of_and_the_run_goes_on(tmp_path, digits, recorder, no_figures):
    result = train(tmp_path, digits)
    said = []
    open_run(result.run).write_json(TRACKING_FILE, {"wandb": {"id": "1"}, "unknown": {}, "mlflow": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convscope.tracking.following.missing", lambda package, extra: f"{package} {extra}")
        assert followed_by(result.run, said.append) == []
    assert said == ["This run goes on without wandb. wandb wandb"]


def test_what_is_typed_is_read_or_refused(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    texts = ["mlflow=http://host:5000", "tensorboard", "wandb"]
    assert list(map(str, read_targets(texts))) == [
        "mlflow=http://host:5000", "tensorboard=tensorboard", "wandb=",
    ]  # fmt: skip
    with pytest.raises(UnknownNameError, match="Did you mean 'mlflow'"):
        read_targets(["mlflows"])
    with pytest.raises(UsageError, match=r"MLFLOW_TRACKING_URI, got none\. `mlflow server`"):
        read_targets(["mlflow"])
    with pytest.raises(UsageError, match="without user and password") as refused:
        read_targets(["mlflow=https://ann:secret@host"])
    assert "secret" not in str(refused.value)
    with pytest.raises(UsageError, match="each tool once"):
        read_targets(["tensorboard=a", "tensorboard=b"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:secret@host/path")
    assert read_targets(["mlflow"]) == [Target("mlflow", "https://host/path")]
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'convscope\[mlflow\]'"):
        read_targets(["mlflow=http://host"])


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("http://ann:secret@host:5000", "http://host:5000"),
        ("two https://token@a/b and postgresql://u:p@h/d", "two https://a/b and postgresql://h/d"),
        ("http://host/a@b", "http://host/a@b"),
        ("/home/ann@work/logs", "/home/ann@work/logs"),
    ],
)
def test_passwords_leave_an_address(text, plain):
    assert without_credentials(text) == plain


def test_the_command_line_refuses_a_tool_before_it_reads_data(typed, tmp_path, monkeypatch):
    done = typed("train", "no-such-data", "--track", "mlfow", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean 'mlflow'?" in done.stderr


def events_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(events):
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_epochs_scores_figures_and_settings(tmp_path, digits):
    tracking = follow([Target("tensorboard", str(tmp_path / "logs"))], pytest.fail)
    result = run_experiment(CONFIG, digits, tmp_path / "runs" / "one", tracking, with_report=False)
    events = events_of(tmp_path / "logs" / "runs" / "one")
    found = scalars(events)
    assert [step for step, _ in found["loss"]] == [1, 2, 3]
    for name, values in result.history.items():
        np.testing.assert_allclose([value for _, value in found[name]], values, rtol=1e-6)
    assert found["test/accuracy"] == [(3, pytest.approx(result.test.accuracy))]
    figures = sorted(file.stem for file in (result.run / "figures").iterdir())
    assert events.Tags()["images"] == [f"figures/{name}" for name in figures]
    [text] = events.Tensors("settings/text_summary")
    assert b"| batch_size | 256 |" in text.tensor_proto.string_val[0]


def test_tensorboard_shows_a_resumed_training_as_one(tmp_path, digits, no_figures):
    tracking = follow([Target("tensorboard", str(tmp_path / "logs"))], pytest.fail)
    run = tmp_path / "runs" / "one"
    with pytest.raises(InterruptedRunError):
        run_experiment(CONFIG, digits, run, [*tracking, interrupt_at(StepEnd, 1, 1)])
    result = resume_experiment(run, follow(followed_by(run, pytest.fail), pytest.fail))
    found = scalars(events_of(tmp_path / "logs" / "runs" / "one"))
    assert [step for step, _ in found["val_loss"]] == [1, 2, 3]
    np.testing.assert_allclose([value for _, value in found["val_loss"]], result.history["val_loss"], 1e-6)


def small_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")], name="small")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


X, Y = np.random.default_rng(0).random((64, 4), np.float32), np.arange(64) % 2


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_the_callback_follows_a_fit(tmp_path, engine):
    tracking = Tracking(f"tensorboard={tmp_path}", name="mine", settings={"pupil": "Ann"})
    history = convscope.fit(
        small_model(), X, Y, epochs=2, seed=1, verbose=0, engine=engine, callbacks=[tracking]
    )
    events = events_of(tmp_path / "mine")
    assert history.engine == engine
    np.testing.assert_allclose([value for _, value in scalars(events)["loss"]], history.history["loss"], 1e-6)
    [text] = events.Tensors("settings/text_summary")
    assert b"| network.parameters | 10 |" in text.tensor_proto.string_val[0]
    assert b"| pupil | Ann |" in text.tensor_proto.string_val[0]


def test_a_callback_whose_tool_fails_warns_once(recorder):
    recorder.working = False
    tracking = Tracking("mlflow=http://host:1")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        small_model().fit(X, Y, epochs=3, verbose=0, callbacks=[tracking])
    assert ["cannot be told" in str(one.message) for one in warned].count(True) == 1


SERVER = """
import os, sys
folder = sys.argv[1]
os.environ |= {
    "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
    "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"{folder}/artifacts",
    "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
    "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
from mlflow.server import app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", int(sys.argv[2]), app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Server:
    """MLflow's own server in a process; it can be killed, and started again at the same address."""

    def __init__(self, folder):
        self.folder, self.port = folder, 0
        self.start()

    def start(self):
        program = [sys.executable, "-c", SERVER, str(self.folder), str(self.port)]
        self.process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.port = int(self.process.stdout.readline())
        self.address = f"http://127.0.0.1:{self.port}"

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("mlflow"))
    yield one
    one.kill()


PROGRAM = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
experiment = client.get_experiment_by_name(sys.argv[2])
found = []
for run in client.search_runs([experiment.experiment_id]):
    found.append({
        "id": run.info.run_id, "name": run.info.run_name, "status": run.info.status, "tags": run.data.tags,
        "params": run.data.params,
        "metrics": {name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
                    for name in run.data.metrics},
        "files": [one.path for one in client.list_artifacts(run.info.run_id)],
        "copy": client.download_artifacts(run.info.run_id, "", sys.argv[3]) if len(sys.argv) > 3 else "",
    })
print(json.dumps(found))
"""


def tracked(address, experiment, *more):
    """Read what a server has of an experiment, with MLflow's own client."""
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    program = [sys.executable, "-c", PROGRAM, address, experiment, *map(str, more)]
    done = subprocess.run(program, capture_output=True, text=True, check=True, env=os.environ | quiet)
    return json.loads(done.stdout)


def command(*arguments, cwd, experiment="mine", **environment):
    program = [sys.executable, "-m", "convscope", *map(str, arguments)]
    variables = {"MLFLOW_EXPERIMENT_NAME": experiment, **environment}
    return subprocess.Popen(
        program,
        cwd=cwd,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


TRAIN = ("train", "digits", "--network", "simple", "--deterministic", "--no-preflight")


@pytest.mark.slow
def test_mlflow_has_a_training_that_was_interrupted_and_resumed(server, tmp_path):
    process = command(*TRAIN, "--epochs", "4000", "--track", f"mlflow={server.address}", cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("Epoch 3/"):
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=120)
    assert process.returncode == 130
    [run] = tmp_path.glob("runs/*/simple")
    [found] = tracked(server.address, "mine")
    assert (found["status"], found["tags"]["status"]) == ("KILLED", "interrupted")
    begun = len(found["metrics"]["loss"])
    assert begun >= 3 and found["params"]["epochs"] == "4000"
    record = open_run(run).read_json("run.json")
    record["config"]["training"]["epochs"] = begun + 3
    open_run(run).write_json("run.json", record)
    process = command("resume", run, "--json", cwd=tmp_path)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    result = json.loads(out)["runs"][0]
    [found] = tracked(server.address, "mine", tmp_path)
    assert found["status"] == "FINISHED"
    assert [step for step, _ in found["metrics"]["loss"]] == list(range(1, begun + 4))
    history = open_run(run).read_table("history.csv")
    assert [value for _, value in found["metrics"]["val_loss"]] == pytest.approx(history["val_loss"])
    assert found["metrics"]["test/accuracy"][0][1] == pytest.approx(result["test_accuracy"])
    copy = Path(found["copy"])
    assert {"report.html", "figures", "model.keras", "run.json"} <= set(found["files"])
    assert (copy / "report.html").read_bytes() == (run / "report.html").read_bytes()
    images = load("digits").test.images[:20]
    np.testing.assert_array_equal(
        convscope.load_bundle(copy).predict(images), convscope.load_bundle(run).predict(images)
    )


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_costs_one_line(server, tmp_path):
    arguments = ("--epochs", "40", "--no-report", "--track", f"mlflow={server.address}")
    process = command(*TRAIN, *arguments, cwd=tmp_path, experiment="killed")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Epoch 3/"):
            server.kill()
            break
    try:
        out, errors = process.communicate(timeout=180)
    finally:
        server.start()
    assert process.returncode == 0, errors
    said = [line for line in [*lines, *out.splitlines()] if "cannot be told" in line]
    assert len(said) == 1 and said[0].startswith(
        f"MLflow at {server.address} cannot be told: nobody answers."
    )
    [run] = tmp_path.glob("runs/*/simple")
    assert len(open_run(run).read_table("history.csv")["loss"]) == 40
    [found] = tracked(server.address, "killed")
    assert found["status"] == "RUNNING" and len(found["metrics"]["loss"]) < 40


@pytest.mark.slow
def test_trainings_side_by_side_are_runs_of_one_server(server, tmp_path):
    arguments = ("--epochs", "1", "--no-report", "--seeds", "2", "--workers", "2")
    process = command(
        *TRAIN, *arguments, "--track", "mlflow", cwd=tmp_path, experiment="side by side",
        MLFLOW_TRACKING_URI=server.address,
    )  # fmt: skip
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    found = tracked(server.address, "side by side")
    assert sorted(one["name"].split("/")[1] for one in found) == ["simple-seed-1338", "simple-seed-1339"]
    assert [one["status"] for one in found] == ["FINISHED", "FINISHED"]
    assert sorted(one["params"]["seed"] for one in found) == ["1338", "1339"]


@pytest.mark.slow
@pytest.mark.parametrize("several", [(), ("--seeds", "2", "--workers", "2")], ids=["one", "side by side"])
def test_where_only_json_is_asked_for_a_tool_that_does_not_answer_is_one_line(tmp_path, several):
    arguments = ("--epochs", "1", "--no-report", "--json", *several)
    with socket.socket() as probe:  # where nobody listens
        probe.bind(("127.0.0.1", 0))
        track = ("--track", f"mlflow=http://127.0.0.1:{probe.getsockname()[1]}")
        process = command(*TRAIN, *arguments, *track, cwd=tmp_path)
        out, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert len(json.loads(out)["runs"]) == (2 if several else 1)
    assert errors.count("cannot be told: nobody answers.") == 1


def offline_run(file):
    """Read a file that wandb wrote offline: records of protobuf in the blocks of LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32_768 - place % 32_768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield Record.FromString(record)
            record = b""


@pytest.mark.slow
def test_wandb_writes_a_training_offline(tmp_path):
    process = command(
        *TRAIN, "--epochs", "2", "--track", "wandb", "--json", cwd=tmp_path,
        WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_API_KEY="",
    )  # fmt: skip
    out, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    result = json.loads(out)["runs"][0]
    [folder] = tmp_path.glob("wandb/offline-run-*")
    records = list(offline_run(next(folder.glob("*.wandb"))))
    [run] = {record.run.run_id for record in records if record.HasField("run")}
    assert open_run(tmp_path / result["run"]).read_json(TRACKING_FILE)["wandb"]["id"] == run
    logged = [
        ("/".join(item.nested_key) or item.key, item.value_json)
        for record in records
        for item in record.history.item
    ]
    history = open_run(tmp_path / result["run"]).read_table("history.csv")
    losses = [float(value) for name, value in logged if name == "val_loss"]
    assert losses == pytest.approx(history["val_loss"])
    assert any(name.startswith("figures/confusion_matrix") for name, _ in logged)
    summary = {
        "/".join(item.nested_key) or item.key: item.value_json
        for record in records
        for item in record.summary.update
    }
    assert float(summary["test/accuracy"]) == pytest.approx(result["test_accuracy"])
    assert any(record.request.HasField("log_artifact") or record.HasField("artifact") for record in records)


@pytest.mark.slow
def test_wandb_without_a_key_is_one_line(tmp_path):
    code = "from convscope.tracking.tools import Target\nTarget('wandb', '').open().begin('a', {}, None)"
    nothing = {"WANDB_API_KEY": "", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | nothing, capture_output=True, text=True,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert re.search(r"UsageError: Expected a key in WANDB_API_KEY, got none\.", done.stderr)
