"""Read a Keras model (Sequential, Functional, nested) into a Program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from convscope import _keras_internals as internals
from convscope.errors import LoweringError, expected_got
from convscope.lowering.graph import Call, graph_of, is_altered, named_variables, read_graph
from convscope.lowering.ir import Op, Output, Program, Shape, Value, check
from convscope.lowering.layers.augmenting import MovingRunner, moves_images
from convscope.lowering.layers.base import LayerReader, ProgramBuilder, reader_of
from convscope.lowering.layers.elementwise import KERAS_FUNCTIONS, Dropout, activation_of, read_activation
from convscope.lowering.layers.keras_call import ActivityLoss, KerasCall, KerasRunner, add_call
from convscope.lowering.layers.merging import arithmetic_of, read_arithmetic
from convscope.lowering.layers.normalization import BatchNormalization
from convscope.lowering.layers.operations import (
    Broadcast,
    ByMode,
    Draw,
    Given,
    Random,
    add_operation,
    is_plain,
    read_constant,
)
from convscope.lowering.tracing import Drawn, Spread, Trace, trace

_COMPUTE_DTYPES = ("float32", "bfloat16")


def lower(model: keras.Model) -> Program:
    """Read a built Sequential or Functional model, with float32 variables, into a program; not yet optimised.

    Layers that lowering does not know run as they are; nested models are read too, and those that cannot be
    read run as one layer. A subclassed model is read from its own ``call``. LoweringError where that cannot
    be, for an unbuilt model, or a layer that makes masks.

    Examples
    --------
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    >>> [op.kind for op in lower(model)]
    ['Flatten', 'Dense']
    """
    functional = graph_of(model)
    if functional is None:
        return _lower_call(model)
    graph = read_graph(model)
    builder = ProgramBuilder({id(variable): path for path, variable in named_variables(model).items()})
    builder.may_lack_inputs = any(getattr(layer, "optional", False) for layer in functional.layers)
    inputs = [
        builder.new_value(tensor.name, tuple(tensor.shape), str(tensor.dtype)) for tensor in functional.inputs
    ]
    values = dict(zip(graph.inputs, inputs, strict=True))
    for call in graph.calls:
        values.update(zip(call.outputs, _read(builder, call, values), strict=True))
    program = Program(
        name=str(model.name),
        inputs=tuple(inputs),
        ops=tuple(builder.ops),
        outputs=tuple(Output(values[number].name) for number in graph.outputs),
        values=dict(builder.values),
        input_structure=keras.tree.map_structure(lambda tensor: tensor.name, functional.input),
        output_structure=_slots(functional.output),
    )
    return check(program)


def _lower_call(model: Any) -> Program:
    """Read a subclassed model from its own ``call``, for images of the shape on which it was built."""
    shape = _built_shape(model)
    builder = ProgramBuilder({id(variable): path for path, variable in named_variables(model).items()})
    found = None if shape is None else trace(model, (Value("input", shape),), {})
    if shape is None or found is None:
        raise LoweringError(_why_not(model))
    entering = builder.new_value("input", shape, "any")
    by_layers = all(
        isinstance(call.operation, keras.layers.Layer)
        for call in found.calls
        if found.inputs[0] in call.inputs
    )
    given = builder.add(Given, model, [entering], part="input", shape=shape, whole_numbers=by_layers)
    outputs = _read_modes(builder, model, found.on([given]))
    if not internals.takes_training(model):
        _require_no_modes(model, builder.ops)
    program = Program(
        name=str(model.name),
        inputs=(entering,),
        ops=tuple(builder.ops),
        outputs=tuple(Output(value.name) for value in outputs),
        values=dict(builder.values),
        input_structure=entering.name,
        output_structure=found.packed,
    )
    return check(program)


def _require_no_modes(model: Any, ops: Sequence[Op]) -> None:
    """Refuse what trains in another way than it predicts, where Keras's ``fit`` does not tell it."""
    for op in ops:
        has_modes = isinstance(op, BatchNormalization | ByMode | Dropout | KerasCall | Random)
        if (has_modes or getattr(op, "drop", None)) and not getattr(op, "frozen", False):
            found = f"{type(model).__name__}, without which Keras trains {op.layer!r} as it predicts"
            hint = "Write def call(self, inputs, training=None)."
            raise LoweringError(expected_got("a model whose call takes training", found, hint))


