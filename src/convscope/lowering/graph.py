"""The one reader of Keras models: a list of calls, nested models opened; the variables by path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

import keras
import torch

from convscope import _keras_internals as internals
from convscope._torch_internals import HOOKS, has_gradient_hooks
from convscope.arithmetic import Shape
from convscope.errors import LoweringError, UsageError, expected_got, unknown_name
from convscope.lowering.devices import current_device, device_of

# Keras wraps the first two in each layer; how a model trains and predicts is looked at by who calls that.
_NOT_COMPUTING = {"build", "quantize", *internals.TRAINER_METHODS}
_COMPUTING = ("__call__", "call", "convolution_op", "update_step", "apply", "update_state", "result")


@dataclass(frozen=True)
class Call:
    """One use of a layer or operation.

    Its name stands behind the names of the models it is nested in, before ``:2`` at its second use. Values
    have numbers; shapes are without the batch axis, ``specs`` are the outputs' whole shapes and types.
    """

    name: str
    operation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    specs: tuple[tuple[Shape, str], ...]
    first_use: bool
    _node: Any
    _keys: tuple[int, ...]

    def arguments(self, values: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the call, with the values that enter it in their places."""
        args, kwargs = self._node.arguments.fill_in(
            {key: values[number] for key, number in zip(self._keys, self.inputs, strict=True)}
        )
        return args, kwargs

    @property
    def makes_mask(self) -> bool:
        """Whether the layer makes or passes on a mask: Keras has left it on the symbolic output."""
        return any(map(internals.has_mask, self._node.outputs))

    @property
    def entering(self) -> tuple[Shape, ...]:
        """The whole shapes of the values that enter."""
        return tuple(tuple(tensor.shape) for tensor in self._node.input_tensors)

    @property
    def type(self) -> str:
        """The name of the operation's class."""
        return type(self.operation).__name__

    def __call__(self, values: dict[int, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Call the operation, as at inference, on the values that enter it."""
        args, kwargs = self.arguments(values)
        if internals.takes_training(self.operation):
            kwargs = {**kwargs, "training": False}
        return tuple(keras.tree.flatten(self.operation(*args, **kwargs)))


@dataclass(frozen=True)
class Graph:
    """The calls of a model without input layers, in an order in which they can be made.

    ``channels_first`` is the order of an image's axes, by the first layer that has one.
    """

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_shapes: tuple[Shape, ...]
    channels_first: bool
    device: torch.device

    def call(self, layer: str | int) -> Call:
        """Find a call by its layer's name or its number; raise UnknownNameError or UsageError."""
        if isinstance(layer, int):
            if not -len(self.calls) <= layer < len(self.calls):
                raise UsageError(expected_got(f"a layer number below {len(self.calls)}", layer))
            return self.calls[layer]
        for call in self.calls:
            if call.name == layer:
                return call
        raise unknown_name("layer", layer, [call.name for call in self.calls])


def read_graph(model: keras.Model) -> Graph:
    """Read the calls of a built Sequential or functional model; those of nested models in their place.

    Raises UsageError when the model has no graph: a Sequential without an input shape, or a subclassed model.
    """
    functional = graph_of(model, even_altered=True)
    if functional is None:
        raise UsageError(
            expected_got(
                "a Sequential or functional model that knows its input shape",
                f"{type(model).__name__} {getattr(model, 'name', '')!r}",
                "Begin a Sequential model with keras.Input(shape); "
                "write a subclassed one as keras.Model(inputs, outputs).",
            )
        )
    calls, inputs, outputs = calls_of(functional)
    return Graph(
        calls=calls,
        inputs=inputs,
        outputs=outputs,
        input_shapes=tuple(_shape(tensor) for tensor in functional.inputs),
        channels_first=_channels_first(calls),
        device=device_of(model) or current_device(),
    )


def calls_of(function: Any) -> tuple[tuple[Call, ...], tuple[int, ...], tuple[int, ...]]:
    """Read the calls of a graph, a model's or a ``keras.Function``; the numbers of what enters and leaves."""
    reader = _Reader()
    inputs = tuple(reader.number(_shape(tensor)) for tensor in function.inputs)
    outputs = reader.read(function, inputs, prefix="")
    return tuple(reader.calls), inputs, outputs


def training_flags(function: Any) -> list[Any]:
    """List what the calls of a ``keras.Function``, those of models included, were told of training."""
    return [node.arguments.kwargs.get("training") for node in _nodes(function)]


class _Reader:
    """Numbers values and collects calls, from the outermost model inwards."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._shapes: list[Shape] = []
        self._uses: dict[int, int] = {}

    def number(self, shape: Shape) -> int:
        """Give the next value its number."""
        self._shapes.append(shape)
        return len(self._shapes) - 1

    def read(self, functional: Any, inputs: tuple[int, ...], prefix: str) -> tuple[int, ...]:
        """Collect the calls of a model into which the values `inputs` go; return the values that come out."""
        numbers = {id(tensor): number for tensor, number in zip(functional.inputs, inputs, strict=True)}
        for node in _nodes(functional):
            entering = tuple(numbers[id(tensor)] for tensor in node.input_tensors)
            inner = _nested_graph(node)
            if inner is not None:
                leaving = self.read(inner, entering, f"{prefix}{node.operation.name}/")
            else:
                leaving = tuple(self.number(shape) for shape in self._output_shapes(node, entering))
                self._collect(node, entering, leaving, prefix)
            numbers.update({id(tensor): n for tensor, n in zip(node.outputs, leaving, strict=True)})
        return tuple(numbers[id(tensor)] for tensor in functional.outputs)

    def _collect(self, node: Any, inputs: tuple[int, ...], outputs: tuple[int, ...], prefix: str) -> None:
        uses = self._uses[id(node.operation)] = self._uses.get(id(node.operation), 0) + 1
        name = f"{prefix}{node.operation.name}"
        self.calls.append(
            Call(
                name=name if uses == 1 else f"{name}:{uses}",
                operation=node.operation,
                inputs=inputs,
                outputs=outputs,
                input_shapes=tuple(self._shapes[number] for number in inputs),
                output_shapes=tuple(self._shapes[number] for number in outputs),
                specs=tuple(
                    ((tensor.shape[0], *self._shapes[number]) if tensor.shape else (), str(tensor.dtype))
                    for tensor, number in zip(node.outputs, outputs, strict=True)
                ),
                first_use=uses == 1,
                _node=node,
                _keys=tuple(id(tensor) for tensor in node.input_tensors),
            )
        )

    def _output_shapes(self, node: Any, inputs: tuple[int, ...]) -> list[Shape]:
        """Find the shapes of what comes out; inside a nested model Keras may have left lengths open."""
        shapes = [self._shapes[number] for number in inputs]
        if shapes == [_shape(tensor) for tensor in node.input_tensors]:
            return [_shape(tensor) for tensor in node.outputs]
        known = {
            id(tensor): keras.KerasTensor((tensor.shape[0], *shape), dtype=tensor.dtype)
            for tensor, shape in zip(node.input_tensors, shapes, strict=True)
        }
        args, kwargs = node.arguments.fill_in(known)
        with buffers_kept(node.operation):
            spec = node.operation.compute_output_spec(*args, **kwargs)
        return [_shape(tensor) for tensor in keras.tree.flatten(spec)]


def graph_of(model: Any, even_altered: bool = False) -> Any | None:
    """Return the graph of a Sequential or Functional model; None where it does not say what is computed."""
    if not isinstance(model, keras.Model) or (is_altered(model) and not even_altered):
        return None
    if isinstance(model, keras.Sequential):
        is_plain = model.built and _calls_as(keras.Sequential, model)
        return internals.graph_of_sequential(model) if is_plain else None
    functional = internals.Functional
    return model if isinstance(model, functional) and _calls_as(functional, model) else None


def _calls_as(kind: Any, model: Any) -> bool:
    """Say whether a model takes from Keras all the methods that compute its outputs."""
    names = internals.GRAPH_METHODS
    return all(getattr(type(model), name, None) is getattr(kind, name, None) for name in names)


def is_altered(thing: Any) -> bool:
    """Say whether somebody gave this one object, or its class, a method of its own, or torch hooks.

    Layers, models, losses, metrics and optimizers do not always do what their class said at first.
    """
    own = vars(thing)
    kind: Any = type(thing)
    return (
        any(own.get(hooks) for hooks in HOOKS)
        or any(callable(getattr(kind, name, None)) and name not in _NOT_COMPUTING for name in own)
        or (
            is_of_a_library(kind)
            and not all(is_of_a_library(getattr(kind, name)) for name in computing_methods(kind))
        )
    )


@cache
def computing_methods(kind: Any) -> tuple[str, ...]:
    """Name the methods in which a class of Keras computes; somebody may put others there."""
    return tuple(name for name in _COMPUTING if isinstance(getattr(kind, name, None), FunctionType))


@cache  # classes and functions of Keras: a few
def is_of_a_library(thing: Any) -> bool:
    """Say whether a class or function comes with Keras or torch."""
    return str(thing.__module__).startswith(("keras.", "torch."))


@contextmanager
def buffers_kept(operation: Any) -> Iterator[None]:
    """Leave torch modules as they are: to learn shapes, Keras tries a layer on random numbers."""
    buffers = list(operation.buffers()) if isinstance(operation, torch.nn.Module) else []
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def _nested_graph(node: Any) -> Any | None:
    """Return the graph of the model that a node calls, if its parts say all that the call does."""
    graph = graph_of(node.operation)
    if graph is None or node.operation.activity_regularizer is not None:
        return None
    _, kwargs = node.arguments.fill_in({id(tensor): tensor for tensor in node.input_tensors})
    meant = {name for name, value in kwargs.items() if name != "training" and (name, value) != ("mask", None)}
    return None if meant else graph


def _nodes(functional: Any) -> list[Any]:
    """List the calls of a graph, inputs first."""
    by_depth = internals.nodes_by_depth(functional)
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth] if not node.is_input]


def _shape(tensor: Any) -> Shape:
    return tuple(tensor.shape[1:])


def _channels_first(calls: Sequence[Call]) -> bool:
    formats = [getattr(call.operation, "data_format", None) for call in calls]
    named = [data_format for data_format in formats if data_format]
    return bool((named[0] if named else keras.config.image_data_format()) == "channels_first")


def named_variables(model: Any) -> dict[str, Any]:
    """Return the variables of a model by their path, in Keras's order.

    Where two share a path (nested models that were built apart), the later ones get a number behind it.
    """
    named: dict[str, Any] = {}
    for variable in model.variables:
        path, count = variable.path, 1
        while path in named:
            count += 1
            path = f"{variable.path}#{count}"
        named[path] = variable
    return named


def is_seed(path: str) -> bool:
    """Say whether a variable is the state of a random generator."""
    return "seed_generator_state" in path.rsplit("/", 1)[-1]


def tensor_of(variable: Any, layer: Any = None) -> torch.Tensor:
    """Return a variable's values as a tensor, which share their storage on Keras's torch back end.

    Raises LoweringError with the name of the layer when a floating-point variable is not float32.
    """
    value = variable.value
    tensor = value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(variable.numpy().copy())
    _require_float32(tensor, variable, layer)
    return tensor


def parameter_of(variable: Any, layer: Any = None) -> torch.Tensor:
    """Return the parameter that a variable on Keras's torch back end computes with; see :func:`tensor_of`."""
    _require_float32(variable.value, variable, layer)
    parameter: torch.Tensor = variable.value
    return parameter


def is_gradient_hooked(variable: Any) -> bool:
    """Say whether somebody put a hook on the gradient of a variable's parameter."""
    value = internals.value_of(variable)
    return isinstance(value, torch.Tensor) and has_gradient_hooks(value)


def owners(model: Any) -> dict[int, Any]:
    """Return the layer of each variable of a model, by the variable's id."""
    return {
        id(variable): layer
        for layer in internals.all_layers(model)
        for variable in internals.own_variables(layer)
    }


def _require_float32(tensor: torch.Tensor, variable: Any, layer: Any) -> None:
    if not tensor.is_floating_point() or tensor.dtype is torch.float32:
        return
    found = repr(variable.path)
    if layer is not None:
        found = f"the {variable.name} of layer {layer.name!r} ({type(layer).__name__})"
    dtype = str(tensor.dtype).removeprefix("torch.")
    hint = "Give the layer dtype='float32'."
    raise LoweringError(expected_got("float32 variables", f"{found} of type {dtype}", hint))
