"""A network, run layer by layer on torch tensors, so that every value on the way can be looked at."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import torch

from convscope.arithmetic import show_shape
from convscope.arithmetic.activations import ACTIVATIONS, ActivationFunction, leaky_rectifier, rectifier
from convscope.errors import UsageError, expected_got
from convscope.lowering.devices import computing_on
from convscope.lowering.graph import Call, Graph, buffers_kept

# How many values of a network are computed at a time: 32 MB.
MOST_ELEMENTS = 2**23

FloatArray = npt.NDArray[np.float32]
Values = dict[int, torch.Tensor]


def to_batch(graph: Graph, images: npt.ArrayLike) -> torch.Tensor:
    """Turn preprocessed images into a batch for the network; a single image becomes a batch of one.

    UsageError when Keras does not run on torch, the network has several inputs, or the shape is not its own.
    """
    if keras.backend.backend() != "torch":
        hint, found = "Set KERAS_BACKEND=torch before the start.", f"Keras on {keras.backend.backend()}"
        raise UsageError(expected_got("Keras on torch for looking inside a network", found, hint))
    if len(graph.input_shapes) != 1:
        raise UsageError(expected_got("a network with one input", f"{len(graph.input_shapes)} inputs"))
    array = np.asarray(images, dtype=np.float32)
    shape = graph.input_shapes[0]
    if array.ndim == len(shape):
        array = array[None]
    is_batch = array.ndim == len(shape) + 1
    own = array.shape[1:] if is_batch else array.shape
    if not is_batch or any(length not in (None, other) for length, other in zip(shape, own, strict=True)):
        hint = "Apply the network's own preprocessing first."
        expected = f"preprocessed images of {show_shape(shape)}"
        raise UsageError(expected_got(expected, show_shape(own), hint))
    return torch.tensor(array, device=graph.device)


def one_image(graph: Graph, image: npt.ArrayLike) -> torch.Tensor:
    """Turn one preprocessed image into a batch of one."""
    batch = to_batch(graph, image)
    if len(batch) != 1:
        raise UsageError(expected_got("one image", f"{len(batch)}", "Choose one: images[0]."))
    return batch


def run(
    graph: Graph, batch: torch.Tensor, until: Call | None = None, keep: Collection[int] | None = None
) -> Values:
    """Call every layer as at inference; return the values by their numbers, all of them or those to keep.

    Stops behind the call ``until``. Gradients are followed if the batch, of shape (n, …), wants them.
    """
    values = {graph.inputs[0]: batch}
    uses = Counter(number for call in graph.calls for number in call.inputs)
    with computing_on(graph.device):
        for call in graph.calls:
            values.update(zip(call.outputs, call(values), strict=True))
            if call is until:
                break
            uses.subtract(call.inputs)
            if keep is not None:  # what no later call needs makes room
                for number in [one for one in values if uses[one] <= 0 and one not in keep]:
                    del values[number]
    return values


def call_alone(graph: Graph, call: Call, entering: FloatArray) -> FloatArray:
    """Call one layer as at inference on what enters it, (n, …) in the network's order; its first output."""
    with computing_on(graph.device), buffers_kept(call.operation):
        return to_numpy(call({call.inputs[0]: torch.tensor(entering, device=graph.device)})[0])


