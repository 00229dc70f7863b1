"""Whether an attribution names the pixels that matter: deletion and insertion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from convscope.arithmetic import show_shape
from convscope.errors import UsageError, sentence
from convscope.inspection.graph import Graph, read_graph
from convscope.inspection.running import (
    FloatArray,
    chosen_class,
    in_batches,
    logits,
    one_image,
    run,
    to_numpy,
)

if TYPE_CHECKING:
    import keras


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
    steps: int = 28,
    seed: int = 1338,
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
    return _curve("deletion", model, image, attribution, class_index, baseline, steps, seed)


def insertion(
    model: keras.Model,
    image: npt.ArrayLike,
    attribution: npt.ArrayLike,
    class_index: int | None = None,
    baseline: npt.ArrayLike | None = None,
    steps: int = 28,
    seed: int = 1338,
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
    return _curve("insertion", model, image, attribution, class_index, baseline, steps, seed)


def _curve(
    kind: str,
    model: keras.Model,
    image: npt.ArrayLike,
    attribution: npt.ArrayLike,
    class_index: int | None,
    baseline: npt.ArrayLike | None,
    steps: int,
    seed: int,
) -> FaithfulnessCurve:
    graph = read_graph(model)
    batch = one_image(graph, image)
    empty = torch.zeros_like(batch) if baseline is None else one_image(graph, baseline)
    importance = _importance(graph, batch, attribution)
    with torch.no_grad():
        target = chosen_class(logits(graph, run(graph, batch)), class_index)
    first, last = (batch, empty) if kind == "deletion" else (empty, batch)
    counts = np.linspace(0, importance.size, min(steps, importance.size) + 1).round().astype(int)
    # A stable sort: pixels of equal importance go in reading order.
    order = np.argsort(-importance, kind="stable")
    probabilities = _probabilities(graph, first, last, order, counts, target)
    fractions = (counts / importance.size).astype(np.float32)
    generator = np.random.default_rng(seed)
    chance = [
        _probabilities(graph, first, last, generator.permutation(importance.size), counts, target)
        for _ in range(10)
    ]
    return FaithfulnessCurve(
        kind=kind,
        class_index=target,
        fractions=fractions,
        probabilities=probabilities,
        area=float(np.trapezoid(probabilities, fractions)),
        random_area=float(np.mean([np.trapezoid(curve, fractions) for curve in chance])),
    )


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
    order: npt.NDArray[np.intp],
    counts: npt.NDArray[np.int_],
    target: int,
) -> FloatArray:
    """Find the class's probability for mixtures: the first `count` pixels in `order` are those of `last`."""
    rank = np.empty(order.size, dtype=int)
    rank[order] = np.arange(order.size)
    size = first.shape[2:] if graph.channels_first else first.shape[1:3]
    changed = torch.tensor(rank[None] < counts[:, None], device=first.device).reshape(
        -1, *size
    )  # (steps, h, w)
    mask = changed[:, None] if graph.channels_first else changed[..., None]
    mixtures = torch.where(mask, last, first)
    with torch.no_grad():
        parts = [logits(graph, run(graph, part)).softmax(1)[:, target] for part in in_batches(mixtures, 64)]
    return to_numpy(torch.cat(parts))
