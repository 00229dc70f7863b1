"""What a network has learned and what it makes of an image: filters, feature maps, embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy.typing as npt
import torch

from convscope.arithmetic import show_shape
from convscope.errors import UsageError, sentence
from convscope.inspection.running import (
    FloatArray,
    channels_last,
    fitting_batch,
    in_batches,
    one_image,
    run,
    to_batch,
    to_numpy,
)
from convscope.lowering.graph import Call, Graph, read_graph

if TYPE_CHECKING:
    import keras

# Layers whose filters can be read.
FILTERED = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D")


@dataclass(frozen=True)
class Filters:
    """The filters of one convolution.

    Parameters
    ----------
    layer : str
        Its name.
    kernels : numpy.ndarray of shape (filters, height, width, channels), float32
        One kernel for each filter.
    biases : numpy.ndarray of shape (filters,), float32
        Zeros for a layer without biases.
    """

    layer: str
    kernels: FloatArray
    biases: FloatArray


@dataclass(frozen=True)
class FeatureMaps:
    """What one layer makes of one image.

    Parameters
    ----------
    layer, type : str
        The layer's name, and the name of its class.
    values : numpy.ndarray of shape (height, width, channels) or (units,), float32
        Channels last, whatever the network's own order.
    """

    layer: str
    type: str
    values: FloatArray


def filters(model: keras.Model, layer: str | int | None = None) -> Filters:
    """Read the filters of a convolution.

    Parameters
    ----------
    model : keras.Model
        A built model.
    layer : str or int, optional
        The layer's name or number; the first convolution when left out.

    Returns
    -------
    Filters
        Of a SeparableConv2D, those of its depthwise half.

    Raises
    ------
    UsageError
        When the layer is no convolution, or the network has none.

    Examples
    --------
    >>> from convscope.networks import build
    >>> filters(build("deep"), "conv2d_2").kernels.shape
    (64, 3, 3, 32)
    """
    call = _convolution(read_graph(model), layer)
    operation = call.operation
    weights = operation.depthwise_kernel if call.type == "SeparableConv2D" else operation.kernel
    kernel = to_numpy(weights.value)  # (h, w, c, filters)
    if call.type != "Conv2D":
        kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
    biased = operation.bias is not None and call.type != "SeparableConv2D"
    count = kernel.shape[-1]
    biases = to_numpy(operation.bias.value if biased else torch.zeros(count))
    return Filters(call.name, kernel.transpose(3, 0, 1, 2), biases)  # (filters, h, w, c)


def feature_maps(model: keras.Model, image: npt.ArrayLike) -> tuple[FeatureMaps, ...]:
    """Run one image through a network and keep what every layer makes of it.

    Parameters
    ----------
    model : keras.Model
        A built model.
    image : array of shape (height, width, channels), float32
        One preprocessed image, in the network's own order of axes.

    Returns
    -------
    tuple of FeatureMaps
        One for each layer, in order.

    Examples
    --------
    >>> import numpy as np
    >>> from convscope.networks import build
    >>> maps = feature_maps(build("simple"), np.zeros((28, 28, 1)))
    >>> [layer.values.shape for layer in maps]
    [(26, 26, 32), (21632,), (10,)]
    """
    graph = read_graph(model)
    with torch.no_grad():
        values = run(graph, one_image(graph, image))
    return tuple(
        FeatureMaps(call.name, call.type, to_numpy(channels_last(graph, values[call.outputs[0]]))[0])
        for call in graph.calls
    )


def embeddings(model: keras.Model, images: npt.ArrayLike, batch_size: int = 256) -> FloatArray:
    """Take what enters the layer that decides between the classes: the last hidden layer's output.

    Parameters
    ----------
    model : keras.Model
        A built model.
    images : array of shape (n, height, width, channels), float32
        Preprocessed images.
    batch_size : int
        Images that go through the network at a time, at most; fewer where they are large.

    Returns
    -------
    numpy.ndarray of shape (n, features), float32
        One row for each image.

    Examples
    --------
    >>> import numpy as np
    >>> from convscope.networks import build
    >>> embeddings(build("deep"), np.zeros((5, 28, 28, 1))).shape
    (5, 128)
    """
    graph = read_graph(model)
    deciding = _deciding_call(graph)
    entering, rows = deciding.inputs[0], []
    with torch.no_grad():
        for batch in in_batches(to_batch(graph, images), fitting_batch(graph, batch_size)):
            rows.append(run(graph, batch, until=deciding, keep=[entering])[entering].flatten(1))
    return to_numpy(torch.cat(rows))


def _deciding_call(graph: Graph) -> Call:
    """Find the last layer with weights."""
    weighted = [call for call in graph.calls if getattr(call.operation, "weights", [])]
    return (weighted or list(graph.calls))[-1]


def _convolution(graph: Graph, layer: str | int | None) -> Call:
    if layer is None:
        found = [call for call in graph.calls if call.type in FILTERED]
        if not found:
            raise UsageError(sentence("a network with a convolution", "none"))
        return found[0]
    call = graph.call(layer)
    if call.type not in FILTERED:
        raise UsageError(
            sentence(
                "a convolution", f"{call.name} ({call.type}, output {show_shape(call.output_shapes[0])})"
            )
        )
    return call
