"""What convscope uses of Keras beyond its documented interface, each with the reason.

All of it was seen with Keras 3.15.1, and none is promised to stay: the bound on Keras in ``pyproject.toml``
follows from this module. ``tests/test_keras_internals.py`` tests each, and fails where a version moves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import keras
from keras.src.activations import activations
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import StatelessScope
from keras.src.backend.config import keras_home as _keras_home
from keras.src.models.functional import Functional
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter
from keras.src.trainers.trainer import Trainer
from keras.src.utils import file_utils, is_default
from keras.src.utils.python_utils import pythonify_logs

__all__ = ["Functional", "is_default", "pythonify_logs"]

# Functional: the class of graphs has no public name. is_default: which hooks of a callback nobody wrote; to
# call them all would cost a step more than the step. pythonify_logs: the one form in which logs are shown.

# How a model trains and predicts, to be told from how it computes.
TRAINER_METHODS = frozenset(vars(Trainer))
# What a model notes down of it: when it is made, by `compile`, by `fit`, `evaluate` and `predict`.
TRAINER_NOTES = frozenset(vars(Trainer())) | {
    *("_compile_config", "_compiled_trainable_state", "optimizer"),
    *("train_function", "test_function", "predict_function"),
    *("history", "stop_training", "stop_evaluating", "stop_predicting"),
}


# Graphs: the public interface tells the layers of a model, not how they are wired.


# Who overrides one of these computes something else than the graph.
GRAPH_METHODS = (
    "__call__",
    "call",
    "forward",
    "_run_through_graph",
    "_standardize_inputs",
    "_adjust_input_rank",
)


def graph_of_sequential(model: keras.Sequential) -> Any:
    """Give the graph that a built Sequential keeps; None where Keras could not trace one."""
    return getattr(model, "_functional", None)


def nodes_by_depth(graph: Any) -> dict[int, list[Any]]:
    """Give the calls of a graph's operations, by their distance from the outputs."""
    nodes: dict[int, list[Any]] = graph._nodes_by_depth
    return nodes


def inbound_nodes(operation: Any) -> list[Any]:
    """Give the calls of an operation."""
    nodes: list[Any] = operation._inbound_nodes
    return nodes


def has_mask(tensor: Any) -> bool:
    """Say whether a layer has left a mask on its symbolic output; not every mask has a layer of its own."""
    return getattr(tensor, "_keras_mask", None) is not None


def takes_training(operation: Any) -> bool:
    """Say whether an operation's ``call`` has an argument ``training``."""
    return bool(getattr(operation, "_call_has_training_arg", False))


def is_of_keras(operation: Any) -> bool:
    """Say whether Keras itself brings the type of a layer, so that its name says what it computes."""
    return type(operation).__module__.startswith("keras.src.layers.")


# Layers: the public lists of variables are put together anew, with a search, at each look.


def sublayers(layer: Any) -> list[Any]:
    """List the layers that a layer holds itself."""
    layers: list[Any] = layer._layers
    return layers


def all_layers(layer: Any) -> list[Any]:
    """List a layer and all layers below it."""
    return list(layer._flatten_layers())


def own_variables(layer: Any) -> Iterator[Any]:
    """Give the variables of a layer without those of the layers below it, trainable ones first."""
    yield from layer._trainable_variables
    yield from layer._non_trainable_variables


def is_trainable(owner: Any) -> bool:
    """Say whether a variable or layer was itself set to be trained, whatever it is part of."""
    return bool(owner._trainable)


def value_of(variable: keras.Variable) -> Any:
    """Give the tensor of a variable as it is, without the scope that its public value looks for."""
    return variable._value


def seed_generators(layer: Any) -> list[Any]:
    """List the random generators of a layer and of all layers below it."""
    return [one for below in layer._flatten_layers() for one in getattr(below, "_seed_generators", ())]


def is_unseeded(generator: keras.random.SeedGenerator) -> bool:
    """Say whether nobody gave a random generator a seed of its own."""
    return generator._initial_seed is None


def take_losses(host: Any) -> list[Any]:
    """Give the losses that a call has left in a layer and those below it."""
    return [loss for layer in host._flatten_layers() for loss in layer._get_own_losses()]


@contextmanager
def outer_call(host: Any, training: bool) -> Iterator[None]:
    """Let layers called inside take the training flag as from the call of a layer that holds them.

    The losses that they add are the host's, and are forgotten before and after.
    """
    host._get_call_context().set_value("training", training)
    try:
        yield
    finally:
        host._maybe_reset_call_context()
        host._clear_losses()


# Tracing: calls of a layer on symbols leave notes in the layers below, and in Keras's list of names.


