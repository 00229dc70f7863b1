"""What a layer computes, as formulas and values with the numbers in them.

It needs neither Keras nor torch, so that a network that cannot exist is explained before anything is built.

- ``formulas``: one quantity at a time (lengths, padding, parameters, multiply-accumulates, receptive field).
- ``kind``: what a layer's functions are given and give back.
- ``activations``: the functions that a network may name.
- ``layers``: what each kind of layer is; a layer, a chain of layers, and why one cannot exist.
"""

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
from convscope.arithmetic.layers import analyse, analyse_chain, explain_failure

__all__ = [
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
