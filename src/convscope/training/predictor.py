"""Prediction on the lowered inference program: lowered once for a model, then only executed."""

from __future__ import annotations

import logging
import math
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
from convscope.training.data import (
    ArrayFeed,
    ArrayInput,
    StreamFeed,
    StreamInput,
    as_tensor,
    map_leaves,
    plan_batches,
    planned,
    read_input,
)
from convscope.training.events import is_mistake, reason_of
from convscope.training.request import input_shape, own_method, require_fitting_images, with_checks
from convscope.training.step import with_rank

if TYPE_CHECKING:
    from convscope.preprocessing import Preprocess

BATCH_SIZE = 128  # its activations stay in the cache of a laptop's processor
# The largest tensor of a batch: for one of 32 MB and more, glibc asks the system for new memory each time.
MOST_ELEMENTS = 5_000_000
KERAS_BATCH_SIZE = 32
_OWN_METHODS = ("predict", "predict_step", "make_predict_function", "predict_function")
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
        self._batch_size = KERAS_BATCH_SIZE if by_keras else BATCH_SIZE
        self._structure = ModelStructure(model, program)
        self._shape = input_shape(model)
        self._samples: list[float] = []
        self.reason: str | None = None
        self._rank = None if self._shape is None else 1 + len(self._shape)

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
            batches, count = _slices(as_tensor(x), batch_size or self._batch_size), None
        else:
            default = None if steps or callbacks or verbose else self._batch_size
            batches, count = self._prepared(x, batch_size or default, preprocess, steps)
        with computing_on(self._network.device):
            if verbose or callbacks:
                outputs = list(self._with_callbacks(batches, count, verbose, callbacks))
            else:
                outputs = [self._compute(batch) for batch in batches]
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

    @torch.no_grad()
    def _compute(self, x: Any) -> Any:
        """Compute a batch on the network; where that fails, as Keras does, and so from then on."""
        if self.reason is None:
            try:
                return map_leaves(_as_float32, self._network(with_rank(x, self._rank), training=False))
            except Exception as error:
                require_fitting_images(self._shape, ArrayInput(x))
                if self._strict or is_mistake(error):
                    raise
                self.leave_to_keras(reason_of(error))
        self._model.make_predict_function()
        return keras.tree.map_structure(_as_float32, self._model.predict_function([(x,)]))

    def leave_to_keras(self, reason: str) -> None:
        """Compute by Keras's own step from now on."""
        self.reason = reason
        _LOG.info("Predicting with Keras's own predict. %s", reason)


def _fitting_batch(program: Program) -> int:
    """Choose how many images are computed at a time, by the largest value of one image."""
    largest = max(math.prod(length or 1 for length in program.value(op.output).shape[1:]) for op in program)
    return max(1, min(BATCH_SIZE, MOST_ELEMENTS // largest))


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


def _slices(x: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Cut prepared input into views: a single image should not wait for more than its network."""
    return (x[first : first + size] for first in range(0, len(x), size))


def _as_float32(output: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = output.to("cpu", torch.float32).numpy()
    return array
