"""Which rows make which batch: a pure function of the seed, the absolute epoch and the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from convscope.errors import UsageError, sentence

Shuffle = bool | Literal["batch"]


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Permute the rows of one epoch.

    Parameters
    ----------
    seed : int
        The training's seed, at least 0.
    epoch : int
        The absolute epoch, counted from 0.
    count : int
        Number of rows.

    Returns
    -------
    ndarray of int64, shape (count,)
        A permutation of ``0 … count - 1``, read-only; the same for the same arguments on every machine.

    Examples
    --------
    >>> sorted(epoch_order(1338, 0, 5).tolist())
    [0, 1, 2, 3, 4]
    >>> bool((epoch_order(1338, 0, 50) == epoch_order(1338, 1, 50)).all())
    False
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.flags.writeable = False  # the cache hands the same array to everybody
    return order


def first_epoch_of_pass(epoch: int, first_epoch: int, steps: int, steps_per_pass: int) -> int:
    """Name the epoch that begins the pass over the data in which an epoch lies.

    Examples
    --------
    >>> [first_epoch_of_pass(epoch, 0, 3, 7) for epoch in range(5)]
    [0, 0, 0, 3, 3]
    """
    return epoch - (epoch - first_epoch) % math.ceil(steps_per_pass / steps)


@dataclass(frozen=True)
class BatchPlan:
    """The batches of every epoch over a fixed number of rows.

    Where an epoch is shorter than a pass over the rows (``steps_per_epoch`` was given), epochs follow each
    other through the pass; as in Keras, the one that reaches its end stops there, and the next one begins a
    pass with an order of its own.

    Attributes
    ----------
    rows : int
        Number of rows, at least 1.
    batch_size : int
        Rows in a batch; the last one of a pass may be shorter.
    shuffle : bool or "batch"
        As in Keras: the order of all rows, none, or only the order inside each batch.
    seed : int
        What the order is a function of, with the number of the pass.
    steps_per_epoch : int or None
        Batches in an epoch, at most; None for one pass.
    first_epoch : int
        The absolute epoch that begins the first pass.

    Examples
    --------
    >>> plan = BatchPlan(rows=5, batch_size=2, shuffle=False, seed=0)
    >>> [plan.rows_of(0, step).tolist() for step in range(plan.steps)]
    [[0, 1], [2, 3], [4]]
    >>> plan = BatchPlan(rows=5, batch_size=2, shuffle=False, seed=0, steps_per_epoch=2)
    >>> [plan.steps_of(epoch) for epoch in range(4)]
    [2, 1, 2, 1]
    """

    rows: int
    batch_size: int
    shuffle: Shuffle = True
    seed: int = 0
    steps_per_epoch: int | None = None
    first_epoch: int = 0

    @property
    def steps_per_pass(self) -> int:
        """Batches in one pass over the rows."""
        return math.ceil(self.rows / self.batch_size)

    @property
    def steps(self) -> int:
        """Batches in one epoch, at most."""
        return self.steps_per_epoch or self.steps_per_pass

    def steps_of(self, epoch: int) -> int:
        """Count the batches of one epoch: fewer than usual where it reaches the end of a pass."""
        return min(self.steps, self.steps_per_pass - self.offset_of(epoch))

    def offset_of(self, epoch: int) -> int:
        """Say how many batches of its pass lie before an epoch."""
        return (epoch - self._beginning(epoch)) * self.steps

    def _beginning(self, epoch: int) -> int:
        return first_epoch_of_pass(epoch, self.first_epoch, self.steps, self.steps_per_pass)

    def rows_of(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Name the rows of one batch.

        Parameters
        ----------
        epoch : int
            The absolute epoch, counted from 0.
        step : int
            The step inside the epoch, counted from 0.

        Returns
        -------
        ndarray of int64
            Row numbers, in the order in which they stand in the batch.
        """
        number, batch = self._beginning(epoch), self.offset_of(epoch) + step
        first = batch * self.batch_size
        last = min(first + self.batch_size, self.rows)
        if self.shuffle == "batch":
            inside = np.random.default_rng([self.seed, number, batch]).permutation(last - first)
            return first + inside
        if self.shuffle:
            return epoch_order(self.seed, number, self.rows)[first:last]
        return np.arange(first, last)


def plan_batches(
    rows: int,
    batch_size: int | None,
    steps: int | None,
    shuffle: Shuffle,
    seed: int,
    first_epoch: int = 0,
) -> BatchPlan:
    """Plan the batches as Keras's ``fit`` reads its arguments.

    Parameters
    ----------
    rows : int
        Number of rows.
    batch_size : int or None
        Rows in a batch; None for 32, or for what makes ``steps`` batches of one pass.
    steps : int or None
        Batches in an epoch; None for one pass.
    shuffle : bool or "batch"
        See :class:`BatchPlan`.
    seed, first_epoch : int
        See :class:`BatchPlan`.

    Returns
    -------
    BatchPlan
        The plan.

    Raises
    ------
    UsageError
        When there are no rows, or a size is not a positive whole number.

    Examples
    --------
    >>> plan_batches(100, None, 10, True, 0).batch_size
    10
    """
    if rows < 1:
        raise UsageError(sentence("at least one example", rows))
    for name, value in (("batch_size", batch_size), ("steps_per_epoch", steps)):
        if value is not None and (isinstance(value, bool) or value != int(value) or value < 1):
            raise UsageError(sentence(f"{name} of at least 1, a whole number", value))
    size = batch_size or (math.ceil(rows / steps) if steps else 32)
    return BatchPlan(rows, int(size), shuffle, seed, steps, first_epoch)
