"""Reading and writing what a Keras model and its optimizer hold, for resumption and for schedules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import torch
from numpy.typing import NDArray

from convscope.errors import RunError, UsageError, sentence
from convscope.training.schedule import Rate
from convscope.training.state import TrainingState


def snapshot(
    model: keras.Model,
    *,
    seed: int,
    epoch: int,
    step: int,
    history: Mapping[str, list[float]],
    metrics: Mapping[str, NDArray[Any]] | None = None,
    callbacks: Mapping[str, NDArray[Any]] | None = None,
) -> TrainingState:
    """Copy the training state out of a model that holds its current weights.

    Parameters
    ----------
    model : keras.Model
        Compiled and built.
    seed, epoch, step : int
        Where the training stands; see :class:`~convscope.training.state.TrainingState`.
    history : mapping of str to list of float
        What History holds.
    metrics : mapping of str to ndarray or None
        Running sums inside an epoch.
    callbacks : mapping of str to ndarray or None
        What the callbacks remember.

    Returns
    -------
    TrainingState
        Copies; training may go on.
    """
    return TrainingState(
        seed,
        epoch,
        step,
        _named_values(model_variables(model)),
        _named_values(optimizer_variables(model.optimizer)),
        dict(metrics or {}),
        {name: list(values) for name, values in history.items()},
        dict(callbacks or {}),
        stopped=bool(model.stop_training),
    )


def load_state(model: keras.Model, state: TrainingState) -> None:
    """Put a training state into a compiled model and its optimizer.

    Parameters
    ----------
    model : keras.Model
        The same network, compiled in the same way, as the state was taken from.
    state : TrainingState
        The state.

    Raises
    ------
    RunError
        When the model or the optimizer has other variables than the state.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    _assign("network", model_variables(model), state.weights)
    _assign("optimizer", optimizer_variables(model.optimizer), state.optimizer)


def model_variables(model: keras.Model) -> list[keras.Variable]:
    """List weights, moving statistics and seed states, without the metrics' variables."""
    metric_ids = {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in metric_ids]


def optimizer_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """List the optimizer's variables, those of a wrapped one included, in Keras's order."""
    inner = getattr(optimizer, "inner_optimizer", None)
    own = list(optimizer.variables)
    known = {id(variable) for variable in own}
    return own + [v for v in (inner.variables if inner else ()) if id(v) not in known]


def own_method(model: keras.Model, names: Sequence[str]) -> str | None:
    """Name the first of these methods that a model does not take from Keras.

    ``train_function`` and its like, which Keras makes when it first needs them, are looked at too.

    Examples
    --------
    >>> class Doubled(keras.Sequential):
    ...     def predict_step(self, data):
    ...         return 2 * super().predict_step(data)
    >>> own_method(Doubled(), ["fit", "predict_step"])
    'predict_step'
    """
    for name in names:
        found, usual = getattr(model, name, None), getattr(keras.Model, name, None)
        if usual is not None:
            is_own = getattr(found, "__func__", found) is not usual
        else:
            is_own = found is not None and "Trainer.make_" not in getattr(found, "__qualname__", "")
        if is_own:
            return name
    return None


def seed_layers(model: keras.Model, seed: int, epoch: int) -> None:
    """Make dropout and random layers a function of the seed and the absolute epoch.

    Layers to which the user gave a seed of their own keep it.
    """
    torch.manual_seed(_mix(seed, epoch, 0))
    for number, generator in enumerate(_seed_generators(model), start=1):
        if generator._initial_seed is None:
            generator.state.assign(np.array([_mix(seed, epoch, number), 0]))


def _mix(seed: int, epoch: int, number: int) -> int:
    """Draw a seed of 31 bits, which every back end's seed type holds."""
    return int(np.random.SeedSequence([seed, epoch, number]).generate_state(1)[0] >> 1)


def _seed_generators(model: keras.Model) -> Iterator[Any]:
    for layer in model._flatten_layers():
        yield from getattr(layer, "_seed_generators", ())


def set_rate(optimizer: keras.optimizers.Optimizer, rate: Rate) -> None:
    """Give an optimizer the learning rate and momentum of one step.

    Parameters
    ----------
    optimizer : keras.optimizers.Optimizer
        Its learning rate must be a number, not a Keras schedule.
    rate : Rate
        A momentum of None leaves the optimizer's own.

    Raises
    ------
    UsageError
        When the optimizer was made with a LearningRateSchedule, or has no momentum to set.
    """
    require_settable(optimizer, rate)
    optimizer.learning_rate = rate.learning_rate
    if rate.momentum is not None:
        setattr(optimizer, momentum_name(optimizer), rate.momentum)


def require_settable(optimizer: keras.optimizers.Optimizer, rate: Rate) -> None:
    """Refuse a schedule for an optimizer that cannot follow it; see :func:`set_rate`."""
    own = optimizer._learning_rate
    if not isinstance(own, keras.Variable):
        hint = "Leave out one of the two."
        expected = "a number as the optimizer's learning rate beside schedule"
        raise UsageError(sentence(expected, type(own).__name__, hint))
    if rate.momentum is not None and keras.backend.backend() != "torch":
        hint = "Use a schedule without momentum: a compiled step keeps the one that it was compiled with."
        raise UsageError(sentence("Keras on torch beside this schedule", keras.backend.backend(), hint))
    if rate.momentum is not None and not getattr(optimizer, momentum_name(optimizer), 0.0):
        hint = "Compile it with a momentum, or use a schedule without one."
        raise UsageError(sentence("an optimizer with momentum beside this schedule", optimizer.name, hint))


def momentum_name(optimizer: keras.optimizers.Optimizer) -> str:
    """Name the attribute that holds the optimizer's momentum: ``beta_1`` or ``momentum``."""
    return "beta_1" if hasattr(optimizer, "beta_1") else "momentum"


def _named_values(variables: Sequence[keras.Variable]) -> dict[str, NDArray[Any]]:
    values: dict[str, NDArray[Any]] = {}
    for variable in variables:
        name = variable.path
        while name in values:
            name += "'"
        values[name] = np.array(keras.ops.convert_to_numpy(variable.value))
    return values


def _assign(owner: str, variables: Sequence[keras.Variable], values: Mapping[str, NDArray[Any]]) -> None:
    """Assign by position: names may carry a number that depends on what else the process has built."""
    found = [tuple(value.shape) for value in values.values()]
    expected = [tuple(variable.shape) for variable in variables]
    if found != expected:
        raise RunError(sentence(f"a state of this {owner}, shapes {expected}", found))
    for variable, value in zip(variables, values.values(), strict=True):
        variable.assign(value)
