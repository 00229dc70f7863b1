"""Arrays → matplotlib Figures; nothing here loads data or computes a metric.

Every function returns its Figure, works without a display, and shows it once in a notebook. One module for
each thing that is drawn: training, sweeps, confusion, curves, comparing, images; for what inspection finds,
features, attributions, embeddings, recomputed. The common look is in style; svg makes a figure a part of a
page.
"""

from convscope.plotting.attributions import attribution_picture, plot_attribution, plot_faithfulness
from convscope.plotting.comparing import (
    plot_comparison,
    plot_confused_pairs,
    plot_differences,
    plot_intervals,
    plot_seed_comparison,
)
from convscope.plotting.confusion import plot_confusion_matrix
from convscope.plotting.curves import (
    plot_coverage,
    plot_precision_recall,
    plot_probability,
    plot_reliability,
    plot_roc,
)
from convscope.plotting.embeddings import plot_embedding_map, plot_neighbours
from convscope.plotting.features import filter_pictures, plot_feature_maps, plot_filters, plot_synthesis
from convscope.plotting.images import (
    plot_contact_sheet,
    plot_errors,
    plot_examples,
    plot_label_issues,
    plot_predictions,
)
from convscope.plotting.recomputed import plot_recomputed
from convscope.plotting.style import STYLE, embedded, png_bytes, save_figure
from convscope.plotting.svg import as_svg
from convscope.plotting.sweeps import plot_importances, plot_parallel_coordinates, plot_trials
from convscope.plotting.training import plot_health, plot_history, plot_rate_search

__all__ = [
    "STYLE",
    "as_svg",
    "attribution_picture",
    "embedded",
    "filter_pictures",
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
    "plot_importances",
    "plot_intervals",
    "plot_label_issues",
    "plot_neighbours",
    "plot_parallel_coordinates",
    "plot_precision_recall",
    "plot_predictions",
    "plot_probability",
    "plot_rate_search",
    "plot_recomputed",
    "plot_reliability",
    "plot_roc",
    "plot_seed_comparison",
    "plot_synthesis",
    "plot_trials",
    "png_bytes",
    "save_figure",
]
