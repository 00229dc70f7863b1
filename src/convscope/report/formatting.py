"""How pages write numbers and names, and carry charts and pictures with them."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from convscope.data.dataset import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from convscope.inspection import LayerDescription

NO_VALUE = "–"
# A thin space that does not break keeps a number and its unit together.
THIN = "\N{NARROW NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def percent(share: float | None, digits: int = 2) -> str:
    """Write a share as a percentage; 100 only when nothing is missing, 0 only when nothing is there."""
    if share is None or not math.isfinite(share):
        return NO_VALUE
    text = f"{100 * share:.{digits}f}"
    step = 10.0**-digits
    if share < 1 and float(text) >= 100:
        text = f"{100 - step:.{digits}f}"
    if share > 0 and float(text) <= 0:
        text = f"{step:.{digits}f}"
    return f"{text}{THIN}%"


def points(difference: float) -> str:
    """Write the distance of two shares in percentage points, without its sign."""
    return f"{100 * abs(difference):.2f} percentage points"


def count(number: float | None) -> str:
    """Write a whole number with its thousands apart."""
    return NO_VALUE if number is None else f"{number:,.0f}"


def number(value: float | None, digits: int = 4) -> str:
    """Write a number of any size with so many significant or decimal places, and a real minus sign."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    small = value != 0 and abs(value) < min(1.0, 10.0 ** (1 - digits))
    text = _scientific(value) if small or abs(value) >= 1e6 else f"{value + 0.0:.{digits}f}"  # no −0
    return text.replace("-", MINUS)


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}·10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def duration(seconds: float | None) -> str:
    """Write a time as a person would say it."""
    if seconds is None or not math.isfinite(seconds):
        return NO_VALUE
    if seconds < 10:
        return f"{seconds:.2f}{THIN}s"
    if seconds < 60:
        return f"{seconds:.0f}{THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{THIN}min {rest}{THIN}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{THIN}h {minutes}{THIN}min"


def plural(number_of: int, one: str, many: str | None = None) -> str:
    """Write how many there are of something."""
    return f"{number_of:,} {one if number_of == 1 else many or one + 's'}"


def shape(lengths: Any) -> str:
    """Write a shape, or several of them."""
    if lengths and isinstance(lengths[0], list | tuple):
        return ", ".join(shape(one) for one in lengths)
    return "×".join("?" if length is None else str(length) for length in lengths)


def layer_cells(layer: LayerDescription) -> dict[str, str]:
    """Write what a table says about a layer."""
    return {
        "name": layer.name,
        "type": layer.type,
        "input": shape(layer.input_shape),
        "output": shape(layer.output_shape),
        "weights": ", ".join(map(shape, layer.weight_shapes)) or NO_VALUE,
        "parameters": count(layer.parameters),
        "macs": "?" if layer.macs is None else count(layer.macs),
        "sees": shape(layer.receptive_field) if layer.receptive_field else NO_VALUE,
    }


def name(text: Any) -> str:
    r"""Prepare a name that came from outside: whatever cannot be printed becomes an escape."""
    return printable(str(text))


# What a template may call.
FILTERS = {one.__name__: one for one in (percent, count, number, duration, plural, shape, name)}


def chart(figure: Figure, title: str, description: str, axes: Sequence[Axes] = ()) -> Markup:
    """Draw a figure, or some of its axes, for the page, which gives it its colours."""
    from convscope.plotting import as_svg  # with matplotlib, which numbers and names do without

    return Markup(as_svg(figure, f"{title.rstrip('.')}. {description}", axes))  # noqa: S704  escaped there


# Larger images are shown smaller; the report is a page, not an archive.
LARGEST_SIDE = 96
# Above this side a lossless picture would be heavy, and a photograph does not need one; one in colour is
# three times as heavy from early on.
LOSSLESS_SIDE = 48
LOSSLESS_SIDE_IN_COLOUR = 20
JPEG_QUALITY = 85


class Album:
    """Test images (n, h, w, c) as pictures, each encoded once, up to so many bytes in all."""

    def __init__(self, images: NDArray[np.uint8] | None, budget: int = 1_000_000) -> None:
        self._images = images
        self._left = budget
        self._full = False
        self._made: dict[int, str] = {}

    def picture(self, index: int) -> str | None:
        """Return an image as a data address; None when there is no image or no room left."""
        if self._images is None or self._full:
            return None
        if index not in self._made:
            self._made[index] = data_address(np.asarray(self._images[index]))
        address = self._made[index]
        if len(address) > self._left:
            self._full = True
            return None
        self._left -= len(address)
        return address


def data_address(image: NDArray[np.uint8], drawn: bool = False, side: int = LARGEST_SIDE) -> str:
    """Encode an image of shape (h, w, c), uint8, as a data address; one above a side is made smaller.

    What is `drawn` has edges that JPEG would blur.
    """
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image[:, :, :3])
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    lossless = LOSSLESS_SIDE if drawn or picture.mode == "L" else LOSSLESS_SIDE_IN_COLOUR
    kind = "png" if max(picture.size) <= lossless else "jpeg"
    buffer = io.BytesIO()
    if kind == "png":
        picture.save(buffer, "PNG", compress_level=9)
    else:
        # Colours as fine as brightness: on a small picture coarser ones show.
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
