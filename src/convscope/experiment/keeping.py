"""Keeping a training: checkpoints while it goes on, and an orderly end when somebody asks for one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np

from convscope.runs import RunDirectory, write_errors_named
from convscope.training.checkpoint import TrainingState, save_checkpoint
from convscope.training.events import EpochEnd, Event, StepEnd, TrainBegin

# A crash costs at most this much work; a checkpoint of the largest network here takes a tenth of a second.
SECONDS_BETWEEN_CHECKPOINTS = 30.0


class Keeper:
    """A listener that writes checkpoints and ends the training after the step in which a signal came.

    Parameters
    ----------
    run : RunDirectory
        Published with the first checkpoint, so that a crash leaves a run that can be resumed.
    record : dict
        What ``run.json`` holds; the fast engine's plan is added to it.
    stop_asked : callable
        Returns True once somebody asked for the end.
    seconds_before : float
        Training time of earlier sessions.
    """

    def __init__(
        self,
        run: RunDirectory,
        record: dict[str, Any],
        stop_asked: Callable[[], bool],
        seconds_before: float = 0.0,
    ) -> None:
        self._run, self._record, self._stop_asked = run, record, stop_asked
        self._seconds_before = seconds_before
        self._begin = self._last = time.perf_counter()

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, TrainBegin):
            self._begin = self._last = time.perf_counter()
            self._record["engine"] = event.engine
            self._record["plan"] = event.plan
        elif isinstance(event, StepEnd | EpochEnd):
            stop = self._stop_asked()
            long_ago = time.perf_counter() - self._last > SECONDS_BETWEEN_CHECKPOINTS
            # Keras's own fit can go on only where an epoch begins.
            inside = self._record["engine"] == "fast" and (stop or long_ago)
            if inside or isinstance(event, EpochEnd):
                self.save(event.snapshot())
            if stop:
                raise KeyboardInterrupt

    @property
    def seconds(self) -> float:
        """Training time so far, earlier sessions included."""
        return self._seconds_before + time.perf_counter() - self._begin

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint, unless the weights are no longer numbers: the last good one then stays."""
        if not _finite(state.weights):
            return
        if not self._run.published:
            self._run.write_json("run.json", self._record)
        arrays = {**state.to_arrays(), "seconds": np.array([self.seconds])}
        with write_errors_named(self._run.path):
            save_checkpoint(self._run.path, (state.epoch, state.step), arrays)
            self._run.publish()
        self._last = time.perf_counter()


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a request; a second one interrupts at once.

    Yields
    ------
    callable
        Returns True once a signal came; never outside the main thread, where Python handles none.

    Examples
    --------
    >>> with stop_on_signals() as stop_asked:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop_asked()
    True
    """
    asked = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finite(arrays: Mapping[str, Any]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays.values())
