"""What a layer's own ``call`` computes, as calls of other layers and of functions of ``keras.ops``.

Keras records the calls when the layer is called on symbols. It is called at batches of two sizes and, where
it takes the flag, for training too: what differs between the records is understood (a length that is a
multiple of the batch, another branch of plain functions in training), or the layer runs as it is. So does one
that looks at the value of a variable, changes one, draws other random numbers than uniform ones, changes
itself, may act outside (prints, adds to a list elsewhere), or gives something else than its record on random
inputs.
"""

from __future__ import annotations

import dataclasses
import dis
import inspect
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import keras
import numpy as np
import torch

from convscope import _keras_internals as internals
from convscope.arithmetic.formulas import known_lengths
from convscope.lowering.devices import computing_on, current_device, device_of
from convscope.lowering.graph import Call, calls_of, is_altered, training_flags
from convscope.lowering.ir import Shape, Value
from convscope.lowering.layers.base import reader_of
from convscope.lowering.layers.operations import function_of, is_plain
from convscope.lowering.structure import Settings

_LOG = logging.getLogger(__name__)
_BATCHES = (2, 3)
_LIBRARIES = ("keras", "torch", "builtins")
_NOT_IN_A_STEP = ("__init__", "build", "get_config", "from_config", "compute_output_shape")
_ACTS = {"print", "open", "input", "next"}
_REPEATING = ("BroadcastTo", "Repeat", "Tile")


class _DiffersError(Exception):
    """Why a layer runs as it is."""


@dataclass(frozen=True, eq=False)
class Trace:
    """The calls that a layer makes, from ``inputs`` to ``outputs``, for a batch of any size.

    The inputs are the values that enter it, all as long as the first, then weights, constants and numbers
    drawn at random. ``in_training`` is what it does there, if that is something else. While a trace is made,
    it is a record for one size of a batch; ``flags`` are what its calls were told of training.
    """

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    values: tuple[Value, ...]
    constants: tuple[Any, ...]
    packed: Any  # the numbers of its outputs, from 0, in the structure that the layer gives
    flags: Sequence[bool | None] = ()
    in_training: Trace | None = None

    def on(self, values: Sequence[Value]) -> Trace:
        """Return the same on other values."""
        in_training = None if self.in_training is None else self.in_training.on(values)
        return dataclasses.replace(self, values=tuple(values), in_training=in_training)


