"""Dropout masks from raw random words: a pure function of seed, step, stream and shape.

A counter is hashed by SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014), so that no generator carries state from one step to the next. A rate that is a multiple of 1/2,
1/4, 1/16 or 1/256 takes that many bits of an element; any other takes 16 bits, within 2⁻¹⁷ of the rate. A CPU
does it in compiled loops, other devices with torch's operations; the masks are the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from convscope.lowering.cpu import compiled

Key = int | torch.Tensor  # a tensor of shape (), int64, is read on its device, when the operation runs

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mix(*numbers: int) -> int:
    """Hash integers into one of 64 bits."""
    state = 0
    for number in numbers:
        state = _finalise((state + (number & _MASK64) + _GOLDEN) & _MASK64)
    return state


def _finalise(word: int) -> int:
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        word = ((word ^ (word >> shift)) * multiplier) & _MASK64
    return word ^ (word >> 31)


def signed(word: int) -> int:
    """Read 64 bits as the signed integer that torch holds."""
    return word - (1 << 64) if word >= 1 << 63 else word


_INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def bits_type(dtype: torch.dtype) -> torch.dtype:
    """Return the integer type as wide as a floating-point type."""
    return _INTEGERS[dtype]


@dataclass(frozen=True, eq=False)
class Mask:
    """Says which elements of a tensor are kept; its shape is the tensor's, or broadcasts to it.

    ``lanes`` are integers as wide as the elements, n of them; bit ``bits · (i // n)`` of lane ``i % n``
    decides over element i, in the order of memory.
    """

    lanes: torch.Tensor
    bits: int
    shape: tuple[int, ...]

    @property
    def packed(self) -> tuple[int, int, int]:
        """Return address and number of the lanes, and bits, as the loops take them."""
        return self.lanes.data_ptr(), self.lanes.numel(), self.bits

    @staticmethod
    def order_of(x: torch.Tensor) -> torch.memory_format:
        """Return the order in which a mask is read for a tensor; its gradient has to be in the same."""
        in_other_order = not x.is_contiguous() and _is_dense(x)
        return torch.channels_last if in_other_order else torch.contiguous_format

    def apply(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Set to zero what is dropped, in ``out`` (``x`` for in place) or in new memory."""
        result = torch.empty_like(x) if out is None else out
        if self.shape == x.shape and compiled.suits(x) and result.stride() == x.stride():
            compiled.drop(x, result, self)
        else:
            # Multiplying bits by zero or one is several times faster than torch.where on bfloat16.
            bits = bits_type(x.dtype)
            torch.mul(x.view(bits), self._laid_out_as(x), out=result.view(bits))
        return result

    def part(self, begin: int, end: int, shape: tuple[int, ...]) -> Mask:
        """Take some of the elements, counted in memory's order, for a tensor of another shape."""
        lanes = self.lanes
        kept = torch.empty(end - begin, dtype=lanes.dtype, device=lanes.device)
        while begin < end:  # the fields at one place of all lanes, then those at the next
            plane, lane = divmod(begin, lanes.numel())
            count = min(end - begin, lanes.numel() - lane)
            out = kept[len(kept) - (end - begin) :][:count]
            torch.bitwise_right_shift(lanes[lane : lane + count], plane * self.bits, out=out)
            begin += count
        return Mask(kept.bitwise_and_(1), self.bits, shape)

    def unpack(self) -> torch.Tensor:
        """Return ones where elements are kept and zeros where they are dropped, in the lanes' type."""
        lanes, count = self.lanes, math.prod(self.shape)
        planes = -(-count // max(1, lanes.numel()))
        kept = torch.empty((planes, lanes.numel()), dtype=lanes.dtype, device=lanes.device)
        for plane in range(planes):
            torch.bitwise_right_shift(lanes, plane * self.bits, out=kept[plane])
        return kept.bitwise_and_(1).view(-1)[:count].view(self.shape)

    def _laid_out_as(self, x: torch.Tensor) -> torch.Tensor:
        keep = self.unpack()
        # Read in the order of memory, a mask is as random as in any other, and fast.
        in_other_order = keep.shape == x.shape and self.order_of(x) is torch.channels_last
        return keep.as_strided(x.shape, x.stride()) if in_other_order else keep


def _is_dense(x: torch.Tensor) -> bool:
    """Say whether images fill their memory without gaps, in channels_last order."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def make_mask(
    rate: float, shape: Sequence[int], key: Key, integer: torch.dtype, device: torch.device
) -> Mask:
    """Make the mask of a key, for elements as wide as an integer type; every device gives the same."""
    bits, threshold = threshold_of(rate)
    fields = bits if bits < 8 else 0  # wider ones are numbers that torch compares
    words = torch.empty(-(-math.prod(shape) * bits // 64), dtype=torch.int64, device=device)
    if isinstance(key, int) and words.device.type == "cpu" and compiled.available():
        compiled.hash_counters(words, key, fields, threshold)
    else:
        words = hashed_fields(words, key, fields, threshold)
    if fields:
        return Mask(words.view(integer), bits, tuple(shape))
    # As signed integers the numbers begin at −2¹⁵, and the threshold moves with them.
    numbers, least = (words.view(torch.uint8), 0) if bits == 8 else (words.view(torch.int16), 1 << 15)
    kept = torch.empty(numbers.shape, dtype=integer, device=numbers.device)
    torch.ge(numbers, threshold - least, out=kept)
    return Mask(kept, bits, tuple(shape))


def hashed_fields(like: torch.Tensor, key: Key, bits: int, threshold: int) -> torch.Tensor:
    """Do with torch's operations what ``compiled.hash_counters`` does on a CPU.

    The lowest bit of each field of ``bits`` bits says whether it is at least the threshold; 0 leaves the
    words as they are. Size and device are those of ``like``, int64.
    """
    words = _hashed_counters(like, key)
    return _fields_at_least(words, bits, threshold) if bits else words


def _hashed_counters(like: torch.Tensor, key: Key) -> torch.Tensor:
    key = signed(key & _MASK64) if isinstance(key, int) else key
    words = torch.arange(1, like.numel() + 1, dtype=torch.int64, device=like.device)
    words = words.mul_(signed(_GOLDEN)).add_(key)
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        words = _xor_shifted(words, shift).mul_(signed(multiplier))
    return _xor_shifted(words, 31)


def _xor_shifted(words: torch.Tensor, shift: int) -> torch.Tensor:
    # torch shifts signed words arithmetically; the mask makes it a logical shift.
    return words.bitwise_xor_((words >> shift).bitwise_and_((1 << (64 - shift)) - 1))


@functools.cache
def threshold_of(rate: float) -> tuple[int, int]:
    """Choose how many bits decide over an element, and below which number it is dropped."""
    for bits in (1, 2, 4, 8):
        if (rate * (1 << bits)).is_integer():
            return bits, int(rate * (1 << bits))
    return 16, round(rate * (1 << 16))


def _fields_at_least(words: torch.Tensor, bits: int, threshold: int) -> torch.Tensor:
    """Set the lowest bit of each field of ``bits`` bits to whether the field is at least the threshold.

    A number is at least t if some higher bit of it exceeds t's, with all bits above equal: evaluated from the
    lowest bit upwards, with the bits of a field as shifted words.
    """
    enough = torch.full_like(words, -1)  # nothing decided yet: equality counts as enough
    for place in range(bits):
        bit = words >> place
        enough = bit & enough if threshold >> place & 1 else bit | enough
    return enough


def keep_probability(rate: float) -> float:
    """Return the probability with which an element is really kept: what the scale must undo."""
    bits, threshold = threshold_of(rate)
    return 1.0 - threshold / (1 << bits)
