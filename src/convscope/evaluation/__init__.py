"""How good predictions are: (probabilities, labels) → Evaluation, without torch, Keras or matplotlib.

metrics       checked inputs; the basic numbers, ROC and precision–recall of each class, coverage
calibration   reliability, and which temperature a run uses, decided once by its validation images
label_check   likely wrong labels
novelty       images unlike the training images, by the network's features; images of unknown things
result        the Evaluation that holds them all, as text and as JSON
comparison    two networks on the same images, with one seed or with several on each side
test_set_log  counts how often a run's test set is used, refuses choices by it
"""

from convscope.evaluation.calibration import Calibration, Reliability, apply_temperature, fit_temperature
from convscope.evaluation.comparison import Comparison, SeedComparison, compare, compare_seeds
from convscope.evaluation.label_check import LabelCheck, check_labels, out_of_sample_probabilities
from convscope.evaluation.metrics import (
    Areas,
    Coverage,
    Curve,
    Interval,
    OperatingPoint,
    as_labels,
    as_names,
    as_probabilities,
    wilson_interval,
    worst_errors,
)
from convscope.evaluation.result import ConfusedPair, Evaluation

__all__ = [
    "Areas",
    "Calibration",
    "Comparison",
    "ConfusedPair",
    "Coverage",
    "Curve",
    "Evaluation",
    "Interval",
    "LabelCheck",
    "OperatingPoint",
    "Reliability",
    "SeedComparison",
    "apply_temperature",
    "as_labels",
    "as_names",
    "as_probabilities",
    "check_labels",
    "compare",
    "compare_seeds",
    "fit_temperature",
    "out_of_sample_probabilities",
    "wilson_interval",
    "worst_errors",
]
