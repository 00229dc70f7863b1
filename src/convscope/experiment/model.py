"""The network of an experiment: by name or from a file, compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convscope import networks
from convscope.environment import own_random_numbers
from convscope.errors import UsageError, expected_got
from convscope.experiment.config import ExperimentConfig
from convscope.model_files import load_model
from convscope.networks import pretrained

if TYPE_CHECKING:
    import keras

# A backbone's stages are fine-tuned from that on whose maps are a sixteenth of the image.
_FIRST_TRAINED_STAGE = 3


def load_network(config: ExperimentConfig) -> keras.Model | None:
    """Load the network of a ``.keras`` file; None for a named one, built once the images are known."""
    return load_model(config.network_file) if config.network_file else None


def settle_input(config: ExperimentConfig, model: keras.Model) -> tuple[ExperimentConfig, list[str]]:
    """Take from a network of a file what it says itself: where its channels are, and whether it scales.

    Returns the configuration with the network's data format, and raw scaling where the network scales pixels
    itself; and a sentence for each change. Refuses an input that is not one batch of grey or RGB images.
    """
    from convscope.training.dry_runs import scales_its_input

    notes = []
    other = "channels_first" if config.data_format == "channels_last" else "channels_last"
    shape = model.input_shape
    if isinstance(shape, list | dict) or len(shape) != 4:
        raise UsageError(expected_got("a network whose input is one batch of images", f"input shape {shape}"))
    if _channels(shape, config.data_format) not in (1, 3) and _channels(shape, other) in (1, 3):
        config = replace(config, data_format=other)
        notes.append(f"The network takes its images {other}: they are given to it so.")
    if _channels(shape, config.data_format) not in (1, 3):
        hint = "Give the network an input such as keras.Input((64, 64, 3))."
        raise UsageError(
            expected_got(f"1 or 3 channels ({config.data_format})", f"input shape {shape}", hint)
        )
    if config.scaling != "raw" and scales_its_input(model):
        instead = f"in place of {config.scaling} scaling"
        notes.append(f"The network scales its input itself: it gets raw pixels, 0 to 255, {instead}.")
        config = replace(config, scaling="raw")
    return config, notes


def _channels(shape: tuple[int | None, ...], data_format: str) -> int | None:
    """Give the channels of an input shape."""
    return shape[3] if data_format == "channels_last" else shape[1]


def image_shape_of(model: keras.Model, data_format: str) -> tuple[int | None, int | None, int | None]:
    """Return height, width and channels that a model takes; None where it leaves them open."""
    shape = model.input_shape
    return shape[1:] if data_format == "channels_last" else (*shape[2:], shape[1])


def adapt_network(
    model: keras.Model, input_shape: tuple[int, int, int], classes: int
) -> tuple[keras.Model, list[str]]:
    """Make of a network from a file one for these images and classes, where that leaves its function alone.

    An open height or width and a fixed batch are replaced by the images' shape (h, w, c) and any batch. One
    sigmoid unit for two classes becomes two softmax units: the sigmoid of z is the softmax of (0, z). A last
    Dense without an activation, with a unit for each class, gets softmax. Returns a sentence for each change
    too; refuses a network that cannot take such images, or ends otherwise.
    """
    notes = []
    head: tuple[Any, ...] = ()
    if model.output_shape[1:] == (1,) and classes == 2 and (head := _sigmoid_unit(model)):
        notes.append("The network ends in one sigmoid unit: it became two softmax units that say the same.")
    if model.output_shape[1:] == (classes,) and (head := _logits(model)):
        notes.append(f"The network ends in {classes} units without an activation: they got softmax.")
    if model.input_shape != (None, *input_shape):
        notes.append(f"The network's input of shape {model.input_shape} became {(None, *input_shape)}.")
    if notes:
        model = _clone(model, input_shape, head, classes)
    if model.output_shape != (None, classes):
        expected = f"a network with {classes} outputs, one for each class"
        hint = f"End it in keras.layers.Dense({classes}, activation='softmax')."
        raise UsageError(expected_got(expected, f"output shape {model.output_shape}", hint))
    if (name := getattr(_activation(model), "__name__", "softmax")) != "softmax":
        hint = f"End it in keras.layers.Dense({classes}, activation='softmax')."
        raise UsageError(
            expected_got("a network whose outputs are probabilities that add up to 1", name, hint)
        )
    return model, notes


def _sigmoid_unit(model: keras.Model) -> tuple[Any, ...]:
    """Find the layers that end a network in one sigmoid unit: a Dense, or a Dense and an Activation."""
    import keras

    before, last = [None, *_operations(model)][-2:]
    if isinstance(last, keras.layers.Dense):
        return (last,) if last.activation is keras.activations.sigmoid else ()
    ends = isinstance(last, keras.layers.Activation) and last.activation is keras.activations.sigmoid
    is_dense = isinstance(before, keras.layers.Dense) and before.activation is keras.activations.linear
    if not ends or not is_dense:
        return ()
    follows = isinstance(model, keras.Sequential) or last.input is before.output
    return (before, last) if follows else ()


def _logits(model: keras.Model) -> tuple[Any, ...]:
    """Find the Dense that ends a network without an activation."""
    import keras

    last = _operations(model)[-1]
    ends = isinstance(last, keras.layers.Dense) and last.activation is keras.activations.linear
    return (last,) if ends else ()


def _activation(model: keras.Model) -> Any:
    """Give the activation that ends a network; None where it is none or ends otherwise."""
    import keras

    last = _operations(model)[-1]
    ends = isinstance(last, keras.layers.Dense | keras.layers.Activation)
    return last.activation if ends and last.activation is not keras.activations.linear else None


def _operations(model: keras.Model) -> list[Any]:
    """List a network's layers and, of a functional one, the operations between them; the last one ends it."""
    import keras

    return list(model.layers if isinstance(model, keras.Sequential) else model.operations)


