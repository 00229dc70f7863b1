"""Keras's update rules as in-place torch operations on lists of tensors.

Each rule is planned once over the optimizer's slots and then called at every step. Scalars are computed in
float32, in the order in which Keras computes them, so that rounding agrees too. ``chosen`` names the weights
that have a gradient; None stands for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from convscope.lowering.bfloat16_copies import copy_of, declare_current
from convscope.lowering.cpu import compiled

Tensors = list[torch.Tensor]
Group = Tensors | tuple[torch.Tensor, ...]
Slots = Callable[[str], Tensors]

# A moment this small moves no float32 weight; one sweep in this many steps keeps moments from denormals.
_NEGLIGIBLE = 1e-30
_SWEEP_EVERY = 32


class Rule(Protocol):
    """One optimizer's update of all weights at once."""

    def __call__(
        self, chosen: Sequence[int] | None, weights: Tensors, grads: Tensors, learning_rate: float, step: int
    ) -> None:
        """Update the weights in place; ``step`` counts the updates from 1.

        Gradients are float32, or bfloat16 where the rule is among ``TAKES_NARROW_GRADIENTS``.
        """
        ...


def pick(tensors: Tensors, chosen: Sequence[int] | None) -> Tensors:
    """Choose some of a list of tensors; None chooses all.

    Examples
    --------
    >>> pick([torch.tensor(1), torch.tensor(2)], [1])
    [tensor(2)]
    """
    return tensors if chosen is None else [tensors[index] for index in chosen]


def sweep(moments: Tensors, step: int) -> None:
    """Set moments to zero that have become negligible, once in a while.

    A weight whose gradient has become exactly zero (behind dead units, or ones that every image saturates)
    keeps a moment that shrinks by a constant factor at each step, until it is a denormal number; and those
    take a processor many times as long. From the third epoch on they made Adam on the exercise's third
    network five times slower.

    Parameters
    ----------
    moments : list of Tensor
        float32, changed in place.
    step : int
        The number of the update, counted from 1.

    Examples
    --------
    >>> moment = torch.tensor([1e-31, -1e-20, 0.5])
    >>> sweep([moment], step=32)
    >>> moment.tolist()[0]
    0.0
    """
    if step % _SWEEP_EVERY == 0:
        for moment in moments:
            torch.ops.aten.hardshrink.out(moment, _NEGLIGIBLE, out=moment)


class SGD:
    """Stochastic gradient descent, with momentum or Nesterov's (Sutskever et al. 2013, section 2)."""

    def __init__(self, optimizer: Any, slots: Slots) -> None:
        self._optimizer = optimizer
        self._velocities = slots("momentums") if optimizer.momentum != 0 else []

    def __call__(  # noqa: D102
        self, chosen: Sequence[int] | None, weights: Tensors, grads: Tensors, learning_rate: float, step: int
    ) -> None:
        if not self._velocities:
            torch._foreach_add_(weights, grads, alpha=-learning_rate)
            return
        sweep(self._velocities, step)
        momentum = self._optimizer.momentum
        velocities = pick(self._velocities, chosen)
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, grads, alpha=-learning_rate)
        if self._optimizer.nesterov:
            torch._foreach_add_(weights, grads, alpha=-learning_rate)
            torch._foreach_add_(weights, velocities, alpha=momentum)
        else:
            torch._foreach_add_(weights, velocities)


