"""From a dataset and a configuration to what is trained: parts, preprocessing, network."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope import environment, networks
from convscope.data.cache import map_pixels
from convscope.data.dataset import Dataset, Split, hold_back
from convscope.errors import UsageError, expected_got
from convscope.experiment.config import ExperimentConfig
from convscope.lowering.devices import describe_device, device_of
from convscope.model_files import load_model
from convscope.networks import pretrained
from convscope.preprocessing import Preprocess, resize_to_input
from convscope.training.events import Listener, Notice, notify

if TYPE_CHECKING:
    import keras

_PROGRESS = logging.getLogger("convscope.progress")
# A backbone's stages are fine-tuned from that on whose maps are a sixteenth of the image.
_FIRST_TRAINED_STAGE = 3


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
    with environment.own_random_numbers():
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
