"""Keras's callbacks on the fast engine: their calls, their memory, and those that end a training."""

# The hooks have Keras's own signatures.
# ruff: noqa: ARG002

import itertools
import json
import math

import keras
import numpy as np
import pytest
from training_cases import Diary, assert_close, identical, images, network, optimizer_values, weights

import convscope
from convscope.errors import RunError, UsageError
from convscope.training.callbacks import CallbackMemory, Deadline, Until
from convscope.training.checkpoint import TrainingState
from convscope.training.events import EpochEnd, StepEnd
from convscope.training.schedules import Cosine, OneCycle

X, Y = images()
ENGINES = ("fast", "keras")


def fit(model, engine, callbacks, **arguments):
    settings = {"batch_size": 16, "epochs": 3, "verbose": 0, "seed": 7, "validation_split": 0.2}
    settings |= {"deterministic": True, **arguments}
    return convscope.fit(model, X, Y, engine=engine, precision="float32", callbacks=callbacks, **settings)


def trained(make_callbacks, **arguments):
    """Train on both engines with callbacks of their own; return models, callbacks and histories."""
    results = []
    for engine in ENGINES:
        model, callbacks = network(optimizer=keras.optimizers.SGD(0.5)), make_callbacks()
        results.append((model, callbacks, fit(model, engine, callbacks, **arguments)))
    return results


def test_the_calls_are_those_of_keras():
    (_, [fast], _), (_, [slow], _) = trained(lambda: [Diary()], epochs=2, validation_freq=2)
    assert [call[:2] for call in fast.calls] == [call[:2] for call in slow.calls]
    for ours, theirs in zip(fast.calls, slow.calls, strict=True):
        assert ours[2] == pytest.approx(theirs[2], abs=2e-4), ours[0]
    assert fast.params == slow.params | {"verbose": 0}


class Observer(keras.callbacks.Callback):
    """Keeps a copy of the weights at each step and epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(weights(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(weights(self.model))


def test_callbacks_see_the_weights_of_the_moment():
    (_, [fast], _), (_, [slow], _) = trained(lambda: [Observer()])
    assert len(fast.seen) == len(slow.seen) == 3 * (4 + 1)
    for ours, theirs in zip(fast.seen, slow.seen, strict=True):
        assert_close(ours, theirs)


class Meddler(keras.callbacks.Callback):
    """Sets weights, learning rate and momentum in the middle of the training."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 2:
            self.model.optimizer.learning_rate = 0.01

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            self.model.get_layer("dense").bias.assign(np.linspace(0, 1, 5))

    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate = 0.5 / (epoch + 1)


def test_what_a_callback_sets_takes_effect():
    (fast, _, ours), (slow, _, theirs) = trained(lambda: [Meddler()])
    assert_close(weights(fast), weights(slow))
    assert ours.history["val_loss"] == pytest.approx(theirs.history["val_loss"], rel=1e-5)


def test_validation_sees_weights_that_a_callback_set():
    class Eraser(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            for variable in self.model.weights:
                variable.assign(np.zeros(variable.shape))

    for _, _, history in trained(lambda: [Eraser()], epochs=1):
        assert history.history["val_loss"] == pytest.approx([np.log(5)], rel=1e-5)


class StopAt(keras.callbacks.Callback):
    def __init__(self, hook, number):
        super().__init__()
        self.hook, self.number = hook, number

    def on_epoch_end(self, epoch, logs=None):
        if self.hook == "epoch" and epoch == self.number:
            self.model.stop_training = True

    def on_train_batch_end(self, batch, logs=None):
        if self.hook == "batch" and batch == self.number:
            self.model.stop_training = True


@pytest.mark.parametrize("hook", ["epoch", "batch"])
def test_stop_training_ends_as_in_keras(hook):
    (fast, _, ours), (slow, _, theirs) = trained(lambda: [StopAt(hook, 1)])
    assert ours.epoch == theirs.epoch
    assert_close(weights(fast), weights(slow))
    assert sorted(ours.history) == ["accuracy", "loss", "val_accuracy", "val_loss"]


def test_early_stopping_restores_the_best_weights():
    def make():
        return [
            keras.callbacks.EarlyStopping("val_accuracy", patience=1, restore_best_weights=True, mode="min")
        ]

    (fast, _, ours), (slow, _, theirs) = trained(make, epochs=6)
    assert ours.epoch == theirs.epoch
    assert_close(weights(fast), weights(slow))


def test_reduce_on_plateau_and_scheduler_set_the_rate():
    def make():
        return [
            keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.1, patience=0, min_delta=10),
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5 if epoch == 2 else rate),
        ]

    (fast, _, ours), (slow, _, theirs) = trained(make)
    assert ours.history["learning_rate"] == pytest.approx(theirs.history["learning_rate"])
    assert ours.history["learning_rate"][-1] < 0.5
    assert_close(weights(fast), weights(slow))