@dataclass(frozen=True)
class Drawn:
    """Stands for numbers drawn evenly between two others; ``-k`` in ``lengths`` is k times the batch."""

    name: str
    lengths: tuple[int, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """Stands for a function that repeats a value along its axes of length 1; ``-k`` is k times the batch."""

    name: str
    lengths: tuple[int, ...]


def trace(layer: Any, args: Any, kwargs: dict[str, Any]) -> Trace | None:
    """Find what a layer computes on these arguments; None where it has to run as it is."""
    values = _values_in((args, kwargs))
    if not _may_be_traced(layer, values):
        return None
    parts = internals.all_layers(layer)
    before = [(part, dict(vars(part)), Settings(part)) for part in parts]
    try:
        with internals.traced_without_a_mark(layer), _generators_kept():
            found = _traced(layer, args, kwargs, values)
        if not all(settings.are_current() for *_, settings in before):
            raise _DiffersError("it changes itself")
    except Exception as error:  # a layer's own code may raise anything on symbols
        _LOG.debug("%s runs as a Keras layer: %s", layer.name, error)
        for part, attributes, _ in before:
            vars(part).update(attributes)
        return None
    return found


def _values_in(structure: Any) -> tuple[Value, ...]:
    return tuple(dict.fromkeys(leaf for leaf in keras.tree.flatten(structure) if isinstance(leaf, Value)))


def _may_be_traced(layer: Any, values: Sequence[Value]) -> bool:
    return (
        isinstance(layer, keras.layers.Layer)
        and layer.built
        and not is_altered(layer)
        and layer.compute_dtype == layer.variable_dtype == "float32"
        and layer.activity_regularizer is None
        and not getattr(layer, "lora_enabled", False)
        and getattr(layer, "quantization_mode", None) is None
        and bool(values)
        and not _acts_outside(layer)
        and all(value.rank > 0 and None not in value.shape[1:] for value in values)
        and all(variable.dtype in ("float32", "int32", "int64") for variable in layer.variables)
    )


def _acts_outside(layer: Any) -> bool:
    """Say whether a layer's own code may do what no record shows: print, or add to a list elsewhere."""
    own = [vars(kind) for kind in type(layer).__mro__ if kind.__module__.split(".")[0] not in _LIBRARIES]
    functions = {name: thing for names in (*own, vars(layer)) for name, thing in names.items()}
    return any(
        _writes_outside(thing)
        for name, thing in functions.items()
        if isinstance(thing, FunctionType) and name not in _NOT_IN_A_STEP
    )


def _writes_outside(function: FunctionType) -> bool:
    known = inspect.getclosurevars(function)
    things = [*known.nonlocals.values(), *known.globals.values()]
    stored = {
        one.opname
        for one in dis.get_instructions(function)
        if one.argval not in function.__code__.co_cellvars
    }
    return (
        not _ACTS.isdisjoint(known.builtins)
        or not {"STORE_GLOBAL", "STORE_DEREF"}.isdisjoint(stored)
        or any(isinstance(thing, list | dict | set | bytearray) for thing in things)
    )


def _traced(layer: Any, args: Any, kwargs: dict[str, Any], values: Sequence[Value]) -> Trace:
    takes_flag = internals.takes_training(layer)
    flag = False if takes_flag else None
    small, large = (_record(layer, args, kwargs, values, batch, flag) for batch in _BATCHES)
    _require_same(small, large, (flag, flag))
    in_training = None
    if takes_flag:
        twin = _record(layer, args, kwargs, values, _BATCHES[0], True)
        try:
            _require_same(small, twin, (False, True))
        except _DiffersError:
            if not all(is_plain(call.operation) or reader_of(call.operation) for call in twin.calls):
                raise  # a part may change more than its variables while the record is tried
            larger = _record(layer, args, kwargs, values, _BATCHES[1], True)
            _require_same(twin, larger, (True, True))
            _require_same_outputs(layer, args, kwargs, twin, training=True)
            in_training = _merged(twin, larger)
    if any(call.makes_mask for call in small.calls):
        raise _DiffersError("it makes a mask")
    _require_same_outputs(layer, args, kwargs, small)
    return dataclasses.replace(_merged(small, large), in_training=in_training)


def _merged(small: Trace, large: Trace) -> Trace:
    return dataclasses.replace(
        small,
        calls=tuple(map(_merged_call, small.calls, large.calls)),
        constants=tuple(map(_merged_constant, small.constants, large.constants)),
    )


def _merged_constant(constant: Any, twin: Any) -> Any:
    if not isinstance(constant, Drawn):
        return constant
    shape = _merged_shape(constant.lengths, twin.lengths)
    lengths = (
        -(length // _BATCHES[0]) if size is None else size
        for size, length in zip(shape, constant.lengths, strict=True)
    )
    return dataclasses.replace(constant, lengths=tuple(lengths))


def _record(
    layer: Any, args: Any, kwargs: dict[str, Any], values: Sequence[Value], batch: int, training: bool | None
) -> Trace:
    """Record the calls of a layer at one size of a batch."""
    symbols = {value: _symbol(_sizes(value, batch), value.dtype) for value in values}
    args, kwargs = _filled((args, kwargs), symbols)
    if training is not None:
        kwargs = {**kwargs, "training": training}
    constants = _Constants()
    own = {name: thing for name, thing in vars(layer).items() if isinstance(thing, keras.Variable)}
    parts = dict(layer._modules)  # where torch keeps them
    vars(layer).update((name, constants.symbol_of(variable)) for name, variable in own.items())
    layer._modules.update((name, _Part(part, constants)) for name, part in parts.items() if callable(part))
    try:
        with (
            internals.NoVariableRead(),
            internals.uniform_draws(constants.draw),
            internals.activations_on_symbols(),
        ):
            outputs = layer.call(*args, **kwargs)
    finally:
        vars(layer).update(own)
        layer._modules.update(parts)
    function = keras.Function([*symbols.values(), *constants.symbols], outputs)
    packed = keras.tree.pack_sequence_as(outputs, list(range(len(function.outputs))))
    things, flags = tuple(constants.things), training_flags(function)
    return Trace(*calls_of(function), tuple(values), things, packed, flags)


class _Constants:
    """Variables and tensors for which symbols stand."""

    def __init__(self) -> None:
        self.things: list[Any] = []
        self.symbols: list[Any] = []

    def symbol_of(self, thing: Any) -> Any:
        """Return what stands for a variable or a tensor."""
        for known, symbol in zip(self.things, self.symbols, strict=True):
            if known is thing:
                return symbol
        self.things.append(thing)
        self.symbols.append(_symbol(tuple(thing.shape), keras.backend.standardize_dtype(thing.dtype)))
        return self.symbols[-1]

    def draw(
        self, shape: Any, minval: float = 0.0, maxval: float = 1.0, dtype: Any = None, seed: Any = None
    ) -> Any:
        """Return what stands for numbers that ``keras.random.uniform`` draws, with nobody's own seed."""
        if not (isinstance(seed, keras.random.SeedGenerator) and internals.is_unseeded(seed)):
            raise _DiffersError("it draws random numbers of a seed of its own")
        if keras.backend.standardize_dtype(dtype or keras.config.floatx()) != "float32" or not shape:
            raise _DiffersError("it draws random numbers of another type, or a single one")
        self.things.append(Drawn("draw", tuple(map(int, shape)), float(minval), float(maxval)))
        self.symbols.append(_symbol(tuple(shape), "float32"))
        return self.symbols[-1]


class _Part:
    """A layer below the traced one; where it is called on tensors alone, symbols stand for them too."""

    def __init__(self, part: Any, constants: _Constants) -> None:
        self._part, self._constants = part, constants

    def __getattr__(self, name: str) -> Any:
        """Be the layer."""
        return getattr(self._part, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer, in the record."""
        if not any(isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten((args, kwargs))):
            args, kwargs = keras.tree.map_structure(
                lambda leaf: self._constants.symbol_of(leaf) if isinstance(leaf, torch.Tensor) else leaf,
                (args, kwargs),
            )
        return self._part(*args, **kwargs)


def _sizes(value: Value, batch: int) -> tuple[int, ...]:
    """Return the shape of a value in a batch of some size; what depends on weights alone has its own."""
    return (batch if value.shape[0] is None else value.shape[0], *known_lengths(value.shape[1:]))


def _symbol(shape: Shape, dtype: str) -> Any:
    return keras.Input(batch_shape=shape, dtype=dtype)


def _filled(structure: Any, replacements: Mapping[Value, Any]) -> Any:
    return keras.tree.map_structure(
        lambda leaf: replacements[leaf] if isinstance(leaf, Value) else leaf, structure
    )


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Refuse that anything inside draws a random number."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002  those that are global
    try:
        yield
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
        if not _is_same(before, after):
            raise _DiffersError("it draws random numbers")
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])  # noqa: NPY002


def _require_same(one: Trace, other: Trace, flags: tuple[bool | None, bool | None]) -> None:
    """Refuse records that differ in more than lengths; parts are told of training what the layer is told."""
    wiring, twin_wiring = ((len(record.calls), record.inputs, record.outputs) for record in (one, other))
    if wiring != twin_wiring or not _is_same(one.constants, other.constants):
        raise _DiffersError("it makes other calls in training or at another size of the batch")
    if any(told not in ((None, None), flags) for told in zip(one.flags, other.flags, strict=True)):
        raise _DiffersError("it tells its parts itself whether they train")
    for call, twin in zip(one.calls, other.calls, strict=True):
        is_layer = isinstance(call.operation, keras.layers.Layer)
        same = call.operation is twin.operation if is_layer else call.type == twin.type
        (args, kwargs), (twin_args, twin_kwargs) = (_numbered(call) for call in (call, twin))
        if (
            not same
            or (flags == (False, True) and not is_layer and not _has_same_settings(call, twin))
            or (call.inputs, call.outputs) != (twin.inputs, twin.outputs)
            or not _is_same((args, kwargs), (twin_args, twin_kwargs))
        ):
            raise _DiffersError(f"{call.name} is called in another way in training or at another batch size")


def _numbered(call: Call) -> tuple[Any, dict[str, Any]]:
    args, kwargs = call.arguments({number: f"value {number}" for number in call.inputs})
    return args, {name: value for name, value in kwargs.items() if name != "training"}


def _has_same_settings(call: Call, twin: Call) -> bool:
    return _is_same(*(internals.settings_of_operation(one.operation) for one in (call, twin)))


def _is_same(one: Any, other: Any) -> bool:
    """Compare nested arguments, arrays by their elements; a tensor that has a gradient is like no other."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return not one.requires_grad and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(value, other[key]) for key, value in one.items())
    if isinstance(one, Drawn) and isinstance(other, Drawn):
        return (one.low, one.high, len(one.lengths)) == (other.low, other.high, len(other.lengths))
    return one is other or (type(one) is type(other) and bool(one == other))


def _merged_call(call: Call, twin: Call) -> Call:
    specs = tuple(
        (_merged_shape(shape, other), dtype)
        for (shape, dtype), (other, _) in zip(call.specs, twin.specs, strict=True)
    )
    operation = call.operation
    if not isinstance(operation, keras.layers.Layer) and not _has_same_settings(call, twin):
        lengths = tuple(-1 if length is None else length for length in specs[0][0])
        if call.type == "Reshape" and lengths.count(-1) <= 1:
            operation.newshape = lengths
        elif call.type in _REPEATING and _only_repeats(call):
            exact = call.specs[0][0]
            operation = Spread(
                operation.name,
                tuple(
                    -((full or 0) // _BATCHES[0]) if length is None else length
                    for length, full in zip(specs[0][0], exact, strict=True)
                ),
            )
        else:
            raise _DiffersError(f"{call.name} depends on the size of the batch")
    return dataclasses.replace(call, operation=operation, specs=specs)


def _merged_shape(shape: Shape, other: Shape) -> Shape:
    if len(shape) != len(other):
        raise _DiffersError("a rank depends on the size of the batch")
    merged: list[int | None] = []
    for one, two in zip(shape, other, strict=True):
        if one != two and (one is None or two is None or one * _BATCHES[1] != two * _BATCHES[0]):
            raise _DiffersError("a length is no multiple of the batch")
        merged.append(one if one == two else None)
    return tuple(merged)


def _only_repeats(call: Call) -> bool:
    """Say whether a value becomes longer only where its length is 1."""
    entering, leaving = call.entering, call.specs[0][0]
    return (
        len(entering) == 1
        and len(entering[0]) == len(leaving)
        and all(size in (1, length) for size, length in zip(entering[0], leaving, strict=True))
    )


def _require_same_outputs(
    layer: Any, args: Any, kwargs: dict[str, Any], record: Trace, training: bool = False
) -> None:
    """Compare the calls with the layer itself, on random inputs, and on the same draws."""
    device = device_of(layer) or current_device()
    generator = torch.Generator().manual_seed(0)
    values = record.values
    shapes = [_sizes(value, _BATCHES[0]) for value in values]
    inputs = [
        torch.randn(shape, generator=generator).to(device)
        if value.dtype.startswith("float")
        else torch.randint(0, 2, shape, generator=generator).to(device, getattr(torch, value.dtype))
        for value, shape in zip(values, shapes, strict=True)
    ]
    args, kwargs = _filled((args, kwargs), dict(zip(values, inputs, strict=True)))
    if internals.takes_training(layer):
        kwargs = {**kwargs, "training": training}
    constants = [_value_of(constant, device) for constant in record.constants]
    draws = (
        value
        for constant, value in zip(record.constants, constants, strict=True)
        if isinstance(constant, Drawn)
    )
    host = keras.layers.Layer(name="host")
    with (
        _state_kept(layer) as rewind,
        torch.no_grad(),
        computing_on(device),
        internals.outer_call(host, training),
        internals.uniform_draws(lambda *_args, **_settings: next(draws)),
    ):
        expected = keras.tree.flatten(layer(*args, **kwargs))
        rewind()  # what is drawn, and what a normalization starts from, is the same for both
        known: dict[int, Any] = dict(zip(record.inputs, [*inputs, *constants], strict=True))
        for call in record.calls:
            known.update(zip(call.outputs, _called(call, known, training), strict=True))
        if internals.take_losses(layer):
            raise _DiffersError("it adds losses")
    found = [known[number] for number in record.outputs]
    for one, other in zip(found, expected, strict=True):
        close = one.shape == other.shape and one.dtype == other.dtype
        if not close or not torch.allclose(one, other, rtol=1e-5, atol=1e-6, equal_nan=True):
            raise _DiffersError("its calls give something else")


def _value_of(constant: Any, device: torch.device) -> Any:
    if isinstance(constant, Drawn):
        spread = torch.linspace(constant.low, constant.high, math.prod(constant.lengths), device=device)
        return spread.reshape(constant.lengths)
    return constant.value if isinstance(constant, keras.Variable) else constant


def _called(call: Call, known: Mapping[int, Any], training: bool) -> Sequence[Any]:
    args, kwargs = call.arguments(known)
    function = call.operation
    if is_plain(function):
        function = function_of(function)
    elif internals.takes_training(function):
        kwargs = {**kwargs, "training": training}
    found: list[Any] = keras.tree.flatten(function(*args, **kwargs))
    return found


@contextmanager
def _state_kept(layer: Any) -> Iterator[Callable[[], None]]:
    """Leave as they were what a call in training changes: statistics, random generators."""
    tensors = [variable.value for variable in layer.non_trainable_variables]
    tensors += [generator.state.value for generator in internals.seed_generators(layer)]
    before, generator = [tensor.clone() for tensor in tensors], torch.get_rng_state()

    def rewind() -> None:
        torch.set_rng_state(generator)
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                if not torch.equal(tensor, value):
                    tensor.copy_(value)

    try:
        yield rewind
    finally:
        rewind()
