"""Keras's callbacks: called at their moments, remembered in checkpoints; and two that end a training."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from convscope import _keras_internals as internals
from convscope.errors import RunError, UsageError, expected_got
from convscope.training.events import (
    EpochBegin,
    EpochEnd,
    Event,
    StepBegin,
    StepEnd,
    TrainEnd,
    ValidationBegin,
    ValidationEnd,
    ValidationStepBegin,
    ValidationStepEnd,
)
from convscope.training.schedules import Rate, Schedule


class CallbackBridge:
    """Calls Keras callbacks, each at its moment, and only those hooks that somebody has written.

    The model holds the current weights at every moment, because the network trains in their storage. What a
    callback sets there counts at once; ``refresh`` lets the optimizer read its learning rate anew.
    """

    def __init__(
        self,
        callbacks: Sequence[Any],
        history: keras.callbacks.History,
        model: keras.Model,
        *,
        epochs: int,
        steps: int | None,
        refresh: Callable[[], None],
    ) -> None:
        everyone = [*callbacks, history]
        self._list = keras.callbacks.CallbackList(
            everyone, model=model, verbose=0, epochs=epochs, steps=steps
        )
        self._refresh = refresh
        self._calls = {event: _wanted(everyone, *hooks) is not None for event, hooks in _OF_BATCHES.items()}

    def begin(self) -> None:
        """Start the training; a callback may load weights and name another first epoch."""
        self._list.on_train_begin()
        self._refresh()

    def __call__(self, event: Event) -> None:
        """Make the call that belongs to an event."""
        call = _HOOKS.get(type(event))
        if call is not None and self._calls.get(type(event), True):
            call(self._list, event)
            self._refresh()


_HOOKS: dict[type[Event], Callable[[Any, Any], Any]] = {
    StepBegin: lambda hooks, event: hooks.on_train_batch_begin(event.step),
    StepEnd: lambda hooks, event: hooks.on_train_batch_end(event.step, event.read_logs()),
    EpochBegin: lambda hooks, event: hooks.on_epoch_begin(event.epoch),
    EpochEnd: lambda hooks, event: hooks.on_epoch_end(event.epoch, dict(event.logs)),
    ValidationBegin: lambda hooks, event: hooks.on_test_begin(),  # noqa: ARG005
    ValidationStepBegin: lambda hooks, event: hooks.on_test_batch_begin(event.step),
    ValidationStepEnd: lambda hooks, event: hooks.on_test_batch_end(event.step, event.read_logs()),
    ValidationEnd: lambda hooks, event: hooks.on_test_end(dict(event.logs)),
    TrainEnd: lambda hooks, event: hooks.on_train_end(logs=dict(event.logs)),
}
_OF_BATCHES: dict[type[Event], tuple[str, ...]] = {
    StepBegin: ("on_train_batch_begin", "on_batch_begin"),
    StepEnd: ("on_train_batch_end", "on_batch_end"),
    ValidationStepBegin: ("on_test_batch_begin",),
    ValidationStepEnd: ("on_test_batch_end",),
}


def looks_at_batches(callbacks: Sequence[Any]) -> str | None:
    """Name a callback that is called for each batch; None where none is."""
    found = _wanted(callbacks, *(hook for hooks in _OF_BATCHES.values() for hook in hooks))
    return None if found is None else type(found).__name__


def _wanted(callbacks: Sequence[Any], *hooks: str) -> Any | None:
    """Find a callback that has written one of these hooks; calling the empty ones costs time."""
    for callback in callbacks:
        if any(not internals.is_default(getattr(callback, hook)) for hook in hooks):
            return callback
    return None


Arrays = dict[str, NDArray[Any]]

_NOT_STATE = frozenset({"_model", "model", "params", "_params", "validation_data"})
_VALUES = "values"
_ARRAY, _TUPLE = "<array>", "<tuple>"


class CallbackMemory:
    """Reads and writes the state of a training's callbacks."""

    def __init__(self, callbacks: Sequence[Any] = ()) -> None:
        counts: Counter[str] = Counter()
        self._callbacks: dict[str, Any] = {}
        for callback in callbacks:
            kind = type(callback).__name__
            self._callbacks[f"{kind}-{counts[kind]}"] = callback
            counts[kind] += 1
        self._first: dict[str, dict[str, Arrays]] = {}

    def begin(self, saved: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Take note of how the callbacks begin; then give them the state of an earlier session."""
        self._first = {name: _attributes(callback) for name, callback in self._callbacks.items()}
        states: dict[str, dict[str, Arrays]] = {}
        for key, array in (saved or {}).items():
            name, attribute, rest = key.split("/", 2)
            states.setdefault(name, {}).setdefault(attribute, {})[rest] = array
        missing = [name for name in states if name not in self._callbacks]
        if missing:
            expected = f"the callbacks of the training that is resumed, {', '.join(missing)} among them"
            raise RunError(expected_got(expected, ", ".join(self._callbacks) or "none"))
        for name, attributes in states.items():
            for attribute, arrays in attributes.items():
                setattr(self._callbacks[name], attribute, _decode(arrays))

    def read(self) -> Arrays:
        """Copy what the callbacks remember now; ``on_snapshot`` is called before, where there is one."""
        for callback in self._callbacks.values():
            getattr(callback, "on_snapshot", lambda: None)()
        return {
            f"{name}/{attribute}/{part}": array
            for name, callback in self._callbacks.items()
            for attribute, arrays in _attributes(callback).items()
            if not _same(arrays, self._first.get(name, {}).get(attribute))
            for part, array in arrays.items()
        }


def _attributes(callback: Any) -> dict[str, Arrays]:
    """Encode each attribute that can be."""
    encoded = {name: _encode(value) for name, value in vars(callback).items() if name not in _NOT_STATE}
    return {name: arrays for name, arrays in encoded.items() if arrays is not None}


def _encode(value: Any) -> Arrays | None:
    """Turn a value into a JSON text and the arrays in it; None where that cannot be."""
    arrays: Arrays = {}
    try:
        text = json.dumps(_plain(value, arrays))
    except TypeError:
        return None
    return {_VALUES: np.frombuffer(text.encode(), np.uint8), **arrays}


def _plain(value: Any, arrays: Arrays) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item(), arrays)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        arrays[f"{len(arrays):04d}"] = np.array(value)
        return {_ARRAY: f"{len(arrays) - 1:04d}"}
    if isinstance(value, list):
        return [_plain(item, arrays) for item in value]
    if isinstance(value, tuple):
        return {_TUPLE: [_plain(item, arrays) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, arrays) for key, item in value.items()}
    raise TypeError(type(value).__name__)


def _decode(arrays: Mapping[str, NDArray[Any]]) -> Any:
    def restored(value: dict[str, Any]) -> Any:
        if set(value) == {_ARRAY}:
            return np.array(arrays[value[_ARRAY]])
        return tuple(value[_TUPLE]) if set(value) == {_TUPLE} else value

    return json.loads(arrays[_VALUES].tobytes(), object_hook=restored)


def _same(first: Arrays, second: Arrays | None) -> bool:
    return (
        second is not None
        and first.keys() == second.keys()
        and all(np.array_equal(array, second[name]) for name, array in first.items())
    )


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
    >>> from convscope.training.schedules import Cosine
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
            raise UsageError(expected_got("seconds above 0 until the deadline", seconds))
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
