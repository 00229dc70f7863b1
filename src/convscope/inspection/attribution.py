"""Which pixels speak for a class, by four methods, and whether that is true: deletion and insertion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from convscope.arithmetic import show_shape
from convscope.environment import require_package
from convscope.errors import UsageError, expected_got
from convscope.inspection.forward import (
    FloatArray,
    channels_last,
    chosen_class,
    fitting_batch,
    image_call,
    logits,
    one_image,
    run,
    scores,
    to_float64,
    to_numpy,
)
from convscope.lowering.graph import Graph, read_graph

if TYPE_CHECKING:
    import keras

# Integrated gradients: the sum may miss the difference of scores by this share of it (1 %).
COMPLETENESS = 0.01
MOST_STEPS = 1024
# Deletion and insertion: how many times pixels are replaced, and how many random orders are compared with.
STEPS, SEED, RANDOM_ORDERS = 28, 1338, 10


@dataclass(frozen=True)
class Attribution:
    """How much each pixel of one image speaks for a class: values (h, w), summed over channels.

    ``score`` is the network's for the class, before the softmax. Where ``signed``, negative values speak
    against the class. Class activation maps name the layer whose feature maps were used, and have ``coarse``,
    the map at that layer's own size; integrated gradients say whether their numbers add up.
    """

    method: str
    class_index: int
    score: float
    values: FloatArray
    signed: bool
    layer: str | None = None
    coarse: FloatArray | None = None
    completeness: Completeness | None = None


@dataclass(frozen=True)
class Completeness:
    """Whether attributions add up to what they explain (Sundararajan et al. 2017, section 3, Completeness).

    ``total`` is their sum, ``difference`` the score of the image less that of the baseline, and ``steps``
    are the points at which gradients were taken.
    """

    total: float
    difference: float
    steps: int

    @property
    def error(self) -> float:
        """How far the two are apart, as a share of the difference."""
        gap = abs(self.total - self.difference)
        return gap / abs(self.difference) if self.difference else (0.0 if gap == 0 else float("inf"))

    @property
    def holds(self) -> bool:
        """Whether the error is at most 1 %."""
        return self.error <= COMPLETENESS


def grad_cam(
    model: keras.Model, image: npt.ArrayLike, class_index: int | None = None, layer: str | int | None = None
) -> Attribution:
    """Show where a class's evidence lies in the last feature maps.

    Parameters
    ----------
    model : keras.Model
        A built classifier.
    image : array of shape (height, width, channels), float32
        One preprocessed image.
    class_index : int, optional
        The class asked about; the predicted one when left out.
    layer : str or int, optional
        A layer that gives feature maps; the last convolution when left out.

    Returns
    -------
    Attribution
        Not negative.

    Raises
    ------
    UsageError
        When there is no such class, or the layer gives no feature maps.

    Notes
    -----
    Selvaraju et al., "Grad-CAM" (2017), equations 1 and 2: a map's weight is the mean of the gradient of the
    class's score over its positions; the weighted maps are added, and negative sums cut.

    Examples
    --------
    >>> import numpy as np
    >>> from convscope.networks import build
    >>> seen = grad_cam(build("deep"), np.zeros((28, 28, 1)), class_index=3)
    >>> seen.layer, seen.coarse.shape, seen.values.shape
    ('conv2d_2', (24, 24), (28, 28))
    """

    def weigh(maps: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        del maps
        return gradient.mean((0, 1))  # (c,)

    return _class_activation_map("grad_cam", weigh, model, image, class_index, layer)


def grad_cam_plus_plus(
    model: keras.Model, image: npt.ArrayLike, class_index: int | None = None, layer: str | int | None = None
) -> Attribution:
    """Show where a class's evidence lies, with several places for one class told apart better.

    Takes and gives what `grad_cam` does.

    Notes
    -----
    Chattopadhay et al., "Grad-CAM++" (2018), equations 9 and 19, for the exponential of the score: with
    gradients g of the score and maps A, a position's weight is ``g² / (2·g² + g³·ΣA)``.

    Examples
    --------
    >>> import numpy as np
    >>> from convscope.networks import build
    >>> grad_cam_plus_plus(build("deep"), np.ones((28, 28, 1))).values.shape
    (28, 28)
    """

    def weigh(maps: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        square, cube = gradient**2, gradient**3
        denominator = 2 * square + cube * maps.sum((0, 1))  # (h, w, c)
        share = torch.where(denominator != 0, square / denominator, torch.zeros_like(square))
        return (share * gradient.relu()).sum((0, 1))  # (c,)

    return _class_activation_map("grad_cam_plus_plus", weigh, model, image, class_index, layer)


def integrated_gradients(
    model: keras.Model,
    image: npt.ArrayLike,
    class_index: int | None = None,
    baseline: npt.ArrayLike | None = None,
    steps: int = 64,
) -> Attribution:
    """Share the difference between an image's score and a baseline's out among the pixels.

    Parameters
    ----------
    model, image, class_index
        As for `grad_cam`.
    baseline : array of the image's shape, optional
        An image that says nothing; zeros when left out.
    steps : int
        Points between baseline and image at which gradients are taken; doubled, up to 1,024, until the
        attributions add up to within 1 %.

    Returns
    -------
    Attribution
        Signed; its `completeness` says how well the numbers add up.

    Raises
    ------
    UsageError
        When there is no such class, or the baseline has another shape.

    Notes
    -----
    Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks" (2017), equation 1; computed by
    captum, with Gauss–Legendre quadrature.

    Examples
    --------
    >>> import numpy as np
    >>> from convscope.networks import build
    >>> integrated_gradients(build("simple"), np.ones((28, 28, 1))).completeness.holds
    True
    """
    require_package("captum", "attribution")
    from captum.attr import IntegratedGradients

    graph = read_graph(model)
    batch = one_image(graph, image)
    start = _baseline(graph, batch, baseline)
    with torch.no_grad():
        at_image = scores(graph, batch)
        target = chosen_class(at_image, class_index)
        difference = float(at_image[0, target] - scores(graph, start)[0, target])
    method = IntegratedGradients(partial(scores, graph))
    size = fitting_batch(graph, 64)
    if steps < 1:
        raise UsageError(expected_got("steps of at least 1", steps))
    while True:
        values = to_float64(
            method.attribute(batch, baselines=start, target=target, n_steps=steps, internal_batch_size=size)
        )
        completeness = Completeness(float(values.sum()), difference, steps)
        if completeness.holds or steps * 2 > MOST_STEPS:
            break
        steps *= 2
    return Attribution(
        method="integrated_gradients",
        class_index=target,
        score=float(at_image[0, target]),
        values=_over_channels(graph, values),
        signed=True,
        completeness=completeness,
    )


def occlusion(
    model: keras.Model,
    image: npt.ArrayLike,
    class_index: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    fill: float = 0.0,
) -> Attribution:
    """Cover one patch of the image after another and see how far the score falls.

    Parameters
    ----------
    model, image, class_index
        As for `grad_cam`.
    window, stride : int, optional
        Side of the patch, and how far it moves, in pixels; a seventh of the image's shorter side (at least
        4), and half the window, when left out.
    fill : float
        What covers it.

    Returns
    -------
    Attribution
        Signed: the fall of the score, averaged over the patches that covered a pixel.

    Raises
    ------
    UsageError
        When there is no such class, or the patch does not fit into the image.

    Notes
    -----
    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks" (2014), section 4.2; computed
    by captum.

    Examples
    --------
    >>> import numpy as np
    >>> from convscope.networks import build
    >>> occlusion(build("simple"), np.ones((28, 28, 1)), window=14, stride=7).values.shape
    (28, 28)
    """
    require_package("captum", "attribution")
    from captum.attr import Occlusion

    graph = read_graph(model)
    batch = one_image(graph, image)
    spatial = tuple(channels_last(graph, batch).shape[1:3])
    window = max(4, min(spatial) // 7) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= window <= min(spatial) or not 1 <= stride <= window:
        expected = f"a window of 1 to {min(spatial)} pixels and a stride of 1 to the window"
        raise UsageError(expected_got(expected, f"window {window} and stride {stride}"))
    channels = channels_last(graph, batch).shape[-1]
    patch, moves = (
        (channels, side, side) if graph.channels_first else (side, side, channels)
        for side in (window, stride)
    )
    with torch.no_grad():
        at_image = scores(graph, batch)
        target = chosen_class(at_image, class_index)
        values = Occlusion(partial(scores, graph)).attribute(
            batch,
            sliding_window_shapes=patch,
            strides=moves,
            baselines=fill,
            target=target,
            perturbations_per_eval=fitting_batch(graph, 64),
        )
    # captum gives every channel of a covered pixel the same fall; it is one fall.
    return Attribution(
        method="occlusion",
        class_index=target,
        score=float(at_image[0, target]),
        values=_over_channels(graph, values / channels),
        signed=True,
    )


def _class_activation_map(
    method: str,
    weigh: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    model: keras.Model,
    image: npt.ArrayLike,
    class_index: int | None,
    layer: str | int | None,
) -> Attribution:
    graph = read_graph(model)
    call = image_call(graph, layer)
    batch = one_image(graph, image).requires_grad_()
    values = run(graph, batch)
    found = logits(graph, values)
    target = chosen_class(found, class_index)
    maps = values[call.outputs[0]]
    (gradient,) = torch.autograd.grad(found[0, target], maps)
    maps, gradient = (channels_last(graph, tensor)[0].detach() for tensor in (maps, gradient))  # (h, w, c)
    coarse = (maps * weigh(maps, gradient)).sum(-1).relu()  # (h, w)
    size = tuple(channels_last(graph, batch).shape[1:3])
    fine = torch.nn.functional.interpolate(
        coarse[None, None], size=size, mode="bilinear", align_corners=False
    )
    return Attribution(
        method=method,
        class_index=target,
        score=float(found[0, target].detach()),
        values=to_numpy(fine[0, 0]),
        signed=False,
        layer=call.name,
        coarse=to_numpy(coarse),
    )


def _baseline(graph: Graph, batch: torch.Tensor, baseline: npt.ArrayLike | None) -> torch.Tensor:
    return torch.zeros_like(batch) if baseline is None else one_image(graph, baseline)


def _over_channels(graph: Graph, values: torch.Tensor) -> FloatArray:
    """Add up the channels of each pixel."""
    return np.ascontiguousarray(to_numpy(channels_last(graph, values)[0].sum(-1)))  # (h, w)


@dataclass(frozen=True)
class FaithfulnessCurve:
    """The probability of a class while pixels go or come, the most important first.

    In ``"deletion"`` pixels go from the image, in ``"insertion"`` they come onto the baseline. ``fractions``
    and ``probabilities`` (steps + 1,) make the curve; a small ``area`` under it is good for deletion, a large
    one for insertion, compared with ``random_area``, the mean over some random orders.
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
    model, image, class_index
        As for `grad_cam`.
    attribution : array of shape (height, width)
        The importance of each pixel, e.g. ``Attribution.values``.
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
    empty = _baseline(graph, batch, baseline)
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
        expected = f"an attribution of {show_shape(size)}"
        raise UsageError(expected_got(expected, show_shape(importance.shape) or "a number"))
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
