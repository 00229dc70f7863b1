"""From a run, a sweep or a map of images to its page: gather the sections, fill the template, seal it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope import web_page
from convscope.contents import Contents, read_contents
from convscope.data.dataset import Dataset
from convscope.environment import beside
from convscope.evaluation import test_set_log
from convscope.explorer import page as explorer_page
from convscope.glossary import GLOSSARY
from convscope.plotting import embedded
from convscope.report.evaluated import Problem, attempt, evaluated_sections
from convscope.report.explorer import walk
from convscope.report.formatting import FILTERS, chart, data_address
from convscope.report.formatting import name as shown
from convscope.report.inside import architecture, attribution, example, first_filters
from convscope.report.training import health, learning
from convscope.runs import RunDirectory, log_into

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PROGRESS = logging.getLogger("convscope.progress")
PAGE = Path(__file__).parent / "page"
SCRIPTS = ("theme.js", "page.js", "confusion.js")
# The walk is the explorer's.
WALK_SCRIPT, WALK_STYLE = "report.js", explorer_page.PAGE / "walk.css"
REPORT_FILE = "report.html"
# Bytes of a page, and what is left out first where it would have more.
LARGEST = 2_900_000
HEAVIEST = ("walk", "cells")


def write_report(
    run_path: str | Path,
    *,
    dataset: Dataset | None = None,
    data: str | Path | None = None,
    consulted_by: str = "",
) -> Path:
    """Write a run's report into its directory, as ``report.html``, replaced whole if it was there.

    ``dataset`` are the run's data where they are at hand, ``data`` says where they are now; without them no
    images are shown. ``consulted_by`` is the command that looks at a finished run's test set once more,
    which is counted.
    """
    _PROGRESS.info("Writing the report")
    run = RunDirectory(run_path)
    with log_into(run):
        contents = read_contents(run_path, dataset, data)
        if consulted_by and contents.test is not None:
            record = test_set_log.log_use(run, "report", by=consulted_by)
            contents = replace(contents, test_set_uses=record)
        _PROGRESS.info("Writing the report")
        run.write_bytes(REPORT_FILE, _render(contents).encode("utf-8", "backslashreplace"))
    return run.path / REPORT_FILE


def _render(contents: Contents) -> str:
    """Make the page; what is not needed to judge the run is left out where it would become too heavy."""
    with embedded():
        sections = _sections(contents)
    text = _fill(sections)
    for name in HEAVIEST:
        if len(text) > LARGEST and sections[name]:
            sections[name] = Problem(f"It would make this page larger than {LARGEST / 1e6:.0f} MB.")
            text = _fill(sections)
    return text


def _fill(sections: dict[str, Any]) -> str:
    """Fill the report's template."""
    walk = explorer_page.bundle(WALK_SCRIPT) if sections["walk"] else ""
    return fill_page("report.html", ("report.css", WALK_STYLE), SCRIPTS, walk, glossary=GLOSSARY, **sections)


def fill_page(
    template: str, styles: Sequence[str | Path], scripts: Sequence[str], bundled: str = "", **facts: Any
) -> str:
    """Fill a template; style and script are sealed with their hashes, so that nothing else runs."""
    environment = web_page.templates(PAGE)
    environment.filters.update(FILTERS)
    environment.tests["problem"] = lambda value: isinstance(value, Problem)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return web_page.fill(
        environment.get_template(template),
        web_page.read_joined([explorer_page.COLOURS, explorer_page.BASE, *(PAGE / name for name in styles)]),
        web_page.read_joined(PAGE / name for name in scripts) + bundled,
        written=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        **facts,
    )


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
    charts = [
        {"title": name, "svg": chart(figure, name, " ".join(sentences[:1]), figure.axes)}
        for name, figure in figures.items()
    ]
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


def _sections(contents: Contents) -> dict[str, Any]:
    """Gather what each section shows; a section that cannot be made says why, and the others stay."""
    size = 0 if contents.images is None else contents.images.nbytes
    evaluated = beside(evaluated_sections, contents, size=size)
    sections = {
        "run": contents,
        "test_set_uses": _test_set_uses(contents),
        "network": attempt(architecture, contents),
        "health": attempt(health, contents),
        "learning": attempt(learning, contents),
        "filters": attempt(first_filters, contents),
        **dict.fromkeys(("attribution", "example", "walk")),
    }
    if contents.test is not None:
        sections |= {
            "attribution": attempt(attribution, contents, contents.test),
            "example": attempt(example, contents, contents.test),
            "walk": attempt(walk, contents, contents.test),
        }
    return sections | evaluated()


def _test_set_uses(contents: Contents) -> str:
    """Say how often the test set was used."""
    if contents.test is None:
        return ""
    if contents.test_set_uses is None:
        unknown = "The run keeps no record of how often its test set was used"
        return f"{unknown}: at least once, for the final evaluation."
    return test_set_log.describe(contents.test_set_uses)


WIDTH, HEIGHT, EDGE = 1000, 720, 24
# Colours that people with any common colour blindness tell apart; the page's style has them for both themes.
COLOURS = 8
SHAPES = ("circle", "square", "triangle", "diamond", "wedge", "plus", "cross", "bar")
# The more pictures, the smaller: together they stay below 4 MB.
SIDES = ((300, 96), (800, 64), (math.inf, 40))
MOST_LISTED = 60


def render_map(
    points: NDArray[np.float32],
    names: Sequence[str],
    classes: Sequence[str],
    pixels: Callable[[int], NDArray[np.uint8]],
    *,
    title: str,
    network: str,
    method: str,
    count: int,
) -> str:
    """Make a page of points (n, 2), each an image with a name, a class and, by its number, its pixels.

    ``count`` is how many images there are in all; the classes of images without one are ''.
    """
    order = sorted(set(classes), key=lambda one: (one == "", one))
    numbers = {one: index for index, one in enumerate(order)}
    side = next(side for most, side in SIDES if len(points) <= most)
    low, high = points.min(axis=0), points.max(axis=0)
    span = np.where(high > low, high - low, 1)
    room = np.array([WIDTH - 2 * EDGE, HEIGHT - 2 * EDGE])
    places = ((points - low) / span * room + EDGE).round(1).tolist()
    styles = [_style(index) for index in range(len(order))]
    images = [
        [*places[row], numbers[classes[row]], shown(names[row]), data_address(pixels(row), side=side)]
        for row in range(len(points))
    ]
    legend = [
        {"name": shown(one) if one else "no class known", "count": classes.count(one), **styles[index]}
        for index, one in enumerate(order)
    ]
    return fill_page(
        "map.html",
        ("report.css", "map.css"),
        ("theme.js", "map.js"),
        title=shown(title),
        network=network,
        method=method,
        legend=legend if len(order) > 1 or order != [""] else [],
        listed=MOST_LISTED,
        points=[{"x": x, "y": y, **styles[number]} for x, y, number, *_ in images],
        data={"classes": [one["name"] for one in legend], "images": images},
        shapes=SHAPES,
        size=(WIDTH, HEIGHT),
        shown=len(points),
        count=count,
    )


def _style(index: int) -> dict[str, Any]:
    """Give a class a colour and a shape; two classes share both only beyond 64."""
    colour, turn = index % COLOURS, index // COLOURS
    return {"colour": colour, "shape": SHAPES[(colour + turn) % len(SHAPES)]}
