"""A Keras layer or operation that lowering does not know runs as it is, on tensors of the lowered network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import keras

from convscope import _keras_internals as internals
from convscope.lowering.devices import seeded_generators
from convscope.lowering.ir import Op, Shape, Value
from convscope.lowering.layers.base import ProgramBuilder, Runner, Step, Tensor, WeightSource, runs
from convscope.lowering.masks import mix


@dataclass(frozen=True, kw_only=True)
class KerasOp(Op):
    """What Keras itself computes, into one or several values; it has said their shapes."""

    outputs: tuple[Value, ...]

    @property
    def written(self) -> tuple[str, ...]:
        """Return the names of all outputs."""
        return tuple(value.name for value in self.outputs)

    def _output_shape(self, shapes: Sequence[Shape]) -> None:
        del shapes


@dataclass(frozen=True, kw_only=True)
class KerasCall(KerasOp):
    """A Keras layer or operation that runs as it is, on its own variables; ``call`` knows how."""

    call: KerasRunner
    stream: int
    trainable: tuple[str, ...] = ()

    @property
    def weights(self) -> tuple[str, ...]:
        """Return the layer's trainable variables."""
        return self.trainable

    def settings(self) -> dict[str, Any]:
        """Return the type of the Keras layer."""
        return {"keras": str(self.call)}


@dataclass(frozen=True, kw_only=True)
class ActivityLoss(Op):
    """Adds the activity regularization of a layer's output to the loss, by Keras's own ``regularizer``."""

    regularizer: Any

    @property
    def written(self) -> tuple[str, ...]:
        """Return nothing: a loss is no value of the program."""
        return ()

    def _output_shape(self, shapes: Sequence[Shape]) -> None:
        del shapes

    def settings(self) -> dict[str, Any]:
        """Return the type of the regularizer."""
        return {"regularizer": type(self.regularizer).__name__}


SEED_BITS = 0x7FFFFFFF  # what every type of a seed holds


class KerasRunner:
    """Calls one Keras operation with given tensors; its variables, metrics and seeds are the model's own.

    In its arguments, ``Value`` handles stand where tensors belong.
    """

    def __init__(self, operation: Any, args: Any, kwargs: Any) -> None:
        self.operation = operation
        self._args, self._kwargs = args, kwargs
        leaves = keras.tree.flatten((args, kwargs))
        self.inputs = tuple(dict.fromkeys(leaf.name for leaf in leaves if isinstance(leaf, Value)))
        self._host = _Host(operation)

    def __str__(self) -> str:
        """Show the type of the operation."""
        return type(self.operation).__name__

    def __deepcopy__(self, memo: Any) -> KerasRunner:
        """Return the runner itself: it belongs to one model."""
        return self

    def run(self, tensors: Mapping[str, Any], training: bool, seed: int) -> tuple[list[Any], list[Any]]:
        """Call the operation on its own variables: what it changes there is changed, as in Keras.

        In training, random generators without a seed of their own start from ``seed``. Returns the outputs,
        flat, and the losses that the layer added.
        """
        if training:
            for number, generator in enumerate(self._generators()):
                state = internals.value_of(generator.state)
                state[0], state[1] = mix(seed, number) & SEED_BITS, 0
        args, kwargs = keras.tree.map_structure(
            lambda leaf: tensors[leaf.name] if isinstance(leaf, Value) else leaf, (self._args, self._kwargs)
        )
        with internals.outer_call(self._host, training):
            outputs = self.operation(*args, **kwargs)
            losses = internals.take_losses(self._host)
        return keras.tree.flatten(outputs), losses

    def _generators(self) -> list[Any]:
        """List the random generators to which nobody gave a seed."""
        return list(filter(internals.is_unseeded, dict.fromkeys(internals.seed_generators(self._host))))


class _Host(keras.layers.Layer):  # type: ignore[misc]  # Keras ships no type information
    """The outer layer in whose call an operation runs; layers below take the training flag from that call."""

    def __init__(self, operation: Any) -> None:
        super().__init__(name="host")
        self.operation = operation


@runs(KerasCall)
def _run_keras_call(op: KerasCall, _network: WeightSource) -> Runner:
    def run(step: Step, *tensors: Tensor) -> Any:
        named = {
            name: tensor.float() if tensor is not None and tensor.is_floating_point() else tensor
            for name, tensor in zip(op.inputs, tensors, strict=True)
        }
        seed = mix(step.seed, step.number, op.stream) & SEED_BITS
        with seeded_generators(tensors[0].device, seed) if step.training else nullcontext():
            outputs, losses = op.call.run(named, step.training, seed)
        step.losses.extend(losses)
        return outputs if len(op.outputs) > 1 else outputs[0]

    return run


@runs(ActivityLoss)
def _run_activity_loss(op: ActivityLoss, _network: WeightSource) -> Runner:

    def run(step: Step, x: Tensor) -> None:
        step.losses.append(op.regularizer(x.float()) / x.shape[0])

    return run


def add_call(builder: ProgramBuilder, runner: KerasRunner, specs: Sequence[tuple[Shape, str]]) -> list[Value]:
    """Append an op that runs a Keras operation itself; return its outputs, of these shapes and types."""
    return builder.add_keras(
        KerasCall,
        runner.operation,
        runner.inputs,
        specs,
        call=runner,
        trainable=tuple(map(builder.path, getattr(runner.operation, "trainable_variables", ()))),
        stream=builder.next_stream(),
    )
