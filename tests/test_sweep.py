"""Sweeps: trials as runs, chosen by validation, each finished once; the test images once, by the winner."""

import html
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import sweep_kills

from convscope.data.loading import load
from convscope.errors import UsageError
from convscope.evaluation import test_set_log as uses
from convscope.experiment import study as study_module
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.space import parse_space
from convscope.experiment.study import Study, SweepPlan
from convscope.experiment.sweep import conclude, expected_luck, work
from convscope.runs import RunDirectory, open_run
from convscope.tracking import follow
from convscope.tracking.tools import Target

SPACE = """
learning_rate = {low = 1e-3, high = 1e-2, log = true}
batch_size = [256, 512]
"""
KNOWN = ("learning_rate", "batch_size", "epochs", "network")


def settle(given):
    """Make of a trial's settings a training of a moment."""
    training = TrainingConfig(**{"epochs": 2, "batch_size": 256, "deterministic": True, **given})
    return ExperimentConfig("simple", data="digits", training=training), load("digits")


def plan(folder, trials=3, space=SPACE, **options):
    return SweepPlan("small", folder, parse_space(space, KNOWN), trials, {"name": "digits"}, **options)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    study = Study(plan(tmp_path_factory.mktemp("sweep") / "small"))
    work(study, settle)
    return study, conclude(study, with_report=False)


def test_every_trial_is_a_run_that_is_chosen_by_its_validation(swept):
    study, outcome = swept
    assert [row.state for row in outcome.rows] == ["complete"] * 3
    for row in outcome.rows:
        run = open_run(study.folder / row.name)
        assert run.read_json("run.json")["status"] == "completed"
        assert run.read_json("evaluation.json")["validation"]["accuracy"] == row.value
        assert run.read_json("run.json")["config"]["training"]["batch_size"] == row.settings["batch_size"]
    assert outcome.winner.value == max(row.value for row in outcome.rows)


def test_the_winner_alone_sees_the_test_images_and_once(swept):
    study, outcome = swept
    for row in outcome.rows:
        run = RunDirectory(study.folder / row.name)
        looked = (run.path / uses.TEST_SET_LOG).is_file()
        assert looked is (row.number == outcome.winner.number)
        assert ("test" in run.read_json("evaluation.json")) is looked
    again = conclude(study, with_report=False)
    for name in (outcome.winner.name, "defaults"):
        log = RunDirectory(study.folder / name).read_json(uses.TEST_SET_LOG)
        assert uses.count(log) == 1
        assert log["consultations"][0]["by"] == "sweep"
    assert again.comparison.to_json() == outcome.comparison.to_json()
    reached = outcome.comparison.accuracy_a, outcome.comparison.accuracy_b
    assert reached == (outcome.defaults.test.accuracy, outcome.winner_result.test.accuracy)


def test_what_is_said_names_the_trials_and_chance(swept):
    study, outcome = swept
    text = " ".join(outcome.sentences)
    assert f"The winner by its validation is {outcome.winner.name} (learning_rate " in text
    assert "The best of 3 trials on the same validation images" in text
    assert "on the same 360 test images" in text.lower()
    stored = json.loads((study.folder / "sweep.json").read_text(encoding="utf-8"))
    assert stored["sentences"] == list(outcome.sentences)
    assert [trial["run"] for trial in stored["trials"]] == ["trial-0000", "trial-0001", "trial-0002"]


def test_figures_and_a_page_that_needs_nothing_else_are_written(swept):
    study, outcome = swept
    assert sorted(file.name for file in (study.folder / "figures").iterdir()) == [
        "history.png", "importance.png", "parallel-coordinates.png",
    ]  # fmt: skip
    page = html.unescape((study.folder / "sweep.html").read_text(encoding="utf-8"))
    for text in (*outcome.sentences, "learning_rate", "TPESampler", *(row.name for row in outcome.rows)):
        assert text in page
    assert page.count("<svg") == 3
    assert "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)


def test_more_trials_go_on_and_another_space_is_refused(swept):
    study, _ = swept
    more = Study(plan(study.folder, trials=4))
    assert [row.state for row in more.rows()] == ["complete"] * 3 + ["waiting"]
    assert [row.state for row in Study(plan(study.folder, trials=1)).rows()] == ["complete"] * 3
    for other in ({"space": "epochs = [1, 2]"}, {"objective": "loss"}, {"sampler": "RandomSampler"}):
        with pytest.raises(UsageError, match="Give the new one another --name"):
            Study(plan(study.folder, **other))


def test_what_fails_is_named_and_costs_nobody_else(tmp_path):
    """Settings that diverge, and defaults that do."""

    def settle_badly(given):
        config, dataset = settle({"epochs": 1, "batch_size": given.get("batch_size", 256)})
        if given.get("batch_size") != 512:
            rates = {"optimizer": "sgd", "learning_rate": 1e30, "engine": "keras"}
            config = replace(config, training=replace(config.training, **rates))
        return config, dataset

    study = Study(plan(tmp_path / "small", trials=2, space="batch_size = [256, 512]", sampler="GridSampler"))
    work(study, settle_badly)
    found = conclude(study, with_report=False)
    assert sorted(row.state for row in found.rows) == ["complete", "failed"]
    assert any(row.reason.startswith("diverged: ") for row in found.rows)
    assert found.comparison is None
    assert "The defaults diverged." in " ".join(found.sentences)


