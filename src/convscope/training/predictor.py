"""Prediction on the lowered inference program: lowered once for a model, then only executed."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import torch
from numpy.typing import NDArray

from convscope.errors import LoweringError, expected_got
from convscope.lowering import Program, emit, lower, optimise, with_features
from convscope.lowering.devices import computing_on, current_device, device_of
from convscope.lowering.structure import ModelStructure
from convscope.training import capture
from convscope.training.capture import StepRunner
from convscope.training.events import is_mistake, reason_of
from convscope.training.feeds import ArrayFeed, PlannedBatch, StreamFeed, as_tensor, planned
from convscope.training.inputs import ArrayInput, StreamInput, leaves_of, map_leaves, plan_batches, read_input
from convscope.training.request import (
    METHODS_THAT_PREDICT,
    input_shape,
    own_method,
    require_fitting_images,
    with_checks,
)
from convscope.training.step import with_rank

if TYPE_CHECKING:
    from convscope.preprocessing import Preprocess

BATCH_SIZE = 128  # its activations stay in the cache of a laptop's processor
DEVICE_BATCH_SIZE, DEVICE_ELEMENTS = 1024, 1 << 27  # of a GPU, which does much at once
MOST_WAITING = 1 << 25  # elements of outputs that stay on a GPU until they are fetched together
# The largest tensor of a batch: for one of 32 MB and more, glibc asks the system for new memory each time.
MOST_ELEMENTS = 5_000_000
KERAS_BATCH_SIZE = 32
_OWN_METHODS = ("predict", *METHODS_THAT_PREDICT)
_ATTRIBUTE = "_convscope_predictors"
_LOG = logging.getLogger(__name__)


class Predictor:
    """A model's lowered inference program, ready to be called often.

    It reads the model's own weights at each call: after further training it predicts with the new ones.
    With ``features`` it gives outputs and features, both from one pass; Keras cannot do that in its place.
    """

    def __init__(
        self, model: keras.Model, precision: str = "float32", strict: bool = False, features: bool = False
    ) -> None:
        device = str(device_of(model) or current_device())
        program = with_features(lower(model)) if features else lower(model)
        program, _ = optimise(program, training=False, deterministic=True, precision=precision, device=device)
        self._network = emit(program, model)
        self._model, self._strict = model, strict or features
        # What Keras itself computes may look at the whole batch: then it has to be Keras's.
        by_keras = any(op.kind in ("KerasCall", "Operation") for op in program)
        largest = BATCH_SIZE, MOST_ELEMENTS
        if capture.suits(self._network.device):
            largest = DEVICE_BATCH_SIZE, DEVICE_ELEMENTS
        self._batch_size = KERAS_BATCH_SIZE if by_keras else _fitting_batch(program, *largest)
        self._structure = ModelStructure(model, program)
        self._shape = input_shape(model)
        self._samples: list[float] = []
        self.reason: str | None = None
        self._rank = None if self._shape is None else 1 + len(self._shape)
        self._runner = self._captured()
        self._turn = threading.RLock()  # of several threads, on tensors that stay where they are

    def _captured(self) -> StepRunner | None:
        """Get ready to capture passes, where the device can."""
        network = self._network
        if not capture.suits(network.device):
            return None
        graphs = capture.graphs_on(network.device)
        runner = StepRunner(network.device, graphs, network.tensors, _LOG.info)
        if network.obstacle is not None:
            runner.give_up(network.obstacle)
        return runner

    @property
    def is_current(self) -> bool:
        """Whether the model is still what the network was made from; its weights may have other values."""
        return self._structure.is_current

    def __call__(
        self,
        x: Any,
        batch_size: int | None = None,
        preprocess: Preprocess | None = None,
        *,
        verbose: str | int = 0,
        steps: int | None = None,
        callbacks: Any = None,
    ) -> Any:
        """Compute the outputs for all rows."""
        self.reason = None
        self._require_new_weights_seen()
        if preprocess is None and steps is None and not (verbose or callbacks) and self._is_ready(x):
            # Views: a single image should not wait for more than its network.
            batches, count = iter(torch.split(as_tensor(x), batch_size or self._batch_size)), None
        else:
            default = None if steps or callbacks or verbose else self._batch_size
            batches, count = self._prepared(x, batch_size or default, preprocess, steps)
        with computing_on(self._network.device):
            if verbose or callbacks:
                outputs = list(self._with_callbacks(batches, count, verbose, callbacks))
            else:
                outputs = self._computed(batches)
        if len(outputs) == 1:
            return outputs[0]
        return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *outputs)

    def _require_new_weights_seen(self) -> None:
        """Prepare weights anew after a change that torch does not count, as a fused optimizer's."""
        samples = self._network.samples()
        if samples != self._samples:
            self._network.refresh()
            self._samples = samples

    def _is_ready(self, x: Any) -> bool:
        """Whether rows can be cut from x and handed to the network as they are."""
        return (
            isinstance(x, np.ndarray) and x.dtype == np.float32 and x.shape[1:] == self._shape and len(x) > 0
        )

    def _prepared(
        self, x: Any, batch_size: int | None, preprocess: Preprocess | None, steps: int | None
    ) -> tuple[Iterator[Any], int | None]:
        """Give the batches of an input that needs more than slicing, and how many there are."""
        data = read_input(x, None, None, preprocess)
        require_fitting_images(self._shape, data)
        device = self._network.device
        if isinstance(data, StreamInput):
            data = with_checks(self._model, data, "input", training=False)
            feed: StreamFeed | ArrayFeed = StreamFeed(
                data, steps=steps, class_weight=None, seed=None, device=device, restarts=False
            )
        else:
            feed = ArrayFeed(data, plan_batches(data.rows, batch_size, steps, False, 0), None, device)
        return (planned(batch).whole(device)[0] for batch in feed.epoch(0)), feed.steps

    def _with_callbacks(
        self, batches: Iterator[Any], count: int | None, verbose: str | int, callbacks: Any
    ) -> Iterator[Any]:
        """Compute batch by batch and call Keras's callbacks, as its ``predict`` does."""
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = keras.callbacks.CallbackList(
                callbacks,
                add_progbar=bool(verbose),
                verbose=verbose,
                epochs=1,
                steps=count,
                model=self._model,
            )
        self._model.stop_predicting = False
        callbacks.on_predict_begin()
        for number, batch in enumerate(batches):
            callbacks.on_predict_batch_begin(number)
            if self.reason is None and not self.is_current:
                self.leave_to_keras("A callback has changed the model.")
            self._require_new_weights_seen()
            outputs = self._compute(batch)
            yield outputs
            callbacks.on_predict_batch_end(number, {"outputs": outputs})
            if self._model.stop_predicting:
                break
        callbacks.on_predict_end()

    def _computed(self, batches: Iterator[Any]) -> list[Any]:
        """Compute batches; where one need not wait for another, outputs stay on the device for a while."""
        if self._runner is None:
            return [self._compute(batch) for batch in batches]
        found, waiting = [], []
        for batch in batches:
            outputs = self._outputs(batch)
            waiting.append(outputs)
            elements = sum(leaf.numel() for leaf in leaves_of(outputs))
            if len(waiting) * elements > MOST_WAITING:
                found.append(_joined(waiting))
                waiting = []
        return [*found, _joined(waiting)] if waiting else found

    def _compute(self, x: Any) -> Any:
        """Compute a batch; its outputs are those of NumPy."""
        return keras.tree.map_structure(_as_float32, self._outputs(x))

    @torch.no_grad()
    def _outputs(self, x: Any) -> Any:
        """Compute a batch on the network; where that fails, as Keras does, and so from then on."""
        if self.reason is None:
            try:
                x = with_rank(x, self._rank)
                return (
                    self._network(x, training=False) if self._runner is None else self._run(self._runner, x)
                )
            except Exception as error:
                require_fitting_images(self._shape, ArrayInput(x))
                if self._strict or is_mistake(error):
                    raise
                self.leave_to_keras(reason_of(error))
        self._model.make_predict_function()
        return self._model.predict_function([(x,)])

    def _run(self, runner: StepRunner, x: Any) -> Any:
        """Compute a batch on tensors that stay where they are."""
        batch = PlannedBatch.of((x, None, None))
        with self._turn:
            outputs = runner(
                (), batch.values, lambda tensors: self._network(batch.make(tensors)[0], training=False)
            )
            return map_leaves(torch.clone, outputs)  # the next batch of this shape overwrites them

    def leave_to_keras(self, reason: str) -> None:
        """Compute by Keras's own step from now on."""
        self.reason = reason
        _LOG.info("Predicting with Keras's own predict. %s", reason)


