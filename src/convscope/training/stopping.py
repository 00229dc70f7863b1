"""Callbacks that end a training: at an accuracy, and at a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import keras

from convscope.errors import UsageError, sentence
from convscope.training.schedule import Rate, Schedule

Logs = Mapping[str, float] | None


class Until(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """Stops the training at the end of the epoch that reaches an accuracy.

    Parameters
    ----------
    target : float
        Above 0 to 1.
    monitor : str
        Which of the epoch's numbers is held against it.

    Examples
    --------
    >>> until = Until(0.9)
    >>> until.set_model(keras.Sequential())
    >>> until.on_epoch_end(0, {"val_accuracy": 0.91})
    >>> until.model.stop_training
    True
    """

    def __init__(self, target: float, monitor: str = "val_accuracy") -> None:
        super().__init__()
        self.target, self.monitor = target, monitor

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:  # noqa: ARG002  Keras's signature
        """Hold the epoch's number against the target."""
        if (logs or {}).get(self.monitor, 0.0) >= self.target:
            self.model.stop_training = True


class Deadline(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """A schedule in time instead of in steps, and the callback that ends the training with it.

    However the machine's speed drifts, the rate has run through the whole schedule when the time is over:
    the rate of a step follows from the time that has gone by. The last validation is part of the time. What
    has been spent is kept with a checkpoint, so that a resumed training has the rest.

    Parameters
    ----------
    seconds : float
        From now on to the end of the last validation, above 0.
    schedule : Schedule
        Made for ``STEPS`` steps.
    validation_seconds : float
        What a validation is expected to take; replaced by what each one takes.
    clock : callable or None
        Gives seconds; None for ``time.perf_counter``.

    Examples
    --------
    >>> from convscope.training.schedule import Cosine
    >>> seconds = iter([0.0, 30.0]).__next__
    >>> deadline = Deadline(60, Cosine(0.1, Deadline.STEPS), clock=seconds)
    >>> deadline.set_params({"steps": 20})
    >>> round(deadline(0).learning_rate, 6)
    0.05
    """

    # A schedule's length where time stands for steps.
    STEPS = 1_000_000
    # More epochs than any deadline lets through.
    EPOCHS = 1_000_000
    _INERTIA = 0.5  # of the estimate of a step: half of it is the last step

    def __init__(
        self,
        seconds: float,
        schedule: Schedule,
        *,
        validation_seconds: float = 0.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__()
        if not seconds > 0:
            raise UsageError(sentence("seconds above 0 until the deadline", seconds))
        self.seconds, self.spent = seconds, 0.0
        self.validation_seconds = validation_seconds
        self.step_seconds = 0.0
        self._schedule, self._watch = schedule, _Watch(clock or time.perf_counter)
        self._validation_began, self._step_began = 0.0, -1.0

    def __call__(self, step: int) -> Rate:
        """Give the rate of the step that begins, and decide whether it is the last one."""
        self._look()
        if self._step_began >= 0:
            taken = self.spent - self._step_began
            self.step_seconds = (
                self._INERTIA * self.step_seconds + (1 - self._INERTIA) * taken
                if self.step_seconds
                else taken
            )
        self._step_began = self.spent
        steps = self.params.get("steps")
        if self._is_over(epochs=2 if steps and (step + 1) % steps == 0 else 1):
            self.model.stop_training = True
            return self._schedule(self.STEPS)
        return self._schedule(int(self.STEPS * self.spent / (self.seconds - self.validation_seconds)))

    def on_train_begin(self, logs: Logs = None) -> None:  # noqa: ARG002
        """Take note of what the preparation has taken."""
        self._look()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:  # noqa: ARG002
        """Forget the last step: what lies between it and the next one is not a step."""
        self._step_began = -1.0

    def on_test_begin(self, logs: Logs = None) -> None:  # noqa: ARG002
        """Begin to measure a validation."""
        self._look()
        self._validation_began = self.spent

    def on_test_end(self, logs: Logs = None) -> None:  # noqa: ARG002
        """Learn what a validation takes."""
        self._look()
        self.validation_seconds = self.spent - self._validation_began

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:  # noqa: ARG002
        """Begin no epoch that could not do a step."""
        self._look()
        if self._is_over():
            self.model.stop_training = True

    def on_snapshot(self) -> None:
        """Bring what is kept up to date: a step may have ended since the last look."""
        self._look()

    def _is_over(self, epochs: int = 1) -> bool:
        """Say whether no step fits in after the next one, or after the next one of each of so many epochs.

        Two where the next step ends its epoch: what follows it would have to be an epoch of its own, and
        without one this step is the last, and its rate the schedule's end.
        """
        return self.spent + epochs * (self.step_seconds + self.validation_seconds) >= self.seconds

    def _look(self) -> None:
        self.spent += self._watch.look()


class _Watch:
    """Seconds since the last look; where the clock stood is of no use to a resumed training."""

    def __init__(self, clock: Callable[[], Any]) -> None:
        self._clock, self._last = clock, float(clock())

    def look(self) -> float:
        now = float(self._clock())
        seconds, self._last = now - self._last, now
        return seconds
