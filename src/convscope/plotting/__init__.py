"""Arrays → matplotlib Figures; nothing here loads data or computes a metric.

Every function returns its Figure, works without a display, and shows it once in a notebook. A module is
called after the package whose arrays it draws: training (and sweeps), evaluation, inspection; in images
are those that show images. The common look is in style, and how a figure becomes a part of a page.
"""

from convscope.plotting.evaluation import (
    plot_comparison,
    plot_confused_pairs,
    plot_confusion_matrix,
    plot_coverage,
    plot_differences,
    plot_intervals,
    plot_precision_recall,
    plot_probability,
    plot_reliability,
    plot_roc,
    plot_seed_comparison,
)
from convscope.plotting.images import (
    plot_contact_sheet,
    plot_embedding_map,
    plot_errors,
    plot_examples,
    plot_label_issues,
    plot_neighbours,
    plot_predictions,
)
from convscope.plotting.inspection import (
    attribution_picture,
    filter_pictures,
    plot_attribution,
    plot_faithfulness,
    plot_feature_maps,
    plot_filters,
    plot_recomputed,
    plot_synthesis,
)
from convscope.plotting.style import STYLE, as_svg, embedded, png_bytes, save_figure
from convscope.plotting.training import (
    plot_health,
    plot_history,
    plot_importances,
    plot_parallel_coordinates,
    plot_rate_search,
    plot_trials,
)

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