class Recorder:
    """A tool for tracking that keeps what it is told."""

    place = "Recorder"

    def __init__(self):
        self.begun, self.scores, self.ended = [], {}, []

    def begin(self, name, settings, earlier):
        self.begun.append((name, settings.get("learning_rate"), earlier and tuple(earlier)))
        return f"id of {name}"

    def log(self, epoch, metrics, when):
        pass

    def conclude(self, scores, epochs, _folder):
        self.scores.setdefault(self.begun[-1][0], []).append((epochs, scores))

    def end(self, status):
        self.ended.append((self.begun[-1][0], status))


def test_each_trial_is_tracked_and_the_winner_alone_with_its_test_images(tmp_path, monkeypatch):
    tool = Recorder()
    monkeypatch.setattr(Target, "open", lambda _: tool)
    study = Study(plan(tmp_path / "small", trials=2))
    tracking = follow([Target("mlflow", "http://host")], pytest.fail)
    work(study, settle, listeners=lambda _run: tracking)
    outcome = conclude(study, tracking, with_report=False)
    conclude(study, tracking, with_report=False)  # the test images are looked at once
    names = [f"small/{name}" for name in ("defaults", "trial-0000", "trial-0001")]
    again = ["small/defaults", f"small/{outcome.winner.name}"]
    assert [name for name, *_ in tool.begun] == names + again
    assert tool.ended == [(name, "completed") for name in names + again]
    assert [rate for _, rate, _ in tool.begun[1:3]] == [row.settings["learning_rate"] for row in outcome.rows]
    assert [earlier for *_, earlier in tool.begun[3:]] == [(f"id of {name}", 2) for name in again]
    for name, told in tool.scores.items():
        assert [("test/accuracy" in scores, epochs) for epochs, scores in told] == (
            [(False, 2), (True, 2)] if name in again else [(False, 2)]
        )


def test_a_trial_that_is_ended_early_is_tracked_as_such(tmp_path, monkeypatch):
    tool = Recorder()
    monkeypatch.setattr(Target, "open", lambda _: tool)
    space = f"{SPACE}[pruner]\nlower = 2.0"  # no accuracy is as high
    study = Study(plan(tmp_path / "small", trials=1, space=space, pruner="ThresholdPruner"))
    tracking = follow([Target("mlflow", "http://host")], pytest.fail)
    work(study, settle, listeners=lambda _run: tracking)
    assert tool.ended == [("small/defaults", "completed"), ("small/trial-0000", "pruned")]


def test_the_luck_of_the_best_is_that_of_normal_errors():
    import numpy as np

    drawn = np.random.default_rng(0).normal(0, np.sqrt(0.6 * 0.4 / 600), (20_000, 50)).max(axis=1).mean()
    assert expected_luck(50, 0.6, 600) == pytest.approx(drawn, rel=0.01)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sampler": "TPSampler"}, "Did you mean 'TPESampler'?"),
        ({"sampler": "PartialFixedSampler"}, "samplers"),
        ({"sampler": "GridSampler"}, "got learning_rate"),
        ({"pruner": "MedianPrunr"}, "Did you mean 'MedianPruner'?"),
        ({"pruner": "PercentilePruner"}, r"table \[pruner\]"),
        ({"objective": "acuracy"}, "Did you mean 'accuracy'?"),
        ({"trials": 0}, "trials of at least 1"),
        ({"storage": "trials.db"}, "a database's URL"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(tmp_path, options, text):
    with pytest.raises(UsageError, match=text):
        Study(plan(tmp_path / "small", **options))


def trial_of(study, stack):
    claim = study.claim(stack)
    return None if claim is None else claim.number


def test_a_trial_is_taken_once_and_again_by_whoever_gets_its_lock(tmp_path):
    first, second = (Study(plan(tmp_path / "small", trials=2)) for _ in range(2))
    with ExitStack() as held, ExitStack() as others:
        claim = first.claim(held)
        assert claim.number == 0
        assert trial_of(second, others) == 1
        assert second.claim(others) is None
    again = second.claim(others)
    assert (again.number, again.attempts, again.values) == (0, 2, claim.values)
    assert again.finish("complete", 0.5)
    assert not claim.finish("complete", 0.9)
    others.close()
    assert [row.value for row in first.rows()] == [0.5, None]


def test_what_begins_elsewhere_is_left_to_it_while_it_gives_signs_of_life(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    here, there = (Study(plan(tmp_path / name, trials=1, storage=url)) for name in ("here", "there"))
    with ExitStack() as held:
        assert trial_of(there, held) == 0
        with ExitStack() as mine:
            assert here.claim(mine) is None
            monkeypatch.setattr(study_module, "SILENT_SECONDS", -1.0)
            assert trial_of(here, mine) == 0


def test_no_connection_to_a_database_outlives_its_use(tmp_path):
    study = Study(plan(tmp_path / "small", trials=1, storage=f"sqlite:///{tmp_path / 'trials.db'}"))
    assert len(study.rows()) == 1
    assert study.storage.engine.pool.status() == "NullPool"


def test_half_a_line_that_a_killed_process_left_is_taken_away(tmp_path):
    Study(plan(tmp_path / "small", trials=1))
    journal = tmp_path / "small" / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 5, "tri')
    assert len(Study(plan(tmp_path / "small", trials=2)).rows()) == 2
    assert journal.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines())


@pytest.mark.posix("/proc")
@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_on_a_network_folder_sqlite_is_refused_and_the_journal_locks_with_a_file(tmp_path, monkeypatch, kind):
    mounts = f"/dev/sda1 / ext4 rw 0 0\nserver:/share {tmp_path} {kind} rw 0 0\n"
    real = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, **kw: mounts if str(path) == "/proc/self/mounts" else real(path, **kw)
    )
    assert study_module.network_file_system(tmp_path / "small") == kind
    assert study_module.network_file_system(Path("/usr")) is None
    with pytest.raises(
        UsageError, match=f"SQLite in a folder of this machine, got .* on {kind}. Locks there"
    ):
        Study(plan(tmp_path / "small", storage=f"sqlite:///{tmp_path / 'small' / 'trials.db'}"))
    study = Study(plan(tmp_path / "small", trials=1))
    lock = study_module.JournalLock(str(tmp_path / "small" / "journal.log"))
    assert type(lock.inner).__name__ == "JournalFileOpenLock"
    with ExitStack() as held:
        assert trial_of(study, held) == 0


