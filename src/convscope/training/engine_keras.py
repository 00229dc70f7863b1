"""Keras's own ``fit``, with convscope's order, events and resumption around it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import torch
from numpy.typing import NDArray

from convscope import _keras_internals as internals
from convscope.errors import UsageError, expected_got
from convscope.lowering.devices import current_device, forked_generators
from convscope.training.callbacks import CallbackMemory
from convscope.training.checkpoint import TrainingState, load_state, snapshot
from convscope.training.events import EpochBegin, EpochEnd, StepEnd, TrainBegin, TrainEnd, diverged
from convscope.training.feeds import ArrayFeed
from convscope.training.inputs import (
    ArrayInput,
    BatchPlan,
    PreparedDataset,
    StreamInput,
    first_batch,
    map_leaves,
    plan_batches,
    prepare_stream,
    read_input,
)
from convscope.training.optimizers import set_rate
from convscope.training.request import FitRequest, input_shape, require_fitting_images, with_checks

if TYPE_CHECKING:
    from convscope.augmentation import Augmentation


def run(request: FitRequest) -> keras.callbacks.History:
    """Train with Keras's ``fit``."""
    first_epoch = _first_epoch(request)
    train = _training_batches(request, first_epoch)
    setup = _EpochSetup(request, train, first_epoch)
    stopped = request.resume_from is not None and request.resume_from.stopped
    validation, steps = request.validation_plan, request.validation_steps
    if isinstance(train, PreparedDataset):
        internals.build(request.model, _look(train, request.class_weight))
    # Training that seeds the caller's generators leaves them as they were.
    with forked_generators(current_device()) if request.seeded else nullcontext():
        return request.model.fit(
            x=train,
            epochs=first_epoch if stopped else request.epochs,
            verbose=0,
            callbacks=[setup, *request.callbacks, request.history, _Reporter(request, setup)],
            validation_data=_validation_batches(request),
            shuffle=False,
            class_weight=request.class_weight,
            initial_epoch=first_epoch,
            steps_per_epoch=request.steps_per_epoch,
            validation_steps=steps if validation is None else validation.steps_per_epoch,
            validation_freq=request.validation_freq,
        )


class PlannedBatches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras is untyped
    """Arrays as a PyDataset of one pass whose batches follow a plan; the setup sets the epoch."""

    def __init__(self, data: ArrayInput, plan: BatchPlan, augment: Augmentation | None = None) -> None:
        super().__init__()
        self._plan, self._epoch = plan, plan.first_epoch
        # The same batches as the fast engine's, class weights aside, which Keras adds itself.
        self._feed = ArrayFeed(data, plan, None, torch.device("cpu"), augment)

    def __len__(self) -> int:
        return self._plan.steps_per_pass

    def begin_epoch(self, epoch: int) -> None:
        """Follow the plan's order of this epoch."""
        self._epoch = epoch

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        batch = self._feed.batch(self._epoch, index - self._plan.offset_of(self._epoch))
        x, y, weight = (map_leaves(torch.Tensor.numpy, part) for part in batch)
        if y is None:
            return (x,)
        return (x, y) if weight is None else (x, y, weight)


class _EpochSetup(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """First of the callbacks: sets order, randomness and learning rate before anybody else looks."""

    def __init__(self, request: FitRequest, train: Any, first_epoch: int) -> None:
        super().__init__()
        self.epoch = first_epoch
        self._request, self._train = request, train

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:  # noqa: ARG002  Keras's signature
        if self._request.resume_from is not None:
            load_state(self.model, self._request.resume_from)
            self._request.history.history = {
                name: list(values) for name, values in self._request.resume_from.history.items()
            }

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:  # noqa: ARG002
        self.epoch = epoch
        if isinstance(self._train, (PlannedBatches, PreparedDataset)):
            self._train.begin_epoch(epoch)
        if self._request.seeded:
            seed_layers(self.model, self._request.seed, epoch)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, float] | None = None) -> None:  # noqa: ARG002
        if self._request.schedule is not None and self._request.plan is not None:
            step = self.epoch * self._request.plan.steps + batch
            set_rate(self.model.optimizer, self._request.schedule(step))