def _built_shape(model: Any) -> Shape | None:
    """Return the shape of the one input on which a model was built; None where that is not known."""
    has_graph = isinstance(model, keras.Sequential | internals.Functional)
    if has_graph or not isinstance(model, keras.Model) or not model.built:
        return None
    shape = (model.get_build_config() or {}).get("input_shape")
    if not isinstance(shape, tuple | list) or not all(isinstance(length, int) for length in shape[1:]):
        return None
    return (None, *shape[1:]) if len(shape) > 1 else None


def _read(
    builder: ProgramBuilder, call: Call, values: dict[int, Value], anchor: Value | None = None
) -> Sequence[Value]:
    """Make ops of one call; return the values that leave it. ``anchor`` is as long as a trace's batch."""
    operation = call.operation
    if call.makes_mask:
        raise LoweringError(
            f"Layer {operation.name!r} ({call.type}) makes or passes on a mask, which lowering "
            "does not carry. Train the model with engine='keras'."
        )
    args, kwargs = call.arguments(values)
    # A functional model passes its own training flag to every layer, over what the graph recorded.
    kwargs.pop("training", None)
    if kwargs.get("mask", 0) is None:
        del kwargs["mask"]
    if isinstance(operation, Spread) and anchor is not None:
        spread = builder.add(Broadcast, operation, [*args, anchor], lengths=operation.lengths)
        if operation.lengths[0] == -1 and anchor.name in builder.batches:
            builder.batches.add(spread.name)
        return [spread]
    is_attention = type(operation) is keras.layers.MultiHeadAttention
    given = _query_value_key(*args, **kwargs) if is_attention else (args, kwargs)
    read = _reader_for(operation, *given)
    result = None if read is None else read(builder, operation, keras.tree.flatten(given[0]))
    if result is None and is_plain(operation):
        return add_operation(builder, operation, args, kwargs, call.specs)
    if result is None:
        traced = _read_traced(builder, operation, args, kwargs)
        if traced is not None:
            return traced
        kind = MovingRunner if moves_images(operation) else KerasRunner
        return add_call(builder, kind(operation, args, kwargs), call.specs)
    regularizer = getattr(operation, "activity_regularizer", None)
    if regularizer is not None:
        builder.add(ActivityLoss, operation, [result], part="activity_loss", regularizer=regularizer)
    return [result]


def _read_traced(builder: ProgramBuilder, layer: Any, args: Any, kwargs: Any) -> Sequence[Value] | None:
    """Make ops of what a layer's own ``call`` computes; None where the layer must run as it is."""
    entering = {leaf.name for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, Value)}
    if builder.may_lack_inputs or (len(entering) > 1 and not builder.batches.issuperset(entering)):
        return None
    if not all(map(builder.knows, getattr(layer, "variables", ()))):
        return None
    found = trace(layer, args, kwargs)
    return None if found is None else _read_modes(builder, layer, found)


def _read_modes(builder: ProgramBuilder, layer: Any, found: Trace) -> Sequence[Value]:
    """Make ops of the calls of a trace, and of those that it makes in training."""
    outputs = _read_trace(builder, found)
    if found.in_training is None:
        return outputs
    both = zip(_read_trace(builder, found.in_training), outputs, strict=True)
    return [builder.add(ByMode, layer, pair, part="by mode") for pair in both]


def _read_trace(builder: ProgramBuilder, found: Trace) -> Sequence[Value]:
    """Make ops of the calls of a trace."""
    read = {number for call in found.calls for number in call.inputs} | set(found.outputs)
    numbers = found.inputs[len(found.values) :]
    values, anchor = dict(zip(found.inputs, found.values, strict=False)), found.values[0]
    for number, constant in zip(numbers, found.constants, strict=True):
        if number not in read:
            continue
        if isinstance(constant, Drawn):
            values[number] = builder.add(
                Draw,
                constant,
                [anchor],
                lengths=constant.lengths,
                low=constant.low,
                high=constant.high,
                stream=builder.next_stream(),
            )
        else:
            values[number] = read_constant(builder, constant)
    for call in found.calls:
        values.update(zip(call.outputs, _read(builder, call, values, anchor=anchor), strict=True))
    return [values[number] for number in found.outputs]


