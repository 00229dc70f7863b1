"""Find an activation in a network and recompute it by hand, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import torch

from convscope import _keras_internals as internals
from convscope.arithmetic import LayerContext
from convscope.arithmetic.activations import Array
from convscope.arithmetic.kind import ActivationContext, Recomputed
from convscope.arithmetic.layers import LAYERS
from convscope.errors import UsageError, expected_got
from convscope.inspection.forward import FloatArray, channels_last, find_activation, one_image, run, to_numpy
from convscope.lowering.graph import Call, read_graph


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


# Places at which nothing enters a layer that are tried before one of them is shown: one of each channel.
_PLACES_TRIED = 64


class Recomputation:
    """A built model run once on one preprocessed image, any of whose numbers can then be recomputed."""

    def __init__(self, model: keras.Model, image: npt.ArrayLike) -> None:
        self._graph = read_graph(model)
        with torch.no_grad():
            self._values = run(self._graph, one_image(self._graph, image))

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers whose numbers can be recomputed."""
        return tuple(call.name for call in self._graph.calls if _rule(call) is not None)

    def __call__(
        self, layer: str | int, position: tuple[int, int] | None = None, channel: int = 0
    ) -> Recomputed:
        """Recompute one number; takes, gives and raises what `recompute` does."""
        call = self._graph.call(layer)
        compute = _rule(call)
        if compute is None:
            known = ", ".join(name for name, kind in LAYERS.items() if kind.recompute)
            expected = "a layer whose arithmetic is known"
            raise UsageError(expected_got(expected, f"{call.name} ({call.type})", f"Known are {known}."))
        output = self._output(call)
        place = _check_place(call, output.shape, position, channel)
        return compute(
            ActivationContext(
                name=call.name,
                layer=_layer_context(call, self._graph.channels_first),
                inputs=tuple(to_numpy(self._values[number])[0].astype(np.float64) for number in call.inputs),
                output_shape=call.output_shapes[0],
                position=place,
                channel=channel,
                network_value=float(output[(*(place or ()), channel)]),
                activation=find_activation(call.operation),
                optional_weight=_weights_of(call.operation),
            )
        )

    def strongest(
        self,
        layer: str | int | None = None,
        position: tuple[int, int] | None = None,
        channel: int | None = None,
    ) -> Recomputed:
        """Recompute the largest output of a layer, by default the first convolution, or of a place in it.

        Takes what `recompute` does; what is left out is chosen, so that the output is as large as it can be
        where what enters the layer is not 0 everywhere, or else as large as it can be.
        """
        call = self._example_call() if layer is None else self._graph.call(layer)
        output = self._output(call)  # (h, w, c) or (units,)
        _check_place(call, output.shape, position, channel or 0)
        searched = output if channel is None else output[..., channel : channel + 1]
        if position is not None:
            row, column = position
            searched = searched[row : row + 1, column : column + 1]
        left, found = searched.copy(), []
        for _ in range(_PLACES_TRIED):
            *place, best = map(int, np.unravel_index(int(left.argmax()), left.shape))
            chosen = (place[0], place[1]) if place else None
            one = self(call.name, position or chosen, best if channel is None else channel)
            if one.inputs.any():
                return one
            found.append(one)
            # Where nothing enters, a channel gives this same number, at however many places.
            left[..., best][left[..., best] == left[(*place, best)]] = -np.inf
        return found[0]

    def _output(self, call: Call) -> FloatArray:
        """Take what a call gives: an array (h, w, c), or (units,)."""
        output: FloatArray = to_numpy(channels_last(self._graph, self._values[call.outputs[0]]))[0]
        return output

    def _example_call(self) -> Call:
        """Find the first convolution, or else the first layer, of those that can be recomputed."""
        known = [call for call in self._graph.calls if _rule(call) is not None]
        convolutions = [call for call in known if hasattr(call.operation, "kernel_size")]
        return (convolutions or known or self._graph.calls)[0]


def _rule(call: Call) -> Callable[[ActivationContext], Recomputed] | None:
    """Return how an activation of a call is recomputed; None for a layer that is not Keras's own."""
    kind = LAYERS.get(call.type)
    return kind.recompute if kind and internals.is_of_keras(call.operation) else None


def _layer_context(call: Call, channels_first: bool) -> LayerContext:
    settings = call.operation.get_config()
    own = settings.get("data_format")
    first = own == "channels_first" if own else channels_first
    return LayerContext(call.type, settings, call.input_shapes, (None,) * len(call.inputs), None, first)


def _weights_of(layer: Any) -> Callable[[str], Array | None]:
    def weight(name: str) -> Array | None:
        variable = getattr(layer, name, None)
        return None if variable is None else to_numpy(getattr(variable, "value", variable)).astype(np.float64)

    return weight


def _check_place(
    call: Call, shape: tuple[int, ...], position: tuple[int, int] | None, channel: int
) -> tuple[int, int] | None:
    if len(shape) not in (1, 3):
        expected = "a layer that gives feature maps or a row of numbers"
        raise UsageError(expected_got(expected, f"{call.name}, {shape}"))
    if not 0 <= channel < shape[-1]:
        raise UsageError(expected_got(f"a channel of {call.name} from 0 to {shape[-1] - 1}", channel))
    if len(shape) == 1:
        if position is not None:
            raise UsageError(expected_got(f"no position for {call.name}, which gives a row", position))
        return None
    if position is None:
        return shape[0] // 2, shape[1] // 2
    if not (0 <= position[0] < shape[0] and 0 <= position[1] < shape[1]):
        expected = f"a position in {call.name} from (0, 0) to {(shape[0] - 1, shape[1] - 1)}"
        raise UsageError(expected_got(expected, position))
    return position
