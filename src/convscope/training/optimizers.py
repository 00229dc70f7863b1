"""A Keras optimizer's whole step on the weights of a lowered network, in Keras's own variables.

The slots are the Keras optimizer's own, updated in place by torch operations on lists of tensors; so the
optimizer can be looked at, saved and used by Keras at any time. Scalars are computed in float32, in the order
in which Keras computes them, so that rounding agrees too. What has no rule here runs through Keras.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import torch

from convscope import _keras_internals as internals
from convscope import _torch_internals as torch_internals
from convscope.errors import UsageError, expected_got
from convscope.lowering.cpu import compiled
from convscope.lowering.graph import is_altered
from convscope.lowering.kernels import copy_of, declare_copy_current
from convscope.training.schedules import Rate


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

    def __call__(self) -> None:
        """Update the weights by their gradients, let the gradients go, and count."""
        self.update(self.numbers(), self.step)
        self.advance()

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
        _add_scaled(self._averages, self._weights, rest)
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

    def update(self, _numbers: Numbers, _step: int | None = None) -> None:
        """Update the weights by their gradients, and let the gradients go."""
        self()

    def advance(self) -> None:
        """Do nothing: Keras has counted the step."""

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


Tensors = list[torch.Tensor]
Group = Tensors | tuple[torch.Tensor, ...]
Slots = Callable[[str], Tensors]
Number = float | torch.Tensor  # a tensor of shape () is read on the device, when the operation runs
Numbers = Sequence[Number]
Chosen = Sequence[int] | None  # the weights that have a gradient; None for all

# A moment this small moves no float32 weight; one sweep in this many steps keeps moments from denormals.
_NEGLIGIBLE = 1e-30
_SWEEP_EVERY = 32


class Rule:
    """One optimizer's update of all weights in place.

    ``moves`` says that a schedule sets the momentum at each step, too.
    """

    moves = False

    def refresh(self) -> None:
        """Read anew what a callback may have set in the optimizer's variables."""

    def numbers(self, rate: float, step: int) -> tuple[float, ...]:
        """Compute what an update takes that changes from step to step; updates are counted from 1."""
        del step
        return (rate,)

    def advance(self, step: int) -> None:
        """Note that an update is done."""

    def __call__(
        self, chosen: Chosen, weights: Tensors, grads: Tensors, numbers: Numbers, step: int | None
    ) -> None:
        """Update these weights by gradients in float32, or in bfloat16 where the rule takes those too."""
        raise NotImplementedError


def pick(tensors: Tensors, chosen: Chosen) -> Tensors:
    """Choose some of a list of tensors; None chooses all."""
    return tensors if chosen is None else [tensors[index] for index in chosen]


def sweep(moments: Tensors, step: int | None) -> None:
    """Set moments to zero that have become negligible, once in a while.

    A weight whose gradient has become exactly zero (behind dead units, or ones that every image saturates)
    keeps a moment that shrinks by a constant factor at each step, until it is a denormal number; and those
    take a processor many times as long. From the third epoch on they made Adam on the exercise's third
    network five times slower.
    """
    if step is not None and step % _SWEEP_EVERY == 0:
        for moment in moments:
            torch_internals.shrink_(moment, _NEGLIGIBLE)


class SGD(Rule):
    """Stochastic gradient descent, with momentum or Nesterov's (Sutskever et al. 2013, section 2)."""

    def __init__(self, optimizer: Any, slots: Slots) -> None:
        self._optimizer = optimizer
        self._velocities = slots("momentums") if optimizer.momentum != 0 else []

    def numbers(self, rate: float, step: int) -> tuple[float, ...]:  # noqa: ARG002, D102
        return -rate, self._optimizer.momentum

    def __call__(  # noqa: D102
        self, chosen: Chosen, weights: Tensors, grads: Tensors, numbers: Numbers, step: int | None
    ) -> None:
        fall, momentum = numbers
        if not self._velocities:
            _add_scaled(weights, grads, fall)
            return
        sweep(self._velocities, step)
        velocities = pick(self._velocities, chosen)
        torch_internals.foreach_mul_(velocities, momentum)
        _add_scaled(velocities, grads, fall)
        if self._optimizer.nesterov:
            _add_scaled(weights, grads, fall)
            _add_scaled(weights, velocities, momentum)
        else:
            torch_internals.foreach_add_(weights, velocities)


