"""The training loop: epochs of steps, each told as an event. It owns no logging.

    for each epoch      reset the sums · steps · validation
        for each step   rate of this step · forward, loss, backward, update (trainer.py)

Whoever runs the generator hands each event to the listeners; Keras's callbacks are one of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convscope.training.events import (
    EpochBegin,
    EpochEnd,
    Event,
    StepBegin,
    StepEnd,
    TrainBegin,
    TrainEnd,
    ValidationBegin,
    ValidationEnd,
    ValidationStepBegin,
    ValidationStepEnd,
    diverged,
)

if TYPE_CHECKING:
    from convscope.training.data import Feed
    from convscope.training.schedules import Schedule
    from convscope.training.step import Trainer

LOGGING_INTERVAL = 50  # steps between two looks at whether the loss is finite
_STEPS_OF_AN_UNKNOWN_EPOCH = 1_000_000  # keeps the numbers of steps apart where nobody knows how many come


@dataclass(frozen=True)
class Course:
    """Where a training begins and ends, and what else happens on the way.

    Attributes
    ----------
    epochs : int
        The epoch before which it ends, counted from 0.
    first_epoch, first_step : int
        Where it begins: at the start, or where an earlier training stopped.
    sums : sequence of arrays
        Running sums of the metrics at ``first_step``; empty at the beginning of an epoch.
    validation : Feed or None
        The validation's batches.
    validation_freq : int or sequence of int
        Every how many epochs, or after which ones, counted from 1.
    schedule : Schedule or None
        The rate of each step.
    stop_on_divergence : bool
        Whether a loss that is no number ends the training with an error.
    """

    epochs: int
    first_epoch: int = 0
    first_step: int = 0
    sums: Sequence[Any] = ()
    validation: Feed | None = None
    validation_freq: int | Sequence[int] = 1
    schedule: Schedule | None = None
    stop_on_divergence: bool = False

    def validates(self, epoch: int) -> bool:
        """Say whether an epoch, counted from 0, ends with validation."""
        if isinstance(self.validation_freq, int):
            return (epoch + 1) % self.validation_freq == 0
        return epoch + 1 in self.validation_freq


def train(trainer: Trainer, feed: Feed, course: Course) -> Iterator[Event]:
    """Train from the beginning of the course to its end, or until the trainer is told to stop.

    Parameters
    ----------
    trainer : Trainer
        Does the steps.
    feed : Feed
        The batches.
    course : Course
        From where to where.

    Yields
    ------
    Event
        What just happened, or is about to.

    Raises
    ------
    DivergedError
        When the loss is no longer finite and the course says to stop then.
    """
    began = time.perf_counter()
    logs: Mapping[str, float] = {}
    yield TrainBegin("fast", course.first_epoch, course.epochs, feed.steps, trainer.plan)
    for epoch in range(course.first_epoch, course.epochs):
        logs = yield from _train_epoch(trainer, feed, course, epoch)
        if trainer.stop_requested:
            break
    trainer.finish()
    yield TrainEnd(logs, time.perf_counter() - began)


def _train_epoch(
    trainer: Trainer, feed: Feed, course: Course, epoch: int
) -> Generator[Event, None, dict[str, float]]:
    """Train one epoch and validate; returns its logs."""
    began = time.perf_counter()
    first_step = course.first_step if epoch == course.first_epoch else 0
    trainer.begin_epoch(epoch, course.sums if first_step else ())
    yield EpochBegin(epoch)
    yield from _train_steps(trainer, feed, course, epoch, first_step)
    logs = dict(trainer.read_logs())
    if course.validation is not None and course.validates(epoch):
        validation_logs = yield from _validate(trainer, course.validation)
        logs |= {f"val_{name}": value for name, value in validation_logs.items()}
    yield EpochEnd(epoch, logs, time.perf_counter() - began, lambda: trainer.snapshot(epoch + 1, 0))
    return logs


def _train_steps(
    trainer: Trainer, feed: Feed, course: Course, epoch: int, first_step: int
) -> Iterator[Event]:
    """Do the steps of one epoch."""
    steps = feed.steps
    step = first_step - 1
    for step, batch in enumerate(feed.epoch(epoch, first_step), first_step):
        yield StepBegin(epoch, step)
        number = epoch * (steps or _STEPS_OF_AN_UNKNOWN_EPOCH) + step
        if course.schedule is not None:
            trainer.optimizer.set_rate(course.schedule(number))
        trainer.train_on(batch, number)
        if course.stop_on_divergence and (step + 1) % LOGGING_INTERVAL == 0:
            _require_finite(trainer, epoch, step)
        yield _step_end(trainer, epoch, step, steps)
        if trainer.stop_requested:
            break
    if course.stop_on_divergence:
        _require_finite(trainer, epoch, step)


def _step_end(trainer: Trainer, epoch: int, step: int, steps: int | None) -> StepEnd:
    return StepEnd(epoch, step, steps, trainer.read_logs, lambda: trainer.snapshot(epoch, step + 1))


def _validate(trainer: Trainer, feed: Feed) -> Generator[Event, None, dict[str, float]]:
    """Evaluate the validation data; returns the logs."""
    yield ValidationBegin()
    trainer.begin_validation()
    for step, batch in enumerate(feed.epoch(0)):
        yield ValidationStepBegin(step)
        trainer.evaluate_on(batch)
        yield ValidationStepEnd(step, trainer.read_logs)
        if trainer.stop_evaluating_requested:
            break
    logs = trainer.read_logs()
    yield ValidationEnd(logs)
    return logs


def _require_finite(trainer: Trainer, epoch: int, step: int) -> None:
    loss = trainer.read_loss()
    if not math.isfinite(loss):
        raise diverged(epoch, step, loss)
