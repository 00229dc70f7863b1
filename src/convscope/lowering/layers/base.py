"""What the modules of layers have in common: how they are registered, and what reading and running know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import keras
import torch

from convscope.errors import LoweringError
from convscope.lowering.ir import Op, Shape, ShapeError, Value
from convscope.lowering.kernels import Shard
from convscope.lowering.masks import Key, mix

Tensor = torch.Tensor
Prepared = tuple[Tensor, Tensor | None]
Runner = Callable[..., Any]
# A reader makes ops of a layer and returns the value that it gives; None where the layer must run as it is.
LayerReader = Callable[["ProgramBuilder", Any, Sequence[Value]], Value | None]

_READERS: dict[type, LayerReader] = {}
_RUNNERS: dict[type[Op], Callable[[Any, Any], Runner]] = {}
_R = TypeVar("_R", bound=Callable[..., Runner])
_L = TypeVar("_L", bound=LayerReader)


def reads(*names: str) -> Callable[[_L], _L]:
    """Register the function that makes ops of Keras layers of some types, subclasses not included."""

    def register(function: _L) -> _L:
        _READERS.update((getattr(keras.layers, name), function) for name in names)
        return function

    return register


def reader_of(operation: Any) -> LayerReader | None:
    """Return the function that makes ops of a Keras layer; None for types that nobody here knows."""
    return _READERS.get(type(operation))


def runs(kind: type[Op]) -> Callable[[_R], _R]:
    """Register the function that turns ops of one type into callables."""

    def register(function: _R) -> _R:
        _RUNNERS[kind] = function
        return function

    return register


def runner_of(op: Op, network: WeightSource) -> Runner:
    """Return a callable ``(step, *tensors) → tensor`` that computes the op on a network's weights."""
    return _RUNNERS[type(op)](op, network)


class ProgramBuilder:
    """Collects the ops of a program, and names its values; ``paths`` are those of variables, by identity."""

    def __init__(self, paths: dict[int, str]) -> None:
        self.ops: list[Op] = []
        self.values: dict[str, Value] = {}
        self.weights: dict[str, Value] = {}  # those that are values, by path
        self.batches: set[str] = set()  # values known to be as long as the batch
        self.fixed: set[str] = set()  # values made of weights and constants alone
        self.may_lack_inputs = False  # a layer's code may look for an optional input that was left out
        self._paths = paths
        self._streams = 0
        self._names: dict[str, int] = {}

    def new_value(self, name: str, shape: Shape, dtype: str = "float32") -> Value:
        """Name a value so that no other has the name."""
        value = Value(self.unique(name), (None, *shape[1:]), dtype)
        self.values[value.name] = value
        self.batches.add(value.name)
        return value

    def knows(self, variable: Any) -> bool:
        """Say whether a variable is one of the model's."""
        return id(variable) in self._paths

    def unique(self, name: str) -> str:
        """Make a name unique by a number behind it."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return name if count == 0 else self.unique(f"{name}~{count}")

    def path(self, variable: Any) -> str:
        """Return the path under which a Keras variable is known."""
        return self._paths[id(variable)]

    def optional_path(self, variable: Any) -> str | None:
        """Return the path of a variable that may not be there."""
        return None if variable is None else self.path(variable)

    def next_stream(self) -> int:
        """Return the number of the program's next random stream."""
        self._streams += 1
        return self._streams - 1

    def op_name(self, stem: str) -> str:
        """Name an op so that no other has the name."""
        return self.unique(f"op:{stem}").removeprefix("op:")

    def add(
        self, kind: Callable[..., Op], layer: Any, inputs: Sequence[Value], part: str = "", **settings: Any
    ) -> Value:
        """Append an op and return the value that it writes."""
        name = self.op_name(f"{layer.name}/{part}" if part else str(layer.name))
        op = kind(
            name=name,
            layer=str(getattr(layer, "path", None) or layer.name),
            inputs=tuple(value.name for value in inputs),
            output=f"{name}:out",
            **settings,
        )
        self.ops.append(op)
        try:
            shape = op.output_shape([value.shape for value in inputs])
        except ShapeError as error:
            raise LoweringError(
                f"Layer {layer.name!r} ({type(layer).__name__}) cannot be lowered: {error}."
            ) from None
        if shape is None:
            return inputs[0]
        value = Value(op.output, shape)
        self.values[value.name] = value
        if self.fixed.issuperset(op.inputs):
            self.fixed.add(value.name)
        elif self.batches.issuperset(op.inputs):
            self.batches.add(value.name)
        return value

    def note_broadcast(self, result: Value, inputs: Iterable[Value]) -> None:
        """Note that a value is as long as the batch: each that it combines is, or is the same for all."""
        rest = [value for value in inputs if value.name not in self.batches]
        same_for_all = all(
            value.name in self.fixed and (value.rank < result.rank or value.shape[0] == 1) for value in rest
        )
        if same_for_all and result.name not in self.fixed:
            self.batches.add(result.name)

    def add_keras(
        self,
        kind: Callable[..., Op],
        operation: Any,
        inputs: tuple[str, ...],
        specs: Sequence[tuple[Shape, str]],
        **settings: Any,
    ) -> list[Value]:
        """Append an op of which Keras has said the shapes and types that it gives; return its outputs."""
        name = self.op_name(operation.name)
        is_fixed = self.fixed.issuperset(inputs)
        outputs = tuple(
            Value(f"{name}:out{index or ''}", shape if is_fixed or not shape else (None, *shape[1:]), dtype)
            for index, (shape, dtype) in enumerate(specs)
        )
        if is_fixed:
            self.fixed.update(value.name for value in outputs)
        self.values.update((value.name, value) for value in outputs)
        layer = str(getattr(operation, "path", None) or operation.name)
        self.ops.append(
            kind(name=name, layer=layer, inputs=inputs, output=outputs[0].name, outputs=outputs, **settings)
        )
        return list(outputs)


@dataclass
class Step:
    """What one pass through the network knows: its mode, its random numbers, the losses it met."""

    training: bool
    seed: int = 0
    number: int = 0
    losses: list[Tensor] = field(default_factory=list)
    keys: Mapping[int, Tensor] | None = None  # of each random stream; None to make them of seed and number
    shard: Shard | None = None  # where other processes have the rest of the batch

    def key(self, stream: int) -> Key:
        """Return what the masks of a stream follow in this pass."""
        return mix(self.seed, self.number, stream) if self.keys is None else self.keys[stream]


class WeightSource(Protocol):
    """What an emitter may ask of the network that it works for."""

    def tensor(self, path: str) -> Tensor:
        """Return a weight or a state by its path."""

    def on_device(self, constant: Tensor) -> Tensor:
        """Return a constant on the network's device."""

    def prepared(self, op: Op, prepare: Callable[[], Prepared]) -> Prepared:
        """Return an op's weights as it computes with them."""
