"""Every kind of layer that is known, by the name of its Keras class, and the arithmetic of one or a chain.

A family of kinds has a module here, which is the one home of what a kind is; ``lowering.layers`` says how
they are read from Keras and run on torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from convscope.arithmetic.formulas import Length, ReceptiveField, Shape
from convscope.arithmetic.kind import Fields, LayerArithmetic, LayerContext, LayerKind, PageArithmetic
from convscope.arithmetic.layers import core, normalization, reshaping, windows
from convscope.errors import ArchitectureError

# Foreign files may name these, too; their arithmetic is not known here.
# fmt: off
_ONLY_NAMED = (
    "InputLayer", "EinsumDense", "Conv1D", "MaxPooling1D", "AveragePooling1D", "AdaptiveAveragePooling2D",
    "AdaptiveMaxPooling2D", "UnitNormalization", "Dot", "RandomCrop",
)
# As these, which a page computes.
_ONLY_ON_PAGES: Mapping[PageArithmetic, tuple[str, ...]] = {
    "transposed": ("Conv2DTranspose",),
    "attention": ("MultiHeadAttention",),
    "layer_normalization": ("RMSNormalization",),
    "reduce": ("GlobalAveragePooling1D", "GlobalMaxPooling1D"),
    "strided": ("Permute", "RepeatVector", "CenterCrop"),
    "resize": ("Resizing",),
    "same": (
        "SpatialDropout1D", "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation",
        "RandomContrast", "RandomBrightness", "RandomShear", "RandomErasing",
    ),
}
# fmt: on
_FAMILIES = (windows, core, normalization, reshaping)

LAYERS: Mapping[str, LayerKind] = {
    kind.name: kind  # of two with one name the last: a family's
    for kind in (
        *map(LayerKind, _ONLY_NAMED),
        *(LayerKind(name, page=page) for page, names in _ONLY_ON_PAGES.items() for name in names),
        *(kind for family in _FAMILIES for kind in family.KINDS),
    )
}


def analyse(
    layer_type: str,
    settings: Mapping[str, Any],
    input_shapes: Sequence[Shape],
    *,
    fields: Sequence[Fields] | None = None,
    image: tuple[Length, Length] | None = None,
    channels_first: bool | None = None,
) -> LayerArithmetic | None:
    """Analyse one layer by the name of its Keras class and its settings, as in its ``get_config()``.

    Shapes have no batch axis. ``fields`` say what one position of each input sees, and ``image`` the height
    and width of the network's input; without them the inputs are taken as the image itself.
    ``channels_first`` is the order of the axes where the settings have none. None for a layer whose
    arithmetic is not known; ArchitectureError, with the arithmetic that fails, for one that cannot stand
    behind these inputs.
    """
    kind = LAYERS.get(layer_type)
    if kind is None or kind.analyse is None:
        return None
    if channels_first is None or settings.get("data_format"):
        channels_first = settings.get("data_format") == "channels_first"
    if fields is None:
        seen = [as_image(shape, channels_first) for shape in input_shapes]
        fields, image = [one for one, _ in seen], seen[0][1]
        if None in fields:
            fields, image = [None] * len(seen), None
    return kind.analyse(
        LayerContext(layer_type, settings, tuple(input_shapes), tuple(fields), image, channels_first)
    )


def analyse_chain(
    layers: Iterable[tuple[str, Mapping[str, Any]]], input_shape: Shape
) -> tuple[LayerArithmetic | None, ...]:
    """Analyse layers one behind the other, as in a Sequential model: class name and settings of each.

    Gives None from the first layer on whose arithmetic is not known; ArchitectureError at one that cannot be.
    """
    listed = list(layers)
    formats = [settings["data_format"] for _, settings in listed if settings.get("data_format")]
    channels_first = bool(formats) and formats[0] == "channels_first"
    fields, image = as_image(input_shape, channels_first)
    shape, results = input_shape, list[LayerArithmetic | None]()
    for layer_type, settings in listed:
        result = analyse(
            layer_type, settings, [shape], fields=[fields], image=image, channels_first=channels_first
        )
        if result is None:
            return (*results, *[None] * (len(listed) - len(results)))
        results.append(result)
        shape, fields = result.output_shape, result.fields
    return tuple(results)


def explain_failure(
    layer_type: str, settings: Mapping[str, Any], input_shape: Shape | Sequence[Shape]
) -> str:
    """Say why a layer cannot stand behind an input.

    Parameters
    ----------
    layer_type : str
        Name of the Keras class.
    settings : mapping
        The layer's arguments as in its ``get_config()``.
    input_shape : tuple of int or None, or a list of them
        Shape of its input (of each input of a merging layer), without the batch axis.

    Returns
    -------
    str
        One line: what the layer needs, what it gets with the arithmetic that fails, what to do. Empty where
        the arithmetic finds nothing wrong, or does not know the layer.

    Examples
    --------
    >>> explain_failure("Conv2D", {"name": "conv_2", "filters": 32, "kernel_size": 3}, (2, 2, 16))
    "Expected an input of at least 3×3 for layer 'conv_2' (Conv2D), whose kernel is 3×3, \
got 2×2: ⌊(2 − 3)/1⌋ + 1 = 0. \
Use padding='same', a smaller kernel, fewer layers before it, or a larger image."
    """
    several = bool(input_shape) and not (input_shape[0] is None or isinstance(input_shape[0], int))
    shapes = [tuple(shape) for shape in input_shape] if several else [tuple(input_shape)]  # type: ignore[arg-type]
    try:
        analyse(layer_type, settings, shapes)  # type: ignore[arg-type]
    except ArchitectureError as error:
        return str(error)
    return ""


def as_image(shape: Shape, channels_first: bool) -> tuple[Fields, tuple[Length, Length] | None]:
    """Take an input as an image, each position of which sees itself, of a height and width; else None."""
    if len(shape) != 3:
        return None, None
    height, width = shape[1:] if channels_first else shape[:2]
    return (ReceptiveField(), ReceptiveField()), (height, width)
