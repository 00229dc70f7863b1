"""Which pixels speak for a class: Grad-CAM, Grad-CAM++, integrated gradients, occlusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from convscope.errors import UsageError, sentence
from convscope.inspection.running import (
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


@dataclass(frozen=True)
class Attribution:
    """How much each pixel of one image speaks for a class.

    Parameters
    ----------
    method : str
        ``"grad_cam"``, ``"grad_cam_plus_plus"``, ``"integrated_gradients"`` or ``"occlusion"``.
    class_index : int
        The class asked about.
    score : float
        The network's score for it, before the softmax.
    values : numpy.ndarray of shape (height, width), float32
        One number for each pixel of the image, summed over channels; higher speaks more for the class.
    signed : bool
        Whether negative numbers occur and speak against the class.
    layer : str or None
        The layer whose feature maps were used.
    coarse : numpy.ndarray of shape (h, w), float32, or None
        The map at that layer's own size, before it was enlarged.
    completeness : Completeness or None
        For integrated gradients: whether the numbers add up.
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

    Parameters
    ----------
    total : float
        The sum of all attributions.
    difference : float
        The score of the image less the score of the baseline.
    error : float
        ``|total − difference| / |difference|``.
    steps : int
        Points at which gradients were taken.
    """

    total: float
    difference: float
    error: float
    steps: int

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
    model : keras.Model
        A built classifier.
    image : array of shape (height, width, channels), float32
        One preprocessed image.
    class_index : int, optional
        The class asked about; the predicted one when left out.
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
        raise UsageError(sentence("steps of at least 1", steps))
    while True:
        values = to_float64(
            method.attribute(batch, baselines=start, target=target, n_steps=steps, internal_batch_size=size)
        )
        completeness = _completeness(float(values.sum()), difference, steps)
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
    window: int = 4,
    stride: int = 2,
    fill: float = 0.0,
) -> Attribution:
    """Cover one patch of the image after another and see how far the score falls.

    Parameters
    ----------
    model : keras.Model
        A built classifier.
    image : array of shape (height, width, channels), float32
        One preprocessed image.
    class_index : int, optional
        The class asked about; the predicted one when left out.
    window, stride : int
        Side of the patch, and how far it moves, in pixels.
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
    from captum.attr import Occlusion

    graph = read_graph(model)
    batch = one_image(graph, image)
    spatial = tuple(channels_last(graph, batch).shape[1:3])
    if not 1 <= window <= min(spatial) or not 1 <= stride <= window:
        raise UsageError(
            sentence(
                f"a window of 1 to {min(spatial)} pixels and a stride of 1 to the window",
                f"window {window} and stride {stride}",
            )
        )
    channels = batch.shape[1] if graph.channels_first else batch.shape[-1]
    patch = (channels, window, window) if graph.channels_first else (window, window, channels)
    moves = (channels, stride, stride) if graph.channels_first else (stride, stride, channels)
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
    call = image_call(graph, layer, "a set of feature maps")
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


def _completeness(total: float, difference: float, steps: int) -> Completeness:
    gap = abs(total - difference)
    error = gap / abs(difference) if difference else (0.0 if gap == 0 else float("inf"))
    return Completeness(total, difference, error, steps)


def _over_channels(graph: Graph, values: torch.Tensor) -> FloatArray:
    """Add up the channels of each pixel."""
    return np.ascontiguousarray(to_numpy(channels_last(graph, values)[0].sum(-1)))  # (h, w)
