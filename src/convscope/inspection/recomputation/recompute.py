"""Find a number in a network and recompute it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from convscope.errors import UsageError, sentence
from convscope.inspection.graph import Call, read_graph
from convscope.inspection.recomputation import others, windows
from convscope.inspection.recomputation.site import Recomputed, Rule, Site
from convscope.inspection.running import channels_last, one_image, run, to_numpy

if TYPE_CHECKING:
    import keras

_UNCHANGED = ("Dropout", "SpatialDropout2D", "GaussianDropout", "GaussianNoise", "AlphaDropout", "Identity")
_RULES: dict[str, Rule] = {
    "Conv2D": windows.convolution,
    "DepthwiseConv2D": windows.depthwise_convolution,
    "SeparableConv2D": windows.separable_convolution,
    "MaxPooling2D": windows.max_pooling,
    "AveragePooling2D": windows.average_pooling,
    "GlobalAveragePooling2D": windows.global_average_pooling,
    "GlobalMaxPooling2D": windows.global_max_pooling,
    "Dense": others.dense,
    "Softmax": others.softmax,
    "Activation": others.activation,
    "ReLU": others.activation,
    "LeakyReLU": others.activation,
    "Flatten": others.flatten,
    "Reshape": others.reshape,
    "BatchNormalization": others.batch_normalization,
    "Rescaling": others.rescaling,
    "ZeroPadding2D": others.zero_padding,
    "Cropping2D": others.cropping,
    "Concatenate": others.concatenate,
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"), others.merge),
    **dict.fromkeys(_UNCHANGED, others.unchanged),
}


def recompute(
    model: keras.Model,
    image: npt.ArrayLike,
    layer: str | int,
    position: tuple[int, int] | None = None,
    channel: int = 0,
) -> Recomputed:
    """Recompute one activation from what enters its layer, and compare it with the network's own number.

    Parameters
    ----------
    model : keras.Model
        A built model.
    image : array of shape (height, width, channels), float32
        One preprocessed image, in the network's own order of axes.
    layer : str or int
        The layer's name or number.
    position : pair of int, optional
        Row and column of the output, for a layer that gives feature maps; the middle when left out.
    channel : int
        Channel of the output, or the unit of a layer that gives a row of numbers.

    Returns
    -------
    Recomputed
        Patch, kernel, bias, sum and activation in float64, and the arithmetic in words.

    Raises
    ------
    UnknownNameError
        When there is no such layer.
    UsageError
        When the place lies outside the output, or the layer's arithmetic is not known.

    Examples
    --------
    >>> import numpy as np
    >>> from convscope.networks import build
    >>> corner = recompute(build("stages"), np.ones((28, 28, 1)), "conv2d_1", (0, 0), channel=5)
    >>> corner.inputs.shape, int(corner.inside.sum()), corner.agrees
    ((3, 3, 1), 4, True)
    """
    return Recomputation(model, image)(layer, position, channel)


class Recomputation:
    """A network run once on one image, any of whose numbers can then be recomputed.

    Parameters
    ----------
    model : keras.Model
        A built model.
    image : array of shape (height, width, channels), float32
        One preprocessed image, in the network's own order of axes.

    Examples
    --------
    >>> import numpy as np
    >>> from convscope.networks import build
    >>> numbers = Recomputation(build("simple"), np.ones((28, 28, 1)))
    >>> numbers.layers
    ('conv2d_1', 'flatten_1', 'dense_1')
    >>> all(numbers("dense_1", channel=unit).agrees for unit in range(10))
    True
    """

    def __init__(self, model: keras.Model, image: npt.ArrayLike) -> None:
        self._graph = read_graph(model)
        with torch.no_grad():
            self._values = run(self._graph, one_image(self._graph, image))

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers whose numbers can be recomputed."""
        return tuple(call.name for call in self._graph.calls if call.type in _RULES and _is_keras_own(call))

    def __call__(
        self, layer: str | int, position: tuple[int, int] | None = None, channel: int = 0
    ) -> Recomputed:
        """Recompute one number; takes, gives and raises what `recompute` does."""
        call = self._graph.call(layer)
        rule = _rule(call)
        output = to_numpy(channels_last(self._graph, self._values[call.outputs[0]]))[0]
        place = _check_place(call, output.shape, position, channel)
        site = Site(
            call=call,
            inputs=tuple(to_numpy(self._values[number])[0].astype(np.float64) for number in call.inputs),
            position=place,
            channel=channel,
            network_value=float(output[(*(place or ()), channel)]),
            channels_first=self._graph.channels_first,
        )
        return rule(site)


def _rule(call: Call) -> Rule:
    if call.type not in _RULES or not _is_keras_own(call):
        raise UsageError(
            sentence(
                "a layer whose arithmetic is known",
                f"{call.name} ({call.type})",
                f"Known are {', '.join(_RULES)}.",
            )
        )
    return _RULES[call.type]


def _is_keras_own(call: Call) -> bool:
    return type(call.operation).__module__.startswith("keras.src.layers.")


def _check_place(
    call: Call, shape: tuple[int, ...], position: tuple[int, int] | None, channel: int
) -> tuple[int, int] | None:
    if len(shape) not in (1, 3):
        raise UsageError(
            sentence("a layer that gives feature maps or a row of numbers", f"{call.name}, {shape}")
        )
    if not 0 <= channel < shape[-1]:
        raise UsageError(sentence(f"a channel of {call.name} from 0 to {shape[-1] - 1}", channel))
    if len(shape) == 1:
        if position is not None:
            raise UsageError(sentence(f"no position for {call.name}, which gives a row", position))
        return None
    if position is None:
        return shape[0] // 2, shape[1] // 2
    if not (0 <= position[0] < shape[0] and 0 <= position[1] < shape[1]):
        raise UsageError(
            sentence(f"a position in {call.name} from (0, 0) to {(shape[0] - 1, shape[1] - 1)}", position)
        )
    return position
