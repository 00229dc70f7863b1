"""Trainings that must come out the same in one process and in several; run as a program by each of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

from convscope.cli.startup import own_this_process

if __name__ == "__main__":
    own_this_process()  # imports that nobody here needs take longer than all trainings

import keras
import numpy as np

import convscope
import convscope.errors
from convscope.augmentation import Augmentation
from convscope.training import distributed
from convscope.training.distributed import alone
from convscope.training.events import StepEnd

CASES = ("dense", "dropout", "normalized", "few-rows", "penalties", "own-loss", "augmented", "resumed")
SENT = ("dense", "dropout", "normalized", "few-rows")  # the others' gradients lie in memory that all see
REFUSED = ("mixing", "keras-layer", "own-step", "stream", "keras-engine")


def _network(name: str) -> list[Any]:
    layers = keras.layers
    if name == "dropout":
        return [
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.25),
            layers.SpatialDropout2D(0.3),
            layers.Flatten(),
            layers.Dense(24, activation="relu"),
            layers.Dropout(0.5),
        ]
    if name == "normalized":
        return [
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(scale=False),
            layers.Flatten(),
        ]
    if name == "penalties":
        return [layers.Flatten(), layers.Dense(16, kernel_regularizer="l2", activation="relu")]
    if name == "mixing":
        return [layers.Flatten(), MinusMean()]
    if name == "keras-layer":
        return [layers.GaussianNoise(0.1), layers.Flatten()]
    return [layers.Flatten(), layers.Dense(16, activation="relu")]


class MinusMean(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return x - keras.ops.mean(x, axis=0, keepdims=True)


class OwnStep(keras.Sequential):
    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


def _spread_out(y: Any, p: Any) -> Any:
    """A loss that looks at the whole batch, as no sum over processes could."""
    return keras.ops.square(keras.ops.mean(keras.ops.abs(p - keras.ops.one_hot(y[:, 0], 4))))


def train(name: str) -> dict[str, Any]:
    """Train one case; the weights begin differently in each process, and the first one's count."""
    # In memory that all see, or sent: as one, and in parts.
    distributed._SHARED_BYTES = 0 if name in SENT else 1 << 28
    distributed._FLOATS_OF_A_PART = 1 << 18 if name == "dense" else 300
    rng = np.random.default_rng(5)
    rows, batch_size = (67, 13) if name != "few-rows" else (17, 8)  # the last batch has fewer than processes
    x, y = rng.random((rows, 8, 8, 1), np.float32), rng.integers(0, 4, (rows, 1))
    x[np.arange(rows), y[:, 0], 2] += 1.0
    keras.utils.set_random_seed(7 + int(os.environ.get("RANK", "0")))
    kind = OwnStep if name == "own-step" else keras.Sequential
    model = kind([keras.Input((8, 8, 1)), *_network(name), keras.layers.Dense(4, activation="softmax")])
    optimizer = keras.optimizers.AdamW(0.01, global_clipnorm=1.0, use_ema=True, ema_overwrite_frequency=5)
    loss = _spread_out if name == "own-loss" else "sparse_categorical_crossentropy"
    model.compile(optimizer, loss, metrics=["accuracy"], weighted_metrics=["accuracy"])
    arguments: dict[str, Any] = {"sample_weight": rng.random(rows).astype(np.float32)}
    if name == "augmented":
        x = (100 * x).astype(np.uint8)
        arguments = {"class_weight": {0: 2.0, 1: 0.5}}
        arguments |= {"preprocess": convscope.Preprocess.fit(x), "augment": Augmentation(shift=0.2)}
        y = y[:, 0]
    data: tuple[Any, ...] = (x, y)
    if name == "stream":
        data, arguments = (((x[:8], y[:8]) for _ in range(3)),), {}
    if name == "resumed":
        arguments["resume_from"] = _interrupted(model, *data)
    history = convscope.fit(
        model,
        *data,
        batch_size=None if name == "stream" else batch_size,
        epochs=2,
        verbose=0,
        validation_data=None if name == "stream" else (x[:23], y[:23]),
        engine="keras" if name == "keras-engine" else "auto",
        precision="auto" if name == "keras-engine" else "float32",
        seed=3,
        deterministic=True,
        **arguments,
    )
    weights = [value.ravel().tolist() for value in model.get_weights()]
    return {"history": history.history, "weights": weights, "engine": history.engine}


def _interrupted(model: keras.Model, x: Any, y: Any) -> Any:
    """Train three steps of the first epoch in one process, whose state does not know how many go on."""
    states: list[Any] = []

    def stop(event: Any) -> None:
        if isinstance(event, StepEnd) and event.step == 2:
            states.append(event.snapshot())
            model.stop_training = True

    keras.utils.set_random_seed(7)
    model.set_weights([np.random.default_rng(1).normal(0, 0.1, w.shape) for w in model.get_weights()])
    settings: dict[str, Any] = {"precision": "float32", "deterministic": True, "seed": 3, "verbose": 0}
    with alone():
        convscope.fit(model, x, y, batch_size=13, epochs=1, listeners=[stop], **settings)
    return states[0]


def memory() -> list[float] | None:
    """Write into memory that all processes see, and read what each has written."""
    group = distributed.join()
    shared = None if group is None else group.shared_memory(3)
    if group is None or shared is None:
        return None
    shared[1, group.rank].fill_(group.rank + 1.0)
    group.sum_up(shared.new_zeros(1))  # so that all have written
    return shared.sum((0, 2)).tolist()


def refusal(name: str) -> str:
    """Give the sentence with which a case is refused."""
    try:
        train(name)
    except convscope.errors.ConvscopeError as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    found = {"trained": {name: train(name) for name in CASES}, "refused": {n: refusal(n) for n in REFUSED}}
    found["memory"] = memory()
    Path(f"{sys.argv[1]}-{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")
