"""Lowering: a Keras model becomes a program of typed operations, and the program becomes torch."""

from convscope.lowering.describe import describe
from convscope.lowering.ir import Program
from convscope.lowering.network import LoweredNetwork, emit
from convscope.lowering.passes import PassReport, optimise
from convscope.lowering.read import lower
from convscope.lowering.restore import restore

__all__ = ["LoweredNetwork", "PassReport", "Program", "describe", "emit", "lower", "optimise", "restore"]
