"""The arithmetic of layer shapes: numbers, and the formulas that give them as text with the numbers in it.

Pure Python: it needs neither Keras nor torch, so that a network that cannot exist is explained before
anything is built.

- ``formulas``: one quantity at a time (lengths, padding, parameters, multiply-accumulates, receptive field).
- ``site``: what a layer's arithmetic is given, and what it gives back.
- ``windows``, ``others``: one layer at a time: convolutions and poolings, and the rest.
- ``layers``: the table of these by the name of the Keras class, chains, and why one cannot exist.
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
from convscope.arithmetic.layers import KNOWN_LAYERS, explain_failure, work_out, work_out_chain
from convscope.arithmetic.site import Fields, LayerArithmetic

__all__ = [
    "KNOWN_LAYERS",
    "Calculation",
    "Fields",
    "LayerArithmetic",
    "ReceptiveField",
    "Shape",
    "check_strides_and_dilation",
    "conv_macs",
    "conv_parameters",
    "dense_parameters",
    "explain_failure",
    "output_length",
    "same_padding",
    "show_shape",
    "work_out",
    "work_out_chain",
]
