"""Emit a program as torch: the network that trains and predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from convscope._torch_internals import version_of
from convscope.lowering.activations import activation_function
from convscope.lowering.devices import current_device
from convscope.lowering.graph import (
    is_gradient_hooked,
    is_seed,
    named_variables,
    owners,
    parameter_of,
    tensor_of,
)
from convscope.lowering.ir import Op, Program, Shape, Value
from convscope.lowering.kernels import Shard, forget_copy
from convscope.lowering.layers import ByMode, KerasCall
from convscope.lowering.layers.base import Prepared, Runner, Step, runner_of
from convscope.lowering.layers.elementwise import random_streams
from convscope.lowering.planner import apply_plan, plan_of

Tensor = torch.Tensor


def emit(program: Program, model: Any, plan: Mapping[str, Any] | None = None) -> LoweredNetwork:
    """Turn a program, read from ``model``, into a network that runs on torch.

    On Keras's torch back end it uses the storage of the model's variables: what trains here is in the model
    at once. A ``plan``, as `LoweredNetwork.plan` gives it, is used in place of the program's own choices.
    LoweringError where it belongs to another program, or a variable is not float32.
    """
    if plan is not None:
        program = apply_plan(program, plan)
    return LoweredNetwork(program, model)


class LoweredNetwork:
    """A program on torch.

    ``weights`` are by Keras's paths, float32, in Keras's layout: first the trainable ones in the order of
    ``model.trainable_variables``, then frozen ones. What a layer that runs as a Keras layer trains is the
    model's own parameter, the others are leaves that share its storage. ``state`` are other variables that
    the program uses (moving statistics), which a pass in training mode updates; those of Keras layers stay
    with these. ``output_activations`` are what ``logits=True`` leaves out: "softmax", "sigmoid" or None for
    each output. ``activity_loss`` is the activity regularization of the last pass.
    """

    def __init__(self, program: Program, model: Any) -> None:
        self.program = program
        self.weights, self.state = _collect(program, model)
        self.activity_loss: Tensor | None = None
        self.output_activations = tuple(
            None if output.activation is None else output.activation.name for output in program.outputs
        )
        self._tensors = {**self.weights, **self.state}
        self._constants: dict[int, Tensor] = {}
        self._prepared: dict[str, tuple[tuple[int, ...], Prepared]] = {}
        self._seed, self._number = 0, 0
        self._keys: Mapping[int, Tensor] | None = None
        self._shard: Shard | None = None
        self._input_names = [value.name for value in program.inputs]
        runners = {op.name: runner_of(op, self) for op in program}
        self._schedules = {training: self._schedule(runners, training) for training in (False, True)}
        self._outputs = [
            (output.value, activation_function(output.activation) if output.activation else None)
            for output in program.outputs
        ]

    @property
    def output_activation(self) -> str | None:
        """Return what ``logits=True`` leaves out of the first output."""
        return self.output_activations[0]

    @property
    def output_shapes(self) -> list[Shape]:
        """Return the outputs' whole shapes."""
        return [self.program.value(output.value).shape for output in self.program.outputs]

    @property
    def plan(self) -> dict[str, Any]:
        """Return precision, layout and algorithm of each convolution and matrix product, for JSON."""
        return plan_of(self.program)

    @property
    def device(self) -> torch.device:
        """Return where the weights are, and where inputs go; without any, where Keras puts new tensors."""
        return next(iter(self._tensors.values())).device if self._tensors else current_device()

    def to(self, device: torch.device | str) -> LoweredNetwork:
        """Move weights and state to a device; there they no longer share storage with the Keras model."""
        with torch.no_grad():
            for store in (self.weights, self.state):
                for path, tensor in store.items():
                    store[path] = tensor.to(device).requires_grad_(tensor.requires_grad)
        self._tensors = {**self.weights, **self.state}
        self._constants.clear()
        self._prepared.clear()
        return self

    def tensors(self) -> list[Tensor]:
        """List weights and state."""
        return list(self._tensors.values())

    @property
    def obstacle(self) -> str | None:
        """Say what in a pass nobody may record and replay; None where it is all torch's."""
        layer = next((op.layer for op in self.program if isinstance(op, KerasCall)), None)
        if layer is not None:
            return f"{layer.rsplit('/', 1)[-1]} runs as a Keras layer"
        hooked = any(isinstance(weight, torch.nn.Parameter) for weight in self.weights.values())
        return "somebody looks at a weight's gradient" if hooked else None

    @property
    def streams(self) -> tuple[int, ...]:
        """Return the numbers of the random streams that its dropouts follow."""
        return random_streams(self.program)

    def begin_step(
        self, seed: int, step: int, keys: Mapping[int, Tensor] | None = None, shard: Shard | None = None
    ) -> None:
        """Say which step of the run comes: masks depend on seed, step and layer alone.

        ``keys`` are those of all ``streams``, as tensors: then no number in Python is part of the pass. With
        a ``shard``, inputs are those rows of a batch: masks are theirs, statistics the whole batch's.
        """
        self._seed, self._number, self._keys, self._shard = seed, step, keys, shard

    def __call__(self, inputs: Any, training: bool = False, logits: bool = False) -> Any:
        """Compute the outputs, float32, packed as the Keras model packs its own.

        Inputs are tensors in the axis order and structure of the model's, on any device. In training, dropout
        drops and normalization uses and records the batch's statistics; ``logits`` leaves out a final softmax
        or sigmoid.
        """
        step = Step(training, self._seed, self._number, keys=self._keys, shard=self._shard)
        slots: dict[str, Any] = dict(zip(self._input_names, self._flat(inputs), strict=True))
        for run, reads, writes, finished in self._schedules[training]:
            result = run(step, *[slots[name] for name in reads])
            if len(writes) == 1:
                slots[writes[0]] = result
            elif writes:
                slots.update(zip(writes, result, strict=True))
            for name in finished:
                del slots[name]
        self.activity_loss = (
            torch.stack([loss.reshape(()) for loss in step.losses]).sum() if step.losses else None
        )
        results = []
        for name, activate in self._outputs:
            result = slots[name].float() if slots[name].is_floating_point() else slots[name]
            results.append(result if logits or activate is None else activate(result))
        return self._pack(results)

    def tensor(self, path: str) -> Tensor:
        """Return a weight or a state by its path."""
        return self._tensors[path]

    def on_device(self, constant: Tensor) -> Tensor:
        """Return a constant on the network's device, copied there once."""
        if constant.device == self.device:
            return constant
        key = id(constant)
        if key not in self._constants:
            self._constants[key] = constant.to(self.device)
        return self._constants[key]

    def prepared(self, op: Op, prepare: Callable[[], Prepared]) -> Prepared:
        """Return an op's weights as it computes with them; kept while none changes and no gradient is due."""
        if torch.is_grad_enabled():
            return prepare()
        versions = tuple(version_of(self._tensors[path]) for path in (*op.weights, *op.state))
        known = self._prepared.get(op.name)
        if known is None or known[0] != versions:
            known = (versions, prepare())
            self._prepared[op.name] = known
        return known[1]

    def samples(self) -> list[float]:
        """Return a sum of some elements of each weight and state, which a change hardly leaves as it was."""
        if not self._tensors:
            return []
        with torch.no_grad():
            flat = [tensor.detach().reshape(-1) for tensor in self._tensors.values()]
            sums = [values[:: max(1, len(values) // 16)].sum(dtype=torch.float32) for values in flat]
        found: list[float] = torch.stack(sums).tolist()
        return found

    def refresh(self) -> None:
        """Forget everything derived from the weights; needed after a change that torch does not count."""
        self._prepared.clear()
        for weight in self.weights.values():
            forget_copy(weight)

    def _schedule(self, runners: Mapping[str, Runner], training: bool) -> list[tuple[Any, ...]]:
        """Say what runs in a mode: a runner, what it reads and writes, and what nobody reads behind it."""
        read = {output.value for output in self.program.outputs}
        chosen = []
        for op in reversed(self.program.ops):
            reads = (op.inputs[:1] if training else op.inputs[1:]) if isinstance(op, ByMode) else op.inputs
            if read.isdisjoint(op.written) and any(map(self.program.readers, op.written)):
                continue  # only the other mode reads what it writes
            finished = tuple(name for name in dict.fromkeys(reads) if name not in read)
            read.update(reads)
            chosen.append((runners[op.name], reads, op.written, finished))
        return chosen[::-1]

    def _flat(self, inputs: Any) -> list[Tensor | None]:
        if isinstance(inputs, Tensor):
            tensors = [inputs]
        elif isinstance(inputs, Mapping):
            tensors = [inputs[name] for name in self._input_keys()]
        else:
            tensors = list(inputs)
        device = self.device
        return [
            None if tensor is None else _as_declared(tensor, value, device)  # an optional input
            for tensor, value in zip(tensors, self.program.inputs, strict=True)
        ]

    def _input_keys(self) -> list[str]:
        structure = self.program.input_structure
        if isinstance(structure, Mapping):
            by_tensor = {name: key for key, name in structure.items()}
            return [by_tensor[value.name] for value in self.program.inputs]
        return self._input_names

    def _pack(self, results: list[Tensor]) -> Any:
        structure = self.program.output_structure
        if structure is None or (isinstance(structure, list | tuple) and len(structure) == 1):
            return results[0]
        return _fill(structure, results)


def _as_declared(tensor: Tensor, value: Value, device: torch.device) -> Tensor:
    wanted = value.dtype.startswith(("float", "bfloat"))
    # First the type: Apple's mps takes no float64.
    typed = tensor.float() if wanted and tensor.dtype is not torch.float32 else tensor
    return typed.to(device)


def _fill(structure: Any, results: list[Tensor]) -> Any:
    """Put results into the places of a structure.

    A function inside `_pack` that calls itself would be a cycle, and hold each step's results until Python
    looks for garbage.
    """
    if isinstance(structure, Mapping):
        return {key: _fill(part, results) for key, part in structure.items()}
    if isinstance(structure, list | tuple):
        return [_fill(part, results) for part in structure]
    return results[structure]


def _collect(program: Program, model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sort the model's variables into weights (trainable first) and state."""
    variables = {path: v for path, v in named_variables(model).items() if not is_seed(path)}
    layers = owners(model)
    trainable = {id(variable) for variable in model.trainable_variables}
    paths = [path for path, variable in variables.items() if id(variable) in trainable]
    frozen = [path for op in program for path in op.weights if path not in paths]
    # A Keras layer computes with its own parameters: only there can their gradients be found.
    shared = {path for op in program if isinstance(op, KerasCall) for path in op.weights}
    # And only there does a hook on the gradient hear of it.
    shared |= {path for path in paths if is_gradient_hooked(variables[path])}

    def owner(path: str) -> Any:
        return layers.get(id(variables[path]))

    weights = {
        path: parameter_of(variables[path], owner(path))
        if path in shared
        else tensor_of(variables[path], owner(path)).requires_grad_(id(variables[path]) in trainable)
        for path in dict.fromkeys([*paths, *frozen])
    }
    state = {
        path: tensor_of(variables[path], owner(path))
        for op in program
        for path in op.state
        if path not in weights
    }
    return weights, state


def restore(network: LoweredNetwork, model: Any) -> None:
    """Write weights and state into the variables of the model, where the two do not share them."""
    variables = named_variables(model)
    for path, tensor in {**network.weights, **network.state}.items():
        variable = variables[path]
        value = variable.value
        if isinstance(value, torch.Tensor):
            if value.data_ptr() != tensor.data_ptr():
                variable.assign(tensor.detach())
        else:
            variable.assign(tensor.detach().cpu().numpy())