@pytest.mark.parametrize("save_freq", ["epoch", 3])
def test_checkpoints_hold_the_weights_and_the_optimizer(tmp_path, save_freq):
    path = tmp_path / "{epoch:02d}.keras"
    model = network(optimizer="adam")
    callback = keras.callbacks.ModelCheckpoint(path, save_freq=save_freq)
    fit(model, "fast", [callback], epochs=2, shuffle=False)
    other = network(optimizer="adam")
    fit(other, "fast", [], epochs=1, shuffle=False)
    if save_freq == "epoch":
        loaded = keras.models.load_model(tmp_path / "01.keras")
        assert identical(weights(loaded), weights(other))
        assert int(loaded.optimizer.iterations.value) == 4
    else:
        assert sorted(file.name for file in tmp_path.iterdir()) == ["01.keras", "02.keras"]


def test_backup_and_restore_takes_the_training_up_again(tmp_path):
    class Failure(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("power cut")

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    whole, broken = network(optimizer="adam"), network(optimizer="adam")
    fit(whole, "fast", [])
    with pytest.raises(RuntimeError, match="power cut"):
        fit(broken, "fast", [backup(), Failure()])
    again = network(optimizer="adam")
    history = fit(again, "fast", [backup()])
    assert history.epoch == [2]
    assert_close(weights(again), weights(whole), 1e-6)


def test_csv_logger_writes_each_epoch(tmp_path):
    fit(network(), "fast", [keras.callbacks.CSVLogger(tmp_path / "log.csv")])
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "epoch,accuracy,loss,val_accuracy,val_loss"
    assert len(lines) == 4


@pytest.mark.parametrize("engine", ENGINES)
def test_terminate_on_nan_stops(engine):
    model = network(optimizer=keras.optimizers.SGD(float("nan")))
    history = fit(model, engine, [keras.callbacks.TerminateOnNaN()])
    assert len(history.epoch) == 1


def test_lambda_callbacks_and_nested_lists_are_called():
    heard = []
    callback = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: heard.append((epoch, sorted(logs)))
    )
    fit(network(), "fast", [[callback], []], epochs=1)
    assert heard == [(0, ["accuracy", "loss", "val_accuracy", "val_loss"])]


def test_a_callback_list_is_taken_apart():
    diary = Diary()
    fit(network(), "fast", keras.callbacks.CallbackList([diary]), epochs=1)
    assert diary.calls[0][0] == "on_train_begin"
    assert diary.calls[-1][0] == "on_train_end"


