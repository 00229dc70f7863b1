"""Figures as parts of the page, with what a screen reader says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from convscope.plotting import as_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def chart(figure: Figure, title: str, description: str, axes: Sequence[Axes] = ()) -> Markup:
    """Draw a figure, or some of its axes, for the page, which gives it its colours."""
    return Markup(as_svg(figure, f"{title.rstrip('.')}. {description}", axes))  # noqa: S704  escaped there
