"""One quantity at a time: its value, and the formula with the numbers in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from convscope.errors import ArchitectureError, UsageError, expected_got

# A length of None is one that the network leaves open (an image of any size).
Length = int | None
Shape = tuple[Length, ...]


@dataclass(frozen=True)
class Calculation:
    """A number (None where a length that enters it is open), and its formula: ``"⌊(28 − 3)/1⌋ + 1 = 26"``."""

    value: Length
    text: str

    def __str__(self) -> str:
        """Show the formula."""
        return self.text


@dataclass(frozen=True)
class ReceptiveField:
    """What one output sees of the image along one axis, in pixels of the image.

    The first output sees ``size`` pixels from ``start`` on, which is negative inside the padding; the window
    moves by ``jump`` from one output to the next, 0 once an output sees everything. (Araujo, Norris and Sim,
    "Computing Receptive Fields of Convolutional Neural Networks", Distill, 2019, section 2.)
    """

    size: int = 1
    jump: int = 1
    start: int = 0

    def through(self, window: int, stride: int = 1, before: int = 0) -> ReceptiveField:
        """Follow the field through a window (dilation included) with some padding in front."""
        return ReceptiveField(
            size=self.size + (window - 1) * self.jump,
            jump=self.jump * stride,
            start=self.start - before * self.jump,
        )

    def over(self, length: int, image: int) -> ReceptiveField:
        """Join the fields of all `length` outputs along the axis, cut to the `image`."""
        end = min(image, self.start + self.size + (length - 1) * self.jump)
        start = max(0, self.start)
        return ReceptiveField(size=end - start, jump=0, start=start)

    def joined(self, other: ReceptiveField) -> ReceptiveField | None:
        """Join with the field of a second branch that ends in the same place.

        A branch whose outputs all see the same (a gate behind a global pooling) decides alone; branches that
        move by different jumps have no common window.
        """
        if 0 in (self.jump, other.jump):
            return min(self, other, key=lambda field: (field.jump, -field.size))
        if self.jump != other.jump:
            return None
        start = min(self.start, other.start)
        end = max(self.start + self.size, other.start + other.size)
        return ReceptiveField(size=end - start, jump=self.jump, start=start)


def show(number: Length) -> str:
    """Write a number with thousands separated; a length left open is n."""
    return "n" if number is None else f"{number:,}"


def show_shape(shape: Iterable[Length]) -> str:
    """Write a shape with multiplication signs between its lengths."""
    return "×".join("n" if length is None else str(length) for length in shape)


def product_of(factors: Sequence[Length]) -> Calculation:
    """Multiply, leaving the result open where a factor is."""
    value = None if None in factors else math.prod(f for f in factors if f is not None)
    return Calculation(value, f"{'·'.join(show(f) for f in factors)} = {show(value)}")


def effective_window(window: int, dilation: int = 1) -> int:
    """Positions that a dilated window spans: ``dilation·(window − 1) + 1``."""
    return dilation * (window - 1) + 1


def output_length(
    length: Length, window: int, stride: int = 1, padding: str = "valid", dilation: int = 1
) -> Calculation:
    """Count the positions at which a window fits: a convolution's or a pooling's output length.

    A value below 1 means that the window does not fit. (Dumoulin and Visin, "A guide to convolution
    arithmetic for deep learning", 2016, relationships 5 and 11.)

    Examples
    --------
    >>> print(output_length(28, 3))
    ⌊(28 − 3)/1⌋ + 1 = 26
    >>> print(output_length(28, 3, stride=2, padding="same"))
    ⌈28/2⌉ = 14
    >>> print(output_length(28, 3, dilation=2))
    ⌊(28 − 2·(3 − 1) − 1)/1⌋ + 1 = 24
    """
    _check_window(window, stride, padding, dilation)
    value = window_positions(length, window, stride, padding, dilation)
    if padding == "same":
        return Calculation(value, f"⌈{show(length)}/{stride}⌉ = {_result(value, length)}")
    reach = f"{window}" if dilation == 1 else f"{dilation}·({window} − 1) − 1"
    return Calculation(value, f"⌊({show(length)} − {reach})/{stride}⌋ + 1 = {_result(value, length)}")


def same_padding(length: int, window: int, stride: int = 1, dilation: int = 1) -> tuple[int, int, str]:
    """Find the zeros that padding "same" puts before and after an axis, and the formula of their sum.

    Examples
    --------
    >>> same_padding(28, 3)
    (1, 1, '(28 − 1)·1 + 3 − 28 = 2')
    >>> same_padding(28, 3, stride=2)[:2]
    (0, 1)
    """
    _check_window(window, stride, "same", dilation)
    before, after = same_margins(length, window, stride, dilation)
    span = effective_window(window, dilation)
    positions = -(-length // stride)
    needed = (positions - 1) * stride + span - length
    text = f"({positions} − 1)·{stride} + {span} − {length} = {needed}".replace("= -", "= −")
    if needed < 0:
        text += ", so 0"
    return before, after, text


def same_margins(length: int, window: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Count the zeros that padding "same" puts before and after an axis; an odd one goes after."""
    total = max(0, (-(-length // stride) - 1) * stride + effective_window(window, dilation) - length)
    return total // 2, total - total // 2


def window_positions(
    length: Length, window: int, stride: int, padding: str = "valid", dilation: int = 1
) -> Length:
    """Count along one axis how often a window fits.

    ``valid``: ⌊(n − (k − 1)·d − 1)/s⌋ + 1; ``same``: ⌈n/s⌉.
    """
    if length is None:
        return None
    if padding == "same":
        return -(-length // stride)
    return (length - effective_window(window, dilation)) // stride + 1


def conv_parameters(
    kernel: Sequence[int], channels: int, filters: int, groups: int = 1, use_bias: bool = True
) -> Calculation:
    """Count the weights of a convolution: for each filter one kernel over its group's channels, and a bias.

    Examples
    --------
    >>> print(conv_parameters((3, 3), 1, 32))
    3·3·1·32 + 32 = 320
    >>> print(conv_parameters((3, 3), 64, 32, groups=4, use_bias=False))
    3·3·(64/4)·32 = 4,608
    """
    weights = math.prod(kernel) * (channels // groups) * filters
    total = weights + (filters if use_bias else 0)
    seen = show(channels) if groups == 1 else f"({show(channels)}/{groups})"
    terms = f"{'·'.join(map(str, kernel))}·{seen}·{show(filters)}" + (
        f" + {show(filters)}" if use_bias else ""
    )
    return Calculation(total, f"{terms} = {show(total)}")


def dense_parameters(inputs: int, units: int, use_bias: bool = True) -> Calculation:
    """Count the weights of a dense layer: one for each pair of input and unit, and a bias for each unit.

    Examples
    --------
    >>> print(dense_parameters(21632, 10))
    21,632·10 + 10 = 216,330
    """
    total = inputs * units + (units if use_bias else 0)
    terms = f"{show(inputs)}·{show(units)}" + (f" + {show(units)}" if use_bias else "")
    return Calculation(total, f"{terms} = {show(total)}")


def conv_macs(
    output: Sequence[Length], kernel: Sequence[int], channels: int, filters: int, groups: int = 1
) -> Calculation:
    """Count the multiply-accumulates of a convolution: one per output number and kernel weight it meets.

    The addition of the bias and the activation are not counted.

    Examples
    --------
    >>> print(conv_macs((26, 26), (3, 3), 1, 32))
    26·26·32·(3·3·1) = 194,688
    """
    per_output = math.prod(kernel) * (channels // groups)
    positions = product_of(list(output)).value
    total = None if positions is None else positions * filters * per_output
    seen = show(channels) if groups == 1 else f"{show(channels)}/{groups}"
    places = "·".join(show(length) for length in (*output, filters))
    return Calculation(total, f"{places}·({'·'.join(map(str, kernel))}·{seen}) = {show(total)}")


def check_strides_and_dilation(
    strides: Sequence[int], dilation: Sequence[int], layer: str = "Conv2D"
) -> None:
    """Refuse a stride together with a dilation: Keras has no such convolution."""
    if max(strides) > 1 and max(dilation) > 1:
        expected = f"strides of 1 or a dilation_rate of 1 for {layer}"
        found = f"strides={tuple(strides)} with dilation_rate={tuple(dilation)}"
        hint = "Dilate with strides=1 and shrink the image in a layer of its own, for example MaxPooling2D."
        raise ArchitectureError(expected_got(expected, found, hint))


def _result(value: Length, length: Length) -> str:
    """Show a result that may be negative, or open because the input is."""
    return "open" if length is None else show(value).replace("-", "−")


def _check_window(window: int, stride: int, padding: str, dilation: int) -> None:
    for name, number in (("window", window), ("stride", stride), ("dilation", dilation)):
        if number < 1:
            raise UsageError(expected_got(f"a {name} of at least 1", number))
    if padding not in ("valid", "same"):
        raise UsageError(expected_got("padding 'valid' or 'same'", repr(padding)))


def known_lengths(shape: Shape) -> tuple[int, ...]:
    """Refuse lengths left open."""
    if None in shape:
        raise ArchitectureError(f"Expected known lengths, got {show_shape(shape)}.")
    return tuple(length for length in shape if length is not None)
