"""What a layer's arithmetic is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convscope.arithmetic.formulas import Length, ReceptiveField, Shape, show_shape
from convscope.errors import ArchitectureError, expected_got

# Height and width, in this order; None where it is not known what an output sees.
Fields = tuple[ReceptiveField, ReceptiveField] | None


@dataclass(frozen=True)
class LayerArithmetic:
    """The arithmetic of one layer. Shapes have no batch axis; None is a length that the network leaves open.

    Weights have Keras's names and order; ``parameters`` counts those that are not trained too. ``macs`` are
    the multiply-accumulates for one image, of convolutions and dense layers only. ``fields`` say what one
    output sees of the image, along height and width; ``lines`` are the formulas with their numbers.
    """

    output_shape: Shape
    weight_shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    parameters: int = 0
    macs: int | None = 0
    fields: Fields = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerContext:
    """A layer where it stands: its settings, what comes in, and the image that the network began with."""

    layer_type: str
    settings: Mapping[str, Any]
    inputs: tuple[Shape, ...]
    fields: tuple[Fields, ...]
    image: tuple[Length, Length] | None
    channels_first: bool = False

    @property
    def shape(self) -> Shape:
        """The shape of the only input."""
        return self.inputs[0]

    @property
    def label(self) -> str:
        """What to call the layer in a message."""
        name = self.settings.get("name")
        article = "an" if self.layer_type[0] in "AEIOU" else "a"
        return f"layer {name!r} ({self.layer_type})" if name else f"{article} {self.layer_type} layer"

    def pair(self, key: str, default: Any = 1) -> tuple[int, int]:
        """Read a setting that is one number for both axes, or one for each."""
        value = self.settings.get(key)
        value = default if value is None else value
        return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))

    def margins(self, key: str) -> tuple[tuple[int, int], tuple[int, int]]:
        """Read a padding or cropping: one number, one for each axis, or one for each side."""
        value = self.settings.get(key, 1 if key == "padding" else 0)
        if isinstance(value, int):
            return (value, value), (value, value)
        return _sides(value[0]), _sides(value[1])

    def image_parts(self) -> tuple[tuple[Length, Length], int]:
        """Split the input into height and width, and channels; raise ArchitectureError if it is no image."""
        if len(self.shape) != 3:
            order = "channels×height×width" if self.channels_first else "height×width×channels"
            raise self.failure(
                f"an input of {order} for {self.label}", show_shape(self.shape), "Put it before Flatten."
            )
        channels = self.shape[0] if self.channels_first else self.shape[-1]
        if channels is None:
            raise self.failure(f"a known number of channels for {self.label}", show_shape(self.shape), "")
        height, width = self.shape[1:] if self.channels_first else self.shape[:2]
        return (height, width), channels

    def image_shape(self, lengths: Sequence[Length], channels: int) -> Shape:
        """Put height, width and channels in the layer's own order."""
        return (channels, *lengths) if self.channels_first else (*lengths, channels)

    def failure(self, expected: str, got: object, hint: str) -> ArchitectureError:
        """Make the error for a layer that cannot stand here."""
        return ArchitectureError(expected_got(expected, got, hint))


def by_axis(title: str, height: str, width: str) -> tuple[str, ...]:
    """Show a formula for both axes, once where they agree."""
    before = f"{title}, " if title else ""
    if height == width:
        return (f"{before}height and width: {height}",)
    return f"{before}height: {height}", f"{before}width: {width}"


def whole_image(context: LayerContext, lengths: Sequence[Length]) -> Fields:
    """Find what an output sees that all positions enter."""
    fields = context.fields[0]
    if fields is None or context.image is None:
        return None
    if all(field.jump == 0 for field in fields):
        return fields
    if None in context.image or None in lengths or len(lengths) != 2:
        return None
    height, width = (
        field.over(length or 0, image or 0)
        for field, length, image in zip(fields, lengths, context.image, strict=True)
    )
    return height, width


def field_lines(fields: Fields) -> tuple[str, ...]:
    """Say what an output behind a layer sees that all positions enter."""
    if fields is None:
        return ()
    return by_axis("receptive field", *(f"all positions together see {field.size}" for field in fields))


def _sides(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
