"""Recipes: settings that belong together, under one name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from convscope.augmentation import PRESETS, Augmentation
from convscope.data.builtin import CATALOG
from convscope.data.dataset import Dataset, hold_back
from convscope.errors import unknown_name
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.networks import pretrained

# Measured on small photographs, see docs/training.md.
_OWN_IMAGES = ExperimentConfig(
    network="normalized",
    scaling="unit",
    validation_share=0.2,
    training=TrainingConfig(epochs=40, batch_size=64, learning_rate=0.01, schedule="one-cycle", keep="best"),
)

RECIPES = {
    # The exercise's settings; the default for mnist and digits.
    "exercise": ExperimentConfig(),
    # The exercise's best accuracy on MNIST in one pass over all 60,000 training images.
    "swift": ExperimentConfig(
        network="swift",
        scaling="unit",
        validation_share=0,
        optimizer_settings={"beta_1": 0.7, "beta_2": 0.9},
        training=TrainingConfig(
            epochs=1, batch_size=256, learning_rate=0.01, schedule="one-cycle", label_smoothing=0.05
        ),
    ),
    # Colour photographs: images of things that stay what they are when mirrored.
    "photographs": replace(_OWN_IMAGES, augmentation=PRESETS["photographs"]),
    # Few colour photographs: a network that was trained on a million others, and a head of its own.
    "pretrained": ExperimentConfig(
        network=pretrained.DEFAULT,
        scaling="published",
        resize="crop",
        validation_share=0.2,
        augmentation=PRESETS["photographs"],
        training=TrainingConfig(
            epochs=4,
            batch_size=32,
            learning_rate=0.001,
            schedule="one-cycle",
            label_smoothing=0.1,
            keep="best",
            monitor="accuracy",
        ),
    ),
    # Other images of your own: grey ones, signs, letters; no augmentation.
    "images": _OWN_IMAGES,
}
# Fewer images than these, and how often to go through them: about as many steps for each.
_EPOCHS = ((3_000, 40), (10_000, 20), (math.inf, 10))
# The same for fine-tuning, and its highest learning rate: more of it, and few images forget the others.
_FINE_TUNING = ((3_000, 4, 1e-3), (math.inf, 2, 1e-3))
# Fewer photographs than these are fitted by the head almost without an error. Larger changes leave something
# to learn; smoothed labels would pull at a head that is sure of them, and so at a backbone that then forgets.
_FEW = 1_000
_TUNED_BY_FEW: dict[str, Any] = {"epochs": 3, "learning_rate": 1e-4, "label_smoothing": 0.0}
_AUGMENTATION_OF_FEW = Augmentation(shift=0.15, rotate=15, zoom=0.3, flip="horizontal", contrast=0.3)
# A pretrained network is taken for at most so many photographs, of at least so many pixels on one side.
MOST_FOR_BACKBONE, LEAST_SIDE_FOR_BACKBONE = 10_000, 32
# Images up to this size say no more at a larger one. Few large ones can be seen larger than the network saw
# those that it was trained on, and are then better told apart (H. Touvron et al., "Fixing the train-test
# resolution discrepancy", 2019).
_SMALL_SIDE, _SIZE_OF_SMALL, _SIZE_OF_FEW = 64, 112, 256
# An epoch of fewer steps than these teaches little, and its last validation says little.
_FEWEST_STEPS = 8


def suggest(dataset: Dataset, network: str | None = None) -> ExperimentConfig:
    """Choose the settings for a dataset where a person has not.

    Parameters
    ----------
    dataset : Dataset
        One of the catalogue's keeps the exercise's settings.
    network : str, optional
        A network that was asked for. Any but the recipe's own is trained with the exercise's optimizer,
        because a learning rate belongs to a network; scaling and augmentation belong to the images.

    Returns
    -------
    ExperimentConfig
        Not yet with the dataset's source.

    Examples
    --------
    >>> from convscope.data.loading import load
    >>> suggest(load("digits")).network
    'deep'
    """
    exercise = RECIPES["exercise"]
    if dataset.name in CATALOG:
        return exercise
    if network is not None and pretrained.is_pretrained(network):
        config = replace(RECIPES["pretrained"], network=network)
        images = len(dataset.train)
        if images < _FEW:
            few = replace(config.training, **_TUNED_BY_FEW)
            return replace(config, training=few, augmentation=_AUGMENTATION_OF_FEW)
        epochs, rate = next(values for most, *values in _FINE_TUNING if images < most)
        return replace(config, training=replace(config.training, epochs=int(epochs), learning_rate=rate))
    chosen = RECIPES["photographs" if _are_photographs(dataset) else "images"]
    if dataset.input_shape == (28, 28, 1):
        chosen = exercise
    if chosen is exercise or network not in (None, chosen.network):
        return replace(chosen, training=replace(exercise.training, keep="best"))
    images = len(dataset.train)
    epochs = next(count for most, count in _EPOCHS if images < most)
    return replace(chosen, training=replace(chosen.training, epochs=epochs))


def choose_backbone(images: int, side: float, channels: int) -> tuple[str | None, str]:
    """Choose a pretrained network for few photographs, or None; also say why, or what is missing.

    ``side`` is the longer side of the usual image, in pixels; ``channels`` is 1 for grey ones.
    """
    if channels == 1 or images > MOST_FOR_BACKBONE or side < LEAST_SIDE_FOR_BACKBONE:
        return None, ""
    name = pretrained.DEFAULT
    missing = pretrained.find_weights(name)
    if missing:
        return None, f"{images:,} photographs are few: {name} would do better. {missing}"
    why = f"{images:,} colour photographs are few (up to {MOST_FOR_BACKBONE:,})"
    return name, f"Network: {name}, pretrained, since {why}; --network normalized trains one from scratch."


def size_for_backbone(images: int, side: float) -> int:
    """Choose the size in which a pretrained network sees so many images with this longer side."""
    if side <= _SMALL_SIDE:
        return _SIZE_OF_SMALL
    return _SIZE_OF_FEW if images < _FEW and side > pretrained.DEFAULT_SIZE else pretrained.DEFAULT_SIZE


def with_small_batches(config: ExperimentConfig, dataset: Dataset) -> ExperimentConfig:
    """Make the batches of a small set so small that an epoch has at least eight steps.

    The learning rate, where there is one, falls with the square root of the batch size, as it suits Adam
    (S. Malladi et al., "On the SDEs and scaling rules for adaptive gradient algorithms", 2022). A dataset of
    the catalogue keeps its batch size.
    """
    training, labels = config.training, dataset.train.labels
    if dataset.name in CATALOG or pretrained.is_pretrained(config.network):
        return config
    images = len(labels)
    if dataset.validation is None and config.validation_share:
        kept, _ = hold_back(dataset.train, config.validation_share, training.seed, config.stratify)
        images = len(kept)
    batch = max(1, min(training.batch_size, (images - 1) // (_FEWEST_STEPS - 1)))
    if batch == training.batch_size:
        return config
    rate = training.learning_rate
    scaled = None if rate is None else float(f"{rate * math.sqrt(batch / training.batch_size):.2g}")
    return replace(config, training=replace(training, batch_size=batch, learning_rate=scaled))


def _are_photographs(dataset: Dataset) -> bool:
    """Guess whether images bear to be mirrored: in colour, and their classes not called 7 or B."""
    return dataset.input_shape[2] == 3 and any(
        len(name) > 1 and not name.isdigit() for name in dataset.class_names
    )


def recipe(name: str) -> ExperimentConfig:
    """Return the configuration of one of ``RECIPES``."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]
