"""Dropout masks from raw random words: a pure function of seed, step, stream and shape.

A counter is hashed by SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014), so that no generator carries state from one step to the next. A rate that is a multiple of 1/2,
1/4, 1/16 or 1/256 takes that many bits of an element; any other takes 16 bits, within 2⁻¹⁷ of the rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mix(*numbers: int) -> int:
    """Hash integers into one of 64 bits.

    Examples
    --------
    >>> mix(1, 2) != mix(2, 1), 0 <= mix(7) < 2**64
    (True, True)
    """
    state = 0
    for number in numbers:
        state = _finalise((state + (number & _MASK64) + _GOLDEN) & _MASK64)
    return state


def _finalise(word: int) -> int:
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        word = ((word ^ (word >> shift)) * multiplier) & _MASK64
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


class WordSource:
    """Hashes counters into random words; keeps the counters and the scratch of one size.

    Parameters
    ----------
    count : int
        How many 64-bit words.
    device : torch.device
        Where they are made; every device gives the same words.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        steps = torch.arange(1, count + 1, dtype=torch.int64, device=device)
        self._counters = steps * _signed(_GOLDEN)
        self._scratch = torch.empty_like(self._counters)

    def words(self, key: int) -> torch.Tensor:
        """Return the words of a key, of shape (count,) and dtype int64."""
        words, scratch = self._counters + _signed(key & _MASK64), self._scratch
        for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
            self._xor_shift(words, scratch, shift)
            words.mul_(_signed(multiplier))
        self._xor_shift(words, scratch, 31)
        return words

    @staticmethod
    def _xor_shift(words: torch.Tensor, scratch: torch.Tensor, shift: int) -> None:
        # torch shifts signed words arithmetically; the mask makes it a logical shift.
        torch.bitwise_right_shift(words, shift, out=scratch)
        scratch.bitwise_and_((1 << (64 - shift)) - 1)
        words.bitwise_xor_(scratch)


def threshold_of(rate: float) -> tuple[int, int]:
    """Choose how many bits decide over an element, and below which number it is dropped.

    Examples
    --------
    >>> threshold_of(0.5), threshold_of(0.25), threshold_of(0.1)
    ((1, 1), (2, 1), (16, 6554))
    """
    for bits in (1, 2, 4, 8):
        if (rate * (1 << bits)).is_integer():
            return bits, int(rate * (1 << bits))
    return 16, round(rate * (1 << 16))


class MaskSource:
    """Makes the keep masks of one dropout for one shape.

    Parameters
    ----------
    rate : float
        The share to drop, in [0, 1).
    shape : sequence of int
        The mask's shape.
    device : torch.device
        Where the masks are made.
    """

    def __init__(self, rate: float, shape: Sequence[int], device: torch.device) -> None:
        self._bits, self._threshold = threshold_of(rate)
        self.keep_probability = keep_probability(rate)
        self._shape = tuple(shape)
        self._count = math.prod(self._shape)
        self._words = WordSource(-(-self._count * self._bits // 64), device)

    def keep(self, key: int, dtype: torch.dtype = torch.bool) -> torch.Tensor:
        """Return the mask of a key: one where an element is kept, zero where it is dropped."""
        words = self._words.words(key)
        if self._bits == 16:
            # int16 counts from −2¹⁵, so the threshold moves with it.
            kept = self._compare(words.view(torch.int16), self._threshold - (1 << 15), dtype)
        elif self._bits == 8:
            kept = self._compare(words.view(torch.uint8), self._threshold, dtype)
        else:
            kept = self._from_planes(words, dtype)
        return kept[: self._count].view(self._shape)

    @staticmethod
    def _compare(numbers: torch.Tensor, threshold: int, dtype: torch.dtype) -> torch.Tensor:
        kept = torch.empty(numbers.shape, dtype=dtype, device=numbers.device)
        return torch.ge(numbers, threshold, out=kept)

    def _from_planes(self, words: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Decide for all fields of the words at once, then cut them out bit by bit.

        The lowest bit of each field of 1, 2 or 4 bits becomes one where the field is at least the threshold.
        """
        words = _fields_at_least(words, self._bits, self._threshold)
        integer = torch.uint8 if dtype is torch.bool else dtype
        numbers = words.view(integer)
        planes = numbers.element_size() * 8 // self._bits
        kept = torch.empty(planes, numbers.numel(), dtype=integer, device=numbers.device)
        for plane in range(planes):
            torch.bitwise_right_shift(numbers, plane * self._bits, out=kept[plane])
        kept = kept.bitwise_and_(1).view(-1)
        return kept.view(torch.bool) if dtype is torch.bool else kept


def _fields_at_least(words: torch.Tensor, bits: int, threshold: int) -> torch.Tensor:
    """Set the lowest bit of each field of ``bits`` bits to whether the field is at least the threshold.

    A number is at least t if some higher bit of it exceeds t's, with all bits above equal: evaluated from the
    lowest bit upwards, with the bits of a field as shifted words.
    """
    enough: torch.Tensor | None = None  # nothing decided yet: equality counts as enough
    for place in range(bits):
        bit = words >> place if place else words
        if threshold >> place & 1:
            enough = bit if enough is None else bit & enough
        elif enough is not None:
            enough = bit | enough
    return words if enough is None else enough


def keep_probability(rate: float) -> float:
    """Return the probability with which an element is really kept: what the scale must undo.

    Examples
    --------
    >>> keep_probability(0.25), round(keep_probability(0.1), 5)
    (0.75, 0.89999)
    """
    bits, threshold = threshold_of(rate)
    return 1.0 - threshold / (1 << bits)
