"""bfloat16 copies of float32 weights, made anew only when a weight has changed.

A weight that an op computes with in bfloat16 is read and rounded at every step; an optimizer that writes the
copy while it has the weight at hand saves reading it again.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

import torch
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass
class _Copy:
    tensor: torch.Tensor
    version: int  # the weight's version counter when the copy was made


_COPIES: MutableMapping[torch.Tensor, _Copy] = WeakTensorKeyDictionary()


def bfloat16_copy(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight in bfloat16; the same tensor at each call, up to date.

    Parameters
    ----------
    weight : Tensor of float32
        Long-lived: its copy lives as long.

    Returns
    -------
    Tensor of bfloat16
        To be read only.

    Examples
    --------
    >>> weight = torch.ones(2)
    >>> bfloat16_copy(weight) is bfloat16_copy(weight.mul_(3)), bfloat16_copy(weight).tolist()
    (True, [3.0, 3.0])
    """
    copy = _COPIES.get(weight)
    if copy is None:
        copy = _COPIES[weight] = _Copy(torch.empty_like(weight, dtype=torch.bfloat16), -1)
    if copy.version != weight._version:
        with torch.no_grad():
            copy.tensor.copy_(weight)
        copy.version = weight._version
    return copy.tensor


def copy_of(weight: torch.Tensor) -> torch.Tensor | None:
    """Return the tensor that holds a weight's copy, for who changes both; None where nobody asked for one."""
    copy = _COPIES.get(weight)
    return None if copy is None else copy.tensor


def forget(weight: torch.Tensor) -> None:
    """Let a weight's copy be made anew, after a change that torch does not count."""
    _COPIES.pop(weight, None)


def declare_current(weight: torch.Tensor) -> None:
    """Say that a weight's copy has been written along with its last change."""
    copy = _COPIES.get(weight)
    if copy is not None:
        torch.autograd.graph.increment_version(copy.tensor)
        copy.version = weight._version
