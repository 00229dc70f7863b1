"""Arrays → matplotlib Figures; nothing here loads data or computes a metric.

Every function returns its Figure, works without a display, and shows it once in a notebook. One room for
each thing that is drawn: history, confusion, probability, images, sheets (of images), curves, comparing;
the common look is in style.
"""

from convscope.plotting.comparing import (
    plot_comparison,
    plot_confused_pairs,
    plot_differences,
    plot_seed_comparison,
)
from convscope.plotting.confusion import plot_confusion_matrix
from convscope.plotting.curves import plot_coverage, plot_precision_recall, plot_reliability, plot_roc
from convscope.plotting.history import plot_history
from convscope.plotting.images import plot_errors, plot_predictions
from convscope.plotting.probability import plot_probability
from convscope.plotting.sheets import plot_examples, plot_label_issues
from convscope.plotting.style import STYLE, embedded, png_bytes, save_figure

__all__ = [
    "STYLE",
    "embedded",
    "plot_comparison",
    "plot_confused_pairs",
    "plot_confusion_matrix",
    "plot_coverage",
    "plot_differences",
    "plot_errors",
    "plot_examples",
    "plot_history",
    "plot_label_issues",
    "plot_precision_recall",
    "plot_predictions",
    "plot_probability",
    "plot_reliability",
    "plot_roc",
    "plot_seed_comparison",
    "png_bytes",
    "save_figure",
]
