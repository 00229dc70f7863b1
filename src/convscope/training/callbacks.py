"""Keras's callbacks as a listener: each event becomes the call that Keras's own ``fit`` would make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras.src.utils import is_default

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


class CallbackBridge:
    """Calls Keras callbacks, each at its moment, and only those hooks that somebody has written.

    The model holds the current weights at every moment, because the network trains in their storage. What a
    callback sets there counts at once; ``refresh`` lets the optimizer read its learning rate anew.

    Parameters
    ----------
    callbacks : sequence of keras.callbacks.Callback
        The user's.
    history : keras.callbacks.History
        Called after them.
    model : keras.Model
        Compiled.
    epochs : int
        The epoch before which training ends.
    steps : int or None
        Batches in an epoch.
    refresh : callable
        Called after every callback.
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
        self._calls = {
            StepBegin: _wanted(everyone, "on_train_batch_begin", "on_batch_begin"),
            StepEnd: _wanted(everyone, "on_train_batch_end", "on_batch_end"),
            ValidationStepBegin: _wanted(everyone, "on_test_batch_begin"),
            ValidationStepEnd: _wanted(everyone, "on_test_batch_end"),
        }

    def begin(self) -> None:
        """Start the training; a callback may load weights and name another first epoch."""
        self._list.on_train_begin()
        self._refresh()

    def __call__(self, event: Event) -> None:
        """Make the call that belongs to an event."""
        if not self._calls.get(type(event), True):
            return
        if self._dispatch(event):
            self._refresh()

    def _dispatch(self, event: Event) -> bool:
        """Call the hooks; say whether there are any for this event."""
        callbacks = self._list
        match event:
            case StepBegin():
                callbacks.on_train_batch_begin(event.step)
            case StepEnd():
                callbacks.on_train_batch_end(event.step, event.read_logs())
            case EpochBegin():
                callbacks.on_epoch_begin(event.epoch)
            case EpochEnd():
                callbacks.on_epoch_end(event.epoch, dict(event.logs))
            case ValidationBegin():
                callbacks.on_test_begin()
            case ValidationStepBegin():
                callbacks.on_test_batch_begin(event.step)
            case ValidationStepEnd():
                callbacks.on_test_batch_end(event.step, event.read_logs())
            case ValidationEnd():
                callbacks.on_test_end(dict(event.logs))
            case TrainEnd():
                callbacks.on_train_end(logs=dict(event.logs))
            case _:
                return False
        return True


def _wanted(callbacks: Sequence[Any], *hooks: str) -> bool:
    """Say whether any callback has written one of these hooks; calling the empty ones costs time."""
    return any(not is_default(getattr(callback, hook)) for callback in callbacks for hook in hooks)
