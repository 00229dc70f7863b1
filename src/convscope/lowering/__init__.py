"""Lowering: a Keras model becomes a program of typed operations, and the program becomes torch."""

from convscope.lowering.ir import Program
from convscope.lowering.network import LoweredNetwork, emit, restore
from convscope.lowering.passes import PassReport, describe, optimise, with_features
from convscope.lowering.reader import lower

__all__ = [
    "LoweredNetwork",
    "PassReport",
    "Program",
    "describe",
    "emit",
    "lower",
    "optimise",
    "restore",
    "with_features",
]
