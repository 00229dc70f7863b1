"""Keras callbacks on the fast engine: called as Keras calls them, seeing and setting what they do there."""

# The hooks have Keras's own signatures.
# ruff: noqa: ARG002

import json

import keras
import numpy as np
import pytest
from training_cases import assert_close, identical, images, network, weights

import convscope

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


class Diary(keras.callbacks.Callback):
    """Writes down every call that it gets."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def note(*arguments, logs=None, **_):
            rounded = {key: round(float(value), 4) for key, value in (logs or {}).items()}
            if arguments and isinstance(arguments[-1], dict):
                *arguments, last = arguments
                rounded = {key: round(float(value), 4) for key, value in last.items()}
            self.calls.append((name, [a for a in arguments if a is not None], rounded))

        return note


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
