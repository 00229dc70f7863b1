"""Following a training of ``convscope.fit`` or of Keras's own ``fit``, as a callback."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

import keras

from convscope.environment import leads
from convscope.tracking.following import Delivery
from convscope.tracking.tools import Earlier, read_target

Logs = Mapping[str, float] | None


class Tracking(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is untyped
    """Sends settings and the numbers of each epoch to MLflow, TensorBoard or Weights & Biases.

    A tool that does not answer is reported in one warning, and the training goes on.

    Parameters
    ----------
    tool : str
        ``mlflow``, ``tensorboard`` or ``wandb``, alone or as ``NAME=ADDRESS``.
    name : str, optional
        Of the tracked run; the model's name and the time when left out.
    settings : dict, optional
        What is to be noted beside optimizer, loss, epochs, batches and the size of the model.

    Raises
    ------
    UsageError
        If the tool's package is not installed, or an address is missing or holds a password.

    Examples
    --------
    >>> Tracking("tensorboards")
    Traceback (most recent call last):
    ...
    convscope.errors.UnknownNameError: Expected one of the tools mlflow, tensorboard, wandb, got \
'tensorboards'. Did you mean 'tensorboard'?
    """

    def __init__(
        self, tool: str, *, name: str | None = None, settings: Mapping[str, str | int | float] | None = None
    ) -> None:
        super().__init__()
        self._target, self._name, self._settings = read_target(tool), name, dict(settings or {})
        self._delivery: Delivery | None = None
        self.run_id: str | None = None  # kept with a checkpoint, so that a resumed training goes on with it

    def on_train_begin(self, logs: Logs = None) -> None:  # noqa: ARG002  Keras's signature
        """Begin a tracked run."""
        if not leads():
            return
        self._tool = self._target.open()
        self._delivery = Delivery(self._tool, partial(warnings.warn, stacklevel=2))
        self._delivery.send(self._begin)

    def _begin(self) -> None:
        model = self.model
        name = self._name or f"{model.name}-{datetime.now():%Y%m%d-%H%M%S}"
        optimizer = model.optimizer
        found: dict[str, Any] = {
            "network.name": model.name,
            "network.parameters": model.count_params(),
            "optimizer": optimizer.name,
            "learning_rate": float(optimizer.learning_rate),
            "loss": str(getattr(model.loss, "name", model.loss)),
            "epochs": self.params.get("epochs"),
            "batches": self.params.get("steps"),
            **self._settings,
        }
        settings = {key: value for key, value in found.items() if value is not None}
        earlier = Earlier(self.run_id, int(self.params.get("initial_epoch") or 0)) if self.run_id else None
        self.run_id = self._tool.begin(name, settings, earlier)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Send the numbers of an epoch."""
        if self._delivery is not None:
            numbers = {name: float(value) for name, value in (logs or {}).items()}
            self._delivery.send(partial(self._tool.log, epoch + 1, numbers, time.time()))

    def on_train_end(self, logs: Logs = None) -> None:  # noqa: ARG002
        """End the tracked run."""
        if self._delivery is not None:
            self._delivery.send(partial(self._tool.end, "completed"))
            if self._delivery.lost:
                self._delivery.retry()
            self._delivery = None
