"""Arrays → matplotlib Figures; nothing here loads data or computes a metric.

Every function returns its Figure, works without a display, and shows it once in a notebook. One room for
each thing that is drawn: history, confusion, images, probability; the common look is in style.
"""

from convscope.plotting.confusion import plot_confusion_matrix
from convscope.plotting.history import plot_history
from convscope.plotting.images import plot_errors, plot_predictions
from convscope.plotting.probability import plot_probability
from convscope.plotting.style import STYLE, embedded, png_bytes, save_figure

__all__ = [
    "STYLE",
    "embedded",
    "plot_confusion_matrix",
    "plot_errors",
    "plot_history",
    "plot_predictions",
    "plot_probability",
    "png_bytes",
    "save_figure",
]
