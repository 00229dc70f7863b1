"""Every kind of layer that is known, by the name of its Keras class: the one home of what a kind is.

A family of kinds has a module here, which says what their arithmetic is, and one of the same name in
``lowering.layers``, which says how they are read from Keras and run on torch.
"""

from collections.abc import Mapping

from convscope.arithmetic.kind import LayerKind, PageArithmetic
from convscope.arithmetic.layers import dense, elementwise, merging, normalization, reshaping, windows

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
_FAMILIES = (windows, dense, normalization, elementwise, reshaping, merging)

LAYERS: Mapping[str, LayerKind] = {
    kind.name: kind  # of two with one name the last: a family's
    for kind in (
        *map(LayerKind, _ONLY_NAMED),
        *(LayerKind(name, page=page) for page, names in _ONLY_ON_PAGES.items() for name in names),
        *(kind for family in _FAMILIES for kind in family.KINDS),
    )
}
