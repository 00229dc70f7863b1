"""One call of ``fit``, sorted out and checked, as both engines read it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras

from convscope.errors import UsageError, sentence
from convscope.training.batches import BatchPlan, Shuffle, plan_batches
from convscope.training.config import require_count
from convscope.training.events import Event, Listener, Notice, tell
from convscope.training.inputs import ArrayInput, ImageAugmentation, Input, StreamInput, read_input
from convscope.training.schedule import Schedule
from convscope.training.state import TrainingState


@dataclass(frozen=True)
class FitRequest:
    """Everything that an engine needs to know; arguments keep their names from Keras's ``fit``."""

    model: keras.Model
    train: Input
    validation: Input | None
    plan: BatchPlan | None  # None for a stream
    validation_plan: BatchPlan | None
    epochs: int
    initial_epoch: int
    seed: int
    seeded: bool  # whether the user gave the seed: then dropout masks follow it too
    callbacks: Sequence[keras.callbacks.Callback] = ()
    listeners: tuple[Listener, ...] = ()
    shuffle: Shuffle = True
    augment: ImageAugmentation | None = None
    class_weight: Mapping[int, float] | None = None
    steps_per_epoch: int | None = None
    validation_steps: int | None = None
    validation_freq: int | Sequence[int] = 1
    schedule: Schedule | None = None
    resume_from: TrainingState | None = None
    stop_on_divergence: bool = False
    precision: str = "auto"
    deterministic: bool = False
    lowering_plan: Mapping[str, Any] | None = None
    device: str | None = None
    strict: bool = False
    engine: str = "auto"
    history: keras.callbacks.History = field(default_factory=keras.callbacks.History)

    def tell(self, event: Event) -> None:
        """Hand an event to every listener."""
        tell(self.listeners, event)

    def tell_of_keras(self, reason: str) -> None:
        """Say that Keras trains, and why it is not the fast engine."""
        text = f"Training with Keras's own fit. {reason}"
        if self.precision == "bfloat16":
            text += " It computes in the model's own types, not in bfloat16."
        self.tell(Notice(text))
        if not self.listeners:  # nobody has heard it
            warnings.warn(text, stacklevel=4)


def flatten_callbacks(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Give the callbacks as a list, whatever form Keras's ``fit`` takes them in."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    return keras.tree.flatten(callbacks) if callbacks else []


def resolve_seed(seed: int | None, resume_from: TrainingState | None) -> int:
    """Choose the seed of the order: the user's, the resumed training's, or one from Python's generator.

    Python's generator is the one that ``keras.utils.set_random_seed`` seeds.
    """
    if seed is not None:
        require_count("seed", seed, 0)
        return int(seed)
    if resume_from is not None:
        return resume_from.seed
    return random.randrange(2**31)  # noqa: S311  shuffling is not cryptography


def set_validation_apart(
    train: Input, validation_split: float, validation_data: Any
) -> tuple[Input, Input | None]:
    """Find the validation data: given, or the last rows of the training data.

    Parameters
    ----------
    train : Input
        What ``fit`` was given to train on; its preprocessing serves validation too.
    validation_split, validation_data : as Keras's ``fit`` takes them
        ``validation_data`` wins.

    Returns
    -------
    tuple of Input and Input or None
        What is left to train on, and the validation data if there is any.

    Raises
    ------
    UsageError
        When a stream is to be split, or the split leaves a side empty.
    """
    if validation_data is not None:
        parts = validation_data if isinstance(validation_data, (tuple, list)) else (validation_data,)
        if len(parts) > 3:
            expected = "validation_data of x, y and sample_weight"
            raise UsageError(sentence(expected, f"{len(parts)} parts"))
        x, y, sample_weight = (*parts, None, None)[:3]
        return train, read_input(x, y, sample_weight, train.preprocess)
    if not validation_split:
        return train, None
    if isinstance(train, StreamInput):
        hint = "Give validation_data instead."
        raise UsageError(sentence("arrays beside validation_split", type(train.batches).__name__, hint))
    return train.split(validation_split)


def plan_rows(
    data: Input | None,
    batch_size: int | None,
    steps: int | None,
    shuffle: Shuffle,
    seed: int,
    first_epoch: int = 0,
) -> BatchPlan | None:
    """Plan the batches of arrays; a stream, or nothing, has no plan."""
    if not isinstance(data, ArrayInput):
        return None
    return plan_batches(data.rows, batch_size, steps, shuffle, seed, first_epoch)


def plan_validation(data: Input | None, batch_size: int | None, steps: int | None) -> BatchPlan | None:
    """Plan the batches of validation: in the given order, each row at most once."""
    plan = plan_rows(data, batch_size, steps, False, 0)
    if plan is not None and plan.steps > plan.steps_per_pass:
        return replace(plan, steps_per_epoch=None)
    return plan
