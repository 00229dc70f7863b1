"""How each optimizer updates weights, in place, by torch operations on lists of tensors.

Scalars are computed in float32, in the order in which Keras computes them, so that rounding agrees too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from convscope import _keras_internals as internals
from convscope import _torch_internals as torch_internals
from convscope.lowering.cpu import compiled
from convscope.lowering.kernels import copy_of, declare_copy_current

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
    """One optimizer's update of all weights in place; a slot has a tensor for each weight, or none at all.

    ``moves`` says that a schedule sets the momentum at each step, too; ``sweeps`` that moments may vanish.
    """

    moves = sweeps = False

    def __init__(self, optimizer: Any, *slots: Tensors) -> None:
        self._optimizer, self._slots = optimizer, slots

    def refresh(self) -> None:
        """Read anew what a callback may have set in the optimizer's variables."""

    def numbers(self, rate: float, step: int) -> tuple[float, ...]:
        """Compute what an update takes that changes from step to step; updates are counted from 1."""
        raise NotImplementedError

    def advance(self, step: int) -> None:
        """Note that an update is done."""

    def __call__(
        self, chosen: Chosen, weights: Tensors, grads: Tensors, numbers: Numbers, step: int | None
    ) -> None:
        """Update these weights by gradients in float32, or in bfloat16 where the rule takes those too."""
        if self.sweeps:
            for slot in self._slots:
                sweep(slot, step)
        self._update(weights, grads, numbers, *(pick(slot, chosen) if slot else [] for slot in self._slots))

    def _update(self, weights: Tensors, grads: Tensors, numbers: Numbers, *slots: Tensors) -> None:
        """Update by the slots of these weights."""
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

    sweeps = True

    def __init__(self, optimizer: Any, slots: Slots) -> None:
        super().__init__(optimizer, slots("momentums") if optimizer.momentum != 0 else [])

    def numbers(self, rate: float, step: int) -> tuple[float, ...]:  # noqa: ARG002, D102
        return -rate, self._optimizer.momentum

    def _update(self, weights: Tensors, grads: Tensors, numbers: Numbers, *slots: Tensors) -> None:
        fall, momentum = numbers
        (velocities,) = slots
        if not velocities:
            add_scaled(weights, grads, fall)
            return
        torch_internals.foreach_mul_(velocities, momentum)
        add_scaled(velocities, grads, fall)
        if self._optimizer.nesterov:
            add_scaled(weights, grads, fall)
            add_scaled(weights, velocities, momentum)
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
        super().__init__(optimizer)
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
        # It does not count as a change for torch; what is derived from the weights has to be made again.
        torch.autograd.graph.increment_version(weights)

    def _in_passes(self, chosen: Chosen, weights: Tensors, grads: Tensors, numbers: Numbers) -> None:
        """Update where beta_1 is a tensor, which the fused kernel does not take."""
        rate, beta_1, rest = numbers
        moments, squares = pick(self._moments, chosen), pick(self._squares, chosen)
        torch_internals.foreach_mul_(moments, beta_1)
        add_scaled(moments, grads, rest)
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
        super().__init__(optimizer, slots("_momentums"), slots("_velocities"))
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

    def _update(self, weights: Tensors, grads: Tensors, numbers: Numbers, *slots: Tensors) -> None:
        now, of_moments, of_grads, scale = numbers
        self._product.mul_(now)
        moments, squares = slots
        _decay_towards(moments, grads, self._optimizer.beta_1)
        _decay_towards_squares(squares, grads, self._optimizer.beta_2)
        steps = torch_internals.foreach_mul(moments, of_moments)
        add_scaled(steps, grads, of_grads)
        scales = torch_internals.foreach_div(squares, scale)
        _add_quotient(weights, steps, _root(scales, self._optimizer.epsilon), -1.0)


class RMSprop(Rule):
    """RMSprop, centered and with momentum on request (Tieleman and Hinton 2012; Graves 2013, section 4.2)."""

    def __init__(self, optimizer: Any, slots: Slots) -> None:
        means = slots("_average_gradients") if optimizer.centered else []
        velocities = slots("_momentums") if optimizer.momentum > 0 else []
        super().__init__(optimizer, slots("_velocities"), means, velocities)

    def numbers(self, rate: float, step: int) -> tuple[float, ...]:  # noqa: ARG002, D102
        return rate, -rate, self._optimizer.momentum

    def _update(self, weights: Tensors, grads: Tensors, numbers: Numbers, *slots: Tensors) -> None:
        rate, fall, momentum = numbers
        squares, means, velocities = slots
        rho = self._optimizer.rho
        _decay_towards_squares(squares, grads, rho)
        scales = torch_internals.foreach_add(squares, self._optimizer.epsilon)
        if means:
            _decay_towards(means, grads, rho)
            torch_internals.foreach_addcmul_(scales, means, means, value=-1.0)
        torch_internals.foreach_sqrt_(scales)
        if not velocities:
            _add_quotient(weights, grads, scales, fall)
            return
        torch_internals.foreach_mul_(velocities, momentum)
        _add_quotient(velocities, grads, scales, rate)
        torch_internals.foreach_sub_(weights, velocities)


class Adagrad(Rule):
    """Adagrad (Duchi et al. 2011), with epsilon under the root as Keras has it."""

    def __init__(self, optimizer: Any, slots: Slots) -> None:
        super().__init__(optimizer, slots("_accumulators"))

    def numbers(self, rate: float, step: int) -> tuple[float, ...]:  # noqa: ARG002, D102
        return (-rate,)

    def _update(self, weights: Tensors, grads: Tensors, numbers: Numbers, *slots: Tensors) -> None:
        (squares,) = slots
        torch_internals.foreach_addcmul_(squares, grads, grads)
        scales = torch_internals.foreach_add(squares, self._optimizer.epsilon)
        torch_internals.foreach_sqrt_(scales)
        _add_quotient(weights, grads, scales, numbers[0])


class Lion(Rule):
    """Lion: the sign of an interpolated momentum (Chen et al. 2023, algorithm 2)."""

    def __init__(self, optimizer: Any, slots: Slots) -> None:
        super().__init__(optimizer, slots("_momentums"))

    def numbers(self, rate: float, step: int) -> tuple[float, ...]:  # noqa: ARG002, D102
        beta = self._optimizer.beta_1
        return -rate, beta, 1 - beta

    def _update(self, weights: Tensors, grads: Tensors, numbers: Numbers, *slots: Tensors) -> None:
        fall, beta, rest = numbers
        (moments,) = slots
        directions = torch_internals.foreach_mul(moments, beta)
        add_scaled(directions, grads, rest)
        torch_internals.foreach_sign_(directions)
        add_scaled(weights, directions, fall)
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


def add_scaled(targets: Group, values: Group, factor: Number) -> None:
    """Add values times a factor to targets, in place."""
    if isinstance(factor, torch.Tensor):
        torch_internals.foreach_add_(targets, torch_internals.foreach_mul(values, factor))
    else:
        torch_internals.foreach_add_(targets, values, alpha=factor)