@contextmanager
def traced_without_a_mark(layer: Any) -> Iterator[None]:
    """Forget, afterwards, the calls of a layer's parts that were made inside, and which names were given."""
    layers = all_layers(layer)
    lengths = [(len(one._inbound_nodes), len(one._outbound_nodes)) for one in layers]
    names = global_state.get_global_attribute("object_name_uids")
    before = dict(names or {})
    try:
        yield
    finally:
        for one, (inbound, outbound) in zip(layers, lengths, strict=True):
            del one._inbound_nodes[inbound:], one._outbound_nodes[outbound:]
        if names is not None:
            names.clear()
            names.update(before)


class NoVariableRead(StatelessScope):  # type: ignore[misc]  # Keras ships no type information
    """A scope in which nobody reads or changes the value of a variable: who does raises a RuntimeError."""

    def get_current_value(self, variable: Any) -> Any:
        """Refuse."""
        raise RuntimeError(f"{variable.path} is read")

    def add_update(self, update: Any) -> None:
        """Refuse."""
        raise RuntimeError(f"{update[0].path} is changed")


@contextmanager
def uniform_draws(draw: Callable[..., Any]) -> Iterator[None]:
    """Let ``keras.random.uniform`` take its numbers from a function of its own arguments."""
    module = keras.src.backend.random
    before = module.uniform
    module.uniform = draw
    try:
        yield
    finally:
        module.uniform = before


@contextmanager
def activations_on_symbols() -> Iterator[None]:
    """Let all of ``keras.activations`` take symbols; hard_silu, mish and sparsemax make tensors of them."""
    backend, mish = activations.backend, activations.Mish

    class Converting:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def convert_to_tensor(self, x: Any, *args: Any, **kwargs: Any) -> Any:
            return x if is_symbol(x) else backend.convert_to_tensor(x, *args, **kwargs)

    class Mish:
        static_call = staticmethod(lambda x: mish()(x) if is_symbol(x) else mish.static_call(x))

    def is_symbol(x: Any) -> bool:
        return isinstance(x, keras.KerasTensor)

    activations.backend, activations.Mish = Converting(), Mish
    try:
        yield
    finally:
        activations.backend, activations.Mish = backend, mish


def settings_of_operation(operation: Any) -> dict[str, Any]:
    """Give what an operation of ``keras.ops`` was made with."""
    notes = ("_lock", "_auto_config", "_inbound_nodes", "_outbound_nodes", "_remat_mode", "name")
    return {name: value for name, value in vars(operation).items() if name not in notes}


# Training: what `compile` has made, and what `fit` does before its first step.

_WITHOUT_FURTHER_STATE = (keras.losses.Loss, keras.metrics.MeanMetricWrapper)


def build(model: keras.Model, batches: Iterator[Any]) -> None:
    """Build model, loss, metrics and optimizer from one batch's shapes, as ``fit`` does.

    ``batches`` gives ``(first step, last step, [batch])`` and is read only where something is not built yet.
    """
    loss, metrics = model._compile_loss, model._compile_metrics
    unbuilt = [one for one in (metrics, loss) if one is not None and not one.built]
    output = _only_output(model)
    if unbuilt and output is not None and _state_needs_no_call(loss, metrics):
        batch = next(batches)
        batches, y = iter([batch]), batch[2][0][1]
        if hasattr(y, "shape"):
            # Keras runs the whole model on tensors without values to learn the shape of its output, and so
            # imports torch's compiler and sympy: two seconds in which nothing is found that is not known.
            target = keras.KerasTensor(y.shape, keras.backend.standardize_dtype(y.dtype))
            for one in unbuilt:
                one.build(target, keras.KerasTensor((len(y), *output.shape[1:]), output.dtype))
    model._symbolic_build(iterator=batches)


def _only_output(model: keras.Model) -> keras.KerasTensor | None:
    """Give the output of a built graph; None where there are several, or no graph."""
    graph = getattr(model, "_functional", model)
    output = getattr(graph, "_outputs_struct", None)
    whole = isinstance(output, keras.KerasTensor) and None not in output.shape[1:]
    return output if whole and all(layer.built for layer in model._flatten_layers()) else None


def _state_needs_no_call(loss: Any, metrics: Any) -> bool:
    """Say whether all that ``compile`` was given are losses without state, and means of functions."""
    words = ("accuracy", "acc", "crossentropy", "ce")  # which of several they are, the shapes say
    given = [
        *((keras.losses.get, one) for one in keras.tree.flatten(getattr(loss, "_user_loss", None))),
        *(
            (keras.metrics.get, one)
            for name in ("_user_metrics", "_user_weighted_metrics")
            for one in keras.tree.flatten(getattr(metrics, name, None))
        ),
    ]
    found = [get(one) if isinstance(one, str) else one for get, one in given if one not in (None, *words)]
    kinds = [one if isinstance(one, FunctionType) else type(one) for one in found]
    return all(
        kind.__module__.startswith("keras.src.")
        and (isinstance(kind, FunctionType) or issubclass(kind, _WITHOUT_FURTHER_STATE))
        for kind in kinds
    )