def fitting_batch(graph: Graph, most: int) -> int:
    """Choose how many images go through a network at a time, so that its values stay small."""
    elements = sum(math.prod(length or 1 for length in call.output_shapes[0]) for call in graph.calls)
    return max(1, min(most, MOST_ELEMENTS // max(elements, 1)))


def scores(graph: Graph, batch: torch.Tensor) -> torch.Tensor:
    """Compute what the classes score before a last softmax or sigmoid, keeping nothing else: (n, classes)."""
    last = last_call(graph)
    return logits(graph, run(graph, batch, keep=(*last.inputs, *last.outputs)))


def last_call(graph: Graph) -> Call:
    """Find the call that gives the network's output."""
    return next(call for call in graph.calls if graph.outputs[0] in call.outputs)


def logits(graph: Graph, values: Values) -> torch.Tensor:
    """Take the scores (n, classes) from before the last softmax or sigmoid out of what `run` gave."""
    call = last_call(graph)
    squashed = find_activation(call.operation).name in ("softmax", "sigmoid")
    found: torch.Tensor
    if call.type == "Dense" and squashed:
        sums = values[call.inputs[0]] @ call.operation.kernel.value
        found = sums if call.operation.bias is None else sums + call.operation.bias.value
    elif call.type == "Softmax" or (call.type == "Activation" and squashed):
        found = values[call.inputs[0]]
    else:
        found = values[graph.outputs[0]]
    if found.ndim != 2:
        expected = "a network that gives one score for each class"
        raise UsageError(expected_got(expected, f"output of {show_shape(found.shape[1:])}"))
    return found.float()


def find_activation(layer: Any) -> ActivationFunction:
    """Find a layer's activation function; one that is not written out is Keras's own, on float64 elements."""
    if isinstance(layer, keras.layers.Softmax):
        return ACTIVATIONS["softmax"]
    if isinstance(layer, keras.layers.ReLU):
        return rectifier(float(layer.negative_slope), layer.max_value, float(layer.threshold))
    if isinstance(layer, keras.layers.LeakyReLU):
        return leaky_rectifier(float(layer.negative_slope))
    function = getattr(layer, "activation", None)
    name = "linear" if function is None else str(getattr(function, "__name__", type(function).__name__))
    known = ACTIVATIONS.get(name)
    own = known is not None and (function is None or function is keras.activations.get(name))
    if known is not None and own and known.apply is not None:
        return known

    def by_keras(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        with computing_on(torch.device("cpu")):  # not every device has float64
            result = function(keras.ops.convert_to_tensor(x, dtype="float64"))  # type: ignore[misc]
        return np.asarray(keras.ops.convert_to_numpy(result), dtype=np.float64)

    over_row = own and known is not None and known.over_row
    return ActivationFunction(name, by_keras, f"{name}(x) as Keras computes it", over_row=over_row)


def chosen_class(scores: torch.Tensor, class_index: int | None) -> int:
    """Check the class asked for, or take the one with the highest score."""
    if class_index is None:
        return int(scores[0].argmax())
    if not 0 <= class_index < scores.shape[1]:
        raise UsageError(expected_got(f"a class from 0 to {scores.shape[1] - 1}", class_index))
    return class_index


def to_numpy(tensor: torch.Tensor) -> FloatArray:
    """Take a tensor out of torch, as float32."""
    return tensor.detach().float().cpu().numpy()


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """Widen a tensor for sums that are exact enough, on the CPU: not every device has float64."""
    return tensor.detach().cpu().double()


def channels_last(graph: Graph, tensor: torch.Tensor) -> torch.Tensor:
    """Bring a batch of images or feature maps into the order (n, h, w, c); leave anything else."""
    return tensor.movedim(1, -1) if graph.channels_first and tensor.ndim == 4 else tensor


def image_call(graph: Graph, layer: str | int | None) -> Call:
    """Find a layer that gives feature maps; without a name the last convolution, or else the last one.

    UsageError when the layer does not give feature maps, or none does.
    """
    if layer is not None:
        call = graph.call(layer)
        if len(call.output_shapes[0]) != 3:
            expected = "a layer whose output is a set of feature maps"
            raise UsageError(expected_got(expected, f"{call.name} with {show_shape(call.output_shapes[0])}"))
        return call
    maps = [call for call in graph.calls if len(call.output_shapes[0]) == 3]
    convolutions = [call for call in maps if hasattr(call.operation, "kernel_size")]
    if not maps:
        raise UsageError(expected_got("a network with feature maps", "dense layers only"))
    return (convolutions or maps)[-1]
