"""The look that figures share; how one is made, shown in a notebook, saved, and put into a page as SVG."""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
from cycler import cycler
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import LayoutEngine
from matplotlib.transforms import Bbox

from convscope.environment import own_warning_filters
from convscope.errors import UsageError, expected_got
from convscope.runs import write_file

# Colours that people with any common colour blindness tell apart (Okabe and Ito, "Color Universal
# Design", 2008).
BLACK = "#000000"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
BLUE = "#0072B2"
RED = "#D55E00"
PINK = "#CC79A7"
GREY = "#767676"  # the lightest grey that is still legible (4.5 : 1) on white
# Numbers with a sign: white is zero.
SIGNED = LinearSegmentedColormap.from_list("signed", [BLUE, "white", RED], N=511)  # one in the middle

DPI = 144

STYLE: dict[str, Any] = {
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.labelsize": 10.0,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "figure.titlesize": 12.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "axes.prop_cycle": cycler(color=[BLUE, RED, GREEN, ORANGE, SKY, PINK, BLACK, YELLOW]),
    "image.interpolation": "nearest",
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "svg.hashsalt": "convscope",
}

# Class names come in every script; DejaVu Sans lacks these, so an installed font that has them helps out.
OTHER_SCRIPTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC"),
    *("Hiragino Sans", "Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS"),
)

_embedded = ContextVar("embedded", default=False)


class NotebookFigure(Figure):
    """A Figure that a Jupyter notebook shows exactly once in the cell that made it.

    pyplot's figures are shown at the end of a cell, and a second time when a function that returns one
    ends the cell. This one tells pyplot when it has been shown.
    """

    def _repr_png_(self) -> bytes:
        """Draw the figure for a notebook that has not loaded pyplot."""
        return png_bytes(self)

    def _ipython_display_(self) -> None:
        """Show the figure, and take it off the list of those to be shown at the end of the cell."""
        display = _module("IPython.display").display
        width, height = (round(96 * inches) for inches in self.get_size_inches())  # CSS pixels
        display(
            {"image/png": self._repr_png_(), "text/plain": repr(self)},
            metadata={"image/png": {"width": width, "height": height}},
            raw=True,
        )
        if _inline_backend():
            _module("matplotlib.pyplot").close(self)


@contextmanager
def embedded() -> Iterator[None]:
    """Make figures inside the ``with`` block for something else that shows them, such as a page.

    Without it, a notebook would show them a second time at the end of the cell.
    """
    token = _embedded.set(True)
    try:
        yield
    finally:
        _embedded.reset(token)


@contextmanager
def new_figure(width: float, height: float, gap: float = 0.02) -> Iterator[Figure]:
    """Make a figure, in inches, in the project's style; what is drawn inside the ``with`` block has it too.

    It has a constrained layout, with a ``gap`` between rows of axes as a share of their height. pyplot knows
    it only where a notebook draws inline, so that a long program does not collect open figures.
    """
    inline = _inline_backend() and not _embedded.get()
    if inline:  # loading it turns pyplot's interactive mode on, which rc_context would turn off again
        _module("matplotlib_inline.backend_inline")
    own = {"figure.constrained_layout.hspace": gap, "font.family": _families()}
    style: dict[Any, Any] = STYLE | own  # rc_context lists every legal key in its type
    with mpl.rc_context(style):
        if inline:
            pyplot = _module("matplotlib.pyplot")
            yield pyplot.figure(figsize=(width, height), layout="constrained", FigureClass=NotebookFigure)
        else:
            yield NotebookFigure(figsize=(width, height), layout="constrained")


def hide_axes(axes: Axes) -> None:
    """Leave out frame and ticks; ticks that are only switched off would still be laid out, which is slow."""
    axes.set_axis_off()
    axes.xaxis.set_visible(False)
    axes.yaxis.set_visible(False)


def hide_frame(axes: Axes) -> None:
    """Leave out frame and ticks of an image; its labels stay."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows 0, 1, … of a chart, the first at its top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


def png_bytes(figure: Figure) -> bytes:
    """Draw a figure as PNG, at 144 dots per inch; the same figure always gives the same bytes."""
    buffer = io.BytesIO()
    with own_warning_filters():
        # A script that no installed font covers shows as boxes; that is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        engine = lay_out(figure)
        try:
            figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        finally:
            figure.set_layout_engine(engine)
    return buffer.getvalue()


def lay_out(figure: Figure) -> LayoutEngine | None:
    """Lay a figure out, and take away its engine, with which saving would draw it twice; return that."""
    engine = figure.get_layout_engine()
    if engine is not None:
        if figure.axes:
            engine.execute(figure)
        with mpl.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
            figure.set_layout_engine(None)
    return engine


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG, whole or not at all; RunError where the disk refuses."""
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise UsageError(expected_got("a path that ends in .png", str(target)))
    write_file(target, png_bytes(figure))
    return target


def plain(text: object) -> str:
    r"""Prepare a name that a user chose, so that matplotlib shows it as it prints.

    A pair of dollar signs would start a formula, and control characters have no glyph.
    """
    shown = (one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in str(text))
    return "".join(shown).replace("$", r"\$")


def shorten(text: object, length: int = 24, keep_end: bool = False) -> str:
    """Cut a long name in its middle, or at its beginning where its end tells most, and make it `plain`."""
    full = str(text)
    if len(full) <= length:
        return plain(full)
    tail = length - 1 if keep_end else length // 2
    return plain(f"{full[: length - 1 - tail]}…{full[-tail:]}")


@functools.cache
def _families() -> list[str]:
    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in OTHER_SCRIPTS if name in installed)]


def _inline_backend() -> bool:
    """Say whether this is a notebook in which pyplot shows every open figure at the end of the cell."""
    shell = sys.modules.get("IPython")
    if shell is None or shell.get_ipython() is None:
        return False
    # Asking matplotlib before pyplot is loaded would make it choose a backend.
    loaded = "matplotlib.pyplot" in sys.modules
    return "inline" in (mpl.get_backend() if loaded else os.environ.get("MPLBACKEND", ""))


def _module(name: str) -> Any:
    """Import what only a notebook needs; pyplot is slow to load and keeps every figure that it makes."""
    return importlib.import_module(name)


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
