"""Images laid out in a plane → one page that shows them: points by class, and the picture of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convscope.report.formatting import data_address
from convscope.report.formatting import name as shown
from convscope.report.rendering import fill_page

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
        [*places[row], numbers[classes[row]], shown(names[row]), _thumbnail(pixels(row), side)]
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


def _thumbnail(image: NDArray[np.uint8], side: int) -> str:
    """Make a small picture of an image (h, w, c)."""
    if max(image.shape[:2]) <= side:
        return data_address(image)
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image[:, :, :3])
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    small = np.asarray(picture)
    return data_address(small[..., None] if small.ndim == 2 else small)
