"""What a layer computes, as formulas and values with the numbers in them.

It needs neither Keras nor torch, so that a network that cannot exist is explained before anything is built.

- ``formulas``: one quantity at a time (lengths, padding, parameters, multiply-accumulates, receptive field).
- ``kind``: what a layer's functions are given and give back.
- ``layers``: one kind of layer at a time; the one home of what a kind is. ``activations``: its functions.
- ``analysis``: a layer, a chain of layers, and why one cannot exist.
"""

from convscope.arithmetic.analysis import KNOWN_LAYERS, analyse, analyse_chain, explain_failure
from convscope.arithmetic.formulas import (
    Calculation,
    ReceptiveField,
    Shape,
    check_strides_and_dilation,
    conv_macs,
    conv_parameters,
    dense_parameters,
    output_length,
    same_padding,
    show_shape,
)
from convscope.arithmetic.kind import Fields, LayerArithmetic, LayerContext

__all__ = [
    "KNOWN_LAYERS",
    "Calculation",
    "Fields",
    "LayerArithmetic",
    "LayerContext",
    "ReceptiveField",
    "Shape",
    "analyse",
    "analyse_chain",
    "check_strides_and_dilation",
    "conv_macs",
    "conv_parameters",
    "dense_parameters",
    "explain_failure",
    "output_length",
    "same_padding",
    "show_shape",
]