@pytest.mark.parametrize("sampler", ["GridSampler", "BruteForceSampler", "QMCSampler", "TPESampler"])
def test_samplers_by_their_names(tmp_path, sampler):
    space = "batch_size = [128, 256]\nepochs = {low = 1, high = 3}"
    study = Study(plan(tmp_path / "small", trials=9, space=space, sampler=sampler))
    assert study.trials == (6 if sampler == "GridSampler" else 9)
    seen = set()
    for _ in range(6):
        with ExitStack() as held:
            claim = study.claim(held)
            seen.add(tuple(claim.values.values()))
            claim.finish("complete", float(claim.number))
    if sampler in ("GridSampler", "BruteForceSampler"):
        assert seen == {(size, epochs) for size in (128, 256) for epochs in (1, 2, 3)}


@pytest.mark.slow
@pytest.mark.posix("a process that forks")
def test_whoever_is_killed_every_trial_is_finished_once(tmp_path):
    # A part of it by default; CONVSCOPE_FULL=1 kills the eight workers of one sweep forty times.
    full = bool(os.environ.get("CONVSCOPE_FULL"))
    workers, kills, trials = (8, 40, 60) if full else (4, 10, 8)
    done = subprocess.run(
        [
            sys.executable,
            sweep_kills.__file__,
            str(tmp_path / "sweep"),
            str(workers),
            str(kills),
            str(trials),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["ended"]) == {"killed", "code 0"}
    assert found["ended"]["killed"] >= kills or not full  # a few trials may be over before
    assert found["states"] == {"complete": trials}
    assert found["ended_once"] == found["runs"] == found["begun"] == trials
    assert found["as_undisturbed"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(folder, *more):
    code = [sys.executable, "-m", "convscope", "sweep", "digits", "--space", str(folder / "space.toml")]
    return subprocess.Popen(
        [*code, "--trials", "4", "--name", "mine", "--out", str(folder), "--no-report", "--json", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.posix("signals of a terminal")
def test_an_interrupted_sweep_goes_on_by_the_same_command_and_two_of_them_share_it(tmp_path):
    (tmp_path / "space.toml").write_text("network = 'simple'\nepochs = 6\nbatch_size = [64, 128, 256]")
    process = command(tmp_path)
    while not (tmp_path / "mine" / "trial-0000").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "The same command goes on." in errors
    processes = [command(tmp_path), command(tmp_path, "--workers", "2")]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    found, other = (json.loads(output) for output, _ in outputs)
    assert found == other
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 4
    logs = sorted((tmp_path / "mine").glob(f"*/{uses.TEST_SET_LOG}"))
    assert [log.parent.name for log in logs] == sorted(["defaults", found["winner"]["run"]])
    assert all(uses.count(json.loads(log.read_text(encoding="utf-8"))) == 1 for log in logs)


@pytest.mark.slow
def test_what_a_worker_cannot_tell_a_tracking_tool_is_one_line(tmp_path):
    (tmp_path / "space.toml").write_text("network = 'simple'\nepochs = 1\nbatch_size = [128, 256]")
    process = command(tmp_path, "--workers", "2", "--track", f"mlflow=http://127.0.0.1:{free_port()}")
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert json.loads(output)["winner"]
    assert errors.count("cannot be told: nobody answers.") == 1
