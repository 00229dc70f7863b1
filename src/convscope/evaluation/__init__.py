"""How good predictions are: (probabilities, labels) → Evaluation, without torch, Keras or matplotlib.

Rooms, in the order in which they build on each other:

    inputs        what is evaluated, checked
    metrics       loss, confusion matrix, scores of each class, worst errors
    intervals     how far a share can be trusted
    summaries     top-k, balanced accuracy, kappa, log loss, Brier score
    ranking       ROC and precision–recall of each class against the rest
    calibration   reliability, expected calibration error, temperature scaling
    coverage      accuracy when the network may abstain
    examples      confused pairs, hardest and easiest images
    label_check   likely wrong labels
    report, serialize    as text, as JSON
    result        the Evaluation that holds them all
    comparison    two networks on the same images
    seeds         the same with several seeds on each side
    temperature   which temperature a run uses, decided once, by its validation images
    test_set_log  counts how often a run's test set is used, refuses choices by it
"""

from convscope.evaluation.calibration import Reliability, apply_temperature, fit_temperature
from convscope.evaluation.comparison import Comparison, compare
from convscope.evaluation.coverage import Coverage, OperatingPoint
from convscope.evaluation.examples import ConfusedPair
from convscope.evaluation.inputs import as_labels, as_names, as_probabilities
from convscope.evaluation.intervals import Interval, wilson_interval
from convscope.evaluation.label_check import LabelCheck, check_labels, out_of_sample_probabilities
from convscope.evaluation.metrics import worst_errors
from convscope.evaluation.ranking import Areas, Curve
from convscope.evaluation.result import Evaluation
from convscope.evaluation.seeds import SeedComparison, compare_seeds
from convscope.evaluation.temperature import Calibration

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
