"""Read a Keras model (Sequential, Functional, nested) into a Program."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras

from convscope.errors import LoweringError
from convscope.lowering import ir as ops
from convscope.lowering.check import check
from convscope.lowering.ir import Op, Output, Program, Value
from convscope.lowering.keras_call import KerasRunner
from convscope.lowering.read_layers import converter_for, is_altered
from convscope.lowering.shapes import ShapeError, output_shape
from convscope.lowering.variables import named_variables

_CALLS = ("__call__", "call", "forward", "_run_through_graph", "_standardize_inputs", "_adjust_input_rank")


def lower(model: keras.Model) -> Program:
    """Read a built Sequential or Functional model into a program.

    Parameters
    ----------
    model : keras.Model
        Built, with float32 variables. Layers that lowering does not know run as they are; nested models are
        read too, and those that cannot be read run as one layer.

    Returns
    -------
    Program
        Checked; not yet optimised.

    Raises
    ------
    LoweringError
        For a subclassed or unbuilt model, or a layer whose result depends on masks; names layer and settings.

    Examples
    --------
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    >>> [op.kind for op in lower(model)]
    ['Flatten', 'Dense']
    """
    graph = graph_of(model)
    if graph is None:
        raise LoweringError(_why_not(model))
    reader = Reader(model)
    inputs = [
        reader.new_value(tensor.name, tuple(tensor.shape), str(tensor.dtype)) for tensor in graph.inputs
    ]
    results = reader.run_graph(graph, inputs)
    program = Program(
        name=str(model.name),
        inputs=tuple(inputs),
        ops=tuple(reader.ops),
        outputs=tuple(Output(value.name) for value in results),
        values=dict(reader.values),
        input_structure=keras.tree.map_structure(lambda tensor: tensor.name, graph.input),
        output_structure=_slots(graph.output),
    )
    return check(program)


def _slots(structure: Any) -> Any:
    """Give each leaf of a structure its number in the order in which Keras flattens it."""
    count = len(keras.tree.flatten(structure))
    return keras.tree.pack_sequence_as(structure, list(range(count)))


def graph_of(model: Any) -> Any | None:
    """Return the graph of a Sequential or Functional model; None where there is none to read."""
    if not isinstance(model, keras.Model) or is_altered(model):
        return None
    if isinstance(model, keras.Sequential):
        return model._functional if model.built and _calls_as(keras.Sequential, model) else None
    functional = _functional_type(type(model))
    return model if functional is not None and _calls_as(functional, model) else None


def _calls_as(kind: Any, model: Any) -> bool:
    """Say whether a model takes from Keras all the methods that compute its outputs."""
    return all(getattr(type(model), name, None) is getattr(kind, name, None) for name in _CALLS)


def _functional_type(kind: type) -> Any | None:
    return next(
        (base for base in kind.__mro__ if base.__name__ == "Functional" and "keras" in base.__module__), None
    )


def _why_not(model: Any) -> str:
    name = f"{type(model).__name__} {getattr(model, 'name', '')!r}"
    if isinstance(model, keras.Sequential) and not model.built:
        return f"Expected a built model, got {name}. Add keras.Input(shape) as its first layer."
    if isinstance(model, keras.Model) and is_altered(model):
        return f"Expected a model that computes what its class says, got {name} with hooks or own methods."
    if type(model) is keras.Sequential:  # one whose graph Keras could not trace
        layer = next(layer for layer in model.layers if not layer._inbound_nodes)
        kind = f"{layer.name!r} ({type(layer).__name__})"
        return f"Expected layers that say their output shape, got {kind}. Give it a compute_output_shape."
    hint = "Wire its layers with keras.Input and keras.Model."
    return f"Expected a Sequential or Functional model, got the subclassed {name}. {hint}"


class Reader:
    """Collects ops while Keras walks the graph with ``Value`` handles in place of tensors."""

    def __init__(self, model: keras.Model) -> None:
        self.ops: list[Op] = []
        self.values: dict[str, Value] = {}
        self.paths = {id(variable): path for path, variable in named_variables(model).items()}
        self.streams = 0
        self._names: dict[str, int] = {}

    def run_graph(self, graph: Any, inputs: Sequence[Value]) -> list[Value]:
        """Read every operation of a graph; return its outputs, flat."""
        _refuse_masks(graph)
        outputs = graph._run_through_graph(
            list(inputs), operation_fn=lambda operation: partial(self._read, operation)
        )
        return [*keras.tree.flatten(outputs)]

    def new_value(self, name: str, shape: ops.Shape, dtype: str = "float32") -> Value:
        """Name a value so that no other has the name."""
        value = Value(self.unique(name), (None, *shape[1:]), dtype)
        self.values[value.name] = value
        return value

    def unique(self, name: str) -> str:
        """Make a name unique by a number behind it."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return name if count == 0 else self.unique(f"{name}~{count}")

    def path(self, variable: Any) -> str:
        """Return the path under which a Keras variable is known."""
        return self.paths[id(variable)]

    def next_stream(self) -> int:
        """Return the number of the program's next random stream."""
        self.streams += 1
        return self.streams - 1

    def add(
        self, kind: Callable[..., Op], layer: Any, inputs: Sequence[Value], part: str = "", **settings: Any
    ) -> Value:
        """Append an op and return the value that it writes."""
        stem = f"{layer.name}/{part}" if part else str(layer.name)
        name = self.unique(f"op:{stem}").removeprefix("op:")
        result = f"{name}:out"
        op = kind(
            name=name,
            layer=str(getattr(layer, "path", None) or layer.name),
            inputs=tuple(value.name for value in inputs),
            output=result,
            **settings,
        )
        self.ops.append(op)
        if isinstance(op, ops.ActivityLoss):
            return inputs[0]
        try:
            shape = output_shape(op, [value.shape for value in inputs])
        except ShapeError as error:
            raise LoweringError(
                f"Layer {layer.name!r} ({type(layer).__name__}) cannot be lowered: {error}."
            ) from None
        value = Value(result, shape)
        self.values[result] = value
        return value

    def add_call(self, operation: Any, args: Any, kwargs: Any) -> Any:
        """Append an op that runs the Keras operation itself; return its outputs as Keras packs them."""
        runner = KerasRunner(operation, args, kwargs)
        specs = runner.output_specs(self.values)
        name = self.unique(f"op:{operation.name}").removeprefix("op:")
        outputs = tuple(
            Value(f"{name}:out{index or ''}", (None, *spec.shape[1:]), str(spec.dtype))
            for index, spec in enumerate(keras.tree.flatten(specs))
        )
        self.values.update((value.name, value) for value in outputs)
        self.next_stream()
        self.ops.append(
            ops.KerasCall(
                name=name,
                layer=str(getattr(operation, "path", None) or operation.name),
                inputs=runner.inputs,
                output=outputs[0].name,
                call=runner,
                outputs=outputs,
                trainable=tuple(map(self.path, getattr(operation, "trainable_variables", ()))),
                stream=self.streams - 1,
            )
        )
        return keras.tree.pack_sequence_as(specs, list(outputs))

    def _read(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        # A functional model passes its own training flag to every layer, over what the graph recorded.
        kwargs.pop("training", None)
        if kwargs.get("mask", 0) is None:
            del kwargs["mask"]
        nested = graph_of(operation)
        if nested is not None and not kwargs and operation.activity_regularizer is None:
            return self._read_nested(nested, args)
        convert = converter_for(operation, args, kwargs)
        if convert is None:
            return self.add_call(operation, args, kwargs)
        result = convert(self, operation, keras.tree.flatten(args))
        regularizer = getattr(operation, "activity_regularizer", None)
        if regularizer is not None:
            self.add(ops.ActivityLoss, operation, [result], part="activity_loss", regularizer=regularizer)
        return result

    def _read_nested(self, graph: Any, args: Any) -> Any:
        results = self.run_graph(graph, keras.tree.flatten(args))
        # A functional model unpacks a list of one output.
        return (
            results[0]
            if len(results) == 1 and not isinstance(graph.output, dict)
            else (keras.tree.pack_sequence_as(graph.output, results))
        )


def _refuse_masks(graph: Any) -> None:
    """Refuse a graph in which a layer makes a mask: Keras has left it on the layer's symbolic output."""
    for node in itertools.chain.from_iterable(graph._nodes_by_depth.values()):
        if any(getattr(tensor, "_keras_mask", None) is not None for tensor in node.output_tensors):
            layer = node.operation
            raise LoweringError(
                f"Layer {layer.name!r} ({type(layer).__name__}) makes or passes on a mask, which lowering "
                "does not carry. Train the model with engine='keras'."
            )
