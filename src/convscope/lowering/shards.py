"""A batch that several processes share: which rows this one has, and sums over all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Shard:
    """The rows of a batch that this process computes; others have the rest, at the same time."""

    first: int
    rows: int
    total: int
    sum_up: Callable[[torch.Tensor], torch.Tensor]  # over all processes, in place; each calls it

    def elements(self, count: int) -> tuple[int, int]:
        """Say which elements of the whole batch's tensor the ``count`` elements of these rows are."""
        each = count // self.rows
        return self.first * each, (self.first + self.rows) * each
