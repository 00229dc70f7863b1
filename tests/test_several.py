"""Several trainings: folds and seeds, one after the other or side by side, each as if it were alone."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from photographs import write_classes

import convscope
from convscope.data.dataset import Dataset, fold_indices
from convscope.data.loading import load, load_again, take_fold
from convscope.environment import share_of_threads
from convscope.errors import DataError, DivergedError, InterruptedRunError, RunError, UsageError
from convscope.evaluation import Evaluation
from convscope.experiment import several
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.several import cross_validate, run_several
from convscope.runs import RUN_FILE, RunDirectory, open_run
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


FOLDS = 3


def test_every_example_is_in_one_fold_in_proportion():
    labels = np.repeat([0, 1, 2], [30, 60, 9])
    folds = fold_indices(labels, FOLDS, seed=5)
    assert sorted(np.concatenate(folds)) == list(range(99))
    assert [np.bincount(labels[fold]).tolist() for fold in folds] == [[10, 20, 3]] * FOLDS


def test_near_duplicates_stay_in_one_fold():
    labels = np.repeat([0, 1], 30)
    groups = np.arange(60) // 2
    for fold in fold_indices(labels, FOLDS, seed=5, groups=groups):
        assert set(np.bincount(groups[fold])) <= {0, 2}


def test_too_few_images_for_so_many_folds():
    with pytest.raises(DataError, match="at least 4 different images of each class for 4 folds, got 3"):
        fold_indices(np.repeat([0, 1], [9, 3]), 4, seed=0)


def test_a_test_part_of_the_data_is_left_out_of_all_folds():
    digits = convscope.load("digits")
    fold = take_fold(digits, 1, FOLDS, seed=5)
    assert sorted([*fold.train.names, *fold.test.names]) == sorted(digits.train.names)
    assert "The test images of the data are not used." in fold.notes[-1]


def test_images_that_were_held_back_take_part(tmp_path):
    write_classes(tmp_path / "pets", count=10)
    dataset = convscope.load(tmp_path / "pets", size=16)
    assert dataset.test_held_back
    folds = [convscope.load(tmp_path / "pets", size=16, fold=(number, 2, 5)) for number in (1, 2)]
    names = [name for fold in folds for name in fold.test.names]
    assert sorted(names) == sorted([*dataset.train.names, *dataset.test.names])
    assert folds[0].fingerprint != folds[1].fingerprint


@pytest.mark.parametrize("number", [0, 4])
def test_a_fold_that_is_none(number):
    with pytest.raises(UsageError, match="a fold from 1 to 3"):
        take_fold(convscope.load("digits"), number, FOLDS, seed=5)


def test_each_image_is_answered_by_the_network_that_never_saw_it(tmp_path):
    digits = convscope.load("digits")
    few = take_fold(digits, 1, 8, seed=0)  # 180 images
    some = few.test.take(np.arange(len(few.test) // FOLDS * FOLDS - 1))  # folds of different sizes
    small = Dataset("few", some, digits.test, digits.class_names, "a" * 64)
    training = TrainingConfig(epochs=1, batch_size=32, precision="float32", deterministic=True)
    config = ExperimentConfig("simple", training=training)
    found = cross_validate(config, small, FOLDS, tmp_path, with_report=False)
    assert sorted(found.evaluation.name_of(row) for row in range(len(small.train))) == sorted(
        small.train.names
    )
    accuracies = [result.test.accuracy for result in found.results]
    images = [result.test.images for result in found.results]
    assert found.evaluation.accuracy == pytest.approx(np.average(accuracies, weights=images))
    losses = [result.test.loss for result in found.results]
    assert found.evaluation.loss == pytest.approx(np.average(losses, weights=images), rel=1e-9)
    assert found.evaluation.loss != pytest.approx(np.average(losses), rel=1e-9)
    for result in found.results:
        arrays = RunDirectory(result.run).read_arrays("predictions.npz")
        assert set(arrays["test_names"]).isdisjoint(arrays["validation_names"])
    summary = RunDirectory(found.folder).read_json("cross_validation.json")
    assert [fold["accuracy"] for fold in summary["folds"]] == accuracies
    stored = RunDirectory(found.folder).read_arrays("out_of_fold.npz")
    again = Evaluation.from_probabilities(stored["probabilities"], stored["labels"])
    assert again.confusion.tolist() == found.evaluation.confusion.tolist()
    assert (found.folder / "figures/confusion_matrix.png").is_file()
    assert (found.folder / "figures/reliability.png").is_file()


def test_the_command_and_what_its_runs_remember(typed, tmp_path):
    command = ["train", "digits", "--network", "simple", "--epochs", "1", "--folds", "2", "--no-report"]
    done = typed(*command, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert len(shown["runs"]) == 2
    assert shown["cross_validation"]["evaluation"]["images"] == 1437
    record = RunDirectory(tmp_path / shown["runs"][1]["run"]).read_json(RUN_FILE)
    assert record["data"]["reading"]["fold"] == [2, 2, 1338]
    assert len(load_again(record["data"]).test) == record["data"]["counts"]["test"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", "1"], "folds of at least 2"),
        (["--folds", "3", "--seeds", "2"], "--folds or --seeds"),
    ],
)
def test_folds_that_cannot_be(typed, tmp_path, options, message):
    done = typed("train", "digits", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
