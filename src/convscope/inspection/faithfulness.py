"""Whether an attribution names the pixels that matter: deletion and insertion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from convscope.arithmetic import show_shape
from convscope.errors import UsageError, sentence
from convscope.inspection.running import (
    FloatArray,
    chosen_class,
    fitting_batch,
    one_image,
    scores,
    to_numpy,
)
from convscope.lowering.graph import Graph, read_graph

if TYPE_CHECKING:
    import keras

    from convscope.inspection.attribution import Attribution

STEPS, SEED, RANDOM_ORDERS = 28, 1338, 10


@dataclass(frozen=True)
class FaithfulnessCurve:
    """The probability of a class while pixels go or come, the most important first.

    Parameters
    ----------
    kind : {"deletion", "insertion"}
        Whether pixels go from the image, or come onto the baseline.
    class_index : int
        The class.
    fractions : numpy.ndarray of shape (steps + 1,), float32
        Share of the pixels changed so far, from 0 to 1.
    probabilities : numpy.ndarray of shape (steps + 1,), float32
        The probability of the class.
    area : float
        Area under the curve: low is good for deletion, high for insertion.
    random_area : float
        The same for pixels in random order, the mean over some orders: what to compare `area` with.
    """

    kind: str
    class_index: int
    fractions: FloatArray
    probabilities: FloatArray
    area: float
    random_area: float

    @property
    def better_than_chance(self) -> bool:
        """Whether the attribution's order beats a random one."""
        return self.area < self.random_area if self.kind == "deletion" else self.area > self.random_area


def deletion(
    model: keras.Model,
    image: npt.ArrayLike,
    attribution: npt.ArrayLike,
    class_index: int | None = None,
    baseline: npt.ArrayLike | None = None,
    steps: int = STEPS,
    seed: int = SEED,
) -> FaithfulnessCurve:
    """Replace the image's pixels by the baseline's, the most important first, and watch the probability fall.

    Parameters
    ----------
    model : keras.Model
        A built classifier.
    image : array of shape (height, width, channels), float32
        One preprocessed image.
    attribution : array of shape (height, width)
        The importance of each pixel, e.g. ``Attribution.values``.
    class_index : int, optional
        The class; the predicted one when left out.
    baseline : array of the image's shape, optional
        What pixels are replaced by; zeros when left out.
    steps : int
        How many times pixels are replaced.
    seed : int
        For the ten random orders to compare with.

    Returns
    -------
    FaithfulnessCurve
        A small area says that the attribution found what the class depends on.

    Raises
    ------
    UsageError
        When the attribution has another size than the image, or there is no such class.

    Notes
    -----
    Petsiuk, Das and Saenko, "RISE" (2018), section 4.2.

    Examples
    --------
    >>> import numpy as np
    >>> from convscope.networks import build
    >>> curve = deletion(build("simple"), np.ones((28, 28, 1)), np.ones((28, 28)), class_index=0)
    >>> curve.fractions[[0, -1]].tolist(), 0 <= curve.area <= 1
    ([0.0, 1.0], True)
    """
    return _curves("deletion", model, image, [attribution], class_index, baseline, steps, seed)[0]


def insertion(
    model: keras.Model,
    image: npt.ArrayLike,
    attribution: npt.ArrayLike,
    class_index: int | None = None,
    baseline: npt.ArrayLike | None = None,
    steps: int = STEPS,
    seed: int = SEED,
) -> FaithfulnessCurve:
    """Put the image's pixels onto the baseline, the most important first, and watch the probability rise.

    Takes what `deletion` does; here a large area is good.

    Examples
    --------
    >>> import numpy as np
    >>> from convscope.networks import build
    >>> insertion(build("simple"), np.ones((28, 28, 1)), np.ones((28, 28))).kind
    'insertion'
    """
    return _curves("insertion", model, image, [attribution], class_index, baseline, steps, seed)[0]


def check_attributions(
    model: keras.Model, image: npt.ArrayLike, attributions: Sequence[Attribution]
) -> list[tuple[FaithfulnessCurve, FaithfulnessCurve]]:
    """Check attributions of one image and class by `deletion` and `insertion`; random orders are shared."""
    maps, target = [one.values for one in attributions], attributions[0].class_index
    curves = [
        _curves(kind, model, image, maps, target, None, STEPS, SEED) for kind in ("deletion", "insertion")
    ]
    return list(zip(*curves, strict=True))


def _curves(
    kind: str,
    model: keras.Model,
    image: npt.ArrayLike,
    attributions: Sequence[npt.ArrayLike],
    class_index: int | None,
    baseline: npt.ArrayLike | None,
    steps: int,
    seed: int,
) -> list[FaithfulnessCurve]:
    graph = read_graph(model)
    batch = one_image(graph, image)
    empty = torch.zeros_like(batch) if baseline is None else one_image(graph, baseline)
    importances = [_importance(graph, batch, one) for one in attributions]
    pixels = importances[0].size
    with torch.no_grad():
        target = chosen_class(scores(graph, batch), class_index)
    first, last = (batch, empty) if kind == "deletion" else (empty, batch)
    counts = np.linspace(0, pixels, min(steps, pixels) + 1).round().astype(int)
    generator = np.random.default_rng(seed)
    orders = [
        # A stable sort: pixels of equal importance go in reading order.
        *(np.argsort(-importance, kind="stable") for importance in importances),
        *(generator.permutation(pixels) for _ in range(RANDOM_ORDERS)),
    ]
    found = _probabilities(graph, first, last, np.stack(orders), counts, target)  # (orders, steps + 1)
    fractions = (counts / pixels).astype(np.float32)
    areas = [float(np.trapezoid(probabilities, fractions)) for probabilities in found]
    by_chance = float(np.mean(areas[len(importances) :]))
    return [
        FaithfulnessCurve(kind, target, fractions, probabilities, area, by_chance)
        for probabilities, area in zip(found[: len(importances)], areas, strict=False)
    ]


def _importance(graph: Graph, batch: torch.Tensor, attribution: npt.ArrayLike) -> npt.NDArray[np.float64]:
    importance = np.asarray(attribution, dtype=np.float64)
    size = tuple(batch.shape[2:] if graph.channels_first else batch.shape[1:3])
    if importance.shape != size:
        raise UsageError(
            sentence(f"an attribution of {show_shape(size)}", show_shape(importance.shape) or "a number")
        )
    return importance.ravel()


def _probabilities(
    graph: Graph,
    first: torch.Tensor,
    last: torch.Tensor,
    orders: npt.NDArray[np.intp],
    counts: npt.NDArray[np.int_],
    target: int,
) -> FloatArray:
    """Find the class's probability where the first `count` pixels of each order are those of `last`."""
    ranks = np.argsort(orders, axis=1)  # (orders, pixels)
    size = first.shape[2:] if graph.channels_first else first.shape[1:3]
    pairs = np.stack(np.meshgrid(range(len(orders)), counts, indexing="ij"), axis=-1).reshape(-1, 2)
    parts, most = [], fitting_batch(graph, 64)
    with torch.no_grad():
        for start in range(0, len(pairs), most):
            order, count = pairs[start : start + most].T
            changed = torch.tensor(ranks[order] < count[:, None], device=first.device)
            changed = changed.reshape(-1, *size)  # (mixtures, h, w)
            mask = changed[:, None] if graph.channels_first else changed[..., None]
            parts.append(scores(graph, torch.where(mask, last, first)).softmax(1)[:, target])
    return to_numpy(torch.cat(parts)).reshape(len(orders), len(counts))