def _fitting_batch(program: Program, most: int, elements: int) -> int:
    """Choose how many images are computed at a time, by the largest value of one image."""
    largest = max(math.prod(length or 1 for length in program.value(op.output).shape[1:]) for op in program)
    return max(1, min(most, elements // largest))


def predictor_of(
    model: keras.Model, precision: str, strict: bool = False, features: bool = False
) -> Predictor:
    """Give the model's predictor, lowered at its first use.

    It lives as an attribute of the model, so that it goes when the model goes.
    """
    name = own_method(model, _OWN_METHODS)
    if name is not None:
        found = f"{type(model).__name__}, which has a {name} of its own"
        raise LoweringError(expected_got("a model that predicts as Keras's own do", found))
    known: dict[Any, Predictor] = model.__dict__.setdefault(_ATTRIBUTE, {})  # past Keras's tracking
    key = precision, strict, features
    if key not in known or not known[key].is_current:
        known[key] = Predictor(model, precision, strict, features)
    return known[key]


def _joined(outputs: list[Any]) -> Any:
    """Put outputs of batches together where they are, then bring them to NumPy."""
    together = keras.tree.map_structure(lambda *parts: torch.cat(parts), *outputs)
    return keras.tree.map_structure(_as_float32, together)


def _as_float32(output: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = output.to("cpu", torch.float32).numpy()
    return array
