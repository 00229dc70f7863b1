"""Keras callbacks on the fast engine: called as Keras calls them, seeing and setting what they do there."""

# The hooks have Keras's own signatures.
# ruff: noqa: ARG002

import json

import keras
import numpy as np
import pytest
from training_cases import assert_close, identical, images, network, weights

import convscope
from convscope.errors import UsageError

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


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_a_callback_changes_counts_from_then_on(change, moment):
    hook, at = moment
    histories, found = [], []
    for engine in ENGINES:
        model = with_every_part()
        histories.append(fit(model, engine, [Changing(change, hook, at)]).history)
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
