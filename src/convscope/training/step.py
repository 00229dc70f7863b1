"""One step of training or validation on a lowered network: planned once, then only executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import numpy as np
import torch

from convscope import _keras_internals as internals
from convscope.errors import unknown_name
from convscope.lowering import LoweredNetwork
from convscope.lowering.graph import named_variables
from convscope.lowering.kernels import Shard
from convscope.lowering.masks import mix, signed
from convscope.training import capture
from convscope.training.callbacks import CallbackMemory, looks_at_batches
from convscope.training.capture import StepRunner
from convscope.training.checkpoint import TrainingState, snapshot
from convscope.training.distributed import GradientSum
from convscope.training.engine_keras import seed_layers
from convscope.training.events import Notice, is_mistake
from convscope.training.feeds import Batch, PlannedBatch, planned
from convscope.training.inputs import ArrayInput, first_leaf, map_leaves
from convscope.training.objective import MetricsPlan, Penalties, find_cross_entropy
from convscope.training.optimizers import KerasStep, OptimizerStep, RuleStep, has_rule, plan_step
from convscope.training.request import FitRequest, require_fitting
from convscope.training.update_rules import Numbers

_ACTIVATIONS: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda logits: torch.softmax(logits, dim=-1),
    "sigmoid": torch.sigmoid,
}


class Trainer:
    """Trains a request's model through the network lowered from it, whose weights are the model's own.

    Between two batches it can be given another network (:meth:`use`). ``give_up`` is called with the error
    where a network fails at its first batch, which then has changed nothing: it raises, or Keras's own steps
    go on (:meth:`use_keras`). Of a group of processes that share each batch, this one has its own rows of x.
    """

    def __init__(
        self,
        request: FitRequest,
        network: LoweredNetwork,
        memory: CallbackMemory,
        give_up: Callable[[Exception], None],
    ) -> None:
        self._request, self._group, self.model = request, request.group, request.model
        self._memory, self._give_up = memory, give_up
        self._epoch, self._said = 0, ""
        self._captured_with: tuple[Any, ...] = ()
        self.use(network)

    def use(self, network: LoweredNetwork) -> None:
        """Train through this network from now on, with the optimizer, loss and metrics that the model has."""
        self._network, model = network, self.model
        self._in_keras, self._tried = False, {True: False, False: False}  # training, validation
        paths = {id(variable): path for path, variable in named_variables(model).items()}
        variables = list(model.trainable_variables)
        weights = [network.weights[paths[id(variable)]] for variable in variables]
        self._weights = weights
        self._sum = None if self._group is None else GradientSum(self._group, weights)
        factors = _factors_of(model, variables, self._request.rate_factors)
        self.optimizer: OptimizerStep = plan_step(model.optimizer, variables, weights, factors)
        self._penalties = Penalties(variables, weights)
        self._find_loss()
        self._metrics = MetricsPlan(model, len(network.program.outputs))
        entering = network.program.inputs
        self._rank = entering[0].rank if len(entering) == 1 else None
        self._capture()

    def use_keras(self) -> None:
        """Train and validate by Keras's own steps from now on; they compute on the same variables."""
        self._in_keras = True
        self.optimizer = KerasStep(self.model.optimizer, self.model.trainable_variables, [])
        if self._request.seeded:
            seed_layers(self.model, self._request.seed, self._epoch)

    def refresh(self) -> None:
        """Follow what a callback may have set in the optimizer, the loss and the metrics."""
        if isinstance(self.optimizer, RuleStep) != has_rule(self.model.optimizer):
            self.use(self._network)
            return
        self.optimizer.refresh()
        self._find_loss()
        self._metrics = MetricsPlan(self.model, len(self._network.program.outputs))
        if self._learning is not None and self._testing is not None:
            captured_with = self._settings()
            if captured_with != self._captured_with:
                self._learning.forget()
                self._testing.forget()
            self._captured_with = captured_with

    def _capture(self) -> None:
        """Get ready to capture steps, where the device can; elsewhere they just run."""
        self._learning: StepRunner | None = None
        self._testing: StepRunner | None = None
        device = self._network.device
        if not capture.suits(device):
            return
        if self._group is not None:
            self._say("Steps are not captured as a CUDA graph: several processes train together.")
            return
        graphs, changed = capture.graphs_on(device), self._network.tensors
        self._learning = StepRunner(device, graphs, changed, self._say)
        self._testing = StepRunner(device, graphs, changed, self._say)
        self._captured_with = self._settings()
        reason = self._network.obstacle
        watcher = looks_at_batches(self._request.callbacks)
        if watcher is not None:
            reason = f"the callback {watcher} looks at every batch"
        if reason is not None:
            self._testing.give_up(reason)
        if reason is None and isinstance(self.optimizer, KerasStep):
            reason = f"Keras computes the optimizer {self.model.optimizer.name}"
        if reason is not None:
            self._learning.give_up(reason)

    def _settings(self) -> tuple[Any, ...]:
        """Give what a captured step has in it, and a callback may change."""
        epsilon = keras.config.epsilon()
        return self.optimizer.settings(), self._cross_entropy, self._metrics.settings(), epsilon

    def _say(self, text: str) -> None:
        """Say why steps are not captured, once where training and validation have the same reason."""
        if text != self._said:
            self._said = text
            self._request.notify(Notice(text))

    def _find_loss(self) -> None:
        activation = self._network.output_activation
        self._cross_entropy = find_cross_entropy(
            self.model, self._network.output_shapes, activation, self._request.strict
        )
        self._loss_by_keras = False
        self._folded = self._cross_entropy is not None and self._cross_entropy.folded

    @property
    def plan(self) -> dict[str, Any]:
        """How the network computes each op, as a structure for JSON."""
        return self._network.plan

    def begin_epoch(self, epoch: int, sums: Sequence[Any] = ()) -> None:
        """Reset the metrics, or continue from the sums of an epoch that was interrupted."""
        self._epoch = epoch
        if self._in_keras and self._request.seeded:
            seed_layers(self.model, self._request.seed, epoch)
        self.model.reset_metrics()
        for variable, value in zip(self.model.metrics_variables, sums, strict=bool(sums)):
            variable.assign(value)
        self.model.train()

    def train_step(self, batch: Batch | PlannedBatch, number: int) -> None:
        """Do forward, loss, backward and update; dropout masks follow the step's absolute number."""
        if not self._in_keras:
            self._attempt(batch, lambda: self._train(batch, number), training=True)
        if self._in_keras:
            self.model.make_train_function()
            self.model.train_function([self._whole(batch)])

    def begin_validation(self) -> None:
        """Reset the metrics and switch Keras's torch layers to inference."""
        self.model.eval()
        self.model.stop_evaluating = False
        self.model.reset_metrics()

    def test_step(self, batch: Batch | PlannedBatch) -> None:
        """Add one batch to the validation's means."""
        if not self._in_keras:
            self._attempt(batch, lambda: self._test(batch), training=False)
        if self._in_keras:
            self.model.make_test_function()
            self.model.test_function([self._whole(batch)])

    def finish(self) -> None:
        """Do what Keras does after the last epoch: weights become their averages if there are any."""
        self.model.eval()
        self.model.optimizer.finalize_variable_values(self.model.trainable_weights)

    def read_logs(self) -> dict[str, float]:
        """Read the means so far, under Keras's names."""
        logs: dict[str, float] = internals.pythonify_logs(self.model.get_metrics_result())
        return logs

    def read_loss(self) -> float:
        """Read the mean loss so far."""
        return float(internals.mean_loss(self.model).result())

    def snapshot(self, epoch: int, step: int) -> TrainingState:
        """Copy the whole state of the training, standing before ``step`` of ``epoch``."""
        sums = {}
        if step:
            sums = {
                f"{number}": np.array(keras.ops.convert_to_numpy(variable.value))
                for number, variable in enumerate(self.model.metrics_variables)
            }
        return snapshot(
            self.model,
            seed=self._request.seed,
            epoch=epoch,
            step=step,
            history=self._request.history.history,
            metrics=sums,
            callbacks=self._memory.read(),
        )

    def _attempt(self, batch: Batch | PlannedBatch, compute: Callable[[], None], *, training: bool) -> None:
        """Compute on the network; where it fails at its first batch, nothing has changed."""
        try:
            if self._tried[training]:
                compute()
                return
            with _undone_by_an_error(self.model):
                compute()
            self._tried[training] = True
        except Exception as error:
            if self._group is None:
                require_fitting(self.model, ArrayInput(*self._whole(batch)))
            if self._tried[training] or is_mistake(error):
                raise
            self._give_up(error)

    def _whole(self, batch: Batch | PlannedBatch) -> Batch:
        return batch.whole(self._network.device) if isinstance(batch, PlannedBatch) else batch

    def _train(self, batch: Batch | PlannedBatch, number: int) -> None:
        optimizer = self.optimizer
        if self._learning is None:
            whole = self._whole(batch)
            self._network.begin_step(self._request.seed, number, shard=self._shard(whole[1]))
            self._learn(whole, optimizer.numbers(), optimizer.step)
        else:
            self._train_captured(self._learning, planned(batch), number)
        optimizer.advance()

    def _train_captured(self, runner: StepRunner, batch: PlannedBatch, number: int) -> None:
        """Train on tensors alone: no number in Python that changes from step to step is part of the step."""
        streams = self._network.streams
        keys = [signed(mix(self._request.seed, number, stream)) for stream in streams]
        values = {
            **batch.values,
            "keys": torch.tensor(keys, dtype=torch.int64),
            "numbers": torch.tensor(self.optimizer.numbers(), dtype=torch.float32),
        }

        def learn(tensors: Mapping[str, torch.Tensor]) -> None:
            keys = dict(zip(streams, tensors["keys"].unbind(), strict=True))
            self._network.begin_step(self._request.seed, number, keys)
            own = {name: tensors[name] for name in batch.values}
            self._learn(batch.make(own), tensors["numbers"].unbind())
            self._network.begin_step(self._request.seed, number)
            self._network.activity_loss = None  # it would keep the step's graph of gradients

        runner(self.optimizer.phase, values, learn)
        self._refuse_what_keras_computes(runner)

    def _refuse_what_keras_computes(self, runner: StepRunner) -> None:
        if self._loss_by_keras:
            runner.give_up("Keras computes the loss")
        if self._metrics.by_keras is not None:
            runner.give_up(f"Keras computes a metric, {self._metrics.by_keras}")

    def _learn(self, batch: Batch, numbers: Numbers, step: int | None = None) -> None:
        """Do forward, loss, backward and update."""
        x, y, weight = batch
        shard = self._shard(y)
        scores = self._forward(x, training=True, shard=shard)
        loss, reported = self._loss(scores, y, weight)
        for parameter in self._weights:  # others may have left a gradient there
            parameter.grad = None
        if loss.requires_grad:  # a model without trainable weights has nothing to learn
            with nullcontext() if self._sum is None else self._sum(shard):
                torch.autograd.backward(self.optimizer.scale(loss))
            self.optimizer.update(numbers, step)
        self._record(reported, scores, y, weight)

    @torch.no_grad()
    def _test(self, batch: Batch | PlannedBatch) -> None:
        if self._testing is None:
            self._judge(self._whole(batch))
            return
        batch = planned(batch)
        self._testing((), batch.values, lambda tensors: self._judge(batch.make(tensors)))
        self._refuse_what_keras_computes(self._testing)

    def _judge(self, batch: Batch) -> None:
        """Do forward and loss."""
        x, y, weight = batch
        scores = self._forward(x, training=False, shard=self._shard(y))
        _, reported = self._loss(scores, y, weight)
        self._record(reported, scores, y, weight)
        self._network.activity_loss = None

    def _shard(self, y: Any) -> Shard | None:
        """Say which rows of the batch are this process's, where there are others."""
        return None if self._group is None else self._group.shard(len(first_leaf(y)))

    def _forward(self, x: Any, training: bool, shard: Shard | None) -> Any:
        """Compute the whole batch's outputs, with others where there are any."""
        scores = self._network(with_rank(x, self._rank), training=training, logits=self._folded)
        if self._group is None or shard is None:
            return scores
        group = self._group
        return map_leaves(lambda leaf: group.gather(leaf, shard), scores)

    def _loss(self, scores: Any, y: Any, weight: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the loss that is differentiated, and the one that is reported."""
        leaves = first_leaf(scores), first_leaf(y), first_leaf(weight)
        if self._cross_entropy is not None and self._cross_entropy.takes(*leaves):
            loss, reported = self._cross_entropy(*leaves)
        else:
            self._loss_by_keras = True
            loss = internals.compiled_loss(self.model)(y, self._outputs(scores), weight)
            reported = loss.detach()
        terms = [self._penalties()] if self._penalties else []
        if self._network.activity_loss is not None:
            terms.append(self._network.activity_loss)
        for term in terms:
            # Gradients are summed over all processes, and this one is the same on each.
            loss = loss + (term if self._group is None or self._group.leads else term.detach())
            reported = reported + term.detach()
        return loss, reported

    def _outputs(self, scores: Any) -> Any:
        """Give what the network puts out, where the loss was computed from logits."""
        if not self._folded:
            return scores
        return map_leaves(_ACTIVATIONS[self._network.output_activation], scores)

    def _record(self, loss: torch.Tensor, scores: Any, y: Any, weight: Any) -> None:
        self._metrics.update_loss(loss, len(first_leaf(y)))
        if self._metrics:
            self._metrics.update(y, self._outputs(map_leaves(torch.Tensor.detach, scores)), weight)


def _factors_of(
    model: keras.Model, variables: Sequence[keras.Variable], by_layer: Mapping[str, float] | None
) -> list[float] | None:
    """Give each variable the factor of its layer."""
    if not by_layer:
        return None
    layers = {layer.name: layer for layer in model.layers}
    for name in by_layer:
        if name not in layers:
            raise unknown_name("layer in rate_factors", name, layers)
    known = {id(v): factor for name, factor in by_layer.items() for v in layers[name].trainable_variables}
    return [known.get(id(variable), 1.0) for variable in variables]


@contextmanager
def _undone_by_an_error(model: keras.Model) -> Iterator[None]:
    """Put everything back that a step may have changed, if it ends in an error."""
    values = [variable.value for variable in (*model.variables, *model.optimizer.variables)]
    values += model.buffers()
    before = [value.detach().clone() for value in values]
    random_state = torch.get_rng_state()
    try:
        yield
    except Exception:
        torch.set_rng_state(random_state)
        with torch.no_grad():
            for value, old in zip(values, before, strict=True):
                value.copy_(old)
        raise


def with_rank(x: Any, rank: int | None) -> Any:
    """Add or drop a last axis of length 1, as Keras's functional models do; structures stay as they are."""
    if rank is None or not isinstance(x, torch.Tensor) or x.ndim == rank:
        return x
    if x.ndim == rank - 1:
        return x.unsqueeze(-1)  # (n, ..., 1)
    return x.squeeze(-1) if x.ndim == rank + 1 and x.shape[-1] == 1 else x  # (n, ...)
