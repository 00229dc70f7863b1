"""Training a prepared network: its schedule and what may end it early, its checkpoints, how it ended."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from convscope.data.dataset import Split, balanced_class_weights
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.preparation import Prepared
from convscope.preprocessing import one_hot
from convscope.runs import RunDirectory, write_errors_named, write_history
from convscope.training.checkpoint import TrainingState, save_checkpoint
from convscope.training.events import EngineChange, EpochEnd, Event, Listener, StepEnd, TrainBegin, notify
from convscope.training.schedules import Constant, Schedule, make_schedule

if TYPE_CHECKING:
    import keras

History = Mapping[str, list[float]]

# A crash costs at most this much work; a checkpoint of the largest network here takes a tenth of a second.
SECONDS_BETWEEN_CHECKPOINTS = 30.0


@dataclass(frozen=True)
class Timetable:
    """What was expected before a training that has a deadline; kept with the run.

    Seconds for the training with its last validation, seconds for one validation, and the number of epochs.
    """

    seconds: float
    validation_seconds: float
    epochs: int


@dataclass(frozen=True)
class Training:
    """What the training itself left behind: a history of the finished epochs; ``interrupted`` by Ctrl-C."""

    history: dict[str, list[float]]
    seconds: float
    interrupted: bool


def train(
    model: keras.Model,
    prepared: Prepared,
    config: ExperimentConfig,
    listeners: Sequence[Listener] = (),
    state: TrainingState | None = None,
    plan: Mapping[str, Any] | None = None,
    timetable: Timetable | None = None,
    rate_factors: Mapping[str, float] | None = None,
) -> Training:
    """Train a compiled model on the prepared data, validating each epoch; it holds the weights afterwards.

    ``state`` says where to go on, ``plan`` how the fast engine computed in an earlier session.
    """
    from convscope.training.api import fit

    classes = len(prepared.class_names)
    history = {name: list(values) for name, values in state.history.items()} if state else {}

    def remember(event: Event) -> None:
        if isinstance(event, EpochEnd):
            for name, value in event.logs.items():
                history.setdefault(name, []).append(float(value))

    def expect(event: Event) -> None:
        """Tell listeners how many epochs are expected, where the time alone decides."""
        if timetable and isinstance(event, TrainBegin):
            event = replace(event, epochs=timetable.epochs)
        notify(listeners, event)

    began = time.perf_counter()
    interrupted = False
    validated = prepared.validation is not None
    epochs, schedule, callbacks = schedule_and_callbacks(
        model, config, len(prepared.train), history, timetable, validated=validated
    )
    try:
        fit(
            model,
            *training_arrays(prepared),
            validation_data=_arrays(prepared.validation, classes) if prepared.validation else None,
            epochs=epochs,
            schedule=schedule,
            rate_factors=rate_factors,
            callbacks=callbacks,
            plan=plan,
            resume_from=state,
            listeners=[remember, expect],
            on_divergence="raise",
            verbose=0,
            **fit_arguments(config, prepared),
        )
    except KeyboardInterrupt:
        interrupted = True
    return Training(history, time.perf_counter() - began, interrupted)


def training_arrays(prepared: Prepared) -> tuple[Any, Any]:
    """Return the images that are trained on, uint8 ``(n, h, w, c)``, and their one-hot targets."""
    return _arrays(prepared.train, len(prepared.class_names))


def _arrays(part: Split, classes: int) -> tuple[Any, Any]:
    return part.images, one_hot(part.labels, classes)


def fit_arguments(config: ExperimentConfig, prepared: Prepared) -> dict[str, Any]:
    """Gather the arguments of ``fit`` that a dry run shares with the training itself."""
    training, weights = config.training, None
    if training.class_weights == "balanced":
        weights = balanced_class_weights(prepared.train.labels, len(prepared.class_names))
    return {
        "batch_size": training.batch_size,
        "seed": training.seed,
        "engine": training.engine,
        "precision": training.precision,
        "deterministic": training.deterministic,
        "preprocess": prepared.preprocess,
        "augment": config.augmentation,
        "class_weight": weights,
    }


def schedule_and_callbacks(
    model: keras.Model,
    config: ExperimentConfig,
    images: int,
    history: History,
    timetable: Timetable | None = None,
    *,
    validated: bool = True,
) -> tuple[int, Schedule | None, list[Any]]:
    """Make epochs, schedule and callbacks for one training of so many images; callbacks remember.

    ``history`` grows while the network trains; ``validated`` says whether each epoch ends with a validation,
    by which the best one is known.
    """
    training, rate = config.training, float(model.optimizer.learning_rate)
    callbacks = _stopping(training, validated)
    if timetable is None:
        steps = training.epochs * math.ceil(images / training.batch_size)
        return training.epochs, make_schedule(training.schedule, rate, steps, history), callbacks
    from convscope.training.callbacks import Deadline

    schedule = make_schedule(training.schedule, rate, Deadline.STEPS, history) or Constant(rate)
    deadline = Deadline(timetable.seconds, schedule, validation_seconds=timetable.validation_seconds)
    return Deadline.EPOCHS, deadline, [*callbacks, deadline]


def _stopping(training: TrainingConfig, validated: bool) -> list[Any]:
    """Make the callbacks that may end the training, and take the weights of its best epoch."""
    import keras

    from convscope.training.callbacks import Until

    callbacks: list[Any] = []
    if training.patience is not None or (training.keeps == "best" and validated):
        callbacks.append(
            keras.callbacks.EarlyStopping(
                monitor=f"val_{training.monitor}",
                mode="max" if training.monitor == "accuracy" else "min",
                patience=math.inf if training.patience is None else training.patience,
                restore_best_weights=training.keeps == "best",
            )
        )
    if training.until is not None:
        callbacks.append(Until(training.until))
    return callbacks


class CheckpointListener:
    """Writes checkpoints, and ends the training after the step in which a signal came.

    The first checkpoint publishes the run, so that a crash leaves one that can be resumed. ``record`` is what
    ``run.json`` holds: the fast engine's plan is added to it. ``seconds_before`` is training time of earlier
    sessions.
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
        self._saves_inside = False

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, TrainBegin):
            self._begin = self._last = time.perf_counter()
            self._record["engine"] = event.engine
            self._record["plan"] = event.plan
            # Keras's own fit can go on only where an epoch begins.
            self._saves_inside = event.engine == "fast"
        elif isinstance(event, EngineChange):
            self._record["engine"] = event.engine
        elif isinstance(event, StepEnd | EpochEnd):
            stop = self._stop_asked()
            long_ago = time.perf_counter() - self._last > SECONDS_BETWEEN_CHECKPOINTS
            inside = self._saves_inside and (stop or long_ago)
            if inside or isinstance(event, EpochEnd):
                self._save(event.snapshot())
            if stop:
                raise KeyboardInterrupt

    def _save(self, state: TrainingState) -> None:
        """Write a checkpoint, unless the weights are no longer numbers: the last good one then stays."""
        if not all(np.isfinite(array).all() for array in state.weights.values()):
            return
        if not self._run.published:
            self._run.write_json("run.json", self._record)
        seconds = self._seconds_before + time.perf_counter() - self._begin
        arrays = {**state.to_arrays(), "seconds": np.array([seconds])}
        with write_errors_named(self._run.path):
            save_checkpoint(self._run.path, (state.epoch, state.step), arrays)
            write_history(self._run, state.history)  # so that a list of runs shows how far it has come
            self._run.publish()
        self._last = time.perf_counter()


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a request; a second one interrupts at once.

    Yields what returns True once a signal came; never outside the main thread, where Python handles none.
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