def _reader_for(operation: Any, args: Any, kwargs: dict[str, Any]) -> LayerReader | None:
    """Return the function that makes ops of a layer; None when the layer must run as it is.

    Only the exact layer types of Keras are known: a subclass may compute something else.
    """
    if arithmetic_of(operation) and not kwargs:
        divides_by_value = arithmetic_of(operation) == "divide" and not isinstance(args[0], Value)
        return read_arithmetic if _is_plain_arithmetic(args) and not divides_by_value else None
    leaves = keras.tree.flatten(args)
    if kwargs or len(args) != 1 or not all(isinstance(leaf, Value) for leaf in leaves):
        return None
    if activation_of(operation) is not None:
        return read_activation if leaves[0].dtype == "float32" else None
    read = reader_of(operation)
    return None if read is None or not _suits(operation, leaves) else read


def _suits(layer: Any, inputs: Sequence[Value]) -> bool:
    """Say whether a layer of a known type computes what its type does, on types that lowering knows."""
    return (
        layer.compute_dtype in _COMPUTE_DTYPES
        and layer.variable_dtype == "float32"
        and all(value.dtype.startswith(("float32", "bfloat16", "uint8", "int")) for value in inputs)
        and not _is_unusual(layer)
    )


def _query_value_key(
    query: Any, value: Any, key: Any = None, **others: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put what an attention reads in a list; other arguments stay where they say something."""
    meant = {name: thing for name, thing in others.items() if thing is not None and thing is not False}
    return ([query, value, value if key is None else key],), meant


def _is_plain_arithmetic(args: Any) -> bool:
    numbers = [arg for arg in args if isinstance(arg, int | float)]
    values = [arg for arg in args if isinstance(arg, Value) and arg.dtype == "float32"]
    equal_ranks = len({value.rank for value in values}) == 1
    return len(args) == 2 and equal_ranks and len(numbers) + len(values) == 2


def _is_unusual(layer: Any) -> bool:
    adapted = getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None) is not None
    function = getattr(layer, "activation", None)
    hashable = getattr(function, "__hash__", None) is not None
    unknown = function is not None and function not in KERAS_FUNCTIONS if hashable else True
    old_scaling = getattr(layer, "rms_scaling", False) or getattr(layer, "renorm", False)
    exotic = getattr(layer, "interpolation", "nearest") not in ("nearest", "bilinear")
    return bool(adapted or unknown or old_scaling or exotic or is_altered(layer))


def _slots(structure: Any) -> Any:
    """Give each leaf of a structure its number in the order in which Keras flattens it."""
    count = len(keras.tree.flatten(structure))
    return keras.tree.pack_sequence_as(structure, list(range(count)))


def _why_not(model: Any) -> str:
    name = f"{type(model).__name__} {getattr(model, 'name', '')!r}"
    if isinstance(model, keras.Sequential) and not model.built:
        return f"Expected a built model, got {name}. Add keras.Input(shape) as its first layer."
    if isinstance(model, keras.Model) and is_altered(model):
        return f"Expected a model that computes what its class says, got {name} with hooks or own methods."
    if type(model) is keras.Sequential:  # one whose graph Keras could not trace
        layer = next(layer for layer in model.layers if not internals.inbound_nodes(layer))
        kind = f"{layer.name!r} ({type(layer).__name__})"
        return f"Expected layers that say their output shape, got {kind}. Give it a compute_output_shape."
    hint = "Wire its layers with keras.Input and keras.Model."
    expected = "a Sequential or Functional model, or one whose call is made of layers and of keras.ops"
    return expected_got(expected, f"the subclassed {name}", hint)