def _clone(
    model: keras.Model, input_shape: tuple[int, int, int], head: tuple[Any, ...], classes: int
) -> keras.Model:
    """Build a network anew for another input, or with softmax at its end, and give it the weights."""
    import keras
    import numpy as np

    def copy(layer: Any) -> Any:
        own = layer.get_config()
        if layer in head:
            own |= {"units": classes} if isinstance(layer, keras.layers.Dense) else {}
            own |= {"activation": "softmax"} if layer is head[-1] else {}
        return layer.__class__.from_config(own)

    form = model.inputs[0] if isinstance(model, keras.Sequential) else model.input  # one, alone or in a list
    inputs = keras.tree.map_structure(lambda own: keras.Input(input_shape, dtype=own.dtype), form)
    try:
        clone = keras.models.clone_model(model, input_tensors=inputs, clone_function=copy)
    except ValueError as error:  # a Flatten and a Dense behind it make the size a part of the network
        expected = f"a network that takes images of shape {input_shape}"
        raise UsageError(expected_got(expected, f"one for {model.input_shape} ({error})")) from error
    for old, new in zip(_with_weights(model), _with_weights(clone), strict=True):
        weights = old.get_weights()
        if old in head and old.units < classes:
            weights = [np.concatenate([np.zeros_like(value), value], axis=-1) for value in weights]
        new.set_weights(weights)
    return clone


def _with_weights(model: keras.Model) -> list[Any]:
    return [layer for layer in model.layers if layer.weights]


def build_model(
    config: ExperimentConfig,
    input_shape: tuple[int, int, int],
    classes: int,
    loaded: keras.Model | None = None,
) -> keras.Model:
    """Build and compile the network for one-hot targets; the seed decides its first weights.

    A network that was ``loaded`` from a file keeps its weights.
    """
    import keras

    training = config.training
    with own_random_numbers():
        keras.utils.set_random_seed(training.seed)
        model = loaded or networks.build(
            config.network, input_shape, classes, config.data_format, config.weights
        )
    settings = dict(config.optimizer_settings)
    if training.learning_rate is not None:
        settings["learning_rate"] = training.learning_rate
    try:
        optimizer = keras.optimizers.get({"class_name": training.optimizer, "config": settings})
    except (TypeError, ValueError) as error:
        raise UsageError(expected_got(f"settings that {training.optimizer} knows", error)) from error
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=training.label_smoothing)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    return model


def freeze_for_fine_tuning(model: keras.Model) -> None:
    """Keep a backbone's normalization and its early stages as they are.

    A few photographs say little about means and variances; early stages are general, and their large maps are
    what a step takes longest for.
    """
    import keras

    stages = pretrained.stage_of(model)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization) or stages[layer.name] < _FIRST_TRAINED_STAGE:
            layer.trainable = False
