"""Charts as inline SVG, drawn by hand: small enough to be read on a phone, themed by the page's style sheet.

A chart's colours, dashes and markers come from CSS classes, so that it follows the dark and the light theme
and prints; every series differs from the others in more than its colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

Number = float | int
Format = Callable[[float], str]

# In CSS pixels at full size; charts are laid out so that they are never scaled far below it.
WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 68, 22, 14, 42
MARKER = 3.5


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: Number) -> float:
        """Return the pixel of a value.

        Examples
        --------
        >>> Scale(0, 10, 100, 200)(5)
        150.0
        """
        span = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / span * (self.stop - self.start)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Choose round values within a range: steps of 1, 2 or 5 times a power of ten.

    Parameters
    ----------
    low, high : float
        The range.
    most : int
        About how many to choose.

    Returns
    -------
    list of float

    Examples
    --------
    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(1, 10)
    [2.0, 4.0, 6.0, 8.0, 10.0]
    """
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= most * 1.01)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, last + 1)]


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Find a range with a little room around the finite values.

    Examples
    --------
    >>> padded([0.0, 1.0], share=0.5)
    (-0.5, 1.5)
    >>> padded([2.0])
    (1.0, 3.0)
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = (high - low) * share or max(abs(high) / 2, 0.5)
    return low - room, high + room


def plain(value: float) -> str:
    """Write a tick without needless zeros.

    Examples
    --------
    >>> plain(0.25), plain(10.0)
    ('0.25', '10')
    """
    return f"{value:.10g}"


def as_percent(value: float) -> str:
    """Write a tick that is a share.

    Examples
    --------
    >>> as_percent(0.975)
    '97.5 %'
    """
    return f"{round(100 * value, 6):.6g} %"