class Adam:
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

    def __call__(  # noqa: D102
        self, chosen: Sequence[int] | None, weights: Tensors, grads: Tensors, learning_rate: float, step: int
    ) -> None:
        optimizer = self._optimizer
        rate = corrected_rate(learning_rate, optimizer.beta_1, optimizer.beta_2, step)
        may_vanish = optimizer.epsilon > self._LEAST_EPSILON
        if may_vanish and self._in_loops and all(map(_is_plain, weights)):
            shares = (optimizer.beta_1, 1 - optimizer.beta_1, optimizer.beta_2, 1 - optimizer.beta_2)
            numbers = (rate, *shares, optimizer.epsilon)
            moments, squares = pick(self._moments, chosen), pick(self._squares, chosen)
            for weight, grad, moment, square in zip(weights, grads, moments, squares, strict=True):
                read = (grad if grad.dtype is torch.bfloat16 else grad.float()).contiguous()
                compiled.adam(weight, read, moment, square, numbers, copy_of(weight))
            torch.autograd.graph.increment_version(weights)
            for weight in weights:
                declare_current(weight)
        else:
            if may_vanish:
                sweep([*self._moments, *self._squares], step)
            self._fused(chosen, weights, [grad.float() for grad in grads], rate)
            # It does not count as a change for torch; what is derived from the weights has to be made anew.
            torch.autograd.graph.increment_version(weights)

    def _fused(self, chosen: Sequence[int] | None, weights: Tensors, grads: Tensors, rate: float) -> None:
        torch._fused_adam_(
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


class Nadam:
    """Adam with Nesterov's momentum (Dozat 2016, algorithm 2, with the schedule of its section 3)."""

    def __init__(self, optimizer: Any, slots: Slots) -> None:
        self._optimizer = optimizer
        self._moments, self._squares = slots("_momentums"), slots("_velocities")
        self._product = optimizer._u_product.value

    def __call__(  # noqa: D102
        self, chosen: Sequence[int] | None, weights: Tensors, grads: Tensors, learning_rate: float, step: int
    ) -> None:
        single = np.float32
        beta_1, beta_2 = single(self._optimizer.beta_1), single(self._optimizer.beta_2)
        now, ahead = (beta_1 * (1 - single(0.5) * single(0.96) ** single(t)) for t in (step, step + 1))
        self._product.mul_(float(now))
        product = single(self._product.item())
        moments, squares = pick(self._moments, chosen), pick(self._squares, chosen)
        _decay_towards(moments, grads, self._optimizer.beta_1)
        _decay_towards_squares(squares, grads, self._optimizer.beta_2)
        steps = torch._foreach_mul(moments, float(learning_rate * ahead / (1 - product * ahead)))
        torch._foreach_add_(steps, grads, alpha=float(learning_rate * (1 - now) / (1 - product)))
        scales = torch._foreach_div(squares, float(1 - beta_2 ** single(step)))
        _add_quotient(weights, steps, _root(scales, self._optimizer.epsilon), -1.0)


class RMSprop:
    """RMSprop, centered and with momentum on request (Tieleman and Hinton 2012; Graves 2013, section 4.2)."""

    def __init__(self, optimizer: Any, slots: Slots) -> None:
        self._optimizer = optimizer
        self._squares = slots("_velocities")
        self._means = slots("_average_gradients") if optimizer.centered else []
        self._velocities = slots("_momentums") if optimizer.momentum > 0 else []

    def __call__(  # noqa: D102
        self, chosen: Sequence[int] | None, weights: Tensors, grads: Tensors, learning_rate: float, step: int
    ) -> None:
        del step
        rho = self._optimizer.rho
        squares = pick(self._squares, chosen)
        _decay_towards_squares(squares, grads, rho)
        scales = torch._foreach_add(squares, self._optimizer.epsilon)
        if self._means:
            means = pick(self._means, chosen)
            _decay_towards(means, grads, rho)
            torch._foreach_addcmul_(scales, means, means, value=-1.0)
        torch._foreach_sqrt_(scales)
        if not self._velocities:
            _add_quotient(weights, grads, scales, -learning_rate)
            return
        velocities = pick(self._velocities, chosen)
        torch._foreach_mul_(velocities, self._optimizer.momentum)
        _add_quotient(velocities, grads, scales, learning_rate)
        torch._foreach_sub_(weights, velocities)


class Adagrad:
    """Adagrad (Duchi et al. 2011), with epsilon under the root as Keras has it."""

    def __init__(self, optimizer: Any, slots: Slots) -> None:
        self._optimizer = optimizer
        self._squares = slots("_accumulators")

    def __call__(  # noqa: D102
        self, chosen: Sequence[int] | None, weights: Tensors, grads: Tensors, learning_rate: float, step: int
    ) -> None:
        del step
        squares = pick(self._squares, chosen)
        torch._foreach_addcmul_(squares, grads, grads)
        scales = torch._foreach_add(squares, self._optimizer.epsilon)
        torch._foreach_sqrt_(scales)
        _add_quotient(weights, grads, scales, -learning_rate)


class Lion:
    """Lion: the sign of an interpolated momentum (Chen et al. 2023, algorithm 2)."""

    def __init__(self, optimizer: Any, slots: Slots) -> None:
        self._optimizer = optimizer
        self._moments = slots("_momentums")

    def __call__(  # noqa: D102
        self, chosen: Sequence[int] | None, weights: Tensors, grads: Tensors, learning_rate: float, step: int
    ) -> None:
        del step
        moments = pick(self._moments, chosen)
        directions = torch._foreach_mul(moments, self._optimizer.beta_1)
        torch._foreach_add_(directions, grads, alpha=1 - self._optimizer.beta_1)
        torch._foreach_sign_(directions)
        torch._foreach_add_(weights, directions, alpha=-learning_rate)
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
    """Adam's learning rate with both bias corrections in it, in float32 as Keras computes it.

    Parameters
    ----------
    learning_rate : float
        The rate before correction.
    beta_1, beta_2 : float
        Decay of the first and of the second moment.
    step : int
        Updates, counted from 1.

    Returns
    -------
    float
        lr · √(1 − β₂ᵗ) / (1 − β₁ᵗ)

    Examples
    --------
    >>> round(corrected_rate(0.001, 0.9, 0.999, 1), 6)
    0.000316
    """
    single = np.float32
    first = single(1) - single(beta_1) ** single(step)
    second = single(1) - single(beta_2) ** single(step)
    return float(single(learning_rate) * np.sqrt(second) / first)


def _decay_towards(means: Group, values: Group, decay: float) -> None:
    torch._foreach_mul_(means, decay)
    torch._foreach_add_(means, values, alpha=1 - decay)


def _decay_towards_squares(means: Group, values: Group, decay: float) -> None:
    torch._foreach_mul_(means, decay)
    torch._foreach_addcmul_(means, values, values, value=1 - decay)


def _root(squares: Group, epsilon: float) -> Group:
    torch._foreach_sqrt_(squares)
    torch._foreach_add_(squares, epsilon)
    return squares


def _add_quotient(targets: Group, numerators: Group, denominators: Group, factor: float) -> None:
    torch._foreach_addcdiv_(targets, numerators, denominators, value=factor)
