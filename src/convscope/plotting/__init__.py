"""Arrays → matplotlib Figures; nothing here loads data or computes a metric.

Every function returns its Figure, works without a display, and shows it once in a notebook. One room for
each thing that is drawn: history, intervals, rates, confusion, probability, images, sheets (of images),
curves, comparing; and, for what inspection finds, features, attributions, embeddings, recomputed, health.
The common look is in style; svg makes a figure a part of a page.
"""

from convscope.plotting.attributions import plot_attribution, plot_faithfulness
from convscope.plotting.comparing import (
    plot_comparison,
    plot_confused_pairs,
    plot_differences,
    plot_seed_comparison,
)
from convscope.plotting.confusion import plot_confusion_matrix
from convscope.plotting.curves import plot_coverage, plot_precision_recall, plot_reliability, plot_roc
from convscope.plotting.embeddings import plot_embedding_map, plot_neighbours
from convscope.plotting.features import plot_feature_maps, plot_filters, plot_synthesis
from convscope.plotting.health import plot_health
from convscope.plotting.history import plot_history
from convscope.plotting.images import plot_errors, plot_predictions
from convscope.plotting.intervals import plot_intervals
from convscope.plotting.probability import plot_probability
from convscope.plotting.rates import plot_rate_search
from convscope.plotting.recomputed import plot_recomputed
from convscope.plotting.sheets import plot_contact_sheet, plot_examples, plot_label_issues
from convscope.plotting.style import STYLE, embedded, png_bytes, save_figure
from convscope.plotting.svg import as_svg

__all__ = [
    "STYLE",
    "as_svg",
    "embedded",
    "plot_attribution",
    "plot_comparison",
    "plot_confused_pairs",
    "plot_confusion_matrix",
    "plot_contact_sheet",
    "plot_coverage",
    "plot_differences",
    "plot_embedding_map",
    "plot_errors",
    "plot_examples",
    "plot_faithfulness",
    "plot_feature_maps",
    "plot_filters",
    "plot_health",
    "plot_history",
    "plot_intervals",
    "plot_label_issues",
    "plot_neighbours",
    "plot_precision_recall",
    "plot_predictions",
    "plot_probability",
    "plot_rate_search",
    "plot_recomputed",
    "plot_reliability",
    "plot_roc",
    "plot_seed_comparison",
    "plot_synthesis",
    "png_bytes",
    "save_figure",
]
