"""The fast engine: a compiled Keras model, lowered, trained by the loop, its callbacks called on the way."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import keras
import torch

from convscope import _keras_internals as internals
from convscope.errors import LoweringError, UsageError, sentence
from convscope.lowering import LoweredNetwork, emit, lower, optimise, restore
from convscope.lowering.cpu.memory import keep_memory
from convscope.lowering.devices import current_device, device_of, forked_generators
from convscope.lowering.planner import PlanContext, adapt_plan, describe_precision, plan_of
from convscope.lowering.structure import ModelStructure
from convscope.training.callbacks import CallbackBridge, CallbackMemory
from convscope.training.checkpoint import TrainingState, load_state
from convscope.training.data import ArrayFeed, ArrayInput, StreamFeed, make_feed
from convscope.training.engine_keras import seed_layers
from convscope.training.events import Notice, is_mistake, reason_of
from convscope.training.loop import Course, train
from convscope.training.request import FitRequest, own_method, require_fitting
from convscope.training.step import Trainer

_NO_FURTHER_STEP = 1 << 62
_OWN_METHODS = (
    "fit",
    "train_step",
    "test_step",
    "compute_loss",
    "compute_metrics",
    "make_train_function",
    "make_test_function",
    "train_function",
    "test_function",
    "evaluate",
)


def obstacle(model: keras.Model) -> str | None:
    """Say why a compiled model's training cannot be lowered, whatever its layers are.

    Parameters
    ----------
    model : keras.Model
        Compiled.

    Returns
    -------
    str or None
        The reason, as the second half of a sentence; None where there is none.

    Examples
    --------
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", "mse", run_eagerly=True)
    >>> obstacle(model)
    'it was compiled with run_eagerly=True'
    """
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
    """Everything that a training on the fast engine needs, prepared; :meth:`run` trains.

    Parameters
    ----------
    request : FitRequest
        The checked arguments.

    Raises
    ------
    LoweringError
        When the model cannot be lowered; the message names what stands in the way.
    UsageError
        When there are no targets.
    """

    def __init__(self, request: FitRequest) -> None:
        _require_no_obstacle(request.model)
        self._request = request
        device = device_of(request.model) or current_device()
        if device.type == "cpu":
            keep_memory()
        self._feed = _training_feed(request, device)
        _build(request.model, self._feed)
        self._network = _lowered(request, device)
        self._feed.reset()
        self._structure, self._compiled = ModelStructure(request.model), _compiled(request.model)
        self._validation = _validation_feed(request, device)
        self._memory = CallbackMemory(request.callbacks)
        self._trainer = Trainer(
            request.model,
            self._network,
            request.seed,
            request.history.history,
            self._memory,
            strict=request.strict,
            prepare=self._prepare,
            give_up=self._give_up,
            seed_layers=self._seed_layers if request.seeded else None,
        )
        self._is_due, self._reason = False, ""
        self._leave = ExitStack()

    def run(self) -> keras.callbacks.History:
        """Train; afterwards the model holds the weights, also when a listener or a person breaks it off."""
        request = self._request
        if request.resume_from is not None:
            load_state(request.model, request.resume_from)
            request.history.history.update({k: list(v) for k, v in request.resume_from.history.items()})
        bridge = CallbackBridge(
            request.callbacks,
            request.history,
            request.model,
            epochs=request.epochs,
            steps=self._feed.steps,
            refresh=self._note,
        )
        request.model.stop_training = False
        try:
            bridge.begin()
            self._restore_callbacks()
            self._prepare()
            for event in train(self._trainer, self._feed, self._course()):
                bridge(event)
                request.tell(event)
        finally:
            self._leave.close()
            restore(self._network, request.model)
        request.history.engine = "keras" if self._reason else "fast"
        request.history.reason = self._reason or None
        return request.history

    def _restore_callbacks(self) -> None:
        """Give callbacks what they remembered, and the learning rate back that one of them has set."""
        state = self._request.resume_from
        self._memory.begin(None if state is None else state.callbacks)
        if state is not None:
            self._request.model.stop_training = state.stopped
            self._note()

    def _note(self) -> None:
        """Note that a callback may have changed something; what it is matters to the next batch only."""
        self._is_due = True

    def _prepare(self) -> None:
        """Follow what a callback may have done since the last batch."""
        if not self._is_due:
            return
        self._is_due = False
        try:
            self._refresh()
        except Exception as error:
            if is_mistake(error):
                raise
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Go on by Keras's own steps, in the same loop: no callback is called twice, no batch is lost."""
        if self._request.engine == "fast":
            raise error
        self._reason = reason_of(error)
        self._request.tell_of_keras(self._reason)
        if self._request.seeded:
            self._leave.enter_context(forked_generators(self._network.device))
        self._trainer.use_keras()

    def _seed_layers(self, epoch: int) -> None:
        seed_layers(self._request.model, self._request.seed, epoch)

    def _refresh(self) -> None:
        """Take over another learning rate, other settings, or a change of the model itself."""
        if not self._request.callbacks and not self._reason:
            self._trainer.optimizer.refresh()
            return
        model = self._request.model
        if self._reason:
            return
        if not all(map(operator.is_, _compiled(model), self._compiled)):
            hint = "Train in two calls, and compile between them."  # Keras's own fit breaks off, too
            raise UsageError(sentence("callbacks that leave a model compiled as it is", "compile", hint))
        if self._structure.is_current:
            self._trainer.refresh()
            return
        _require_no_obstacle(model)
        self._network = _lowered(self._request, self._network.device, self._network.plan)
        self._trainer.use(self._network)
        self._structure = ModelStructure(model)

    def _course(self) -> Course:
        request, state = self._request, self._request.resume_from
        course = Course(
            epochs=request.epochs,
            first_epoch=internals.initial_epoch(request.model) or request.initial_epoch,
            validation=self._validation,
            validation_freq=request.validation_freq,
            schedule=request.schedule,
            stop_on_divergence=request.stop_on_divergence,
        )
        return course if state is None else _resumed(course, state)