@dataclass
class Chart:
    """A pair of axes, and what is drawn between them.

    Parameters
    ----------
    x_range, y_range : tuple of float
        Values at the ends of the axes.
    x_label, y_label : str
        With units.
    x_format, y_format : callable
        Writes a tick.
    x_ticks, y_ticks : list of float, optional
        Where ticks stand; chosen when left out.
    height : int
        In CSS pixels.

    Examples
    --------
    >>> chart = Chart((0, 1), (0, 1), "recall", "precision")
    >>> chart.line([0, 1], [1, 0.5], "series-1")
    >>> '<path class="line series-1"' in chart.svg("A curve", "It falls from 1 to 0.5.")
    True
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_label: str
    y_label: str
    x_format: Format = plain
    y_format: Format = plain
    x_ticks: Sequence[float] | None = None
    y_ticks: Sequence[float] | None = None
    height: int = HEIGHT
    _marks: list[Markup] = field(default_factory=list)

    @property
    def x(self) -> Scale:
        """From values to pixels, left to right."""
        return Scale(*self.x_range, LEFT, WIDTH - RIGHT)

    @property
    def y(self) -> Scale:
        """From values to pixels, bottom to top."""
        return Scale(*self.y_range, self.height - BOTTOM, TOP)

    def line(self, xs: Sequence[float], ys: Sequence[float], style: str) -> None:
        """Draw a line; it breaks where a value is missing."""
        path, pen_down = [], False
        for x, y in zip(xs, ys, strict=True):
            if not (math.isfinite(x) and math.isfinite(y)):
                pen_down = False
                continue
            path.append(f"{'L' if pen_down else 'M'}{self.x(x):.1f} {self.y(y):.1f}")
            pen_down = True
        self._marks.append(Markup('<path class="line {}" d="{}"/>').format(style, "".join(path)))

    def markers(
        self, xs: Sequence[float], ys: Sequence[float], style: str, notes: Sequence[str] = ()
    ) -> None:
        """Draw a marker for each point, with a note that appears under the pointer."""
        for place, (x, y) in enumerate(zip(xs, ys, strict=True)):
            if math.isfinite(x) and math.isfinite(y):
                note = Markup("<title>{}</title>").format(notes[place]) if notes else Markup("")
                self._marks.append(_marker(self.x(x), self.y(y), style, note))

    def bars(self, edges: Sequence[float], heights: Sequence[float], style: str) -> None:
        """Draw a bar between each pair of edges, from the bottom of the chart."""
        for left, right, top in zip(edges[:-1], edges[1:], heights, strict=True):
            if math.isfinite(top) and top > self.y_range[0]:
                x, y = self.x(left) + 0.5, self.y(top)
                self._marks.append(
                    Markup('<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"/>').format(
                        style,
                        f"{x:.1f}",
                        f"{y:.1f}",
                        f"{max(self.x(right) - x - 0.5, 0.5):.1f}",
                        f"{self.y(self.y_range[0]) - y:.1f}",
                    )
                )

    def rule(self, start: tuple[float, float], stop: tuple[float, float], style: str = "reference") -> None:
        """Draw a straight line for comparison."""
        self._marks.append(
            Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
                style,
                f"{self.x(start[0]):.1f}",
                f"{self.y(start[1]):.1f}",
                f"{self.x(stop[0]):.1f}",
                f"{self.y(stop[1]):.1f}",
            )
        )

    def note(self, x: float, y: float, text: str, anchor: str = "start", shift: float = -6) -> None:
        """Write beside a point."""
        self._marks.append(
            Markup('<text class="note" x="{}" y="{}" text-anchor="{}">{}</text>').format(
                f"{self.x(x):.1f}", f"{self.y(y) + shift:.1f}", anchor, text
            )
        )

    def svg(self, title: str, description: str) -> Markup:
        """Finish the chart.

        Parameters
        ----------
        title, description : str
            What a screen reader says: what is drawn, and what is to be seen.

        Returns
        -------
        Markup
            An ``<svg>`` element.
        """
        marks = Markup("").join([*self._grid(), *self._marks])
        return Markup(
            '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}. {}">{}</svg>'
        ).format(WIDTH, self.height, title.rstrip("."), description, marks)

    def _grid(self) -> list[Markup]:
        """Draw axes, grid lines, ticks and labels."""
        bottom, right = self.height - BOTTOM, WIDTH - RIGHT
        parts = []
        for value in ticks(*self.y_range) if self.y_ticks is None else self.y_ticks:
            y = f"{self.y(value):.1f}"
            parts.append(
                Markup('<line class="grid" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(LEFT, y, right, y)
            )
            parts.append(_text(LEFT - 6, self.y(value) + 4, self.y_format(value), "end"))
        for value in ticks(*self.x_range) if self.x_ticks is None else self.x_ticks:
            x = f"{self.x(value):.1f}"
            parts.append(
                Markup('<line class="tick" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
                    x, bottom, x, bottom + 4
                )
            )
            parts.append(_text(self.x(value), bottom + 16, self.x_format(value), "middle"))
        parts.append(
            Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(LEFT, bottom, right, bottom)
        )
        parts.append(_text((LEFT + right) / 2, self.height - 6, self.x_label, "middle", "label"))
        parts.append(
            Markup(
                '<text class="label" transform="translate(11 {}) rotate(-90)" text-anchor="middle">{}</text>'
            ).format(f"{(TOP + bottom) / 2:.1f}", self.y_label)
        )
        return parts


def thin(xs: Sequence[float], ys: Sequence[float], step: float) -> tuple[list[float], list[float]]:
    """Leave out points of a curve that lie closer to the last kept one than a step along both axes.

    Examples
    --------
    >>> thin([0, 0.001, 0.5], [0, 0, 1], 0.01)
    ([0, 0.5], [0, 1])
    """
    kept: list[int] = []
    for place, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if not kept or place == len(xs) - 1 or max(abs(x - xs[kept[-1]]), abs(y - ys[kept[-1]])) >= step:
            kept.append(place)
    return [xs[place] for place in kept], [ys[place] for place in kept]


def interval_bar(low: float, value: float, high: float, bounds: tuple[float, float]) -> Markup:
    """Draw a value with its interval on a short line without an axis, for a table's cell.

    Parameters
    ----------
    low, value, high : float
        The interval and what it is about.
    bounds : tuple of float
        Values at the two ends of the line; the same in every row of a table.

    Returns
    -------
    Markup
        Hidden from screen readers: the numbers stand in the same row.

    Examples
    --------
    >>> "<circle" in interval_bar(0.9, 0.95, 0.97, (0.5, 1.0))
    True
    """
    scale = Scale(*bounds, 4, 116)
    left, middle, right = (
        f"{scale(min(max(edge, bounds[0]), bounds[1])):.1f}" for edge in (low, value, high)
    )
    line = Markup('<line class="{}" x1="{}" y1="7" x2="{}" y2="7"/>')
    return Markup('<svg class="spark" viewBox="0 0 120 14" aria-hidden="true">{}{}{}</svg>').format(
        line.format("grid", 4, 116),
        line.format("whisker", left, right),
        Markup('<circle class="dot" cx="{}" cy="7" r="3.2"/>').format(middle),
    )


def _marker(x: float, y: float, style: str, note: Markup) -> Markup:
    """Draw a circle for the first series and a square for any other."""
    if "series-1" in style:
        return Markup('<circle class="marker {}" cx="{}" cy="{}" r="{}">{}</circle>').format(
            style, f"{x:.1f}", f"{y:.1f}", MARKER, note
        )
    return Markup('<rect class="marker {}" x="{}" y="{}" width="{}" height="{}">{}</rect>').format(
        style, f"{x - MARKER:.1f}", f"{y - MARKER:.1f}", 2 * MARKER, 2 * MARKER, note
    )


def _text(x: float, y: float, text: str, anchor: str, style: str = "number") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        style, f"{x:.1f}", f"{y:.1f}", anchor, text
    )
