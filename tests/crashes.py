"""A small training that is killed again and again; one warmed process forks the ones that die.

Run as a program: ``crashes.py FOLDER KILLS KILLS_IN_A_SAVE``; prints one JSON object.
"""

import io
import json
import os
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np

import convscope
from convscope.experiment import running
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.running import resume_experiment, run_experiment
from convscope.runs import open_run
from convscope.training import checkpoint
from convscope.training.checkpoint import load_checkpoint

CONFIG = ExperimentConfig(
    "simple", data="digits", training=TrainingConfig(epochs=8, batch_size=256, deterministic=True)
)
# Writes, syncs, renames and removals of one save, from the first byte to the last old checkpoint gone.
OPERATIONS = 12
SAVES = 3


def train(target, dataset):
    """Begin or go on; figures and report, which take seconds and come after the training, are left out."""
    running.write_figures_of = running._report = lambda *_, **__: None
    running.load_again = lambda _: dataset
    if target.exists():
        resume_experiment(target)
    else:
        run_experiment(CONFIG, dataset, target)


def die_inside_a_save(number):
    """Let the process end at one of the operations of its saves; a write ends half way."""
    count = 0

    def deadly(real, before=lambda *_: None):
        def call(*arguments, **keywords):
            nonlocal count
            count += 1
            if count > number:
                before(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)

        return call

    def write_half(file, content):
        file.write_bytes(content[: len(content) // 2])

    checkpoint._write_synced = deadly(checkpoint._write_synced, write_half)
    checkpoint.sync_folder = deadly(checkpoint.sync_folder)
    checkpoint.shutil = type("shutil", (), {"rmtree": staticmethod(deadly(shutil.rmtree))})
    checkpoint.Path = type("Path", (), {"__new__": lambda _, path: Deadly(path)})

    class Deadly(type(Path())):
        replace = deadly(Path.replace)


def killed(target, dataset, delay=None, operation=None):
    """Fork a training; kill it after a delay or let it end inside a save; say whether it was killed."""
    child = os.fork()
    if child == 0:
        if operation is not None:
            die_inside_a_save(operation)
        train(target, dataset)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def is_readable(target):
    """Tell whether what a kill left can be read: nothing, or a run, with whole checkpoints or none."""
    if not target.exists():
        return True
    record = open_run(target).read_json("run.json")
    state = load_checkpoint(target)
    if record["status"] == "running" and state is None:
        return False
    return state is None or all(np.isfinite(array).all() for array in state.values())


def outcome(target):
    """Gather what a finished run holds: every array of network and optimizer, and the history's rows."""
    archive = zipfile.ZipFile(io.BytesIO(open_run(target).read_bytes("model.keras")))
    arrays = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        file.visititems(keep)
    return arrays, open_run(target).read_table("history.csv")


def same(one, other):
    """Compare bit by bit."""
    (arrays, history), (others, another) = one, other
    assert any("optimizer" in name for name in arrays)
    equal = all(np.array_equal(array, others[name]) for name, array in arrays.items())
    return sorted(arrays) == sorted(others) and equal and history == another


def main(folder, kills, kills_in_a_save):
    """Kill until there were enough; compare every training that got to its end with the undisturbed one."""
    generator = np.random.default_rng(0)
    dataset = convscope.load("digits")
    assert not killed(folder / "warm", dataset)
    began = time.perf_counter()
    assert not killed(folder / "whole", dataset)
    seconds = time.perf_counter() - began
    whole = outcome(folder / "whole")
    result = {"moments": 0, "saves": 0, "unreadable": 0, "finished": 0, "different": 0}
    target = folder / "run-0"
    while result["moments"] + result["saves"] < kills or target.exists():
        enough = result["moments"] + result["saves"] >= kills
        if enough:
            killed(target, dataset)
        elif result["saves"] < kills_in_a_save and generator.random() < 0.5:
            result["saves"] += killed(target, dataset, operation=generator.integers(SAVES * OPERATIONS))
        else:
            result["moments"] += killed(target, dataset, delay=generator.uniform(0, seconds))
        result["unreadable"] += not is_readable(target)
        if target.exists() and open_run(target).read_json("run.json")["status"] == "completed":
            result["finished"] += 1
            result["different"] += not same(outcome(target), whole)
            target = folder / f"run-{result['finished']}"
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
