"""States of a training: taken up again as if nothing had happened, and durable whatever crashes."""

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from training_cases import identical, images, network, optimizer_values, weights

import convscope
from convscope.errors import RunError, UsageError
from convscope.training.checkpoint import ARRAYS, MANIFEST, TrainingState, load_checkpoint, save_checkpoint
from convscope.training.events import EpochEnd, StepEnd, TrainBegin
from convscope.training.schedules import OneCycle

X, Y = images()
SETTINGS = {
    "batch_size": 16,
    "epochs": 3,
    "verbose": 0,
    "seed": 7,
    "validation_split": 0.2,
    "deterministic": True,
}


def make(optimizer="adam"):
    return network(
        dropout=0.3, optimizer=optimizer, metrics=["accuracy", keras.metrics.TopKCategoricalAccuracy(2)]
    )


def run(model, engine="fast", **arguments):
    return convscope.fit(model, X, Y, engine=engine, **(SETTINGS | arguments))


def interrupt_at(position, kept):
    """Make a listener that takes a snapshot at (epoch, step) and ends the training there."""

    def listen(event):
        here = (event.epoch + 1, 0) if isinstance(event, EpochEnd) else None
        if isinstance(event, StepEnd):
            here = (event.epoch, event.step + 1)
        if here == position:
            kept.append(event.snapshot())
            raise KeyboardInterrupt

    return listen


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "sgd-ema-accumulation": lambda: keras.optimizers.SGD(
        0.1, momentum=0.9, use_ema=True, gradient_accumulation_steps=3, ema_overwrite_frequency=2
    ),
    "decaying-rate": lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.01, 4, 0.5)),
    "ftrl": lambda: keras.optimizers.Ftrl(0.1),
}


@pytest.mark.parametrize(
    ("optimizer", "position"),
    [
        *[("adam", position) for position in [(0, 1), (1, 2), (1, 4), (1, 0), (2, 0), (2, 3)]],
        *[(name, (1, 2)) for name in OPTIMIZERS if name != "adam"],
    ],
    ids=str,
)
def test_a_resumed_training_ends_as_if_nothing_had_happened(optimizer, position):
    whole, broken, resumed = (make(OPTIMIZERS[optimizer]()) for _ in range(3))
    expected = run(whole)
    kept = []
    with pytest.raises(KeyboardInterrupt):
        run(broken, listeners=[interrupt_at(position, kept)])
    torch.rand(3)  # the global generators must not matter
    state = TrainingState.from_arrays(kept[0].to_arrays())
    history = run(resumed, resume_from=state, seed=None)
    assert history.history == expected.history
    assert identical(weights(resumed), weights(whole))
    assert identical(optimizer_values(resumed), optimizer_values(whole))


@pytest.mark.parametrize("epoch", [1, 2])
def test_keras_resumes_at_the_end_of_an_epoch(epoch):
    whole, broken, resumed = make(), make(), make()
    expected = run(whole, "keras")
    kept = []
    with pytest.raises(KeyboardInterrupt):
        run(broken, "keras", listeners=[interrupt_at((epoch, 0), kept)])
    history = run(resumed, "keras", resume_from=TrainingState.from_arrays(kept[0].to_arrays()))
    assert history.history == expected.history
    assert identical(weights(resumed), weights(whole))
    assert identical(optimizer_values(resumed), optimizer_values(whole))


def test_keras_refuses_a_state_inside_an_epoch():
    kept = []
    with pytest.raises(KeyboardInterrupt):
        run(make(), listeners=[interrupt_at((1, 2), kept)])
    with pytest.raises(UsageError, match=r"^Expected a state between two epochs for Keras.s own fit, got"):
        run(make(), "keras", resume_from=kept[0])


def test_a_schedule_goes_on_at_its_step():
    cycle = OneCycle(peak=0.05, steps=12, momenta=(0.7, 0.9))
    whole, broken, resumed = make(), make(), make()
    run(whole, schedule=cycle)
    kept = []
    with pytest.raises(KeyboardInterrupt):
        run(broken, schedule=cycle, listeners=[interrupt_at((1, 3), kept)])
    run(resumed, schedule=cycle, resume_from=kept[0])
    assert identical(weights(resumed), weights(whole))


