r"""A run → one self-contained HTML file: nothing is fetched, nothing is built, everything is in it.

In the order in which they build on each other:

    formatting                  numbers, names, charts and images for a page
    summary, training, scores   \
    mistakes, explorer, inside  / a section each, or a few: what the templates show
    rendering                   sections, the templates in ``page/``, styles and scripts; the map of images

A section that cannot be made says why, and the others stay.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convscope.report.rendering import render_report, write_report

__all__ = ["render_report", "write_report"]


def __getattr__(name: str) -> Any:
    """Load the page with its sections on first use: who only reads a run needs no network for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from convscope.report import rendering

    return getattr(rendering, name)
