"""Draw what a network looks at: attributions over their image, and whether they are faithful."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from convscope.errors import UsageError, expected_got
from convscope.plotting.images import as_pictures, stretched
from convscope.plotting.style import BLUE, GREY, RED, hide_axes, hide_frame, new_figure, shorten

if TYPE_CHECKING:
    # Inspection loads torch and Keras; drawing needs only the arrays that it gives.
    from convscope.inspection import Attribution, FaithfulnessCurve

MOST_PANELS_IN_A_ROW = 3
METHOD_NAMES = {
    "grad_cam": "Grad-CAM",
    "grad_cam_plus_plus": "Grad-CAM++",
    "integrated_gradients": "Integrated gradients",
    "occlusion": "Occlusion",
}


def plot_attribution(
    image: Any, found: Attribution | Sequence[Attribution], class_names: Sequence[str] | None = None
) -> Figure:
    r"""Draw an image and, over a pale copy of it, which pixels speak for a class.

    Parameters
    ----------
    image : array of shape (h, w), (h, w, c) or (c, h, w)
    found : Attribution, or a sequence of them
        From ``convscope.inspection``; maps of the same image.
    class_names : sequence of str, optional

    Returns
    -------
    Figure
        Red speaks for the class, and in maps with a sign blue against it.

    Raises
    ------
    UsageError
        When there is no map, or it has not the image's size.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> seen = SimpleNamespace(method="occlusion", class_index=3, score=2.0, values=np.eye(8), signed=True,
    ...                        layer=None, completeness=None)
    >>> [axes.get_title() for axes in plot_attribution(np.zeros((8, 8)), seen).axes[:2]]
    ['Image\n', 'Occlusion\nfor class 3']
    """
    maps = list(found) if isinstance(found, Sequence) else [found]
    (picture,) = as_pictures(np.asarray(image)[np.newaxis])
    if not maps:
        raise UsageError(expected_got("at least one attribution", "none"))
    for one in maps:
        if one.values.shape != picture.shape[:2]:
            raise UsageError(expected_got(f"attributions of shape {picture.shape[:2]}", one.values.shape))
    with new_figure(2.3 * (len(maps) + 1), 3.4) as figure:
        panels = figure.subplots(1, len(maps) + 1)
        panels[0].imshow(stretched(picture), cmap="gray", vmin=0, vmax=1)
        panels[0].set_title("Image\n")
        panels[0].set_anchor("S")  # as a colour bar anchors those that it stands below
        hide_axes(panels[0])
        for axes, one in zip(panels[1:], maps, strict=True):
            axes.imshow(attribution_picture(image, one))
            hide_frame(axes)
            bar = figure.colorbar(_scale(one), ax=axes, orientation="horizontal", shrink=0.9, pad=0.03)
            bar.ax.tick_params(labelsize=7)
            bar.ax.locator_params(nbins=4)
            axes.set_xlabel(_note(one), fontsize=8)
            axes.set_title(f"{METHOD_NAMES.get(one.method, one.method)}\nfor {_class(one, class_names)}")
    return figure


def attribution_picture(image: Any, found: Attribution) -> NDArray[np.uint8]:
    """Lay a map over a pale grey copy of its image, as `plot_attribution` shows it: (h, w, 3)."""
    (picture,) = as_pictures(np.asarray(image)[np.newaxis])
    grey = np.atleast_3d(stretched(picture))[..., :3].mean(axis=2, keepdims=True)  # (h, w, 1)
    pale = 1 - 0.25 * (1 - grey) if grey.mean() > 0.5 else 1 - 0.35 * grey
    colours = _scale(found).to_rgba(found.values)  # (h, w, 4)
    mixed = colours[..., :3] * colours[..., 3:] + pale * (1 - colours[..., 3:])
    return np.asarray((255 * mixed).round(), np.uint8)


def _scale(found: Attribution) -> ScalarMappable:
    """Give values their colours, which cover the image the more, the larger they are."""
    share = np.linspace(-1 if found.signed else 0, 1, 511)
    # Of signed values a few are large, and the root shows the others too; a smooth map it would make solid.
    strength = 0.9 * (np.sqrt(np.abs(share)) if found.signed else share)
    colours = np.where(share[:, np.newaxis] >= 0, to_rgb(RED), to_rgb(BLUE))
    largest = float(np.abs(found.values).max()) or 1.0
    norm = Normalize(-largest if found.signed else 0, largest)
    return ScalarMappable(norm, ListedColormap(np.column_stack([colours, strength])))


def _note(one: Attribution) -> str:
    if one.completeness is not None:
        return f"adds up to {one.completeness.total:.3g} of {one.completeness.difference:.3g}"
    return f"at {shorten(one.layer, 22)}" if one.layer else ""


def _class(one: Attribution | FaithfulnessCurve, class_names: Sequence[str] | None) -> str:
    return f"class {one.class_index}" if class_names is None else shorten(class_names[one.class_index], 16)


def plot_faithfulness(
    curves: Sequence[FaithfulnessCurve],
    methods: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draw the probability of a class while the pixels that matter go or come.

    Parameters
    ----------
    curves : sequence of FaithfulnessCurve
        From ``convscope.inspection.deletion`` and ``insertion``.
    methods : sequence of str, optional
        The method of attribution that each curve checks, as ``Attribution.method`` names it.
    class_names : sequence of str, optional

    Returns
    -------
    Figure
        A panel for each, with its area and that of pixels in random order.

    Raises
    ------
    UsageError
        When there is none, or not a method for each.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> line = SimpleNamespace(kind="deletion", fractions=np.array([0.0, 1.0]), class_index=0,
    ...                        probabilities=np.array([1.0, 0.1]), area=0.2, random_area=0.5)
    >>> print(plot_faithfulness([line]).axes[0].get_title())
    Deletion: area 0.200 (random 0.500)
    """
    if not curves:
        raise UsageError(expected_got("at least one curve", "none"))
    if methods is not None and len(methods) != len(curves):
        raise UsageError(expected_got(f"{len(curves)} methods, one for each curve", len(methods)))
    columns = len(curves) if len(curves) <= MOST_PANELS_IN_A_ROW else 2
    rows = -(-len(curves) // columns)
    with new_figure(4.4 * columns, (3.2 if methods is None else 3.5) * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for place, (axes, curve) in enumerate(zip(panels, curves, strict=False)):
            _draw_faithfulness(axes, curve, _class(curve, class_names))
            if methods is not None:
                axes.set_title(f"{METHOD_NAMES.get(methods[place], methods[place])}\n{axes.get_title()}")
        for axes in panels[len(curves) :]:
            hide_axes(axes)
    return figure


def _draw_faithfulness(axes: Axes, curve: FaithfulnessCurve, label: str) -> None:
    done = "removed" if curve.kind == "deletion" else "shown"
    axes.fill_between(100 * curve.fractions, curve.probabilities, color=BLUE, alpha=0.15)
    axes.plot(100 * curve.fractions, curve.probabilities, color=BLUE)
    axes.axhline(curve.random_area, color=GREY, linestyle="--", linewidth=1.2, label="random order, mean")
    axes.set(xlim=(0, 100), ylim=(0, 1.02), xlabel=f"pixels {done}, the most important first (%)")
    axes.set_ylabel(f"probability of {label}")
    axes.set_title(f"{curve.kind.capitalize()}: area {curve.area:.3f} (random {curve.random_area:.3f})")
    axes.legend(loc="upper right" if curve.kind == "deletion" else "lower right")
