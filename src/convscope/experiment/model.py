"""The network of an experiment: by name or from a file, compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convscope import networks
from convscope.bundle import load_model
from convscope.environment import own_random_numbers
from convscope.errors import UsageError, sentence
from convscope.experiment.config import ExperimentConfig

if TYPE_CHECKING:
    import keras


def load_network(config: ExperimentConfig) -> keras.Model | None:
    """Load the network that the configuration names by its file.

    Parameters
    ----------
    config : ExperimentConfig
        Names a network or a ``.keras`` file.

    Returns
    -------
    keras.Model or None
        None for a named network, which is built once the images are known.

    Raises
    ------
    DataError
        If the file is missing, damaged or unsafe.
    """
    return load_model(config.network_file) if config.network_file else None


def image_shape_of(model: keras.Model, data_format: str) -> tuple[int, int, int] | None:
    """Return height, width and channels that a model takes; None where it leaves height or width open.

    Raises
    ------
    UsageError
        If its input is not one batch of grey or RGB images.

    Examples
    --------
    >>> image_shape_of(networks.build("simple", (8, 9, 3)), "channels_last")
    (8, 9, 3)
    """
    shape = model.input_shape
    if isinstance(shape, list | dict) or len(shape) != 4:
        raise UsageError(sentence("a network whose input is a batch of images", f"input shape {shape}"))
    height, width, channels = shape[1:] if data_format == "channels_last" else (*shape[2:], shape[1])
    if channels not in (1, 3):
        raise UsageError(sentence(f"1 or 3 channels ({data_format})", f"input shape {shape}"))
    return None if height is None or width is None else (height, width, channels)


def build_model(
    config: ExperimentConfig,
    input_shape: tuple[int, int, int],
    classes: int,
    loaded: keras.Model | None = None,
) -> keras.Model:
    """Build and compile the network; the seed decides its first weights.

    Parameters
    ----------
    config : ExperimentConfig
        Network, optimizer and seed.
    input_shape : tuple of int
        Shape of one preprocessed image.
    classes : int
        How many classes there are.
    loaded : keras.Model, optional
        A network from a file; its weights stay, its compilation is replaced.

    Returns
    -------
    keras.Model
        Compiled for one-hot targets.

    Raises
    ------
    UsageError
        If a network from a file does not end in as many probabilities as there are classes.

    Examples
    --------
    >>> build_model(ExperimentConfig("simple"), (8, 8, 1), classes=2).output_shape
    (None, 2)
    """
    import keras

    training = config.training
    with own_random_numbers():
        keras.utils.set_random_seed(training.seed)
        model = loaded or networks.build(config.network, input_shape, classes, config.data_format)
    if model.output_shape != (None, classes):
        expected = f"a network with {classes} outputs, one for each class"
        raise UsageError(sentence(expected, f"output shape {model.output_shape}"))
    settings = dict(config.optimizer_settings)
    if training.learning_rate is not None:
        settings["learning_rate"] = training.learning_rate
    try:
        optimizer = keras.optimizers.get({"class_name": training.optimizer, "config": settings})
    except (TypeError, ValueError) as error:
        raise UsageError(sentence(f"settings that {training.optimizer} knows", error)) from error
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=training.label_smoothing)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    return model
