"""The learning rate as a pure function of the step, with the momentum that goes with it.

A schedule maps a step, counted from 0 over the whole training, to a :class:`Rate`. It knows nothing of
networks or optimizers, so that it can be drawn, tested and resumed anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from convscope.errors import UsageError, expected_got, unknown_name

NAMES = ("constant", "one-cycle", "cosine", "plateau")


@dataclass(frozen=True)
class Rate:
    """What an optimizer uses in one step.

    ``momentum`` is SGD's momentum or Adam's beta_1; None leaves the optimizer's own.
    """

    learning_rate: float
    momentum: float | None = None


# A step, counted from 0 over the whole training, gives a rate.
Schedule = Callable[[int], Rate]


@dataclass(frozen=True)
class Constant:
    """The same learning rate at every step.

    Examples
    --------
    >>> Constant(0.001)(1000).learning_rate
    0.001
    """

    learning_rate: float

    def __call__(self, step: int) -> Rate:  # noqa: ARG002  a schedule takes the step even if it is all the same
        """Give the rate of one step."""
        return Rate(self.learning_rate)


@dataclass(frozen=True)
class Cosine:
    """A linear warm-up, then half a cosine down to ``floor`` times the peak.

    Loshchilov and Hutter, SGDR (2017), section 3, without restarts.

    Examples
    --------
    >>> fall = Cosine(peak=0.1, steps=100)
    >>> fall(0).learning_rate, round(fall(50).learning_rate, 6), fall(100).learning_rate
    (0.1, 0.05, 0.0)
    """

    peak: float
    steps: int
    warmup_steps: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a schedule that cannot be."""
        _require_length(self.steps)
        if not 0 <= self.warmup_steps < self.steps:
            raise UsageError(expected_got(f"warm-up of 0 to {self.steps - 1} steps", self.warmup_steps))

    def __call__(self, step: int) -> Rate:
        """Give the rate of one step."""
        if step < self.warmup_steps:
            return Rate(self.peak * (step + 1) / self.warmup_steps)
        share = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return Rate(_between(self.peak, self.peak * self.floor, share))


@dataclass(frozen=True)
class OneCycle:
    """Up to the peak and down again along half cosines, the momentum the other way round.

    Smith and Topin, Super-Convergence (2018), section 2; the last part runs far below the start.

    Examples
    --------
    >>> cycle = OneCycle(peak=0.01, steps=100, momenta=(0.7, 0.9))
    >>> cycle(25)
    Rate(learning_rate=0.01, momentum=0.7)
    >>> round(cycle(0).learning_rate, 6)
    0.0004
    """

    peak: float
    steps: int
    rising: float = 0.25  # the share of the steps that rise
    start_divisor: float = 25.0  # the peak divided by it is the first rate
    end_divisor: float = 1e4  # and the last
    momenta: tuple[float, float] | None = None  # at the peak and at both ends; None for the optimizer's own

    def __post_init__(self) -> None:
        """Refuse a schedule that cannot be."""
        _require_length(self.steps)
        if not 0 < self.rising < 1:
            raise UsageError(expected_got("a rising share between 0 and 1", self.rising))

    def __call__(self, step: int) -> Rate:
        """Give the rate of one step."""
        summit = self.rising * self.steps
        at_peak, at_ends = self.momenta or (0.0, 0.0)
        if step < summit:
            share = step / summit
            rates, momenta = (self.peak / self.start_divisor, self.peak), (at_ends, at_peak)
        else:
            share = (step - summit) / (self.steps - summit)
            rates, momenta = (self.peak, self.peak / self.end_divisor), (at_peak, at_ends)
        momentum = None if self.momenta is None else _between(*momenta, share)
        return Rate(_between(*rates, share), momentum)


@dataclass(frozen=True)
class Plateau:
    """A rate that falls each time that the loss has not fallen for a while; see :func:`plateau_rate`.

    The history grows while the network trains; ``val_loss`` is watched, or ``loss`` without validation.

    Examples
    --------
    >>> history = {"val_loss": [0.5, 0.4]}
    >>> rate = Plateau(0.01, history)
    >>> history["val_loss"] += [0.41, 0.42]
    >>> rate(100).learning_rate
    0.005
    """

    learning_rate: float
    history: Mapping[str, Sequence[float]]

    def __call__(self, step: int) -> Rate:  # noqa: ARG002  a schedule takes the step even if it needs none
        """Give the rate of one step."""
        watched = self.history.get("val_loss", self.history.get("loss", ()))
        return Rate(plateau_rate(watched, self.learning_rate))


@dataclass(frozen=True)
class Exponential:
    """From a low to a high rate, by the same factor at each step: the range test of a learning rate.

    Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3; by factors, not by
    differences, because rates that are worth a look lie decades apart.

    Examples
    --------
    >>> rise = Exponential(1e-4, 1e-2, steps=3)
    >>> [round(rise(step).learning_rate, 6) for step in range(3)]
    [0.0001, 0.001, 0.01]
    """

    low: float
    high: float
    steps: int

    def __post_init__(self) -> None:
        """Refuse a schedule that cannot be."""
        _require_length(self.steps - 1)
        if not 0 < self.low < self.high:
            raise UsageError(expected_got("a low rate above 0 and a higher one", (self.low, self.high)))

    def __call__(self, step: int) -> Rate:
        """Give the rate of one step."""
        return Rate(self.low * (self.high / self.low) ** (step / (self.steps - 1)))


def make_schedule(
    name: str, learning_rate: float, steps: int, history: Mapping[str, Sequence[float]] | None = None
) -> Schedule | None:
    """Make a schedule by name."""
    if learning_rate <= 0:
        raise UsageError(expected_got("a learning rate above 0", learning_rate))
    if name not in NAMES:
        raise unknown_name("schedule", name, NAMES)
    if name == "constant":
        return None
    if name == "plateau":
        return Plateau(learning_rate, {} if history is None else history)
    if name == "cosine":
        return Cosine(learning_rate, steps)
    return OneCycle(learning_rate, steps)


def plateau_rate(losses: Sequence[float], learning_rate: float) -> float:
    """Halve the learning rate each time that the validation loss has not fallen by 1e-4 for two epochs.

    A pure function of the losses so far, so that a resumed training finds the same rate.
    """
    best, waited, rate = math.inf, 0, learning_rate
    for loss in losses:
        if loss < best - 1e-4:
            best, waited = loss, 0
            continue
        waited += 1
        if waited >= 2:
            rate, waited = rate / 2, 0
    return rate


def _between(start: float, end: float, share: float) -> float:
    """Move from start to end along half a cosine; shares outside 0 … 1 count as the nearer end."""
    share = min(max(share, 0.0), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _require_length(steps: int) -> None:
    if steps < 1:
        raise UsageError(expected_got("a schedule of at least 1 step", steps))