def test_a_state_of_another_network_is_refused():
    kept = []
    with pytest.raises(KeyboardInterrupt):
        run(make(), listeners=[interrupt_at((1, 0), kept)])
    other = network(units=7)
    with pytest.raises(RunError, match=r"^Expected a state of this network, shapes .*\(36, 7\)"):
        convscope.fit(other, X, np.eye(7, dtype=np.float32)[Y.argmax(1)], resume_from=kept[0], **SETTINGS)


def test_a_state_of_another_optimizer_is_refused():
    kept = []
    with pytest.raises(KeyboardInterrupt):
        run(make("adam"), listeners=[interrupt_at((1, 0), kept)])
    with pytest.raises(RunError, match=r"^Expected a state of this optimizer"):
        run(make("sgd"), resume_from=kept[0])


def test_snapshots_are_copies():
    kept = []
    model = make()
    run(
        model, listeners=[lambda event: kept.append(event.snapshot()) if isinstance(event, StepEnd) else None]
    )
    assert len(kept) == 12
    kernels = [next(iter(state.weights.values())) for state in kept]
    assert not np.array_equal(kernels[0], kernels[1])
    assert kept[5].epoch == 1
    assert kept[5].step == 2
    assert list(kept[0].to_arrays())[1].startswith("weights/0000/")


def test_arrays_without_a_position_are_refused():
    with pytest.raises(
        RunError, match=r"^Expected a training state with its position, got the keys \['a'\].$"
    ):
        TrainingState.from_arrays({"a": np.zeros(1)})


def test_arrays_with_a_strange_part_are_refused():
    arrays = {"position": np.zeros(3, np.int64), "extra/0000/x": np.zeros(1)}
    with pytest.raises(RunError, match=r"^Expected a part of a training state, got 'extra/0000/x'.$"):
        TrainingState.from_arrays(arrays)


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_the_recorded_plan_belongs_to_the_fast_engine(engine):
    begun = []
    run(
        make(),
        engine,
        listeners=[lambda event: begun.append(event) if isinstance(event, TrainBegin) else None],
    )
    assert begun[0].engine == engine
    assert (begun[0].plan is None) == (engine == "keras")
    if engine == "fast":
        first, second = make(), make()
        for model in (first, second):
            run(model, plan=begun[0].plan, deterministic=False)
        assert identical(weights(first), weights(second))


OLD = {"weights": np.arange(6, dtype=np.float32).reshape(2, 3), "position": np.array([1, 2, 0])}
NEW = {"weights": np.ones((2, 3), np.float32), "position": np.array([1, 3, 0])}


def assert_is(found, expected):
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_what_was_saved_is_loaded(tmp_path):
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, (1, 0), OLD)
    assert_is(load_checkpoint(tmp_path), OLD)


def test_a_newer_one_takes_the_place_of_the_older(tmp_path):
    save_checkpoint(tmp_path, (9, 0), OLD)
    save_checkpoint(tmp_path, (10, 3), NEW)
    assert_is(load_checkpoint(tmp_path), NEW)
    assert len(list((tmp_path / "checkpoint").iterdir())) == 1


class Cut(BaseException):
    """The power goes."""


def operations(monkeypatch, at):
    """Let the operation of that number, and everything after it, not happen."""
    count = 0

    def guard(real):
        def call(*arguments, **keywords):
            nonlocal count
            count += 1
            if count >= at:
                raise Cut
            return real(*arguments, **keywords)

        return call

    monkeypatch.setattr(os, "fsync", guard(os.fsync))
    monkeypatch.setattr(Path, "open", guard(Path.open))
    monkeypatch.setattr(Path, "replace", guard(Path.replace))
    # A process that is gone cleans nothing up.
    monkeypatch.setattr(shutil, "rmtree", guard(shutil.rmtree))


