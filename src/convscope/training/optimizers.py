"""A Keras optimizer's whole step on the weights of a lowered network.

The slots are the Keras optimizer's own variables, updated in place; so the optimizer can be looked at, saved
and used by Keras at any time. What has no rule in :mod:`convscope.training.updates` runs through Keras.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import torch

from convscope.lowering.read_layers import is_altered
from convscope.training.keras_state import momentum_name, require_settable, set_rate
from convscope.training.schedule import Rate
from convscope.training.updates import RULES, TAKES_NARROW_GRADIENTS, Tensors, pick


def has_rule(optimizer: keras.optimizers.Optimizer) -> bool:
    """Say whether an optimizer is one of Keras's own that we have a rule for, neither subclass nor altered.

    Parameters
    ----------
    optimizer : keras.optimizers.Optimizer
        Any.

    Returns
    -------
    bool
        True where :class:`RuleStep` computes its update, False where Keras does.

    Examples
    --------
    >>> has_rule(keras.optimizers.Adam()), has_rule(keras.optimizers.Ftrl())
    (True, False)
    """
    kind = type(optimizer)
    ours = kind.__module__.startswith("keras.src.backend.torch.optimizers") and kind.__name__ in RULES
    return ours and not is_altered(optimizer)


class RuleStep:
    """One optimizer step by our own rules: clip, decay, update, average, constrain, count.

    Parameters
    ----------
    optimizer : keras.optimizers.Optimizer
        Built on at least these variables.
    variables : sequence of keras.Variable
        The trainable variables.
    weights : list of tensors
        Their values in the network, in the same order; leaves with a gradient.
    """

    def __init__(self, optimizer: Any, variables: Sequence[keras.Variable], weights: Tensors) -> None:
        optimizer._check_variables_are_known(variables)
        self._optimizer = optimizer
        self._variables, self._weights = variables, weights
        self._indices = [optimizer._get_variable_index(variable) for variable in variables]
        self._rule = RULES[type(optimizer).__name__](optimizer, self._slots)
        self._decayed = [n for n, v in enumerate(variables) if optimizer._use_weight_decay(v)]
        self._constrained = [n for n, v in enumerate(variables) if v.constraint is not None]
        self._sums = self._slots("_accumulated_gradients") if optimizer.gradient_accumulation_steps else []
        self._averages = self._slots("_model_variables_moving_average") if optimizer.use_ema else []
        self._counter = optimizer._iterations.value
        if type(optimizer).__name__ in TAKES_NARROW_GRADIENTS:
            for weight in weights:
                if not isinstance(weight, torch.nn.Parameter):  # those are the model's own
                    weight.grad_dtype = None
        self.refresh()

    def refresh(self) -> None:
        """Read anew what a callback may have set: the step count and the learning rate."""
        self._iterations = int(self._counter.item())
        rate = self._optimizer._learning_rate
        self._own_rate = float(rate.value.item()) if isinstance(rate, keras.Variable) else None

    def set_rate(self, rate: Rate) -> None:
        """Set the learning rate, and the momentum if it is given, for the next step."""
        require_settable(self._optimizer, rate)
        self._own_rate = float(np.float32(rate.learning_rate))
        self._optimizer._learning_rate.value.fill_(rate.learning_rate)
        if rate.momentum is not None:
            setattr(self._optimizer, momentum_name(self._optimizer), rate.momentum)

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Leave the loss: scaling and unscaling it cancel out in float32."""
        return loss

    @torch.no_grad()
    def __call__(self) -> None:
        """Update the weights by their gradients, and let the gradients go."""
        grads = [weight.grad for weight in self._weights]
        chosen = (
            None if all(g is not None for g in grads) else [n for n, g in enumerate(grads) if g is not None]
        )
        present = [grad for grad in grads if grad is not None]
        if present:
            self._apply(chosen, present)
        for weight in self._weights:
            weight.grad = None
        self._counter.add_(1)
        self._iterations += 1

    def _apply(self, chosen: Sequence[int] | None, grads: Tensors) -> None:
        period = self._optimizer.gradient_accumulation_steps
        if period or self._clips:
            grads = [grad.float() for grad in grads]
        if not period:
            self._update(chosen, grads, self._iterations + 1)
        elif (self._iterations + 1) % period == 0:
            sums = pick(self._sums, chosen)
            torch._foreach_add_(grads, sums)
            torch._foreach_div_(grads, period)
            self._update(chosen, grads, self._iterations // period + 1)
            torch._foreach_zero_(self._sums)
        else:
            torch._foreach_add_(pick(self._sums, chosen), grads)
        if self._averages:
            self._average()
        for number in self._constrained:
            weight = self._weights[number]
            weight.copy_(self._variables[number].constraint(weight))

    def _update(self, chosen: Sequence[int] | None, grads: Tensors, step: int) -> None:
        rate = self._learning_rate()
        self._clip(grads)
        if self._optimizer.weight_decay is not None:
            self._decay(chosen, rate)
        self._rule(chosen, pick(self._weights, chosen), grads, rate, step)

    def _learning_rate(self) -> float:
        if self._own_rate is not None:
            return self._own_rate
        rate = self._optimizer._learning_rate
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
            scales = [limit / norm.clamp_min(limit) for norm in torch._foreach_norm(grads)]
            torch._foreach_mul_(grads, scales)
        elif optimizer.global_clipnorm and optimizer.global_clipnorm > 0:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            scale = optimizer.global_clipnorm / norm.clamp_min(optimizer.global_clipnorm)
            torch._foreach_mul_(grads, scale + (norm - norm))  # an infinite norm gives NaN, as in Keras
        elif optimizer.clipvalue and optimizer.clipvalue > 0:
            torch._foreach_clamp_min_(grads, -optimizer.clipvalue)
            torch._foreach_clamp_max_(grads, optimizer.clipvalue)

    def _decay(self, chosen: Sequence[int] | None, rate: float) -> None:
        decayed = [n for n in self._decayed if chosen is None or n in chosen]
        factor = np.float32(1) - np.float32(self._optimizer.weight_decay) * np.float32(rate)
        if decayed:
            torch._foreach_mul_(pick(self._weights, decayed), float(factor))

    def _average(self) -> None:
        """Move the averages towards the weights, and the weights onto them where it is time."""
        updates = self._iterations // (self._optimizer.gradient_accumulation_steps or 1)
        momentum = self._optimizer.ema_momentum if updates else 0.0
        torch._foreach_mul_(self._averages, momentum)
        torch._foreach_add_(self._averages, self._weights, alpha=1 - momentum)
        frequency = self._optimizer.ema_overwrite_frequency
        if frequency and (updates + 1) % frequency == 0:
            torch._foreach_copy_(self._weights, self._averages)

    def _slots(self, name: str) -> Tensors:
        slots = getattr(self._optimizer, name)
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

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Scale the loss as the optimizer asks for."""
        scaled: torch.Tensor = self._optimizer.scale_loss(loss)
        return scaled

    @torch.no_grad()
    def __call__(self) -> None:
        """Update the weights by their gradients, and let the gradients go."""
        self._optimizer.apply([weight.grad for weight in self._weights], self._variables)
        for weight in self._weights:
            weight.grad = None


OptimizerStep = RuleStep | KerasStep


def plan_step(optimizer: Any, variables: Sequence[keras.Variable], weights: Tensors) -> OptimizerStep:
    """Choose how an optimizer's step is computed; parameters as for :class:`RuleStep`."""
    return (RuleStep if has_rule(optimizer) else KerasStep)(optimizer, variables, weights)
