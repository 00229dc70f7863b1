"""Figures as SVG for a page: without styles of their own, so that the page's style sheet gives the theme."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from convscope.environment import own_warning_filters
from convscope.plotting.style import STYLE, lay_out

# What matplotlib says in a style and an attribute can say too; the policy of a page forbids inline styles.
ATTRIBUTES = (
    *("fill", "fill-opacity", "font-size", "opacity", "stroke", "stroke-dasharray", "stroke-linecap"),
    *("stroke-linejoin", "stroke-opacity", "stroke-width", "text-anchor"),
)
MARGIN = 0.04  # inches around a part of a figure


def as_svg(figure: Figure, label: str, axes: Sequence[Axes] = ()) -> str:
    """Draw a figure, or some of its axes without their titles, as an ``<svg>`` element for a page.

    The same figure always gives the same text. Colours are attributes, which a style sheet can replace.
    `label` is what a screen reader says: what is drawn, and what is to be seen.

    Examples
    --------
    >>> from convscope.plotting import plot_history
    >>> as_svg(plot_history({"loss": [0.5, 0.2]}), "It falls.")[:36]
    '<svg class="chart" role="img" aria-l'
    """
    buffer = io.BytesIO()
    style: dict[Any, Any] = {**STYLE, "svg.fonttype": "none"}  # rc_context lists every legal key in its type
    with mpl.rc_context(style), own_warning_filters():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        box = _only(figure, axes) if axes else None
        figure.savefig(buffer, format="svg", bbox_inches=box, transparent=True, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())  # noqa: S314  matplotlib's own
    prefix = hashlib.sha256(buffer.getvalue() + label.encode()).hexdigest()[:8]
    return _for_page(root, label, prefix)


def _only(figure: Figure, axes: Sequence[Axes]) -> Bbox:
    """Leave only some axes visible in a figure, without titles; return the part that they take, in inches.

    A figure is laid out once, however many of its axes are drawn one after the other.
    """
    FigureCanvasAgg(figure)
    lay_out(figure)
    others: list[Artist] = [*figure.axes, *figure.legends, *figure.texts]
    for one in others:
        one.set_visible(one in axes)
    for one in axes:
        one.set_title("")
    boxes = [box for one in axes if (box := one.get_tightbbox()) is not None]
    return Bbox.union(boxes).transformed(figure.dpi_scale_trans.inverted()).padded(MARGIN)


def _for_page(root: ET.Element, label: str, prefix: str) -> str:
    """Drop what a page has no use for, turn styles into attributes, and make names unique in the page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = _attributes(element, prefix)
        element.attrib.clear()
        element.attrib.update(attributes)
        element.text, element.tail = (element.text or "").strip(), None
    named = {"class": "chart", "role": "img", "aria-label": label, "viewBox": root.attrib["viewBox"]}
    root.attrib.clear()
    root.attrib.update(named)
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)


def _attributes(element: ET.Element, prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in element.attrib.items():
        name = key.rpartition("}")[2]
        if name == "style":
            style = dict(part.strip().split(": ", 1) for part in value.split(";") if ": " in part)
            found |= {kept: style[kept] for kept in ATTRIBUTES if kept in style}
            size = re.search(r"([\d.]+)px", style.get("font", ""))
            found |= {"font-size": size[1]} if size else {}
        elif name == "href":
            found["href"] = f"#{prefix}{value[1:]}" if value.startswith("#") else value
        elif name == "id":
            found |= {"id": prefix + value} if element.tag in ("path", "clipPath", "image") else {}
        elif name == "clip-path":
            found[name] = value.replace("#", f"#{prefix}")
        else:
            found[name] = re.sub(r"\s+", " ", value).strip()
    return found