def test_a_callback_may_predict_and_save_in_the_middle(tmp_path):
    class Tester(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.accuracies = []

        def on_epoch_end(self, epoch, logs=None):
            predicted = convscope.predict(self.model, X[56:]).argmax(axis=1)
            assert np.array_equal(predicted, self.model.predict(X[56:], verbose=0).argmax(axis=1))
            self.accuracies.append(float((predicted == Y[56:].argmax(axis=1)).mean()))
            self.model.save_weights(tmp_path / f"{epoch}.weights.h5")

    tester = Tester()
    history = fit(network(optimizer=keras.optimizers.Adam(0.02)), "fast", [tester])
    assert tester.accuracies == pytest.approx(history.history["val_accuracy"])


def test_the_callback_parameters_tell_epochs_and_steps():
    diary = Diary()
    fit(network(), "fast", [diary])
    assert json.loads(json.dumps(diary.params)) == {"verbose": 0, "epochs": 3, "steps": 4}


def test_an_exception_in_a_callback_leaves_the_weights_of_the_last_step():
    class Failure(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                self.copy = weights(self.model)
                raise KeyboardInterrupt

    failure, model = Failure(), network()
    with pytest.raises(KeyboardInterrupt):
        fit(model, "fast", [failure])
    assert identical(weights(model), failure.copy)
    assert int(model.optimizer.iterations.value) == 3


class Changing(keras.callbacks.Callback):
    """Changes the model at one moment of a training."""

    def __init__(self, change, hook="on_epoch_begin", at=1):
        super().__init__()
        self.moments = 0

        def act(*_, **__):
            self.moments += 1
            if self.moments == at + 1:
                change(self.model)

        setattr(self, hook, act)


class Scaling(keras.layers.Layer):
    """A layer that runs as it is."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.factor


def with_every_part(seed=3):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(
                4, 3, activation="relu", kernel_regularizer=keras.regularizers.L2(0.01), name="conv"
            ),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.0, name="drop"),
            keras.layers.Flatten(),
            Scaling(name="scaling"),
            keras.layers.Dense(5, activation="softmax", name="last"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "categorical_crossentropy", metrics=["accuracy"])
    return model


def setting(layer, name, value):
    return lambda model: setattr(model.get_layer(layer), name, value)


def stop_penalty(model):
    model.get_layer("conv").kernel_regularizer.l2 = 0.5


CHANGES = {
    "frozen": setting("conv", "trainable", False),
    "frozen-unknown-layer": setting("scaling", "trainable", False),
    "frozen-normalization": setting("norm", "trainable", False),
    "frozen-model": lambda model: setattr(model, "trainable", False),
    "activation": setting("conv", "activation", keras.activations.tanh),
    "unknown-activation": setting("conv", "activation", keras.ops.square),
    "momentum-of-statistics": setting("norm", "momentum", 0.5),
    "regularizer": stop_penalty,
}
MOMENTS = {
    "train-begin": ("on_train_begin", 0),
    "epoch-begin": ("on_epoch_begin", 1),
    "batch-end": ("on_train_batch_end", 2),
    "validation-begin": ("on_test_begin", 0),
}


# Each change between two batches, and one of them at each moment; the others take long.
CHANGED = [
    pytest.param(
        change, moment, marks=() if moment == "batch-end" or change == "frozen" else pytest.mark.slow
    )
    for change, moment in itertools.product(CHANGES, MOMENTS)
]


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
@pytest.mark.parametrize(("change", "moment"), CHANGED)
def test_what_a_callback_changes_counts_from_then_on(change, moment):
    hook, at = MOMENTS[moment]
    histories, found = [], []
    for engine in ENGINES:
        model = with_every_part()
        histories.append(fit(model, engine, [Changing(CHANGES[change], hook, at)]).history)
        found.append(weights(model))
    assert histories[0].keys() == histories[1].keys()
    for name, values in histories[1].items():
        np.testing.assert_allclose(histories[0][name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert_close(*found, tolerance=1e-4)


def test_a_callback_that_compiles_is_refused():
    callback = Changing(lambda model: model.compile("adam", "mse"))
    with pytest.raises(UsageError, match=r"^Expected callbacks that leave a model compiled as it is"):
        fit(with_every_part(), "fast", [callback])


def test_a_dropout_rate_that_a_callback_sets_counts():
    ones, targets = np.ones((64, 400), np.float32), np.full((64, 1), 400.0, np.float32)
    layers = [keras.layers.Dropout(0.5, name="drop"), keras.layers.Dense(1, kernel_initializer="ones")]
    model = keras.Sequential([keras.Input((400,)), *layers])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    callback = Changing(setting("drop", "rate", 0.0))
    losses = convscope.fit(model, ones, targets, epochs=3, callbacks=[callback], verbose=0).history["loss"]
    assert losses[0] > 100
    assert losses[1:] == [0.0, 0.0]


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

    def on_train_begin(self, logs=None):
        self.seen, self.notes, self.sums, self.pair = 0, {"a": [None]}, np.zeros(2), (1, 2.5)

    def on_train_batch_begin(self, batch, logs=None):
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


STEP, VALIDATION_STEP = 1.0, 3.0  # seconds of the test's clock
STEPS, VALIDATION_STEPS = 4, 1  # 56 and 14 rows in batches of 16
STOPPING = {
    "batch_size": 16,
    "verbose": 0,
    "seed": 7,
    "validation_split": 0.2,
    "deterministic": True,
    "epochs": Deadline.EPOCHS,
}


class Time:
    """Seconds that no checkpoint knows of."""

    now = 0.0


class Clock(keras.callbacks.Callback):
    """Goes on with each step, not with the machine; may become slower on the way."""

    def __init__(self, slower_after=math.inf, factor=1.0):
        super().__init__()
        self._time, self._steps = Time(), 0
        self._slower_after, self._factor = slower_after, factor

    def __call__(self):
        return self._time.now

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1
        self._time.now += STEP * (self._factor if self._steps > self._slower_after else 1.0)

    def on_test_batch_end(self, batch, logs=None):
        self._time.now += VALIDATION_STEP


def run_on(seconds, clock=None, engine="fast", schedule=None, **arguments):
    clock = clock or Clock()
    model = network(dropout=0.3, optimizer=keras.optimizers.Adam(0.01))
    deadline = Deadline(
        seconds, schedule or Cosine(0.01, Deadline.STEPS), validation_seconds=VALIDATION_STEP, clock=clock
    )
    rates = []

    class Rates(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            rates.append(None)

        def on_train_batch_end(self, batch, logs=None):
            rates[-1] = float(self.model.optimizer.learning_rate)

    callbacks = [clock, deadline, Rates()]
    settings = STOPPING | arguments
    history = convscope.fit(
        model, X, Y, engine=engine, schedule=deadline, callbacks=callbacks, **settings
    )  # fmt: skip
    return model, history, rates, clock()


@pytest.mark.parametrize("engine", ["fast", "keras"])
@pytest.mark.parametrize("seconds", [6.0, 23.0, 60.0], ids=lambda value: f"{value:g}s")
def test_a_deadline_is_met_with_the_rate_annealed(engine, seconds):
    _, history, rates, ended = run_on(seconds, engine=engine)
    assert seconds - STEP - VALIDATION_STEP <= ended <= seconds + STEP
    assert rates[-1] == 0
    assert rates == sorted(rates, reverse=True)
    assert all(len(values) == math.ceil(len(rates) / STEPS) for values in history.history.values())


@pytest.mark.parametrize("factor", [0.25, 4.0], ids=["faster", "slower"])
def test_a_deadline_is_met_by_a_machine_whose_speed_drifts(factor):
    _, _, rates, ended = run_on(60.0, Clock(20, factor))
    assert 60 - STEP * factor - VALIDATION_STEP <= ended <= 60 + STEP * factor
    assert rates[-1] == 0


def test_a_deadline_carries_any_schedule_to_its_end():
    peak = 0.02
    _, _, rates, _ = run_on(60.0, schedule=OneCycle(peak, Deadline.STEPS))
    assert max(rates) == pytest.approx(peak, rel=0.02)
    assert rates[-1] == pytest.approx(peak / 1e4)


def test_a_deadline_that_is_over_at_once_trains_one_step():
    _, history, rates, _ = run_on(0.1)
    assert len(rates) <= 2
    assert len(history.history["val_loss"]) == 1


@pytest.mark.parametrize("position", [(2, 0), (3, 2), (5, 0)], ids=str)
def test_a_resumed_training_has_the_rest_of_its_time(position):
    kept = []

    def interrupt(event):
        here = (event.epoch + 1, 0) if isinstance(event, EpochEnd) else None
        if isinstance(event, StepEnd):
            here = (event.epoch, event.step + 1)
        if here == position:
            kept.append(TrainingState.from_arrays(event.snapshot().to_arrays()))
            raise KeyboardInterrupt

    whole, expected, _, _ = run_on(40.0)
    with pytest.raises(KeyboardInterrupt):
        run_on(40.0, listeners=[interrupt])
    model, history, _, _ = run_on(40.0, resume_from=kept[0])
    assert history.history == expected.history
    assert identical(weights(model), weights(whole))


@pytest.mark.parametrize("seconds", [0, -1.0])
def test_a_deadline_in_the_past_is_refused(seconds):
    with pytest.raises(UsageError, match=r"^Expected seconds above 0 until the deadline, got"):
        Deadline(seconds, Cosine(0.1, 10))


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_until_stops_at_the_first_epoch_that_reaches_it(engine):
    settings = STOPPING | {"epochs": 5, "engine": engine}
    whole = convscope.fit(network(), X, Y, **settings).history["accuracy"]
    target = max(whole[1:])
    broken_off = convscope.fit(network(), X, Y, callbacks=[Until(target, "accuracy")], **settings)
    expected = next(epoch for epoch, value in enumerate(whole) if value >= target)
    assert broken_off.history["accuracy"] == whole[: expected + 1]
