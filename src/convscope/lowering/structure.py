"""Whether a Keras model is still what it was when it was read: anybody may change one between two calls."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

import keras
import numpy as np
import torch

from convscope._keras_internals import (
    TRAINER_NOTES,
    all_layers,
    is_trainable,
    own_variables,
    sublayers,
    value_of,
)
from convscope._torch_internals import HOOKS, version_of
from convscope.lowering.graph import computing_methods, graph_of, is_gradient_hooked, is_of_a_library
from convscope.lowering.ir import Program
from convscope.lowering.layers import KerasCall
from convscope.lowering.layers.base import reader_of
from convscope.lowering.layers.operations import is_plain

# What Keras and torch note down in every layer; it changes by mere use, or is looked at elsewhere.
_BOOKKEEPING = frozenset(vars(keras.layers.Layer(name="bare"))) - {
    "_dtype_policy",
    "activity_regularizer",
    *HOOKS,
}


class ModelStructure:
    """What a lowered program depends on besides the values of the weights, of a model just read.

    Layers, their order, types and settings; the variables, whether they are trained, and where their values
    lie; regularizers and constraints; Keras's global settings. A layer that runs as it is answers for its own
    settings, so only its variables are looked at.
    """

    def __init__(self, model: keras.Model, program: Program) -> None:
        self._model = model
        self._operations = list(_operations(model))
        self._layers = _layers(model)
        read = dict.fromkeys([*filter(reader_of, self._operations), *self._read(program)])
        self._settings = [Settings(operation) for operation in read]
        self._methods = [
            (kind, name, getattr(kind, name))
            for kind in dict.fromkeys(map(type, read))
            for name in (computing_methods(kind) if is_of_a_library(kind) else _own_methods(kind))
        ]
        self._names = [
            (namespace, name, namespace[name])
            for kind, _, method in self._methods
            if not is_of_a_library(kind)
            for namespace, name in _names_read(method)
        ]
        self._variables = [_variable(variable) for variable in _variables(self._layers)]
        self._globals = _globals()

    def _read(self, program: Program) -> Iterator[Any]:
        """List what the program computes itself: layers, also inside others, and plain functions."""
        as_they_are = {
            id(layer)
            for op in program
            if isinstance(op, KerasCall) and isinstance(op.call.operation, keras.layers.Layer)
            for layer in all_layers(op.call.operation)
        }
        for layer in self._layers:
            if id(layer) not in as_they_are and graph_of(layer) is None:
                yield layer
        yield from filter(is_plain, self._operations)

    @property
    def is_current(self) -> bool:
        """Whether nothing has changed; it takes some microseconds for each layer."""
        return (
            _are_same(self._operations, list(_operations(self._model)))
            and _are_same(self._layers, layers := _layers(self._model))
            and all(settings.are_current() for settings in self._settings)
            and all(getattr(kind, name, None) is method for kind, name, method in self._methods)
            and all(namespace.get(name) is thing for namespace, name, thing in self._names)
            and self._variables == [_variable(variable) for variable in _variables(layers)]
            and self._globals == _globals()
        )


class Settings:
    """The attributes of one layer, by identity, and the contents of those that can change in place."""

    def __init__(self, layer: Any) -> None:
        self._layer, self._type = layer, type(layer)
        own = vars(layer)
        names = [name for name in own if name not in _BOOKKEEPING and not self._is_note(name)]
        self._count = self._counted(own)
        # Of fewer than two names an itemgetter makes no tuple.
        self._pick: Callable[[dict[str, Any]], Any] = operator.itemgetter("name", "name", *names)
        self._values = self._pick(own)
        self._contents = [(value, _contents(value)) for value in self._values if _is_mutable(value)]

    def are_current(self) -> bool:
        """Compare with the layer as it is now."""
        own = vars(self._layer)
        if type(self._layer) is not self._type or self._counted(own) != self._count:
            return False
        try:
            values = self._pick(own)
        except KeyError:
            return False
        unchanged = all(map(operator.is_, values, self._values))
        return unchanged and all(_contents(value) == contents for value, contents in self._contents)

    def _counted(self, own: dict[str, Any]) -> int:
        """Count attributes; those of a model come and go with its trainings."""
        if not isinstance(self._layer, keras.Model):
            return len(own)
        return len(own) - sum(map(self._is_note, own))

    def _is_note(self, name: str) -> bool:
        is_model = isinstance(self._layer, keras.Model)
        return is_model and (name in TRAINER_NOTES or name.startswith("_convscope"))


def _own_methods(kind: type) -> Iterator[str]:
    """Name the functions of a class that is not of a library, and of those that it comes from."""
    for one in kind.__mro__:
        if not is_of_a_library(one):
            yield from (name for name, thing in vars(one).items() if isinstance(thing, FunctionType))


def _names_read(method: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """List the names outside a class that one of its methods reads, with where they stand."""
    code = getattr(method, "__code__", None)
    waiting = [] if code is None else [code]
    while waiting:
        code = waiting.pop()
        waiting.extend(constant for constant in code.co_consts if isinstance(constant, CodeType))
        yield from ((method.__globals__, name) for name in code.co_names if name in method.__globals__)


def _operations(model: Any) -> Iterator[Any]:
    """List the operations of a model's graph and of the graphs nested in it, each graph before its own."""
    graph = graph_of(model)
    yield graph
    for operation in () if graph is None else graph.operations:
        if isinstance(operation, keras.Model):
            yield from _operations(operation)
        yield operation


def _layers(layer: Any) -> list[Any]:
    """List a layer and all layers below it, in a fixed order."""
    found, waiting = [], [layer]
    while waiting:
        layer = waiting.pop()
        found.append(layer)
        waiting.extend(sublayers(layer))
    return found


def _variables(layers: list[Any]) -> Iterator[Any]:
    for layer in layers:
        yield layer
        yield from own_variables(layer)


def _variable(variable: Any) -> tuple[Any, ...]:
    # The object itself comes second: it is kept alive, so that its address stays its own.
    if not isinstance(variable, keras.Variable):
        return id(variable), variable, is_trainable(variable)
    value = value_of(variable)
    place = value.data_ptr() if isinstance(value, torch.Tensor) else id(value)
    rules = _rule(variable.regularizer), _rule(variable.constraint)
    return id(variable), variable, is_trainable(variable), place, rules, is_gradient_hooked(variable)


def _rule(rule: Any) -> tuple[Any, ...] | None:
    """Tell a regularizer or constraint, which may be a plain function, from any other one."""
    return None if rule is None else (id(rule), rule, _contents(getattr(rule, "__dict__", {})))


def _is_mutable(value: Any) -> bool:
    return isinstance(value, list | dict | set | np.ndarray | torch.Tensor)


def _contents(value: Any) -> Any:
    """Copy what may change inside a setting, in a form that compares with ``==``."""
    if isinstance(value, torch.Tensor):
        return version_of(value), value.data_ptr()
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, value.tobytes()
    if isinstance(value, dict):
        return {name: _contents(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set):
        return [_contents(part) for part in value]
    return value if isinstance(value, int | float | str | None) else (id(value), value)


def _globals() -> tuple[Any, ...]:
    return keras.config.image_data_format(), keras.config.epsilon(), keras.config.floatx()


def _are_same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(map(operator.is_, first, second))
