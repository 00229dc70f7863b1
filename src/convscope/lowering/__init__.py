"""Lowering: a Keras model becomes a program of typed operations, and the program becomes torch."""
