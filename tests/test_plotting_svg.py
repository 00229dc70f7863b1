"""Figures as parts of a page: safe, deterministic, without inline styles; and intervals on one scale."""

import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from convscope.errors import UsageError
from convscope.plotting import as_svg, plot_history, plot_intervals
from convscope.plotting.images import image_grid


def parsed(svg):
    return ElementTree.fromstring(svg)  # noqa: S314  our own


HISTORY = {"loss": [0.5, 0.2], "val_loss": [0.6, 0.3], "accuracy": [0.5, 0.7]}


def test_an_svg_has_no_styles_scripts_or_links_and_names_of_its_own():
    first, second = (as_svg(plot_history(HISTORY), label) for label in ("one", "another"))
    root = parsed(first)
    assert (root.get("role"), root.get("aria-label")) == ("img", "one")
    assert {element.tag for element in root.iter()}.isdisjoint({"style", "script", "metadata", "a"})
    assert [element for element in root.iter() if "style" in element.attrib] == []
    ids = set(re.findall(r' id="([^"]+)"', first))
    used = set(re.findall(r'href="#([^"]+)"', first)) | set(re.findall(r"url\(#([^)]+)\)", first))
    assert used <= ids
    assert ids.isdisjoint(re.findall(r' id="([^"]+)"', second))


def test_the_same_figure_gives_the_same_text_and_leaves_the_process_as_it_was():
    before = dict(mpl.rcParams)
    assert as_svg(plot_history(HISTORY), "x") == as_svg(plot_history(HISTORY), "x")
    assert dict(mpl.rcParams) == before


def test_words_in_an_svg_are_text():
    figure = plot_intervals(["<b>cat</b>"], [0.5], [(0.4, 0.6)])
    svg = as_svg(figure, 'a "label" <i>')
    assert "&lt;b&gt;cat&lt;/b&gt;" in svg
    assert parsed(svg).get("aria-label") == 'a "label" <i>'


def test_one_panel_is_drawn_alone_and_smaller_than_the_whole():
    whole = as_svg(plot_history(HISTORY), "x")
    figure = plot_history(HISTORY)
    part = as_svg(figure, "x", [figure.axes[0]])
    assert "accuracy (%)" in whole
    assert "accuracy (%)" not in part
    assert "loss (cross-entropy, nats)" in part

    def width(svg):
        return float(parsed(svg).get("viewBox").split()[2])

    assert width(part) < 0.6 * width(whole)


def test_intervals_share_one_scale_with_the_baseline():
    figure = plot_intervals(["test", "published"], [0.9, 0.98], [(0.85, 0.93), None], ("guessing", 0.1))
    (axes,) = figure.axes
    drawn = [tuple(line.get_xdata()) for line in axes.lines]
    assert (85.0, 93.0) in drawn
    assert drawn[-1] == (10.0, 10.0)
    low, high = axes.get_xlim()
    assert low <= 0
    assert high >= 100
    assert "guessing, 10.0 %" in axes.get_xlabel()


def test_intervals_without_a_row_are_refused():
    with pytest.raises(UsageError, match="a name, a share and an interval"):
        plot_intervals([], [], [])


@pytest.mark.parametrize("count", [1, 2])
def test_a_long_title_is_not_cut_at_the_sides_of_a_small_figure(count):
    title = "The first images of a folder with a long name, and what the network says about each of them"
    figure = image_grid(np.zeros((count, 8, 8)), ["cat"] * count, title, columns=2)
    FigureCanvasAgg(figure).draw()
    (drawn,) = figure.texts
    box = drawn.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y1 <= figure.bbox.height
    below = min(axes.get_tightbbox().y1 for axes in figure.axes)
    assert below <= box.y0 + 1  # no line of it lies over an image
