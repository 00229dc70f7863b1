"""Recipes: settings that belong together, under one name."""

from __future__ import annotations

from dataclasses import dataclass

from convscope.errors import unknown_name
from convscope.experiment import ExperimentConfig
from convscope.training.config import TrainingConfig


@dataclass(frozen=True)
class Recipe:
    """A configuration and what it is for."""

    config: ExperimentConfig
    summary: str


RECIPES = {
    "swift": Recipe(
        ExperimentConfig(
            network="swift",
            scaling="unit",
            validation_share=0,
            optimizer_settings={"beta_1": 0.7, "beta_2": 0.9},
            training=TrainingConfig(
                epochs=1,
                batch_size=256,
                optimizer="adam",
                learning_rate=0.01,
                schedule="one-cycle",
                label_smoothing=0.05,
            ),
        ),
        "the exercise's best accuracy on MNIST in one pass over all 60,000 training images",
    ),
}


def recipe(name: str) -> ExperimentConfig:
    """Return the configuration of a recipe.

    Parameters
    ----------
    name : str
        One of ``RECIPES``.

    Returns
    -------
    ExperimentConfig

    Raises
    ------
    UnknownNameError
        If there is no such recipe.

    Examples
    --------
    >>> recipe("swift").training.epochs
    1
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name].config
