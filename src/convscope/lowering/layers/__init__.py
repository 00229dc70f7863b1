"""The layers that lowering knows: for each family its ops, how Keras's layers become them, how they run.

What a kind of layer is apart from that stands in ``arithmetic.layers``, in a module of the same name.
"""

from convscope.lowering.layers.attention import Attention
from convscope.lowering.layers.augmenting import Augment
from convscope.lowering.layers.dense import ConvOrDense, Dense
from convscope.lowering.layers.elementwise import Activate, Affine, Dropout, PRelu
from convscope.lowering.layers.keras_call import ActivityLoss, KerasCall
from convscope.lowering.layers.merging import Concatenate, Merge
from convscope.lowering.layers.normalization import BatchNormalization, GroupNormalization, LayerNormalization
from convscope.lowering.layers.operations import Broadcast, ByMode, Constant, Draw, Operation, Weight
from convscope.lowering.layers.reshaping import Crop2D, Flatten, Reshape, UpSample2D, ZeroPad2D
from convscope.lowering.layers.windows import Conv2D, GlobalPool2D, Pool2D

__all__ = [
    "Activate",
    "ActivityLoss",
    "Affine",
    "Attention",
    "Augment",
    "BatchNormalization",
    "Broadcast",
    "ByMode",
    "Concatenate",
    "Constant",
    "Conv2D",
    "ConvOrDense",
    "Crop2D",
    "Dense",
    "Draw",
    "Dropout",
    "Flatten",
    "GlobalPool2D",
    "GroupNormalization",
    "KerasCall",
    "LayerNormalization",
    "Merge",
    "Operation",
    "PRelu",
    "Pool2D",
    "Reshape",
    "UpSample2D",
    "Weight",
    "ZeroPad2D",
]