class Adam(Rule):
    """Adam and AdamW (Kingma and Ba 2015, the form without hats at the end of section 2).

    On a CPU a compiled loop does it, elsewhere and for AMSGrad torch's fused kernel: in one pass over memory.
    """

    # Torch's own bias correction is put out of action by a step count so large that it is 1; Keras's is
    # part of the learning rate. So epsilon stands where Keras has it.
    _UNCORRECTED = 1e30
    # Beside an epsilon this large, a square that is taken for zero is nothing, even under the root.
    _LEAST_EPSILON = 1e-9

    def __init__(self, optimizer: Any, slots: Slots) -> None:
        self._optimizer = optimizer
        self._moments, self._squares = slots("_momentums"), slots("_velocities")
        self._largest = slots("_velocity_hats") if optimizer.amsgrad else []
        self._in_loops = not self._largest and all(map(_is_plain, [*self._moments, *self._squares]))
        self._steps = [torch.tensor(self._UNCORRECTED, device=moment.device) for moment in self._moments]

    def numbers(self, rate: float, step: int) -> tuple[float, ...]:  # noqa: D102
        beta = self._optimizer.beta_1
        rate = corrected_rate(rate, beta, self._optimizer.beta_2, step)
        return (rate, beta, 1 - beta) if self.moves else (rate,)

    def __call__(  # noqa: D102
        self, chosen: Chosen, weights: Tensors, grads: Tensors, numbers: Numbers, step: int | None
    ) -> None:
        optimizer = self._optimizer
        may_vanish = optimizer.epsilon > self._LEAST_EPSILON
        if may_vanish and self._in_loops and all(map(_is_plain, weights)):
            shares = (optimizer.beta_1, 1 - optimizer.beta_1, optimizer.beta_2, 1 - optimizer.beta_2)
            settings = (float(numbers[0]), *shares, optimizer.epsilon)
            moments, squares = pick(self._moments, chosen), pick(self._squares, chosen)
            for weight, grad, moment, square in zip(weights, grads, moments, squares, strict=True):
                read = (grad if grad.dtype is torch.bfloat16 else grad.float()).contiguous()
                compiled.adam(weight, read, moment, square, settings, copy_of(weight))
            torch.autograd.graph.increment_version(weights)
            for weight in weights:
                declare_copy_current(weight)
            return
        if may_vanish:
            sweep([*self._moments, *self._squares], step)
        wide = [grad.float() for grad in grads]
        if isinstance(numbers[0], torch.Tensor) and self.moves:
            self._in_passes(chosen, weights, wide, numbers)
        else:
            self._fused(chosen, weights, wide, numbers[0])
        # It does not count as a change for torch; what is derived from the weights has to be made anew.
        torch.autograd.graph.increment_version(weights)

    def _in_passes(self, chosen: Chosen, weights: Tensors, grads: Tensors, numbers: Numbers) -> None:
        """Update where beta_1 is a tensor, which the fused kernel does not take."""
        rate, beta_1, rest = numbers
        moments, squares = pick(self._moments, chosen), pick(self._squares, chosen)
        torch_internals.foreach_mul_(moments, beta_1)
        _add_scaled(moments, grads, rest)
        _decay_towards_squares(squares, grads, self._optimizer.beta_2)
        if self._largest:
            largest = pick(self._largest, chosen)
            torch_internals.foreach_maximum_(largest, squares)
            squares = largest
        scales = torch_internals.foreach_add(torch_internals.foreach_sqrt(squares), self._optimizer.epsilon)
        steps = torch_internals.foreach_div(moments, scales)
        torch_internals.foreach_mul_(steps, rate)
        torch_internals.foreach_sub_(weights, steps)

    def _fused(self, chosen: Chosen, weights: Tensors, grads: Tensors, rate: Number) -> None:
        torch_internals.fused_adam_(
            weights,
            grads,
            pick(self._moments, chosen),
            pick(self._squares, chosen),
            pick(self._largest, chosen) if self._largest else [],
            pick(self._steps, chosen),
            lr=rate,
            beta1=self._optimizer.beta_1,
            beta2=self._optimizer.beta_2,
            weight_decay=0.0,
            eps=self._optimizer.epsilon,
            amsgrad=bool(self._largest),
            maximize=False,
        )


