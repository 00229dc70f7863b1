"""The fast engine: a compiled Keras model, lowered, trained in a loop, its callbacks called on the way.

    for each epoch      reset the sums · steps · validation
        for each step   rate of this step · forward, loss, backward, update (step.py)

The loop yields events and owns no logging; whoever runs it hands each event to the listeners.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import keras
import torch

from convscope import _keras_internals as internals
from convscope.errors import LoweringError, UsageError, expected_got
from convscope.lowering import LoweredNetwork, emit, lower, optimise, restore
from convscope.lowering.cpu import keep_memory
from convscope.lowering.devices import current_device, device_of, forked_generators
from convscope.lowering.planner import PlanContext, adapt_plan, describe_precision, plan_of
from convscope.lowering.structure import ModelStructure
from convscope.training import capture
from convscope.training.callbacks import CallbackBridge, CallbackMemory
from convscope.training.checkpoint import load_state
from convscope.training.distributed import require_apart
from convscope.training.events import (
    EngineChange,
    EpochBegin,
    EpochEnd,
    Event,
    Notice,
    StepBegin,
    StepEnd,
    TrainBegin,
    TrainEnd,
    ValidationBegin,
    ValidationEnd,
    ValidationStepBegin,
    ValidationStepEnd,
    diverged,
    is_mistake,
    reason_of,
)
from convscope.training.feeds import ArrayFeed, StreamFeed, make_feed
from convscope.training.inputs import ArrayInput
from convscope.training.request import METHODS_THAT_TRAIN, FitRequest, own_method, require_fitting
from convscope.training.step import Trainer

_NO_FURTHER_STEP = 1 << 62
LOGGING_INTERVAL = 50  # steps between two looks at whether the loss is finite
_STEPS_OF_AN_UNKNOWN_EPOCH = 1_000_000  # keeps the numbers of steps apart where nobody knows how many come
_OWN_METHODS = ("fit", *METHODS_THAT_TRAIN, "evaluate")


def obstacle(model: keras.Model) -> str | None:
    """Say why a compiled model's training cannot be lowered, whatever its layers are; None where it can."""
    name = own_method(model, _OWN_METHODS)
    if name is not None:
        return f"{type(model).__name__} has a {name} of its own"
    for name, value in (("run_eagerly", False), ("jit_compile", False), ("steps_per_execution", 1)):
        if getattr(model, name) != value:
            return f"it was compiled with {name}={getattr(model, name)}"
    if model.optimizer is None:
        return "it was compiled without an optimizer"
    if internals.compiled_loss(model) is None:
        return "it was compiled without a loss, so that only add_loss would train it"
    return None


