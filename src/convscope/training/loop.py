"""The training loop: epochs of steps, each yielded as an event. It owns no logging.

    for each epoch      reset the sums · steps · validation
        for each step   rate of this step · forward, loss, backward, update (step.py)

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
    from convscope.training.feeds import ArrayFeed, StreamFeed
    from convscope.training.schedules import Schedule
    from convscope.training.step import Trainer

LOGGING_INTERVAL = 50  # steps between two looks at whether the loss is finite
_STEPS_OF_AN_UNKNOWN_EPOCH = 1_000_000  # keeps the numbers of steps apart where nobody knows how many come


@dataclass(frozen=True)
class LoopRange:
    """Where a training begins and ends, counted from 0, and what else happens on the way."""

    epochs: int  # the one before which it ends
    first_epoch: int = 0
    first_step: int = 0
    sums: Sequence[Any] = ()  # of the metrics at first_step; empty at the beginning of an epoch
    validation: ArrayFeed | StreamFeed | None = None
    validation_freq: int | Sequence[int] = 1  # every so many epochs, or after these, counted from 1
    schedule: Schedule | None = None
    stop_on_divergence: bool = False

    def validates(self, epoch: int) -> bool:
        """Say whether an epoch ends with validation."""
        if isinstance(self.validation_freq, int):
            return (epoch + 1) % self.validation_freq == 0
        return epoch + 1 in self.validation_freq


def train(trainer: Trainer, feed: ArrayFeed | StreamFeed, span: LoopRange) -> Iterator[Event]:
    """Train through the range, or until somebody sets ``model.stop_training``; yields what happens."""
    began = time.perf_counter()
    logs: Mapping[str, float] = {}
    yield TrainBegin("fast", span.first_epoch, span.epochs, feed.steps, trainer.plan)
    for epoch in range(span.first_epoch, span.epochs):
        logs = yield from _train_epoch(trainer, feed, span, epoch)
        if trainer.model.stop_training:
            break
    trainer.finish()
    yield TrainEnd(logs, time.perf_counter() - began)


def _train_epoch(
    trainer: Trainer, feed: ArrayFeed | StreamFeed, span: LoopRange, epoch: int
) -> Generator[Event, None, dict[str, float]]:
    """Train one epoch and validate; returns its logs."""
    began = time.perf_counter()
    first_step = span.first_step if epoch == span.first_epoch else 0
    trainer.begin_epoch(epoch, span.sums if first_step else ())
    yield EpochBegin(epoch)
    yield from _train_steps(trainer, feed, span, epoch, first_step)
    logs = dict(trainer.read_logs())
    if span.validation is not None and span.validates(epoch):
        validation_logs = yield from _validate(trainer, span.validation)
        logs |= {f"val_{name}": value for name, value in validation_logs.items()}
    yield EpochEnd(epoch, logs, time.perf_counter() - began, lambda: trainer.snapshot(epoch + 1, 0))
    return logs


def _train_steps(
    trainer: Trainer, feed: ArrayFeed | StreamFeed, span: LoopRange, epoch: int, first_step: int
) -> Iterator[Event]:
    """Do the steps of one epoch."""
    steps = feed.steps
    step = first_step - 1
    for step, batch in enumerate(feed.epoch(epoch, first_step), first_step):
        yield StepBegin(epoch, step)
        number = epoch * (steps or _STEPS_OF_AN_UNKNOWN_EPOCH) + step
        if span.schedule is not None:
            trainer.optimizer.set_rate(span.schedule(number))
        trainer.train_step(batch, number)
        if span.stop_on_divergence and (step + 1) % LOGGING_INTERVAL == 0:
            _require_finite(trainer, epoch, step)
        yield _step_end(trainer, epoch, step, steps)
        if trainer.model.stop_training:
            break
    if span.stop_on_divergence:
        _require_finite(trainer, epoch, step)


def _step_end(trainer: Trainer, epoch: int, step: int, steps: int | None) -> StepEnd:
    return StepEnd(epoch, step, steps, trainer.read_logs, lambda: trainer.snapshot(epoch, step + 1))


def _validate(trainer: Trainer, feed: ArrayFeed | StreamFeed) -> Generator[Event, None, dict[str, float]]:
    """Evaluate the validation data; returns the logs."""
    yield ValidationBegin()
    trainer.begin_validation()
    for step, batch in enumerate(feed.epoch(0)):
        yield ValidationStepBegin(step)
        trainer.test_step(batch)
        yield ValidationStepEnd(step, trainer.read_logs)
        if trainer.model.stop_evaluating:
            break
    logs = trainer.read_logs()
    yield ValidationEnd(logs)
    return logs


def _require_finite(trainer: Trainer, epoch: int, step: int) -> None:
    loss = trainer.read_loss()
    if not math.isfinite(loss):
        raise diverged(epoch, step, loss)
