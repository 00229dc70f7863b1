"""Callbacks in a resumed training: they remember what they had seen, and what they had decided."""

import json

import keras
import numpy as np
import pytest
from training_cases import identical, images, network, optimizer_values, weights

import convscope
from convscope.errors import RunError
from convscope.training.callbacks import CallbackMemory
from convscope.training.checkpoint import TrainingState
from convscope.training.events import EpochEnd, StepEnd

X, Y = images()
SETTINGS = {
    "batch_size": 16,
    "epochs": 8,
    "verbose": 0,
    "seed": 7,
    "validation_split": 0.2,
    "deterministic": True,
}


class Counting(keras.callbacks.Callback):
    """Stops after a number of steps, and remembers things of several kinds."""

    def __init__(self, last):
        super().__init__()
        self.last = last

    def on_train_begin(self, logs=None):  # noqa: ARG002  Keras's signature
        self.seen, self.notes, self.sums, self.pair = 0, {"a": [None]}, np.zeros(2), (1, 2.5)

    def on_train_batch_begin(self, batch, logs=None):  # noqa: ARG002
        self.seen += 1
        self.sums = np.add(self.sums, [batch, 1.5])
        self.notes["a"].append(batch)
        self.pair = (self.seen, float("inf"))
        if self.seen >= self.last:
            self.model.stop_training = True


CALLBACKS = {
    "early-stopping": lambda: [keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)],
    "plateau": lambda: [keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.3, cooldown=1)],
    "counting": lambda: [Counting(17), Counting(99)],
}


def run(callbacks, engine="fast", **arguments):
    model = network(dropout=0.3, optimizer=keras.optimizers.Adam(0.2))
    settings = SETTINGS | {"engine": engine, "callbacks": callbacks} | arguments
    return model, convscope.fit(model, X, Y, **settings)


def broken_off(callbacks, epoch, step=0, engine="fast"):
    """Train until the position, and take the state through its arrays as a checkpoint would."""
    kept = []

    def listen(event):
        here = (event.epoch + 1, 0) if isinstance(event, EpochEnd) else None
        if isinstance(event, StepEnd):
            here = (event.epoch, event.step + 1)
        if here == (epoch, step):
            kept.append(TrainingState.from_arrays(event.snapshot().to_arrays()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(callbacks, engine, listeners=[listen])
    return kept[0]


@pytest.mark.parametrize("position", [(1, 0), (2, 3), (4, 0)], ids=str)
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_resumed_training_has_the_memory_of_its_callbacks(name, position):
    whole, expected = run(CALLBACKS[name]())
    model, history = run(CALLBACKS[name](), resume_from=broken_off(CALLBACKS[name](), *position))
    assert history.history == expected.history
    assert identical(weights(model), weights(whole))
    assert identical(optimizer_values(model), optimizer_values(whole))


def test_early_stopping_in_these_tests_does_stop():
    _, history = run(CALLBACKS["early-stopping"]())
    assert 3 <= len(history.history["loss"]) < SETTINGS["epochs"]


def test_kerass_own_fit_remembers_too():
    whole, expected = run(CALLBACKS["early-stopping"](), "keras")
    state = broken_off(CALLBACKS["early-stopping"](), 2, engine="keras")
    model, history = run(CALLBACKS["early-stopping"](), "keras", resume_from=state)
    assert history.history == expected.history
    assert identical(weights(model), weights(whole))


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_a_training_that_was_told_to_stop_is_not_taken_up_again(engine):
    """A crash after the last checkpoint, before the results are written."""
    whole, expected = run([Counting(17)], engine)
    state = broken_off([Counting(17)], 5, engine=engine)
    assert state.stopped
    model, history = run([Counting(17)], engine, resume_from=state)
    assert identical(weights(model), weights(whole))
    assert history.history == expected.history


def test_an_epoch_that_was_cut_short_is_still_validated_after_a_crash():
    whole, expected = run([Counting(17)])
    state = broken_off([Counting(17)], 4, 1)
    assert state.stopped
    model, history = run([Counting(17)], resume_from=state)
    assert history.history == expected.history
    assert identical(weights(model), weights(whole))


def test_only_what_has_changed_is_kept():
    state = broken_off(CALLBACKS["early-stopping"](), 2)
    attributes = {key.split("/")[1] for key in state.callbacks}
    assert {"best", "best_weights"} <= attributes
    assert "patience" not in attributes and "restore_best_weights" not in attributes


def test_a_training_without_its_callbacks_is_refused():
    state = broken_off(CALLBACKS["early-stopping"](), 2)
    with pytest.raises(RunError, match=r"^Expected the callbacks .* EarlyStopping-0 among them, got none\.$"):
        run([], resume_from=state)


def test_what_cannot_be_written_down_is_left_alone():
    class Open:
        def __init__(self):
            self.file, self.count = object(), 0

    callback = Open()
    memory = CallbackMemory([callback])
    memory.begin()
    callback.file, callback.count = object(), 4
    kept = memory.read()
    assert list(kept) == ["Open-0/count/values"]
    assert json.loads(kept["Open-0/count/values"].tobytes()) == 4