class FastEngine:
    """A training, prepared: whoever makes one learns whether the model can be lowered; :meth:`run` trains.

    Raises LoweringError when the model cannot be lowered, UsageError when the first batch does not fit it.
    """

    def __init__(self, request: FitRequest) -> None:
        model = request.model
        _require_no_obstacle(model)
        self._request = request
        device = device_of(model) or current_device()
        if device.type == "cpu":
            keep_memory()
        self._feed = make_feed(
            request.train,
            request.plan,
            steps=request.steps_per_epoch,
            device=device,
            class_weight=request.class_weight,
            seed=request.seed if request.shuffle else None,
            augment=request.augment,
            first_epoch=request.initial_epoch,
            planned=capture.suits(device) and request.group is None,
            group=request.group,
        )
        internals.build(model, _fitting(model, self._feed.look()))
        self._network = _lowered(request, device)
        if request.group is not None:
            request.group.begin_alike(model)
            request.notify(Notice(request.group.describe()))
        self._feed.reset()
        self._structure, self._compiled = ModelStructure(model, self._network.program), _compiled(model)
        self._memory = CallbackMemory(request.callbacks)
        self._trainer = Trainer(request, self._network, self._memory, self._give_up)
        self._is_due, self._reason = False, ""
        self._leave = ExitStack()

    def run(self) -> keras.callbacks.History:
        """Train; afterwards the model holds the weights, also when a listener or a person breaks it off."""
        request, model, state = self._request, self._request.model, self._request.resume_from
        if state is not None:
            load_state(model, state)
            request.history.history.update({k: list(v) for k, v in state.history.items()})
        group, callbacks = request.group, request.callbacks
        bridge = CallbackBridge(
            callbacks if group is None else group.callbacks(callbacks),
            request.history,
            model,
            epochs=request.epochs,
            steps=self._feed.steps,
            refresh=self._note_changes,
        )
        model.stop_training = False
        try:
            bridge.begin()
            self._memory.begin(None if state is None else state.callbacks)
            if state is not None:
                model.stop_training = state.stopped
                self._note_changes()
            self._follow_changes()
            for event in self._train():
                bridge(event)
                request.notify(event)
                if group is not None and isinstance(event, EpochEnd):
                    group.stay_alike(model)
        finally:
            self._leave.close()
            restore(self._network, model)
        request.history.engine = "keras" if self._reason else "fast"
        request.history.reason = self._reason or None
        return request.history

    def _train(self) -> Iterator[Event]:
        """Train to the last epoch, or until somebody sets ``model.stop_training``; yields what happens."""
        request, trainer, state = self._request, self._trainer, self._request.resume_from
        epochs, first_epoch = request.epochs, internals.initial_epoch(request.model) or request.initial_epoch
        first_step, sums = 0, list[Any]()
        if state is not None:
            first_epoch, first_step, sums = state.epoch, state.step, list(state.metrics.values())
            if state.stopped:  # only ends the epoch that it is in
                epochs, first_step = state.epoch + bool(state.step), _NO_FURTHER_STEP
        validation = self._validation_feed()
        began = time.perf_counter()
        logs: Mapping[str, float] = {}
        yield TrainBegin("fast", first_epoch, epochs, self._feed.steps, trainer.plan)
        for epoch in range(first_epoch, epochs):
            trainer.begin_epoch(epoch, sums if first_step else ())
            logs = yield from self._train_epoch(epoch, first_step, validation)
            first_step = 0
            if trainer.model.stop_training:
                break
        trainer.finish()
        yield TrainEnd(logs, time.perf_counter() - began)

    def _train_epoch(
        self, epoch: int, first_step: int, validation: ArrayFeed | StreamFeed | None
    ) -> Generator[Event, None, dict[str, float]]:
        """Train one epoch from one of its steps on, and validate; returns its logs."""
        request, trainer = self._request, self._trainer
        began = time.perf_counter()
        yield EpochBegin(epoch)
        steps, step = self._feed.steps, first_step - 1
        for step, batch in enumerate(self._feed.epoch(epoch, first_step), first_step):
            yield StepBegin(epoch, step)
            number = epoch * (steps or _STEPS_OF_AN_UNKNOWN_EPOCH) + step
            if request.schedule is not None:
                trainer.optimizer.set_rate(request.schedule(number))
            self._follow_changes()
            trainer.train_step(batch, number)
            if request.stop_on_divergence and (step + 1) % LOGGING_INTERVAL == 0:
                _require_finite(trainer, epoch, step)
            yield StepEnd(epoch, step, steps, trainer.read_logs, partial(trainer.snapshot, epoch, step + 1))
            if trainer.model.stop_training:
                break
        if request.stop_on_divergence:
            _require_finite(trainer, epoch, step)
        logs = dict(trainer.read_logs())
        every = request.validation_freq  # so many epochs, or after these, counted from 1
        validates = (epoch + 1) % every == 0 if isinstance(every, int) else epoch + 1 in every
        if validation is not None and validates:
            validation_logs = yield from self._validate(validation)
            logs |= {f"val_{name}": value for name, value in validation_logs.items()}
        yield EpochEnd(epoch, logs, time.perf_counter() - began, lambda: trainer.snapshot(epoch + 1, 0))
        return logs

    def _validate(self, feed: ArrayFeed | StreamFeed) -> Generator[Event, None, dict[str, float]]:
        """Evaluate the validation data; returns the logs."""
        trainer = self._trainer
        yield ValidationBegin()
        trainer.begin_validation()
        for step, batch in enumerate(feed.epoch(0)):
            yield ValidationStepBegin(step)
            self._follow_changes()
            trainer.test_step(batch)
            yield ValidationStepEnd(step, trainer.read_logs)
            if trainer.model.stop_evaluating:
                break
        logs = trainer.read_logs()
        yield ValidationEnd(logs)
        return logs

    def _validation_feed(self) -> ArrayFeed | StreamFeed | None:
        request = self._request
        if request.validation is None:
            return None
        return make_feed(
            request.validation,
            request.validation_plan,
            steps=request.validation_steps,
            device=self._network.device,
            restarts=True,
            planned=capture.suits(self._network.device) and request.group is None,
            group=request.group,
        )

    def _note_changes(self) -> None:
        """Note that a callback may have changed something; what it is matters to the next batch only."""
        self._is_due = True

    def _follow_changes(self) -> None:
        """Take over what a callback may have set since the last batch: a rate, settings, the model itself."""
        if not self._is_due or self._reason:
            return
        self._is_due = False
        if not self._request.callbacks:
            self._trainer.optimizer.refresh()
            return
        model = self._request.model
        if not all(map(operator.is_, _compiled(model), self._compiled)):
            hint = "Train in two calls, and compile between them."  # Keras's own fit breaks off, too
            raise UsageError(expected_got("callbacks that leave a model compiled as it is", "compile", hint))
        try:
            if self._structure.is_current:
                self._trainer.refresh()
                return
            _require_no_obstacle(model)
            self._network = _lowered(self._request, self._network.device, self._network.plan)
            self._trainer.use(self._network)
            self._structure = ModelStructure(model, self._network.program)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Go on by Keras's own steps, in the same loop: no callback is called twice, no batch is lost."""
        if self._request.engine == "fast" or is_mistake(error):
            raise error
        if self._request.group is not None:
            raise self._request.group.refused(reason_of(error)) from error
        self._reason = reason_of(error)
        self._request.say_that_keras_trains(self._reason)
        self._request.notify(EngineChange("keras", self._reason))
        if self._request.seeded:
            self._leave.enter_context(forked_generators(self._network.device))
        self._trainer.use_keras()