def compiled_loss(model: keras.Model) -> Any:
    """Give what computes the loss of a compiled model; None where it was compiled without."""
    return model._compile_loss


def compiled_metrics(model: keras.Model) -> Any:
    """Give what computes the compiled metrics; None where there are none."""
    return model._compile_metrics


def mean_loss(model: keras.Model) -> Any:
    """Give the metric that shows the mean loss."""
    return model._loss_tracker


def initial_epoch(model: keras.Model) -> int | None:
    """Give the epoch to which ``BackupAndRestore`` has set a training back; None or 0 where it has not."""
    epoch: int | None = model._initial_epoch
    return epoch


def losses_of(model: keras.Model) -> list[tuple[Any, Any]]:
    """List the built losses of a compiled model with their weights."""
    return [(one.loss, one.loss_weights) for one in model._compile_loss._flat_losses]


def metrics_of(compiled: Any) -> list[tuple[Any, bool]]:
    """List built metrics, and whether each heeds the examples' weights."""
    lists = ((compiled._flat_metrics, False), (compiled._flat_weighted_metrics, True))
    return [
        (metric, weighted)
        for groups, weighted in lists
        for group in groups
        if group is not None
        for metric in group.metrics
    ]


def settings_of(loss: Any) -> Mapping[str, Any]:
    """Give what a loss or metric hands to its function, such as ``from_logits``; empty for what has none."""
    settings: Mapping[str, Any] = getattr(loss, "_fn_kwargs", {})
    return settings


def function_of(metric: Any) -> Any:
    """Give the function of which a metric shows the mean."""
    return metric._fn


def is_made_by_keras(function: Any) -> bool:
    """Say whether Keras made a ``train_function`` or its like, and not somebody else."""
    return "Trainer.make_" in getattr(function, "__qualname__", "")


# Optimizers: the slots have no public names, and the rate is converted at each public look.


def is_own_optimizer(optimizer: Any) -> bool:
    """Say whether an optimizer is of a class of Keras's torch back end, and not a subclass of it."""
    return type(optimizer).__module__.startswith("keras.src.backend.torch.optimizers")


def rate_of(optimizer: keras.optimizers.Optimizer) -> Any:
    """Give the variable or schedule of an optimizer's learning rate."""
    return optimizer._learning_rate


def step_counter(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """Give the variable that counts steps; the public one counts updates, where gradients are accumulated."""
    return optimizer._iterations


def variable_indices(optimizer: keras.optimizers.Optimizer, variables: Sequence[Any]) -> list[int]:
    """Give the place of each variable in the optimizer's lists; refuses what it was not built on."""
    optimizer._check_variables_are_known(variables)
    return [optimizer._get_variable_index(variable) for variable in variables]


def decays(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Say whether weight decay is meant for a variable."""
    return bool(optimizer._use_weight_decay(variable))


def slots_of(optimizer: keras.optimizers.Optimizer, name: str) -> Any:
    """Give one of the optimizer's own lists of variables, or a single one, such as ``_momentums``."""
    return getattr(optimizer, name)


# Batches.


def epoch_iterator(source: Any, steps: int | None, class_weight: Mapping[int, float] | None) -> Any:
    """Iterate over a stream as ``fit`` does on torch; what it makes of batches is documented nowhere."""
    from keras.src.backend.torch.trainer import TorchEpochIterator  # only where torch is the back end

    return TorchEpochIterator(source, steps_per_epoch=steps, shuffle=False, class_weight=class_weight)


def standardize_batch(batch: Any, class_weight: Mapping[int, float] | None) -> Any:
    """Bring one batch of a PyDataset into the form in which ``fit`` takes it; no worker is started."""
    return PyDatasetAdapter(keras.utils.PyDataset(), class_weight)._standardize_batch(batch)


# Weights of keras.applications: its constructors download them, and do not tell which file they want.


@contextmanager
def weights_by(fetch: Callable[..., str]) -> Iterator[None]:
    """Let ``fetch(fname, origin, …)`` answer instead of ``keras.utils.get_file`` while a block runs."""
    own = file_utils.get_file
    file_utils.get_file = fetch
    try:
        yield
    finally:
        file_utils.get_file = own


def keras_home() -> Path:
    """Give the folder in whose ``models`` Keras keeps downloaded weights."""
    return Path(_keras_home())
