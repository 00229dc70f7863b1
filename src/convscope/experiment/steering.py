"""How a training is steered: its length, its learning rate, and what may end it early."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convscope.data.weights import balanced_class_weights
from convscope.errors import UsageError, sentence
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.preparation import Prepared
from convscope.training.config import TrainingConfig
from convscope.training.schedules import Constant, Schedule, make_schedule

if TYPE_CHECKING:
    import keras

History = Mapping[str, list[float]]


@dataclass(frozen=True)
class Timetable:
    """What was reckoned with before a training that has a deadline; kept with the run.

    Attributes
    ----------
    seconds : float
        For the training, its last validation included.
    validation_seconds : float
        What one validation is expected to take.
    epochs : int
        How many are expected.
    """

    seconds: float
    validation_seconds: float
    epochs: int


@dataclass(frozen=True)
class Steering:
    """What :func:`convscope.fit` is given beside data and network."""

    epochs: int
    schedule: Schedule | None
    callbacks: list[Any]


def steer(
    model: keras.Model,
    config: ExperimentConfig,
    images: int,
    history: History,
    timetable: Timetable | None = None,
    *,
    validated: bool = True,
) -> Steering:
    """Make schedule and callbacks from the configuration.

    Parameters
    ----------
    model : keras.Model
        Compiled; its optimizer knows the learning rate.
    config : ExperimentConfig
        What was asked for.
    images : int
        How many are trained on.
    history : mapping of str to list of float
        Grows while the network trains.
    timetable : Timetable, optional
        Where there is a deadline.
    validated : bool
        Whether each epoch ends with a validation, by which the best one is known.

    Returns
    -------
    Steering
        A fresh one: callbacks remember.
    """
    training, rate = config.training, float(model.optimizer.learning_rate)
    callbacks = _stopping(training, validated)
    if timetable is None:
        steps = training.epochs * math.ceil(images / training.batch_size)
        schedule = make_schedule(training.schedule, rate, steps, history)
        return Steering(training.epochs, schedule, callbacks)
    from convscope.training.callbacks import Deadline

    schedule = make_schedule(training.schedule, rate, Deadline.STEPS, history) or Constant(rate)
    deadline = Deadline(timetable.seconds, schedule, validation_seconds=timetable.validation_seconds)
    return Steering(Deadline.EPOCHS, deadline, [*callbacks, deadline])


def class_weights(config: ExperimentConfig, prepared: Prepared) -> dict[int, float] | None:
    """Weigh the classes of the training images, where that was asked for."""
    if config.training.class_weights == "none":
        return None
    return balanced_class_weights(prepared.train.labels, len(prepared.class_names))


def require_validation(training: TrainingConfig, prepared: Prepared) -> None:
    """Refuse to stop by the validation where there is none.

    Raises
    ------
    UsageError
        If no images are held back.
    """
    if prepared.validation is not None:
        return
    for name, value in (("until", training.until), ("patience", training.patience)):
        if value is not None:
            hint = "Give a validation share above 0."
            raise UsageError(sentence(f"validation images to stop by with {name}", "none", hint))


def say_how_it_ended(
    training: TrainingConfig, history: History, ended: Mapping[str, float | None] | None = None
) -> list[str]:
    """Say in words why a training ended when it did, and which epoch's weights the network has.

    Parameters
    ----------
    training : TrainingConfig
        What was asked for.
    history : mapping of str to list of float
        A value for each epoch.
    ended : mapping, optional
        Where there was a deadline: the last ``learning_rate``, and the seconds ``after`` the begin, which
        a resumed training does not know.

    Returns
    -------
    list of str
        A sentence each; empty where nothing was asked for.

    Examples
    --------
    >>> say_how_it_ended(TrainingConfig(until=0.9), {"loss": [1, 1], "val_accuracy": [0.5, 0.8]})
    ['90% validation accuracy was not reached in 2 epochs: 80.00% at best, in epoch 2.']
    """
    lines = []
    if ended is not None:
        after = f" {ended['after']:.1f} s after the start" if ended["after"] else ""
        lines.append(f"The training ended{after}, at a learning rate of {ended['learning_rate']:.1e}.")
    reached = history.get("val_accuracy", [])
    if training.until is not None and reached:
        lines.append(_say_until(training.until, reached))
    kept = kept_epoch(training, history)
    if kept is not None:
        value = history[f"val_{training.monitor}"][kept - 1]
        shown = f"{value:.2%}" if training.monitor == "accuracy" else f"{value:.4f}"
        lines.append(
            f"The validation {training.monitor} was best in epoch {kept} of {len(history['loss'])}: {shown}. "
            "The network has the weights of that epoch."
        )
    elif training.keep == "best":
        lines.append("Without validation no epoch is the best: the network has the weights of the last one.")
    return lines


def kept_epoch(training: TrainingConfig, history: History) -> int | None:
    """Find the epoch whose weights the network has, counted from 1; None for the last one.

    Examples
    --------
    >>> kept_epoch(TrainingConfig(keep="best"), {"val_loss": [0.5, 0.3, 0.4]})
    2
    """
    watched = list(history.get(f"val_{training.monitor}", []))
    if training.keeps == "last" or not watched:
        return None
    return watched.index(max(watched) if training.monitor == "accuracy" else min(watched)) + 1


def _say_until(target: float, reached: Sequence[float]) -> str:
    best = max(reached)
    goal = f"{100 * target:.6g}% validation accuracy"
    if best >= target:
        return f"{goal} reached in epoch {len(reached)}: {best:.2%}."
    epoch = list(reached).index(best) + 1
    return f"{goal} was not reached in {len(reached)} epochs: {best:.2%} at best, in epoch {epoch}."


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