def _is_plain(tensor: torch.Tensor) -> bool:
    """Say whether a compiled loop can run along a tensor's numbers, side by side with others like it."""
    return tensor.dtype is torch.float32 and tensor.is_contiguous() and compiled.suits(tensor)


class Nadam(Rule):
    """Adam with Nesterov's momentum (Dozat 2016, algorithm 2, with the schedule of its section 3)."""

    def __init__(self, optimizer: Any, slots: Slots) -> None:
        self._optimizer = optimizer
        self._moments, self._squares = slots("_momentums"), slots("_velocities")
        self._product = internals.slots_of(optimizer, "_u_product").value
        self.refresh()

    def refresh(self) -> None:  # noqa: D102
        self._known = np.float32(self._product.item())

    def _momenta(self, step: int) -> tuple[np.float32, np.float32]:
        """Compute the momentum of an update, and of the one after it."""
        single = np.float32
        beta = single(self._optimizer.beta_1)
        now, ahead = (beta * (1 - single(0.5) * single(0.96) ** single(t)) for t in (step, step + 1))
        return now, ahead

    def numbers(self, rate: float, step: int) -> tuple[float, ...]:  # noqa: D102
        single = np.float32
        now, ahead = self._momenta(step)
        product = self._known * now
        scale = 1 - single(self._optimizer.beta_2) ** single(step)
        steps = rate * ahead / (1 - product * ahead), rate * (1 - now) / (1 - product)
        return float(now), *map(float, steps), float(scale)

    def advance(self, step: int) -> None:  # noqa: D102
        self._known = self._known * self._momenta(step)[0]

    def __call__(  # noqa: D102
        self, chosen: Chosen, weights: Tensors, grads: Tensors, numbers: Numbers, step: int | None
    ) -> None:
        del step
        now, of_moments, of_grads, scale = numbers
        self._product.mul_(now)
        moments, squares = pick(self._moments, chosen), pick(self._squares, chosen)
        _decay_towards(moments, grads, self._optimizer.beta_1)
        _decay_towards_squares(squares, grads, self._optimizer.beta_2)
        steps = torch_internals.foreach_mul(moments, of_moments)
        _add_scaled(steps, grads, of_grads)
        scales = torch_internals.foreach_div(squares, scale)
        _add_quotient(weights, steps, _root(scales, self._optimizer.epsilon), -1.0)


class RMSprop(Rule):
    """RMSprop, centered and with momentum on request (Tieleman and Hinton 2012; Graves 2013, section 4.2)."""

    def __init__(self, optimizer: Any, slots: Slots) -> None:
        self._optimizer = optimizer
        self._squares = slots("_velocities")
        self._means = slots("_average_gradients") if optimizer.centered else []
        self._velocities = slots("_momentums") if optimizer.momentum > 0 else []

    def numbers(self, rate: float, step: int) -> tuple[float, ...]:  # noqa: ARG002, D102
        return rate, -rate, self._optimizer.momentum

    def __call__(  # noqa: D102
        self, chosen: Chosen, weights: Tensors, grads: Tensors, numbers: Numbers, step: int | None
    ) -> None:
        del step
        rate, fall, momentum = numbers
        rho = self._optimizer.rho
        squares = pick(self._squares, chosen)
        _decay_towards_squares(squares, grads, rho)
        scales = torch_internals.foreach_add(squares, self._optimizer.epsilon)
        if self._means:
            means = pick(self._means, chosen)
            _decay_towards(means, grads, rho)
            torch_internals.foreach_addcmul_(scales, means, means, value=-1.0)
        torch_internals.foreach_sqrt_(scales)
        if not self._velocities:
            _add_quotient(weights, grads, scales, fall)
            return
        velocities = pick(self._velocities, chosen)
        torch_internals.foreach_mul_(velocities, momentum)
        _add_quotient(velocities, grads, scales, rate)
        torch_internals.foreach_sub_(weights, velocities)


