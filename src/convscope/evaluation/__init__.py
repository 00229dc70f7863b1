"""How good predictions are: (probabilities, labels) → Evaluation; NumPy, SciPy and scikit-learn only.

Rooms, in the order in which they build on each other: inputs (checks) → metrics (pure functions)
→ result (the Evaluation that holds them all).
"""

from convscope.evaluation.inputs import as_labels, as_probabilities
from convscope.evaluation.metrics import worst_errors
from convscope.evaluation.result import Evaluation

__all__ = ["Evaluation", "as_labels", "as_probabilities", "worst_errors"]
