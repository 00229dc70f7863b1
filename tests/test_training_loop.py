"""The order of events, in both engines, and the answer to a loss that is no number."""

import hashlib
import math
import subprocess
import sys

import keras
import numpy as np
import pytest
from training_cases import assert_close, identical, images, network, weights

import convscope
from convscope.errors import DivergedError
from convscope.training.events import EpochBegin, EpochEnd, StepEnd, TrainBegin, TrainEnd, ValidationEnd
from convscope.training.schedules import OneCycle

X, Y = images()
SETTINGS = {
    "batch_size": 16,
    "epochs": 2,
    "verbose": 0,
    "seed": 7,
    "validation_split": 0.2,
    "deterministic": True,
}
ENGINES = pytest.mark.parametrize("engine", ["fast", "keras"])
TOLD_BY_BOTH = (TrainBegin, EpochBegin, StepEnd, EpochEnd, TrainEnd)


def events_of(engine, model=None, **arguments):
    heard = []
    model = network() if model is None else model
    history = convscope.fit(model, X, Y, engine=engine, listeners=[heard.append], **(SETTINGS | arguments))
    return heard, history


@ENGINES
def test_the_order_of_events(engine):
    heard, _ = events_of(engine)
    kinds = [type(event).__name__ for event in heard if isinstance(event, TOLD_BY_BOTH)]
    epoch = ["EpochBegin", *["StepEnd"] * 4, "EpochEnd"]
    assert kinds == ["TrainBegin", *epoch, *epoch, "TrainEnd"]


@ENGINES
def test_what_events_carry(engine):
    heard, history = events_of(engine)
    begin = next(event for event in heard if isinstance(event, TrainBegin))
    assert (begin.engine, begin.first_epoch, begin.epochs, begin.steps) == (engine, 0, 2, 4)
    steps = [event for event in heard if isinstance(event, StepEnd)]
    assert [(event.epoch, event.step) for event in steps] == [(e, s) for e in range(2) for s in range(4)]
    ends = [event for event in heard if isinstance(event, EpochEnd)]
    assert [end.logs["val_loss"] for end in ends] == history.history["val_loss"]
    assert all(end.seconds > 0 for end in ends)
    assert dict(heard[-1].logs) == dict(ends[-1].logs)


@ENGINES
def test_steps_tell_the_means_so_far(engine):
    read = []

    def listen(event):
        if isinstance(event, StepEnd):
            read.append((event.loss, event.metrics["accuracy"], set(event.logs)))

    history = convscope.fit(network(), X, Y, engine=engine, listeners=[listen], **SETTINGS)
    assert read[3][0] == pytest.approx(history.history["loss"][0])
    assert read[7][1] == pytest.approx(history.history["accuracy"][1])
    assert read[0][2] == {"loss", "accuracy"}
    assert read[0][0] != read[1][0]


def test_validation_is_told_too():
    heard, history = events_of("fast")
    ends = [event for event in heard if isinstance(event, ValidationEnd)]
    assert [end.logs["loss"] for end in ends] == history.history["val_loss"]


@ENGINES
def test_a_loss_that_is_no_number_ends_the_training_on_request(engine):
    model = network(optimizer=keras.optimizers.SGD(float("nan")))
    with pytest.raises(DivergedError, match=r"^Expected a finite loss in epoch 1, step \d, got nan"):
        events_of(engine, model, on_divergence="raise")


@ENGINES
def test_a_loss_that_is_no_number_goes_on_as_in_keras(engine):
    _, history = events_of(engine, network(optimizer=keras.optimizers.SGD(float("nan"))))
    assert math.isnan(history.history["loss"][-1])
    assert len(history.epoch) == 2


def test_divergence_is_noticed_inside_a_long_epoch():
    x, y = np.repeat(X, 10, axis=0), np.repeat(Y, 10, axis=0)
    model = network(optimizer=keras.optimizers.SGD(float("nan")))
    with pytest.raises(DivergedError, match="step 50"):
        convscope.fit(model, x, y, engine="fast", batch_size=2, verbose=0, seed=1, on_divergence="raise")


def test_a_schedule_gives_each_step_its_rate():
    schedule = OneCycle(peak=0.1, steps=8, momenta=(0.6, 0.9))
    rates = {}

    class Reader(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002  Keras's signature
            optimizer = self.model.optimizer
            rates.setdefault(self.engine, []).append((float(optimizer.learning_rate.value), optimizer.beta_1))

    models = {}
    for engine in ("fast", "keras"):
        reader = Reader()
        reader.engine = engine
        models[engine] = network(optimizer=keras.optimizers.Adam(0.001))
        events_of(engine, models[engine], schedule=schedule, callbacks=[reader], precision="float32")
    expected = [(schedule(step).learning_rate, schedule(step).momentum) for step in range(8)]
    assert np.array(rates["fast"]) == pytest.approx(np.array(expected), rel=1e-6)
    assert np.array(rates["keras"]) == pytest.approx(np.array(expected), rel=1e-6)
    assert_close(weights(models["fast"]), weights(models["keras"]), 2e-5)


@ENGINES
def test_a_listener_that_breaks_off_leaves_the_weights_of_the_last_step(engine):
    model, kept = network(), []

    def listen(event):
        if isinstance(event, StepEnd) and event.step == 2:
            kept.append(weights(model))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convscope.fit(model, X, Y, engine=engine, listeners=[listen], **SETTINGS)
    assert identical(weights(model), kept[0])


def fingerprint(engine):
    """Train with dropout and hash the weights; run in this process and in another."""
    model = network(dropout=0.3, optimizer="adam")
    convscope.fit(model, X, Y, engine=engine, epochs=2, seed=5, verbose=0, deterministic=True)
    return hashlib.sha256(b"".join(array.tobytes() for array in weights(model))).hexdigest()


def test_the_same_seed_gives_the_same_weights_in_two_processes(request):
    program = (
        "import convscope, test_training_loop as t; print(t.fingerprint('fast'), t.fingerprint('keras'))"
    )
    command = [sys.executable, "-c", program]
    found = subprocess.run(
        command, cwd=request.path.parent, capture_output=True, text=True, check=True
    ).stdout
    assert found.split() == [fingerprint("fast"), fingerprint("keras")]


@pytest.mark.slow
def test_fifty_steps_of_deep_lose_as_keras_does():
    x, y = images(50 * 128, shape=(28, 28, 1))
    y = np.pad(y, ((0, 0), (0, 5)))
    read = {}

    def train(engine):
        keras.utils.set_random_seed(0)
        model = convscope.build("deep", (28, 28, 1), 10)
        for layer in model.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
        model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
        losses = read.setdefault(engine, [])

        def listen(event):
            if isinstance(event, StepEnd):
                losses.append(event.loss)

        convscope.fit(
            model, x, y, 128, engine=engine, precision="float32", seed=1, verbose=0, listeners=[listen]
        )

    train("fast")
    train("keras")
    assert len(read["fast"]) == 50
    np.testing.assert_allclose(read["fast"], read["keras"], rtol=1e-3)


@ENGINES
def test_dropout_drops_others_in_each_epoch(engine):
    model = network(dropout=0.5, optimizer=keras.optimizers.SGD(0.0))
    _, history = events_of(engine, model, epochs=3, shuffle=False)
    assert len(set(history.history["loss"])) == 3
    assert len(set(history.history["val_loss"])) == 1