class _Reporter(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """Last of the callbacks: turns Keras's calls into events, when the others have had their say."""

    def __init__(self, request: FitRequest, setup: _EpochSetup) -> None:
        super().__init__()
        self._request, self._setup = request, setup
        self._memory = CallbackMemory(request.callbacks)
        self._training_began = self._epoch_began = 0.0

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:  # noqa: ARG002
        self._training_began = time.perf_counter()
        request = self._request
        self._memory.begin(request.resume_from.callbacks if request.resume_from else None)
        first_epoch = internals.initial_epoch(self.model) or self._setup.epoch
        request.notify(TrainBegin("keras", first_epoch, request.epochs, self.params.get("steps")))

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:  # noqa: ARG002
        self._epoch_began = time.perf_counter()
        self._request.notify(EpochBegin(epoch))

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        logs = dict(logs or {})
        if self._request.stop_on_divergence and not math.isfinite(logs.get("loss", 0.0)):
            raise diverged(self._setup.epoch, batch, logs["loss"])
        epoch, steps = self._setup.epoch, self.params.get("steps")
        self._request.notify(
            StepEnd(epoch, batch, steps, lambda: logs, lambda: self._snapshot(epoch, batch + 1))
        )

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        seconds = time.perf_counter() - self._epoch_began
        logs = dict(logs or {})
        self._request.notify(EpochEnd(epoch, logs, seconds, lambda: self._snapshot(epoch + 1, 0)))

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        self._request.notify(TrainEnd(dict(logs or {}), time.perf_counter() - self._training_began))

    def _snapshot(self, epoch: int, step: int) -> TrainingState:
        return snapshot(
            self.model,
            seed=self._request.seed,
            epoch=epoch,
            step=step,
            history=self._request.history.history,
            callbacks=self._memory.read(),
        )


def _look(dataset: PreparedDataset, class_weight: Mapping[int, float] | None) -> Iterator[Any]:
    """Give the first batch for its shapes, when somebody asks; Keras ends the epoch that begins with it."""
    batch = keras.utils.unpack_x_y_sample_weight(first_batch(dataset, class_weight))
    yield 0, 0, [tuple(map_leaves(np.asarray, part) for part in batch)]


def _first_epoch(request: FitRequest) -> int:
    state = request.resume_from
    if state is None:
        return request.initial_epoch
    if state.step:
        hint = "Resume it with the fast engine, or from the end of an epoch."
        expected = "a state between two epochs for Keras's own fit"
        raise UsageError(expected_got(expected, f"step {state.step}", hint))
    if request.plan is not None and request.plan.offset_of(state.epoch):
        hint = "Resume it with the fast engine."
        found = f"step {request.plan.offset_of(state.epoch)} of a pass"
        expected = "a state between two passes over the data for Keras's own fit"
        raise UsageError(expected_got(expected, found, hint))
    return state.epoch


def _training_batches(request: FitRequest, first_epoch: int) -> Any:
    seed = request.seed if request.shuffle else None
    if isinstance(request.train, StreamInput):
        return prepare_stream(request.train, seed, request.steps_per_epoch, first_epoch)
    assert request.plan is not None  # noqa: S101  arrays always have a plan
    return PlannedBatches(request.train, request.plan, request.augment)


def _validation_batches(request: FitRequest) -> Any:
    if isinstance(request.validation, StreamInput):
        return prepare_stream(request.validation, None)
    if request.validation is None or request.validation_plan is None:
        return None
    return PlannedBatches(request.validation, request.validation_plan)


def predict(
    model: keras.Model,
    x: Any,
    batch_size: int | None,
    preprocess: Any = None,
    *,
    verbose: str | int = 0,
    steps: int | None = None,
    callbacks: Any = None,
) -> NDArray[np.float32]:
    """Compute a model's outputs with Keras's own ``predict``; see :func:`convscope.predict`."""
    data = read_input(x, None, None, preprocess)
    require_fitting_images(input_shape(model), data)
    if isinstance(data, ArrayInput):
        batches: Any = PlannedBatches(data, plan_batches(data.rows, batch_size, steps, False, 0))
    else:
        batches = prepare_stream(with_checks(model, data, "input", training=False), None)
    outputs = model.predict(batches, verbose=verbose, steps=steps, callbacks=callbacks)
    arrays: NDArray[np.float32] = keras.tree.map_structure(partial(np.asarray, dtype=np.float32), outputs)
    return arrays


def seed_layers(model: keras.Model, seed: int, epoch: int) -> None:
    """Make dropout and random layers a function of the seed and the absolute epoch.

    Layers to which the user gave a seed of their own keep it.
    """
    torch.manual_seed(_mix(seed, epoch, 0))
    for number, generator in enumerate(internals.seed_generators(model), start=1):
        if internals.is_unseeded(generator):
            generator.state.assign(np.array([_mix(seed, epoch, number), 0]))


def _mix(seed: int, epoch: int, number: int) -> int:
    """Draw a seed of 31 bits, which every back end's seed type holds."""
    return int(np.random.SeedSequence([seed, epoch, number]).generate_state(1)[0] >> 1)
