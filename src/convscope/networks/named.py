"""Named networks: a name, an input shape and a class count → a Keras model.

Each network but a pretrained one is a list of layers and their settings, so that it can be shown, counted and
explained before it is built.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convscope.errors import ArchitectureError, DataError, UsageError, expected_got, unknown_name
from convscope.networks import pretrained

if TYPE_CHECKING:
    import keras

LayerSpec = tuple[str, dict[str, Any]]

_POOL: LayerSpec = ("MaxPooling2D", {"pool_size": 2})
_FLATTEN: LayerSpec = ("Flatten", {})
_AVERAGE: LayerSpec = ("GlobalAveragePooling2D", {})


def _convolution(filters: int, kernel_size: int = 3, padding: str = "valid") -> LayerSpec:
    settings = {"filters": filters, "kernel_size": kernel_size, "padding": padding, "activation": "relu"}
    return "Conv2D", settings


def _dropout(rate: float) -> LayerSpec:
    return "Dropout", {"rate": rate}


def _dense(units: int, activation: str = "relu") -> LayerSpec:
    return "Dense", {"units": units, "activation": activation}


def _normalized_convolution(filters: int, padding: str = "same") -> list[LayerSpec]:
    # The normalization has a shift of its own. Its moving means follow within a few epochs of few images.
    settings = {"filters": filters, "kernel_size": 3, "padding": padding, "use_bias": False}
    normalization = ("BatchNormalization", {"momentum": 0.9})
    return [("Conv2D", settings), normalization, ("Activation", {"activation": "relu"})]


def _stage(filters: int) -> list[LayerSpec]:
    return [_convolution(filters, padding="same"), _convolution(filters), _POOL, _dropout(0.25)]


# The layers before the last, a dense one with a softmax over the classes.
NETWORKS: dict[str, list[LayerSpec]] = {
    "simple": [_convolution(32), _FLATTEN],
    "dense": [_convolution(32), _dropout(0.25), _FLATTEN, _dense(128), _dropout(0.5)],
    "deep": [
        _convolution(32),
        _convolution(64),
        _POOL,
        _dropout(0.25),
        _FLATTEN,
        _dense(128),
        _dropout(0.5),
    ],
    "stages": [*_stage(32), *_stage(64), _FLATTEN, _dense(512), _dropout(0.5)],
    # Small, for the fastest way to a good accuracy.
    "swift": [_convolution(16, kernel_size=5), _POOL, _convolution(32), _POOL, _FLATTEN, _dense(256)],
    # For photographs: it widens while the image shrinks, and ends in one mean for each feature, whatever the
    # image's size. Batch normalization (Ioffe and Szegedy 2015, section 3) lets it learn at ten times the
    # rate of the others; the mean instead of a flattened map (Lin et al., "Network in Network", 2014, section
    # 3.2) leaves no large dense layer to learn few images by heart with.
    "normalized": [
        *_normalized_convolution(32, "valid"),
        _POOL,
        *_normalized_convolution(64),
        _POOL,
        *_normalized_convolution(128),
        _POOL,
        *_normalized_convolution(256),
        _AVERAGE,
        _dropout(0.25),
    ],
}


@dataclass(frozen=True)
class Published:
    """What the exercise's solution of May 2018 reports for a network after 10 epochs on MNIST."""

    parameters: int
    test_accuracy: float
    test_loss: float


PUBLISHED = {
    "simple": Published(216_650, 0.9805, 0.0656),
    "dense": Published(2_770_634, 0.9843, 0.0484),
    "deep": Published(1_199_882, 0.9908, 0.0325),
}

_NETWORK_SUFFIXES = (".keras", ".h5", ".hdf5", ".json", ".onnx", ".pt", ".pth", ".pb", ".tflite")
# The layers that care which axis holds the channels.
_SPATIAL = ("Conv2D", "MaxPooling2D", "GlobalAveragePooling2D", "Flatten")


