"""From a dataset and a configuration to what is trained: parts, preprocessing, network."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope import environment
from convscope.data.cache import map_pixels
from convscope.data.dataset import Dataset, Split, hold_back
from convscope.errors import UsageError, expected_got
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.model import (
    adapt_network,
    build_model,
    freeze_for_fine_tuning,
    image_shape_of,
    load_network,
    settle_input,
)
from convscope.lowering.devices import describe_device, device_of
from convscope.networks import pretrained
from convscope.preprocessing import Preprocess, resize_to_input
from convscope.training.events import Listener, Notice, notify

if TYPE_CHECKING:
    import keras

_PROGRESS = logging.getLogger("convscope.progress")


@dataclass(frozen=True)
class Prepared:
    """What the network will see: up to three parts, still uint8, and one preprocessing."""

    train: Split
    validation: Split | None
    test: Split
    preprocess: Preprocess
    class_names: tuple[str, ...]

    @property
    def parts(self) -> dict[str, Split]:
        """The parts by name, validation only where there is one."""
        validation = {"validation": self.validation} if self.validation else {}
        return {"train": self.train, **validation, "test": self.test}

    def describe(self) -> list[str]:
        """Say in words how the data were prepared, a line for each step."""
        counts = ", ".join(f"{len(part):,} {name}" for name, part in self.parts.items())
        return [
            f"split: {counts} images",
            *self.preprocess.describe(),
            f"one-hot targets of length {len(self.class_names)}",
        ]


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A pretrained network whose head has been fitted: its weights, and its worth as a row of the history."""

    weights: list[NDArray[Any]] = field(repr=False)
    features: NDArray[np.float32] = field(repr=False)  # (n, d), of the training images
    row: Mapping[str, float]
    image_seconds: float  # for the features of one image


@dataclass(frozen=True)
class Session:
    """What a training works with, made anew from the configuration whenever it is needed."""

    config: ExperimentConfig
    dataset: Dataset
    prepared: Prepared
    model: keras.Model
    head: FittedHead | None = None

    def describe(self) -> dict[str, Any]:
        """Gather what somebody needs to judge or repeat the run, as JSON values."""
        config, prepared, dataset = self.config, self.prepared, self.dataset
        return {
            "began": datetime.now().astimezone().isoformat(timespec="milliseconds"),
            "config": config.to_json(),
            "seed": config.training.seed,
            "data": {
                "name": dataset.name,
                "source": config.data,
                "reading": {**config.reading, "resize": config.resize},
                "fingerprint": dataset.fingerprint,
                "counts": {name: len(part) for name, part in prepared.parts.items()},
                "class_names": list(dataset.class_names),
                "left_out": dict(dataset.left_out),
                "preparation": prepared.describe(),
            },
            "network": {"name": config.network_name, "parameters": self.model.count_params()},
            **environment.describe(),
            "device": describe_device(device_of(self.model)),
        }


def begin_session(config: ExperimentConfig, dataset: Dataset, listeners: Sequence[Listener] = ()) -> Session:
    """Prepare the data and build the network; listeners are notified how."""
    loaded, notes = load_network(config), list(dataset.notes)
    image_shape: tuple[int | None, int | None, int | None] | None = None
    if pretrained.is_pretrained(config.network):
        size = config.size or pretrained.DEFAULT_SIZE
        scaling = pretrained.preprocess_for(config.network, size).scaling
        config = replace(config, size=size, scaling=scaling, data_format="channels_last")
        image_shape = (size, size, 3)
    if loaded is not None:
        config, settled = settle_input(config, loaded)
        image_shape, notes = image_shape_of(loaded, config.data_format), notes + settled
    _PROGRESS.info("Preparing %s", dataset.name)
    prepared = prepare(dataset, config, image_shape)
    if loaded is not None:
        loaded, adapted = adapt_network(loaded, prepared.preprocess.input_shape, len(prepared.class_names))
        notes += adapted
    images = len(prepared.train)
    if config.training.batch_size > images:
        notes.append(
            f"There are {images} training images: one batch of all of them, not {config.training.batch_size}."
        )
        config = replace(config, training=replace(config.training, batch_size=images))
    model = build_model(config, prepared.preprocess.input_shape, len(prepared.class_names), loaded)
    if pretrained.is_pretrained(config.network):
        freeze_for_fine_tuning(model)
    settings = config.describe(float(model.optimizer.learning_rate))
    for line in (settings, *notes, *prepared.describe()):
        notify(listeners, Notice(line))
    return Session(config, dataset, prepared, model)


def prepare(
    dataset: Dataset,
    config: ExperimentConfig,
    image_shape: tuple[int | None, int | None, int | None] | None = None,
) -> Prepared:
    """Split the training images and fit the preprocessing on the part that is trained on.

    ``image_shape`` is the height, width and channels that the network takes, None where they are the
    dataset's.
    """
    if dataset.resize not in (None, config.resize):
        expected = f"images brought to their size by {config.resize}, as the network's inputs will be"
        hint = f"Load them with resize={config.resize!r}."
        raise UsageError(expected_got(expected, f"by {dataset.resize}", hint))
    train, validation = _hold_back(dataset, config)
    height, width, channels = (
        own if wanted is None else wanted
        for own, wanted in zip(dataset.input_shape, image_shape or (None, None, None), strict=True)
    )
    shape = (height, width, channels)
    train, validation, test = (
        _resized(part, shape, config.resize) for part in (train, validation, dataset.test)
    )
    if pretrained.is_pretrained(config.network):
        preprocess = pretrained.preprocess_for(config.network, height, config.resize, dataset.depth)
    else:
        preprocess = Preprocess.fit(
            train.images, config.scaling, config.data_format, config.resize, dataset.depth
        )
    return Prepared(train, validation if len(validation) else None, test, preprocess, dataset.class_names)


def _hold_back(dataset: Dataset, config: ExperimentConfig) -> tuple[Split, Split]:
    """Divide the training images into those trained on and those held back."""
    if dataset.validation is not None:
        return dataset.train, dataset.validation
    if config.validation_share == 0:
        return dataset.train, dataset.train.take(np.empty(0, np.int64))
    train = dataset.train
    first, second = hold_back(train, config.validation_share, config.training.seed, config.stratify)
    return train.take(first), train.take(second)


def _resized(part: Split, image_shape: tuple[int, int, int], resize: str) -> Split:
    """Bring images to the size that the network takes; nothing is copied where they have it."""
    if part.images.shape[1:] == image_shape:
        return part
    height, width, channels = image_shape
    images = map_pixels(
        part.images, lambda image: resize_to_input(image, (height, width), channels, resize), image_shape
    )
    return replace(part, images=images)