def say_how_it_ended(
    training: TrainingConfig,
    history: History,
    ended: Mapping[str, float | None] | None = None,
    *,
    head: bool = False,
    averaged: bool = False,
) -> list[str]:
    """Say why a training ended when it did, and which epoch's weights the network has.

    ``ended`` holds, where there was a deadline, the last ``learning_rate``, how many ``passes`` over the
    training images were made, and the seconds ``after`` the begin, which a resumed training does not know.
    Of a pretrained network the first row of the history is its ``head`` alone, the last may be ``averaged``.
    """
    rows = len(history.get("loss", []))
    epochs = f"{rows - head - averaged}{' of fine-tuning' if head else ''}"

    def named(row: int) -> str:
        if head and row == 1:
            return "with the head alone"
        return "with the average of the weights" if averaged and row == rows else f"in epoch {row - head}"

    lines = []
    if ended is not None:
        after = f" {ended['after']:.1f} s after the start" if ended["after"] else ""
        lines.append(f"The training ended{after}, at a learning rate of {ended['learning_rate']:.1e}.")
        passes = ended["passes"]
        if passes is not None and passes < 1:
            seen = f"The network has seen only {100 * passes:.2g}% of the training images"
            lines.append(f"{seen}: the time was too short. Give it more with --within, or a smaller network.")
    reached = history.get("val_accuracy", [])
    if training.until is not None and reached:
        best, goal = max(reached), f"{100 * training.until:.6g}% validation accuracy"
        if best >= training.until:
            lines.append(f"{goal} reached {named(reached.index(best) + 1)}: {best:.2%}.")
        else:
            missed = f"{goal} was not reached in {len(reached) - head - averaged} epochs"
            lines.append(f"{missed}: {best:.2%} at best, {named(reached.index(best) + 1)}.")
    kept = kept_epoch(training, history)
    if head and kept == 1:
        pass  # the comparison with fine-tuning has said it
    elif kept is not None:
        value = history[f"val_{training.monitor}"][kept - 1]
        shown = f"{value:.2%}" if training.monitor == "accuracy" else f"{value:.4f}"
        lines.append(
            f"The validation {training.monitor} was best {named(kept)} of {epochs}: {shown}. "
            "The network has the weights of that epoch."
        )
    elif training.keep == "best":
        lines.append("Without validation no epoch is the best: the network has the weights of the last one.")
    return lines


def kept_epoch(training: TrainingConfig, history: History) -> int | None:
    """Find the epoch whose weights the network has, counted from 1; None for the last one."""
    watched = list(history.get(f"val_{training.monitor}", []))
    if training.keeps == "last" or not watched:
        return None
    return watched.index(max(watched) if training.monitor == "accuracy" else min(watched)) + 1
