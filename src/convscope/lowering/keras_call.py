"""Run a Keras layer or operation that lowering does not know, as it is, on tensors of the lowered network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import torch

from convscope.lowering.ir import Value
from convscope.lowering.masks import mix

SEED_BITS = 0x7FFFFFFF  # what every type of a seed holds


class KerasRunner:
    """Calls one Keras operation with given tensors; its variables, metrics and seeds are the model's own.

    Parameters
    ----------
    operation : keras.Operation
        A layer (also a whole nested model) or one of keras.ops.
    args, kwargs : structures
        Its arguments, with ``Value`` handles where tensors belong.
    """

    def __init__(self, operation: Any, args: Any, kwargs: Any) -> None:
        self._operation = operation
        self._args, self._kwargs = args, kwargs
        leaves = keras.tree.flatten((args, kwargs))
        self.inputs = tuple(dict.fromkeys(leaf.name for leaf in leaves if isinstance(leaf, Value)))
        self._host = _Host(operation)

    def __str__(self) -> str:
        """Show the type of the operation."""
        return type(self._operation).__name__

    def __deepcopy__(self, memo: Any) -> KerasRunner:
        """Return the runner itself: it belongs to one model."""
        return self

    def output_specs(self, values: Mapping[str, Value]) -> Any:
        """Ask Keras for the shapes and types of the outputs."""

        def symbol(leaf: Any) -> Any:
            if not isinstance(leaf, Value):
                return leaf
            return keras.KerasTensor(values[leaf.name].shape, dtype=values[leaf.name].dtype)

        args, kwargs = keras.tree.map_structure(symbol, (self._args, self._kwargs))
        with _buffers_kept(self._operation):
            return self._operation.compute_output_spec(*args, **kwargs)

    def run(self, tensors: Mapping[str, Any], training: bool, seed: int) -> tuple[list[Any], list[Any]]:
        """Call the operation on its own variables: what it changes there is changed, as in Keras.

        Parameters
        ----------
        tensors : mapping
            Value name → tensor.
        training : bool
            Whether the call is part of a training step.
        seed : int
            What the random generators without a seed of their own start from in training.

        Returns
        -------
        tuple
            Outputs (flat), and losses that the layer added.
        """
        if training:
            for number, generator in enumerate(self._generators()):
                generator.state.assign([mix(seed, number) & SEED_BITS, 0])
        self._host.arguments.args, self._host.arguments.kwargs = keras.tree.map_structure(
            lambda leaf: tensors[leaf.name] if isinstance(leaf, Value) else leaf, (self._args, self._kwargs)
        )
        try:
            outputs = self._host(tensors[self.inputs[0]], training=training)
            losses = [loss for layer in self._host._flatten_layers() for loss in layer._get_own_losses()]
        finally:
            self._host.arguments.args, self._host.arguments.kwargs = (), {}
            self._host._clear_losses()
        return keras.tree.flatten(outputs), losses

    def _generators(self) -> list[Any]:
        """List the random generators to which nobody gave a seed."""
        layers = self._host._flatten_layers()
        found = dict.fromkeys(generator for layer in layers for generator in layer._seed_generators)
        return [generator for generator in found if generator._initial_seed is None]


@contextmanager
def _buffers_kept(operation: Any) -> Iterator[None]:
    """Leave torch modules as they are: to learn shapes, Keras tries a layer on random numbers."""
    buffers = list(operation.buffers()) if isinstance(operation, torch.nn.Module) else []
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


class _Host(keras.layers.Layer):  # type: ignore[misc]  # Keras ships no type information
    """Carries the training flag into operations that take none themselves, as an outer model's call does."""

    def __init__(self, operation: Any) -> None:
        super().__init__(name="host", autocast=False)
        self._convert_input_args = False
        self.built = True
        self.operation = operation
        self.arguments = _Arguments()

    def call(self, anchor: Any, training: bool | None = None) -> Any:  # noqa: ARG002  Keras reads both
        """Call the operation; layers below take the training flag from the call's context."""
        return self.operation(*self.arguments.args, **self.arguments.kwargs)


class _Arguments:
    """Hands arguments over that Keras must not inspect: it refuses some mixtures in the call of a layer."""

    args: Any = ()
    kwargs: Any = {}  # noqa: RUF012  replaced before each call, never changed
