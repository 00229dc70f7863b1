"""What ends a training: an accuracy, and a deadline by a clock that the test turns."""

import math

import keras
import pytest
from training_cases import identical, images, network, weights

import convscope
from convscope.errors import UsageError
from convscope.training.callbacks import Deadline, Until
from convscope.training.checkpoint import TrainingState
from convscope.training.events import EpochEnd, StepEnd
from convscope.training.schedules import Cosine, OneCycle

X, Y = images()
STEP, VALIDATION_STEP = 1.0, 3.0  # seconds of the test's clock
STEPS, VALIDATION_STEPS = 4, 1  # 56 and 14 rows in batches of 16
SETTINGS = {
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

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002  Keras's signature
        self._steps += 1
        self._time.now += STEP * (self._factor if self._steps > self._slower_after else 1.0)

    def on_test_batch_end(self, batch, logs=None):  # noqa: ARG002
        self._time.now += VALIDATION_STEP


def run(seconds, clock=None, engine="fast", schedule=None, **arguments):
    clock = clock or Clock()
    model = network(dropout=0.3, optimizer=keras.optimizers.Adam(0.01))
    deadline = Deadline(
        seconds, schedule or Cosine(0.01, Deadline.STEPS), validation_seconds=VALIDATION_STEP, clock=clock
    )
    rates = []

    class Rates(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):  # noqa: ARG002
            rates.append(None)

        def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
            rates[-1] = float(self.model.optimizer.learning_rate)

    callbacks = [clock, deadline, Rates()]
    settings = SETTINGS | arguments
    history = convscope.fit(
        model, X, Y, engine=engine, schedule=deadline, callbacks=callbacks, **settings
    )  # fmt: skip
    return model, history, rates, clock()


@pytest.mark.parametrize("engine", ["fast", "keras"])
@pytest.mark.parametrize("seconds", [6.0, 23.0, 60.0], ids=lambda value: f"{value:g}s")
def test_a_deadline_is_met_with_the_rate_annealed(engine, seconds):
    _, history, rates, ended = run(seconds, engine=engine)
    assert seconds - STEP - VALIDATION_STEP <= ended <= seconds + STEP
    assert rates[-1] == 0
    assert rates == sorted(rates, reverse=True)
    assert all(len(values) == math.ceil(len(rates) / STEPS) for values in history.history.values())


@pytest.mark.parametrize("factor", [0.25, 4.0], ids=["faster", "slower"])
def test_a_deadline_is_met_by_a_machine_whose_speed_drifts(factor):
    _, _, rates, ended = run(60.0, Clock(20, factor))
    assert 60 - STEP * factor - VALIDATION_STEP <= ended <= 60 + STEP * factor
    assert rates[-1] == 0


def test_a_deadline_carries_any_schedule_to_its_end():
    peak = 0.02
    _, _, rates, _ = run(60.0, schedule=OneCycle(peak, Deadline.STEPS))
    assert max(rates) == pytest.approx(peak, rel=0.02)
    assert rates[-1] == pytest.approx(peak / 1e4)


def test_a_deadline_that_is_over_at_once_trains_one_step():
    _, history, rates, _ = run(0.1)
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

    whole, expected, _, _ = run(40.0)
    with pytest.raises(KeyboardInterrupt):
        run(40.0, listeners=[interrupt])
    model, history, _, _ = run(40.0, resume_from=kept[0])
    assert history.history == expected.history
    assert identical(weights(model), weights(whole))


@pytest.mark.parametrize("seconds", [0, -1.0])
def test_a_deadline_in_the_past_is_refused(seconds):
    with pytest.raises(UsageError, match=r"^Expected seconds above 0 until the deadline, got"):
        Deadline(seconds, Cosine(0.1, 10))


@pytest.mark.parametrize("engine", ["fast", "keras"])
def test_until_stops_at_the_first_epoch_that_reaches_it(engine):
    settings = SETTINGS | {"epochs": 5, "engine": engine}
    whole = convscope.fit(network(), X, Y, **settings).history["accuracy"]
    target = max(whole[1:])
    broken_off = convscope.fit(network(), X, Y, callbacks=[Until(target, "accuracy")], **settings)
    expected = next(epoch for epoch, value in enumerate(whole) if value >= target)
    assert broken_off.history["accuracy"] == whole[: expected + 1]
