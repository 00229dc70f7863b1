"""Run a Keras layer or operation that lowering does not know, as it is, on tensors of the lowered network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from convscope.lowering.program import Value
from convscope.lowering.variables import is_seed


class KerasRunner:
    """Calls one Keras operation with given tensors and given values of its variables.

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

    def variables(self) -> tuple[list[Any], list[Any]]:
        """Return the trainable variables and the others, seeds excluded."""
        trainable = list(getattr(self._operation, "trainable_variables", []))
        others = list(getattr(self._operation, "non_trainable_variables", []))
        return trainable, [variable for variable in others if not is_seed(variable.path)]

    def output_specs(self, values: Mapping[str, Value]) -> Any:
        """Ask Keras for the shapes and types of the outputs."""

        def symbol(leaf: Any) -> Any:
            if not isinstance(leaf, Value):
                return leaf
            return keras.KerasTensor(values[leaf.name].shape, dtype=values[leaf.name].dtype)

        args, kwargs = keras.tree.map_structure(symbol, (self._args, self._kwargs))
        return self._operation.compute_output_spec(*args, **kwargs)

    def run(
        self,
        tensors: Mapping[str, Any],
        trainable: Sequence[Any],
        others: Sequence[Any],
        training: bool,
        seed: tuple[int, int] | None,
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Call the operation.

        Parameters
        ----------
        tensors : mapping
            Value name → tensor.
        trainable, others : sequences of tensors
            Values of the variables, in the order of ``variables()``.
        training : bool
            Whether the call is part of a training step.
        seed : pair of int, optional
            What the layer's random generators start from; None leaves their own state in charge.

        Returns
        -------
        tuple
            Outputs (flat), new values of ``others``, and losses that the layer added.
        """
        args, kwargs = keras.tree.map_structure(
            lambda leaf: tensors[leaf.name] if isinstance(leaf, Value) else leaf, (self._args, self._kwargs)
        )
        own, rest = self.variables()
        mapping = [*zip(own, trainable, strict=True), *zip(rest, others, strict=True)]
        if seed is not None:
            seeds = [v for v in getattr(self._operation, "non_trainable_variables", []) if is_seed(v.path)]
            mapping += [
                (variable, keras.ops.convert_to_tensor(seed, dtype=variable.dtype)) for variable in seeds
            ]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            self._host.arguments.args, self._host.arguments.kwargs = args, kwargs
            outputs = self._host(tensors[self.inputs[0]], training=training)
            self._host.arguments.args, self._host.arguments.kwargs = (), {}
            losses = list(scope.losses)
            self._host._clear_losses()
        updated = [scope.get_current_value(variable) for variable in rest]
        return keras.tree.flatten(outputs), updated, losses


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
