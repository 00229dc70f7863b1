"""Figures and arrays → charts and pictures that a page carries with it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from convscope.plotting import as_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def chart(figure: Figure, title: str, description: str, axes: Sequence[Axes] = ()) -> Markup:
    """Draw a figure, or some of its axes, for the page, which gives it its colours."""
    return Markup(as_svg(figure, f"{title.rstrip('.')}. {description}", axes))  # noqa: S704  escaped there


# Larger images are shown smaller; the report is a page, not an archive.
LARGEST_SIDE = 96
# Above this side a lossless picture would be heavy, and a photograph does not need one; one in colour is
# three times as heavy from early on.
LOSSLESS_SIDE = 48
LOSSLESS_SIDE_IN_COLOUR = 20
JPEG_QUALITY = 85


class Album:
    """Test images (n, h, w, c) as pictures, each encoded once, up to so many bytes in all.

    Examples
    --------
    >>> album = Album(np.zeros((2, 4, 4, 1), np.uint8))
    >>> album.picture(0)[:22]
    'data:image/png;base64,'
    >>> Album(None).picture(0) is None
    True
    """

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


def data_address(image: NDArray[np.uint8], drawn: bool = False) -> str:
    """Encode an image of shape (h, w, c), uint8, as a data address; large ones are made smaller.

    What is `drawn` has edges that JPEG would blur.

    Examples
    --------
    >>> data_address(np.zeros((200, 100, 3), np.uint8))[:23]
    'data:image/jpeg;base64,'
    """
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image[:, :, :3])
    if max(picture.size) > LARGEST_SIDE:
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    lossless = LOSSLESS_SIDE if drawn or picture.mode == "L" else LOSSLESS_SIDE_IN_COLOUR
    kind = "png" if max(picture.size) <= lossless else "jpeg"
    buffer = io.BytesIO()
    if kind == "png":
        picture.save(buffer, "PNG", compress_level=9)
    else:
        # Colours as fine as brightness: on a small picture coarser ones show.
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