def require_network(name: str) -> None:
    """Refuse what is no named or pretrained network, and say what to do with other files."""
    if name in NETWORKS:
        return
    if pretrained.is_pretrained(name):
        pretrained.require_backbone(name)
        return
    if not is_file_name(name) and len(Path(name).parts) == 1:
        raise unknown_name("network", name, [*NETWORKS, pretrained.DEFAULT], "See also keras:NAME.")
    expected = "the name of a network or a .keras file"
    if not Path(name).exists():
        raise DataError(expected_got(expected, f"no file {name}", "Check its path."))
    suffix, target = Path(name).suffix.lower(), f"save('{Path(name).name.split('.')[0]}.keras')"
    if suffix == ".keras":
        return
    hint = f"Save the network as a .keras file: model.{target}."
    if name.endswith(".weights.h5"):
        hint = f"It holds weights alone: build the network, model.load_weights({name!r}), model.{target}."
    elif suffix in (".h5", ".hdf5"):
        hint = f"Save it in the new format: keras.models.load_model({name!r}).{target}."
    elif suffix == ".json":
        hint = f"It has no weights: keras.models.model_from_json(...).{target}, once they are loaded."
    elif suffix in _NETWORK_SUFFIXES:
        hint = "Networks are read as Keras saves them."
    raise UsageError(expected_got(expected, name, hint))


def is_file_name(name: str) -> bool:
    """Tell the path of a network's file from the name of a network."""
    return Path(name).suffix.lower() in _NETWORK_SUFFIXES


def layers_of(name: str, classes: int = 10) -> list[LayerSpec]:
    """List the layers of a named network: Keras's name of each layer's class, and its settings."""
    if name not in NETWORKS:
        require_network(name)
        raise unknown_name("network", name, NETWORKS)  # a pretrained one is no list
    _require_classes(classes)
    return [*NETWORKS[name], _dense(classes, "softmax")]


def _require_classes(classes: int) -> None:
    if classes < 2:
        raise UsageError(expected_got("at least 2 classes", classes))


def build(
    name: str,
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    data_format: str | None = None,
    weights: str | None = None,
) -> keras.Model:
    """Build a named network, not yet compiled.

    Parameters
    ----------
    name : str
        One of ``NETWORKS``, or a pretrained network: ``efficientnet-lite0``, ``keras:MobileNetV2``.
    input_shape : tuple of int
        Shape of one image in the order of the data format: ``(height, width, channels)`` for channels_last.
    classes : int
        How many classes the last layer tells apart.
    data_format : {"channels_last", "channels_first"}, optional
        Keras's own setting (``keras.config.image_data_format()``) when left out. A pretrained network is
        always channels_last.
    weights : str, optional
        Of a pretrained network: a file instead of the published weights.

    Returns
    -------
    keras.Model
        With layers named after their kind and number: ``conv2d_1``, ``conv2d_2``, …

    Raises
    ------
    UnknownNameError
        If there is no such network.
    ArchitectureError
        If the input is too small; the message names the layer and shows its arithmetic.

    Examples
    --------
    >>> build("simple").count_params()
    216650
    """
    if pretrained.is_pretrained(name):
        return _build_pretrained(name, input_shape, classes, weights)
    specification = layers_of(name, classes)  # a wrong name is told before Keras is loaded

    import keras

    data_format = data_format or keras.config.image_data_format()
    counts: Counter[str] = Counter()
    model = keras.Sequential([keras.Input(input_shape)], name=name)
    for kind, own in specification:
        counts[kind] += 1
        settings = {"name": f"{_snake_case(kind)}_{counts[kind]}", **own}
        if kind in _SPATIAL:
            settings["data_format"] = data_format
        if kind == "BatchNormalization":
            settings["axis"] = -1 if data_format == "channels_last" else 1
        _add(model, kind, settings, input_shape)
    return model


def _build_pretrained(
    name: str, input_shape: tuple[int, int, int], classes: int, weights: str | None
) -> keras.Model:
    """Build a backbone with its weights, and a head with new ones."""
    _require_classes(classes)
    height, width, channels = input_shape
    if height != width or channels != 3:
        raise UsageError(expected_got(f"square colour images for {name}", f"the shape {input_shape}"))
    return pretrained.classifier(pretrained.backbone(name, height, weights), classes)


def _snake_case(kind: str) -> str:
    """Write a class's name as Keras writes it in layer names: MaxPooling2D → max_pooling2d."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower()


def _add(model: keras.Sequential, kind: str, settings: dict[str, Any], input_shape: tuple[int, ...]) -> None:
    """Add a layer; where Keras refuses it, show the arithmetic at which it fails."""
    import keras

    shape = tuple(model.output_shape[1:]) if model.layers else tuple(input_shape)
    try:
        model.add(getattr(keras.layers, kind)(**settings))
    except ValueError as error:
        from convscope.arithmetic import explain_failure  # it loads NumPy, the names of networks do not

        raise ArchitectureError(explain_failure(kind, settings, shape) or str(error)) from error