def _require_no_obstacle(model: keras.Model) -> None:
    reason = obstacle(model)
    if reason is not None:
        expected = "a model whose training can be lowered"
        raise LoweringError(expected_got(expected, f"one that cannot: {reason}"))


def _compiled(model: keras.Model) -> tuple[Any, ...]:
    """Collect what ``compile`` has made; another call of it makes others."""
    return (
        model.optimizer,
        internals.compiled_loss(model),
        internals.compiled_metrics(model),
        internals.mean_loss(model),
    )


def _fitting(model: keras.Model, batches: Iterator[Any]) -> Iterator[Any]:
    """Refuse a batch that does not fit the model; nothing is read before somebody asks."""
    for first, last, data in batches:
        if data[0][1] is None:
            raise UsageError(expected_got("targets y for the loss", "none"))
        require_fitting(model, ArrayInput(*data[0]))
        yield first, last, data


def _lowered(
    request: FitRequest, device: torch.device, earlier: Mapping[str, Any] | None = None
) -> LoweredNetwork:
    """Lower the model; ``earlier`` is the plan to keep where the training goes on with a changed model."""
    group = request.group
    size = 128 if request.plan is None else min(request.plan.batch_size, request.plan.rows)
    context = PlanContext(
        training=True,
        # One process measures, for all.
        deterministic=request.deterministic or earlier is not None or not (group is None or group.leads),
        precision=request.precision,
        batch_size=size if group is None else -(-size // group.size),
        device=str(device),
    )
    program, _ = optimise(lower(request.model), **asdict(context))
    plan = request.lowering_plan
    if group is not None:
        plan = plan or group.same(plan_of(program))
    if earlier is not None:
        plan = {name: earlier.get(name, chosen) for name, chosen in plan_of(program).items()}
    elif plan is not None:
        plan, changes = adapt_plan(plan, training=True, device=context.device)
        for change in changes:
            request.notify(Notice(change))
    network = emit(program, request.model, plan=plan)
    if group is not None:
        require_apart(network)
    if earlier is None:
        request.notify(Notice(describe_precision(network.program, context)))
    return network


def _require_finite(trainer: Trainer, epoch: int, step: int) -> None:
    loss = trainer.read_loss()
    if not math.isfinite(loss):
        raise diverged(epoch, step, loss)
