"""The page of a sweep: what was found, its figures, every trial, and what was searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from convscope.report.media import chart
from convscope.report.page import fill_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render_sweep(
    title: str,
    sentences: Sequence[str],
    figures: Mapping[str, Figure],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    space: Sequence[tuple[str, str]],
    how: str,
) -> str:
    """Make a whole HTML page that needs nothing but itself; ``rows`` are the cells of the trials."""
    charts = []
    for name, figure in figures.items():
        described = " ".join(sentences[:1])
        charts.append({"title": name, "svg": chart(figure, name, described, figure.axes)})
    return fill_page(
        "sweep.html",
        ("report.css",),
        ("theme.js",),
        title=title,
        sentences=sentences,
        charts=charts,
        columns=columns,
        rows=rows,
        space=space,
        how=how,
    )