@pytest.mark.parametrize("at", range(1, 12))
def test_a_cut_at_any_operation_leaves_the_old_or_the_new_state(tmp_path, monkeypatch, at):
    save_checkpoint(tmp_path, (2, 0), OLD)
    with monkeypatch.context() as patch:
        operations(patch, at)
        with contextlib.suppress(Cut):
            save_checkpoint(tmp_path, (3, 0), NEW)
    found = load_checkpoint(tmp_path)
    assert_is(found, NEW if found["position"][1] == 3 else OLD)
    # And the next save works on what was left.
    save_checkpoint(tmp_path, (4, 0), NEW)
    assert_is(load_checkpoint(tmp_path), NEW)


def test_the_cuts_reach_from_before_the_first_to_after_the_last_operation(tmp_path, monkeypatch):
    """The range of the test above begins with the old state and ends with the new one."""
    states = []
    for at in (1, 11):
        folder = tmp_path / str(at)
        folder.mkdir()
        save_checkpoint(folder, (2, 0), OLD)
        with monkeypatch.context() as patch:
            operations(patch, at)
            with contextlib.suppress(Cut):
                save_checkpoint(folder, (3, 0), NEW)
        states.append(int(load_checkpoint(folder)["position"][1]))
    assert states == [2, 3]


@pytest.mark.posix("folders that are synced as files are")
def test_nothing_is_renamed_into_place_before_it_is_on_the_disk(tmp_path, monkeypatch):
    synced, fsync, replace = [], os.fsync, Path.replace

    def watched_sync(handle):
        synced.append(os.fstat(handle).st_ino)
        fsync(handle)

    def watched_rename(folder, target):
        assert {path.stat().st_ino for path in (folder, *folder.iterdir())} == set(synced)
        return replace(folder, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_rename)
    target = save_checkpoint(tmp_path, (2, 0), OLD)
    # and then the new name, and that of the folder of checkpoints
    assert synced[-2:] == [target.parent.stat().st_ino, tmp_path.stat().st_ino]


@pytest.mark.parametrize("size", range(0, 400, 8))
def test_a_full_disk_at_any_offset_keeps_the_previous_checkpoint(tmp_path, monkeypatch, size):
    save_checkpoint(tmp_path, (2, 0), OLD)
    real_open = Path.open

    class Full:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

        def write(self, content):
            self.stream.write(content[:size])
            if len(content) > size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name):
            return getattr(self.stream, name)

    with monkeypatch.context() as patch:
        patch.setattr(
            Path,
            "open",
            lambda path, mode="r": Full(real_open(path, mode)) if "x" in mode else real_open(path, mode),
        )
        try:
            save_checkpoint(tmp_path, (3, 0), NEW)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    found = load_checkpoint(tmp_path)
    assert_is(found, NEW if found["position"][1] == 3 else OLD)
    assert len(list((tmp_path / "checkpoint").iterdir())) == 1


@pytest.mark.parametrize("name", [ARRAYS, MANIFEST])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, name):
    save_checkpoint(tmp_path, (2, 0), OLD)
    shutil.copytree(tmp_path / "checkpoint/000002-00000000", tmp_path / "checkpoint/000003-00000000")
    file = tmp_path / "checkpoint/000003-00000000" / name
    file.write_bytes(file.read_bytes()[:-1])
    assert_is(load_checkpoint(tmp_path), OLD)


def test_damaged_checkpoints_only_are_said(tmp_path):
    folder = save_checkpoint(tmp_path, (2, 0), OLD)
    (folder / ARRAYS).write_bytes(b"x")
    with pytest.raises(RunError, match=r"a whole checkpoint in .* got damaged ones only"):
        load_checkpoint(tmp_path)


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    folder = save_checkpoint(tmp_path, (2, 0), OLD)
    (folder / MANIFEST).write_text(json.dumps({"files": {"../../../etc/passwd": "0"}}))
    with pytest.raises(RunError, match="damaged ones only"):
        load_checkpoint(tmp_path)
