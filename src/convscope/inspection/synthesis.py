"""Images that a network makes up: what a filter or a class responds to most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from convscope.arithmetic import show_shape
from convscope.errors import UsageError, expected_got
from convscope.inspection.forward import (
    FloatArray,
    Values,
    channels_last,
    chosen_class,
    image_call,
    logits,
    run,
    scores,
    to_batch,
    to_numpy,
)
from convscope.lowering.graph import Call, Graph, read_graph

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Synthesis:
    """An image (h, w, c), channels last, made to excite one filter or class.

    ``target`` says what it was made for (``"conv2d_2, filter 5"``, ``"class 3"``), ``scores`` (steps + 1,)
    are those before each step, and at the end.
    """

    target: str
    image: FloatArray
    scores: FloatArray

    @property
    def gain(self) -> float:
        """How far the score rose."""
        return float(self.scores[-1] - self.scores[0])


def maximise_filter(
    model: keras.Model,
    layer: str | int,
    channel: int,
    *,
    steps: int = 128,
    learning_rate: float = 0.05,
    smoothness: float = 0.1,
    limits: tuple[float, float] = (0.0, 1.0),
    seed: int = 1338,
) -> Synthesis:
    """Make an image that excites one filter: the mean of its feature map, as high as it goes.

    Parameters
    ----------
    model : keras.Model
        A built model for images of a fixed size.
    layer : str or int
        A layer that gives feature maps.
    channel : int
        Which of them.
    steps : int
        Steps of gradient ascent (Adam).
    learning_rate : float
        Of Adam, as a share of the range of pixels.
    smoothness : float
        Weight of the mean absolute difference between neighbouring pixels, which is held small; 0 for none.
    limits : pair of float
        The range of preprocessed pixels.
    seed : int
        For the noise that it begins with.

    Returns
    -------
    Synthesis
        The image and how the score rose.

    Raises
    ------
    UsageError
        When the layer gives no feature maps, or has no such channel.

    Notes
    -----
    Erhan et al., "Visualizing Higher-Layer Features of a Deep Network" (2009), section 4; the smoothness
    term as in Mahendran and Vedaldi (2015), section 2.

    Examples
    --------
    >>> from convscope.networks import build
    >>> maximise_filter(build("deep"), "conv2d_1", 0, steps=8).image.shape
    (28, 28, 1)
    """
    graph = read_graph(model)
    call = image_call(graph, layer)
    count = call.output_shapes[0][0 if graph.channels_first else -1] or 0
    if not 0 <= channel < count:
        raise UsageError(expected_got(f"a channel of {call.name} from 0 to {count - 1}", channel))

    def score(values: Values) -> torch.Tensor:
        return channels_last(graph, values[call.outputs[0]])[0, ..., channel].mean()

    settings = (steps, learning_rate, smoothness, limits, seed)
    return _climb(graph, f"{call.name}, filter {channel}", score, call, *settings)


def maximise_class(
    model: keras.Model,
    class_index: int,
    *,
    steps: int = 128,
    learning_rate: float = 0.05,
    smoothness: float = 0.1,
    limits: tuple[float, float] = (0.0, 1.0),
    seed: int = 1338,
    class_names: Sequence[str] | None = None,
) -> Synthesis:
    """Make an image that a class scores highest on, before the softmax.

    Takes and gives what `maximise_filter` does, for a class instead of a filter; with names of the
    classes, the one it was made for is named.

    Examples
    --------
    >>> from convscope.networks import build
    >>> maximise_class(build("simple"), 3, steps=8).gain > 0
    True
    """
    graph = read_graph(model)
    with torch.no_grad():
        start = _noise(graph, limits, seed)
        chosen_class(scores(graph, start), class_index)
    name = str(class_index) if class_names is None else class_names[class_index]

    def score(values: Values) -> torch.Tensor:
        return logits(graph, values)[0, class_index]

    settings = (steps, learning_rate, smoothness, limits, seed)
    return _climb(graph, f"class {name}", score, None, *settings)


def _climb(
    graph: Graph,
    target: str,
    score: Callable[[Values], torch.Tensor],
    until: Call | None,
    steps: int,
    learning_rate: float,
    smoothness: float,
    limits: tuple[float, float],
    seed: int,
) -> Synthesis:
    """Raise the score step by step; pixels stay within the limits."""
    low, high = limits
    image = _noise(graph, limits, seed).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=learning_rate * (high - low))
    history = []
    for _ in range(steps):
        reached = score(run(graph, image, until))
        roughness = _roughness(channels_last(graph, image)) / (high - low)
        # The score's own size varies from filter to filter; Adam's steps do not depend on it, but the balance
        # with the roughness does.
        objective = smoothness * roughness - reached / (reached.detach().abs() + 1)
        (image.grad,) = torch.autograd.grad(objective, image)
        optimizer.step()
        with torch.no_grad():
            image.clamp_(low, high)
        history.append(reached.detach())
    with torch.no_grad():
        history.append(score(run(graph, image, until)))
    return Synthesis(target, to_numpy(channels_last(graph, image)[0]), to_numpy(torch.stack(history)))


def _noise(graph: Graph, limits: tuple[float, float], seed: int) -> torch.Tensor:
    """Begin in the middle of the range, with a little noise."""
    shape = graph.input_shapes[0]
    lengths = [length for length in shape if length is not None]
    if len(lengths) != 3 or len(shape) != 3:
        raise UsageError(expected_got("a network for images of a fixed size", show_shape(shape)))
    low, high = limits
    if not low < high:
        raise UsageError(expected_got("limits in rising order", f"{low} to {high}"))
    noise = np.random.default_rng(seed).uniform(-0.1, 0.1, size=lengths)
    return to_batch(graph, (low + high) / 2 + (high - low) * noise)


def _roughness(images: torch.Tensor) -> torch.Tensor:
    """Take the mean absolute difference between neighbours (total variation)."""
    down = (images[:, 1:] - images[:, :-1]).abs().mean() if images.shape[1] > 1 else images.sum() * 0
    across = (images[:, :, 1:] - images[:, :, :-1]).abs().mean() if images.shape[2] > 1 else images.sum() * 0
    return down + across
