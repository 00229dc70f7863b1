"""Seeds and folds side by side: the results of one after the other, and what one cannot do the others can."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from convscope.data.loading import load
from convscope.environment import share_of_threads
from convscope.errors import DivergedError, InterruptedRunError, RunError
from convscope.experiment import several
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.several import cross_validate, run_several
from convscope.runs import open_run
from convscope.training.events import EpochEnd, TrainBegin

CONFIG = ExperimentConfig(
    "simple",
    data="digits",
    validation_share=0.2,
    training=TrainingConfig(epochs=1, batch_size=256, deterministic=True),
)


def with_seeds(*seeds, **changes):
    return {
        f"seed-{seed}": replace(CONFIG, training=replace(CONFIG.training, seed=seed, **changes))
        for seed in seeds
    }


def weights_hash(result):
    return hashlib.sha256(open_run(result.run).read_bytes("weights.safetensors")).hexdigest()


@pytest.fixture
def one_thread(monkeypatch):
    """With other numbers of threads sums are taken in other orders."""
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_seeds_side_by_side_are_those_of_one_after_the_other(tmp_path, one_thread):
    configs, heard = with_seeds(1, 2, 3), []
    options = {"kind": "train", "with_report": False}
    alone = run_several(configs, load("digits"), tmp_path / "alone", **options)
    options |= {"workers": 2, "on_event": lambda *one: heard.append(one)}
    together = run_several(configs, load("digits"), tmp_path / "together", **options)
    assert [result.run.name for result in together] == list(configs)
    assert list(map(weights_hash, alone)) == list(map(weights_hash, together))
    for one, other in zip(alone, together, strict=True):
        assert one.test.to_json() == other.test.to_json()
        assert one.history == other.history
    for name in configs:
        own = [type(event) for who, event in heard if who == name]
        assert [kind for kind in own if kind in (TrainBegin, EpochEnd)] == [TrainBegin, EpochEnd]


@pytest.mark.slow
def test_folds_side_by_side_are_those_of_one_after_the_other(tmp_path, one_thread):
    found = [
        cross_validate(CONFIG, load("digits"), 2, tmp_path / str(workers), workers=workers, with_report=False)
        for workers in (1, 2)
    ]
    assert found[0].to_json() == found[1].to_json()
    alone, together = ([weights_hash(result) for result in one.results] for one in found)
    assert alone == together


@pytest.mark.slow
def test_an_error_in_one_names_it_and_lets_the_others_finish(tmp_path):
    configs = with_seeds(1, 2) | {
        "seed-3": replace(
            CONFIG, training=replace(CONFIG.training, optimizer="sgd", learning_rate=1e30, engine="keras")
        )
    }
    done = []
    with pytest.raises(DivergedError, match=r"1 of 3 runs failed: seed-3: .* The others are complete"):
        run_several(
            configs, load("digits"), tmp_path, "train",
            workers=2, with_report=False, on_result=lambda result: done.append(result.run.name),
        )  # fmt: skip
    assert sorted(done) == ["seed-1", "seed-2"]


@pytest.mark.slow
@pytest.mark.posix("a signal that ends a process at once")
def test_a_killed_process_costs_its_run_alone(tmp_path, monkeypatch):
    done, started, killed = [], [], []

    class Known(several.Worker):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    def kill(_name, event):
        if isinstance(event, EpochEnd) and not killed:
            killed.append(started[0])
            started[0].process.kill()

    monkeypatch.setattr(several, "Worker", Known)
    configs = with_seeds(1, 2, 3, epochs=30)
    with pytest.raises(RunError, match=r"1 of 3 runs failed: seed-\d: its process was ended by SIGKILL"):
        run_several(
            configs, load("digits"), tmp_path, "train",
            workers=2, with_report=False, on_event=kill, on_result=done.append,
        )  # fmt: skip
    assert len(done) == 2


@pytest.mark.slow
def test_an_interruption_stops_all_in_order_and_they_can_be_resumed(tmp_path):
    begun = set()

    def interrupt(name, event):
        if isinstance(event, EpochEnd) and name not in begun:
            begun.add(name)
            if len(begun) == 2:
                signal.raise_signal(signal.SIGINT)

    configs = with_seeds(1, 2, epochs=500)
    with pytest.raises(InterruptedRunError, match=r"0 of 2 runs in .* are complete, 2 begun"):
        run_several(
            configs, load("digits"), tmp_path, "train", workers=2, with_report=False, on_event=interrupt
        )
    for run in tmp_path.glob("*/seed-*"):
        assert open_run(run).read_json("run.json")["status"] == "interrupted"


def test_threads_are_shared(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [share_of_threads(workers) for workers in (1, 2, 3, 16)] == [8, 4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert share_of_threads(2) == 2


def test_a_worker_ends_when_whoever_started_it_is_gone():
    """Nothing is left behind that computes for nobody."""
    code = (
        "import time\nfrom convscope.experiment.workers import stop_with_input\nstop_with_input()\n"
        "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('stopped', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    time.sleep(1.0)
    process.stdin.close()
    assert process.stdout.read() == "stopped\n"
    process.stdout.close()
    assert process.wait(timeout=30) == 0
