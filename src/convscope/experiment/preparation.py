"""From a dataset to what the network will see: parts, and the preprocessing fitted on one of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convscope.data.catalog import Dataset, Split
from convscope.data.pixels import map_pixels
from convscope.data.splits import split_indices
from convscope.errors import UsageError, sentence
from convscope.experiment.config import ExperimentConfig
from convscope.preprocessing import Preprocess, conform


@dataclass(frozen=True)
class Prepared:
    """What the network will see: up to three parts, one preprocessing.

    The images are still uint8: batches are preprocessed as they are needed.
    """

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


def prepare(
    dataset: Dataset,
    config: ExperimentConfig,
    image_shape: tuple[int | None, int | None, int | None] | None = None,
) -> Prepared:
    """Split the training images and fit the preprocessing on the part that is trained on.

    Parameters
    ----------
    dataset : Dataset
        As it was loaded.
    config : ExperimentConfig
        Shares, seed and scaling.
    image_shape : tuple of int, optional
        Height, width and channels that the network takes; None where they are the dataset's.

    Returns
    -------
    Prepared

    Raises
    ------
    UsageError
        If the images were brought to their size in another way than the network's inputs will be.

    Examples
    --------
    >>> import convscope
    >>> prepared = prepare(convscope.load("digits"), ExperimentConfig())
    >>> len(prepared.train), len(prepared.validation)
    (1005, 432)
    """
    if dataset.resize not in (None, config.resize):
        expected = f"images brought to their size by {config.resize}, as the network's inputs will be"
        hint = f"Load them with resize={config.resize!r}."
        raise UsageError(sentence(expected, f"by {dataset.resize}", hint))
    train, validation = _hold_back(dataset, config)
    height, width, channels = (
        own if wanted is None else wanted
        for own, wanted in zip(dataset.input_shape, image_shape or (None, None, None), strict=True)
    )
    shape = (height, width, channels)
    parts = [_conformed(part, shape, config.resize) for part in (train, validation, dataset.test)]
    train, validation, test = parts
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
    train, share, seed = dataset.train, config.validation_share, config.training.seed
    # Near-duplicates on both sides would make the validation part easier than it is.
    first, second = split_indices(train.labels, share, seed, config.stratify, train.groups)
    return train.take(first), train.take(second)


def _conformed(part: Split, image_shape: tuple[int, int, int], resize: str) -> Split:
    """Bring images to the size that the network takes; nothing is copied where they have it."""
    if part.images.shape[1:] == image_shape:
        return part
    height, width, channels = image_shape
    images = map_pixels(
        part.images, lambda image: conform(image, (height, width), channels, resize), image_shape
    )
    return Split(images, part.labels, part.names, part.groups)