def _resumed(course: Course, state: TrainingState) -> Course:
    """Begin where a state stands; one that was told to stop only ends the epoch that it is in."""
    epochs, first_step = course.epochs, state.step
    if state.stopped:
        epochs, first_step = state.epoch + bool(state.step), _NO_FURTHER_STEP
    sums = list(state.metrics.values())
    return replace(course, epochs=epochs, first_epoch=state.epoch, first_step=first_step, sums=sums)


def _training_feed(request: FitRequest, device: torch.device) -> ArrayFeed | StreamFeed:
    return make_feed(
        request.train,
        request.plan,
        steps=request.steps_per_epoch,
        device=device,
        class_weight=request.class_weight,
        seed=request.seed if request.shuffle else None,
        augment=request.augment,
        first_epoch=request.initial_epoch,
    )


def _validation_feed(request: FitRequest, device: torch.device) -> ArrayFeed | StreamFeed | None:
    if request.validation is None:
        return None
    return make_feed(
        request.validation,
        request.validation_plan,
        steps=request.validation_steps,
        device=device,
        restarts=True,
    )


def _require_no_obstacle(model: keras.Model) -> None:
    reason = obstacle(model)
    if reason is not None:
        raise LoweringError(sentence("a model whose training can be lowered", f"one that cannot: {reason}"))


def _compiled(model: keras.Model) -> tuple[Any, ...]:
    """Collect what ``compile`` has made; another call of it makes others."""
    return (
        model.optimizer,
        internals.compiled_loss(model),
        internals.compiled_metrics(model),
        internals.mean_loss(model),
    )


def _build(model: keras.Model, feed: ArrayFeed | StreamFeed) -> None:
    """Let Keras build model, loss, metrics and optimizer from one batch's shapes, as its ``fit`` does."""
    internals.build(model, _fitting(model, feed.look()))


def _fitting(model: keras.Model, batches: Iterator[Any]) -> Iterator[Any]:
    """Refuse a batch that does not fit the model; nothing is read before somebody asks."""
    for first, last, data in batches:
        if data[0][1] is None:
            raise UsageError(sentence("targets y for the loss", "none"))
        require_fitting(model, ArrayInput(*data[0]))
        yield first, last, data


def _lowered(
    request: FitRequest, device: torch.device, earlier: Mapping[str, Any] | None = None
) -> LoweredNetwork:
    """Lower the model; ``earlier`` is the plan to keep where the training goes on with a changed model."""
    context = PlanContext(
        training=True,
        deterministic=request.deterministic or earlier is not None,
        precision=request.precision,
        batch_size=128 if request.plan is None else min(request.plan.batch_size, request.plan.rows),
        device=str(device),
    )
    program, _ = optimise(lower(request.model), **asdict(context))
    plan = request.lowering_plan
    if earlier is not None:
        plan = {name: earlier.get(name, chosen) for name, chosen in plan_of(program).items()}
    elif plan is not None:
        plan, changes = adapt_plan(plan, training=True, device=context.device)
        for change in changes:
            request.tell(Notice(change))
    network = emit(program, request.model, plan=plan)
    if earlier is None:
        request.tell(Notice(describe_precision(network.program, context)))
    return network
