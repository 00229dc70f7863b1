"""A Keras optimizer's whole step on the weights of a lowered network, in Keras's own variables.

The slots are the Keras optimizer's own, updated in place; so the optimizer can be looked at, saved and used
by Keras at any time. What has no rule in ``update_rules.py`` runs through Keras.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import torch

from convscope import _keras_internals as internals
from convscope import _torch_internals as torch_internals
from convscope.errors import UsageError, expected_got
from convscope.lowering.graph import is_altered
from convscope.training.schedules import Rate
from convscope.training.update_rules import (
    RULES,
    TAKES_NARROW_GRADIENTS,
    Chosen,
    Number,
    Numbers,
    Tensors,
    add_scaled,
    pick,
)


def has_rule(optimizer: keras.optimizers.Optimizer) -> bool:
    """Say whether there is a rule for an optimizer: one of Keras's own, neither subclass nor altered."""
    kind = type(optimizer)
    ours = internals.is_own_optimizer(optimizer) and kind.__name__ in RULES
    return ours and not is_altered(optimizer)


class RuleStep:
    """One optimizer step by our own rules: clip, decay, update, average, constrain, count.

    ``factors`` multiply the learning rate of each variable; variables with the same one are updated together.
    """

    def __init__(
        self,
        optimizer: Any,
        variables: Sequence[keras.Variable],
        weights: Tensors,
        factors: Sequence[float] | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._groups: dict[float, set[int]] = {}
        for number, factor in enumerate(factors or ()):
            self._groups.setdefault(factor, set()).add(number)
        self._variables, self._weights = variables, weights
        self._indices = internals.variable_indices(optimizer, variables)
        self._rule = RULES[type(optimizer).__name__](optimizer, self._slots)
        self._decayed = [n for n, v in enumerate(variables) if internals.decays(optimizer, v)]
        self._constrained = [n for n, v in enumerate(variables) if v.constraint is not None]
        self._sums = self._slots("_accumulated_gradients") if optimizer.gradient_accumulation_steps else []
        self._averages = self._slots("_model_variables_moving_average") if optimizer.use_ema else []
        self._counter = internals.step_counter(optimizer).value
        if type(optimizer).__name__ in TAKES_NARROW_GRADIENTS:
            for weight in weights:
                if not isinstance(weight, torch.nn.Parameter):  # those are the model's own
                    weight.grad_dtype = None
        self.refresh()

    def refresh(self) -> None:
        """Read anew what a callback may have set: the step count and the learning rate."""
        self._iterations = int(self._counter.item())
        self._rule.refresh()
        rate = internals.rate_of(self._optimizer)
        self._own_rate = float(rate.value.item()) if isinstance(rate, keras.Variable) else None

    def set_rate(self, rate: Rate) -> None:
        """Set the learning rate, and the momentum if it is given, for the next step."""
        require_settable(self._optimizer, rate)
        self._own_rate = float(np.float32(rate.learning_rate))
        internals.rate_of(self._optimizer).value.fill_(rate.learning_rate)
        if rate.momentum is not None:
            self._rule.moves = True
            setattr(self._optimizer, momentum_name(self._optimizer), rate.momentum)

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Leave the loss: scaling and unscaling it cancel out in float32."""
        return loss

    @property
    def phase(self) -> tuple[bool, bool]:
        """What an update consists of: whether weights move, and whether they become their averages."""
        frequency = int((self._averages and self._optimizer.ema_overwrite_frequency) or 0)
        return self._moves, frequency > 0 and (self._updates + 1) % frequency == 0

    def settings(self) -> dict[str, Any]:
        """Give what an update depends on, apart from what changes from step to step."""
        config: dict[str, Any] = self._optimizer.get_config()
        config.pop("learning_rate")
        if self._rule.moves:
            config.pop(momentum_name(self._optimizer))
        return config

    def numbers(self) -> list[float]:
        """Compute what the coming update takes that changes from step to step; nothing else does."""
        found: list[float] = []
        if self._moves:
            rate = self._learning_rate()
            for factor in self._groups or (None,):
                own = rate if factor is None else rate * factor
                found += [self._decay_factor(own), *self._rule.numbers(own, self.step)]
        momentum = self._optimizer.ema_momentum if self._averages and self._updates else 0.0
        return [*found, momentum, 1 - momentum]

    def advance(self) -> None:
        """Count a step whose update is done, or has been asked of the device."""
        if self._moves:
            self._rule.advance(self.step)
        self._iterations += 1

    @property
    def _period(self) -> int:
        return int(self._optimizer.gradient_accumulation_steps or 1)

    @property
    def _moves(self) -> bool:
        """Whether the coming update moves weights, and does not only add gradients up."""
        return (self._iterations + 1) % self._period == 0

    @property
    def _updates(self) -> int:
        return self._iterations // self._period

    @property
    def step(self) -> int:
        """The number of the coming update of the weights, from 1."""
        return self._updates + 1

    @torch.no_grad()
    def update(self, numbers: Numbers, step: int | None = None) -> None:
        """Update the weights by their gradients, and let the gradients go.

        ``numbers`` are those of :meth:`numbers`, or a tensor for each: then nothing that changes from step to
        step is read from Python. Without ``step``, moments that have become negligible stay.
        """
        grads = [weight.grad for weight in self._weights]
        chosen = (
            None if all(g is not None for g in grads) else [n for n, g in enumerate(grads) if g is not None]
        )
        present = [grad for grad in grads if grad is not None]
        if present:
            self._apply(chosen, present, numbers, step)
        for weight in self._weights:
            weight.grad = None
        self._counter.add_(1)

    def _apply(self, chosen: Chosen, grads: Tensors, numbers: Numbers, step: int | None) -> None:
        period = self._optimizer.gradient_accumulation_steps
        if period or self._clips:
            grads = [grad.float() for grad in grads]
        if not period:
            self._update(chosen, grads, numbers, step)
        elif self._moves:
            sums = pick(self._sums, chosen)
            torch_internals.foreach_add_(grads, sums)
            torch_internals.foreach_div_(grads, period)
            self._update(chosen, grads, numbers, step)
            torch_internals.foreach_zero_(self._sums)
        else:
            torch_internals.foreach_add_(pick(self._sums, chosen), grads)
        if self._averages:
            self._average(numbers[-2], numbers[-1])
        for number in self._constrained:
            weight = self._weights[number]
            weight.copy_(self._variables[number].constraint(weight))

    def _update(self, chosen: Chosen, grads: Tensors, numbers: Numbers, step: int | None) -> None:
        self._clip(grads)
        if not self._groups:
            self._update_together(chosen, grads, numbers[:-2], step)
            return
        members_first = range(len(self._weights)) if chosen is None else chosen
        each = (len(numbers) - 2) // len(self._groups)
        for place, members in enumerate(self._groups.values()):
            pairs = zip(members_first, grads, strict=True)
            group = [(number, grad) for number, grad in pairs if number in members]
            if group:
                some, theirs = (list(column) for column in zip(*group, strict=True))
                self._update_together(some, theirs, numbers[place * each : (place + 1) * each], step)

    def _update_together(self, chosen: Chosen, grads: Tensors, numbers: Numbers, step: int | None) -> None:
        if self._optimizer.weight_decay is not None:
            decayed = [n for n in self._decayed if chosen is None or n in chosen]
            if decayed:
                torch_internals.foreach_mul_(pick(self._weights, decayed), numbers[0])
        self._rule(chosen, pick(self._weights, chosen), grads, numbers[1:], step)

    def _learning_rate(self) -> float:
        if self._own_rate is not None:
            return self._own_rate
        rate = internals.rate_of(self._optimizer)
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            with keras.device("cpu"):  # on a GPU the number would have to be waited for
                return float(rate(torch.tensor(self._iterations)))
        return float(rate())

    @property
    def _clips(self) -> bool:
        optimizer = self._optimizer
        return bool(optimizer.clipnorm or optimizer.global_clipnorm or optimizer.clipvalue)

    def _clip(self, grads: Tensors) -> None:
        optimizer = self._optimizer
        if optimizer.clipnorm and optimizer.clipnorm > 0:
            limit = optimizer.clipnorm
            scales = [limit / norm.clamp_min(limit) for norm in torch_internals.foreach_norm(grads)]
            torch_internals.foreach_mul_(grads, scales)
        elif optimizer.global_clipnorm and optimizer.global_clipnorm > 0:
            norm = torch.linalg.vector_norm(torch.stack(torch_internals.foreach_norm(grads)))
            scale = optimizer.global_clipnorm / norm.clamp_min(optimizer.global_clipnorm)
            torch_internals.foreach_mul_(grads, scale + (norm - norm))
        elif optimizer.clipvalue and optimizer.clipvalue > 0:
            torch_internals.foreach_clamp_min_(grads, -optimizer.clipvalue)
            torch_internals.foreach_clamp_max_(grads, optimizer.clipvalue)

    def _decay_factor(self, rate: float) -> float:
        """Compute what decay multiplies weights by; unused where there is none."""
        decay = self._optimizer.weight_decay
        return 1.0 if decay is None else float(np.float32(1) - np.float32(decay) * np.float32(rate))

    def _average(self, momentum: Number, rest: Number) -> None:
        """Move the averages towards the weights, and the weights onto them where it is time."""
        torch_internals.foreach_mul_(self._averages, momentum)
        add_scaled(self._averages, self._weights, rest)
        if self.phase[1]:
            torch_internals.foreach_copy_(self._weights, self._averages)

    def _slots(self, name: str) -> Tensors:
        slots = internals.slots_of(self._optimizer, name)
        return [slots[index].value.detach() for index in self._indices]


class KerasStep:
    """One optimizer step through Keras itself, on Keras's variables; parameters as for :class:`RuleStep`."""

    def __init__(self, optimizer: Any, variables: Sequence[keras.Variable], weights: Tensors) -> None:
        self._optimizer, self._variables, self._weights = optimizer, list(variables), weights

    def refresh(self) -> None:
        """Do nothing: Keras reads its own variables at each step."""

    def set_rate(self, rate: Rate) -> None:
        """Set the learning rate, and the momentum if it is given, for the next step."""
        set_rate(self._optimizer, rate)

    phase, step = (), None  # Keras decides and counts itself

    def settings(self) -> dict[str, Any]:
        """Give nothing: Keras reads its settings at each step."""
        return {}

    def numbers(self) -> list[float]:
        """Give nothing: Keras reads its own variables at each step."""
        return []

    @torch.no_grad()
    def update(self, _numbers: Numbers, _step: int | None = None) -> None:
        """Update the weights by their gradients, and let the gradients go."""
        self._optimizer.apply([weight.grad for weight in self._weights], self._variables)
        for weight in self._weights:
            weight.grad = None

    def advance(self) -> None:
        """Do nothing: Keras has counted the step."""

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Scale the loss as the optimizer asks for."""
        scaled: torch.Tensor = self._optimizer.scale_loss(loss)
        return scaled


OptimizerStep = RuleStep | KerasStep


# These keep a number of their own that each update changes, so that an update cannot be made in parts.
_WHOLE_ONLY = ("Nadam",)


def plan_step(
    optimizer: Any,
    variables: Sequence[keras.Variable],
    weights: Tensors,
    factors: Sequence[float] | None = None,
) -> OptimizerStep:
    """Choose how an optimizer's step is computed; parameters as for :class:`RuleStep`."""
    kind = type(optimizer).__name__
    if has_rule(optimizer) and not (factors and kind in _WHOLE_ONLY):
        return RuleStep(optimizer, variables, weights, factors)
    if factors:
        able = ", ".join(name for name in RULES if name not in _WHOLE_ONLY)
        raise UsageError(expected_got(f"one of {able} beside rate_factors", kind))
    return KerasStep(optimizer, variables, weights)


def set_rate(optimizer: keras.optimizers.Optimizer, rate: Rate) -> None:
    """Give an optimizer the learning rate and momentum of one step."""
    require_settable(optimizer, rate)
    optimizer.learning_rate = rate.learning_rate
    if rate.momentum is not None:
        setattr(optimizer, momentum_name(optimizer), rate.momentum)


def require_settable(optimizer: keras.optimizers.Optimizer, rate: Rate) -> None:
    """Refuse a schedule for an optimizer that cannot follow it; see :func:`set_rate`."""
    own = internals.rate_of(optimizer)
    if not isinstance(own, keras.Variable):
        hint = "Leave out one of the two."
        expected = "a number as the optimizer's learning rate beside schedule"
        raise UsageError(expected_got(expected, type(own).__name__, hint))
    if rate.momentum is not None and keras.backend.backend() != "torch":
        hint = "Use a schedule without momentum: a compiled step keeps the one that it was compiled with."
        raise UsageError(expected_got("Keras on torch beside this schedule", keras.backend.backend(), hint))
    if rate.momentum is not None and not getattr(optimizer, momentum_name(optimizer), 0.0):
        hint = "Compile it with a momentum, or use a schedule without one."
        found = optimizer.name
        raise UsageError(expected_got("an optimizer with momentum beside this schedule", found, hint))


def momentum_name(optimizer: keras.optimizers.Optimizer) -> str:
    """Name the attribute that holds the optimizer's momentum: ``beta_1`` or ``momentum``."""
    return "beta_1" if hasattr(optimizer, "beta_1") else "momentum"