class Adagrad(Rule):
    """Adagrad (Duchi et al. 2011), with epsilon under the root as Keras has it."""

    def __init__(self, optimizer: Any, slots: Slots) -> None:
        self._optimizer = optimizer
        self._squares = slots("_accumulators")

    def numbers(self, rate: float, step: int) -> tuple[float, ...]:  # noqa: ARG002, D102
        return (-rate,)

    def __call__(  # noqa: D102
        self, chosen: Chosen, weights: Tensors, grads: Tensors, numbers: Numbers, step: int | None
    ) -> None:
        del step
        squares = pick(self._squares, chosen)
        torch_internals.foreach_addcmul_(squares, grads, grads)
        scales = torch_internals.foreach_add(squares, self._optimizer.epsilon)
        torch_internals.foreach_sqrt_(scales)
        _add_quotient(weights, grads, scales, numbers[0])


class Lion(Rule):
    """Lion: the sign of an interpolated momentum (Chen et al. 2023, algorithm 2)."""

    def __init__(self, optimizer: Any, slots: Slots) -> None:
        self._optimizer = optimizer
        self._moments = slots("_momentums")

    def numbers(self, rate: float, step: int) -> tuple[float, ...]:  # noqa: ARG002, D102
        beta = self._optimizer.beta_1
        return -rate, beta, 1 - beta

    def __call__(  # noqa: D102
        self, chosen: Chosen, weights: Tensors, grads: Tensors, numbers: Numbers, step: int | None
    ) -> None:
        del step
        fall, beta, rest = numbers
        moments = pick(self._moments, chosen)
        directions = torch_internals.foreach_mul(moments, beta)
        _add_scaled(directions, grads, rest)
        torch_internals.foreach_sign_(directions)
        _add_scaled(weights, directions, fall)
        _decay_towards(moments, grads, self._optimizer.beta_2)


# The rules that read bfloat16 gradients as they are; the others get float32.
TAKES_NARROW_GRADIENTS = ("Adam", "AdamW")
RULES: dict[str, Callable[[Any, Slots], Rule]] = {
    "SGD": SGD,
    "Adam": Adam,
    "AdamW": Adam,
    "Nadam": Nadam,
    "RMSprop": RMSprop,
    "Adagrad": Adagrad,
    "Lion": Lion,
}


def corrected_rate(learning_rate: float, beta_1: float, beta_2: float, step: int) -> float:
    """Adam's learning rate with both bias corrections in it, in float32 as Keras computes it."""
    single = np.float32
    first = single(1) - single(beta_1) ** single(step)
    second = single(1) - single(beta_2) ** single(step)
    return float(single(learning_rate) * np.sqrt(second) / first)


def _decay_towards(means: Group, values: Group, decay: float) -> None:
    torch_internals.foreach_mul_(means, decay)
    torch_internals.foreach_add_(means, values, alpha=1 - decay)


def _decay_towards_squares(means: Group, values: Group, decay: float) -> None:
    torch_internals.foreach_mul_(means, decay)
    torch_internals.foreach_addcmul_(means, values, values, value=1 - decay)


def _root(squares: Group, epsilon: float) -> Group:
    torch_internals.foreach_sqrt_(squares)
    torch_internals.foreach_add_(squares, epsilon)
    return squares


def _add_quotient(targets: Group, numerators: Group, denominators: Group, factor: Number) -> None:
    if not isinstance(factor, torch.Tensor):
        torch_internals.foreach_addcdiv_(targets, numerators, denominators, value=factor)
        return
    quotients = torch_internals.foreach_div(numerators, denominators)
    torch_internals.foreach_mul_(quotients, factor)
    torch_internals.foreach_add_(targets, quotients)


def _add_scaled(targets: Group, values: Group, factor: Number) -> None:
    if isinstance(factor, torch.Tensor):
        torch_internals.foreach_add_(targets, torch_internals.foreach_mul(values, factor))
    else:
        torch_internals.foreach_add_(targets, values, alpha=factor)


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
        raise UsageError(
            expected_got("an optimizer with momentum beside this schedule", optimizer.name, hint)
        )


def momentum_name(optimizer: keras.optimizers.Optimizer) -> str:
    """Name the attribute that holds the optimizer's momentum: ``beta_1`` or ``momentum``."""
    return "beta_1" if hasattr(optimizer, "beta_1") else "momentum"
