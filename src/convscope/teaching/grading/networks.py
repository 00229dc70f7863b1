"""Lessons 2, 4 and 5: the network that a task asks for, and a training as it should be.

``bands.json`` holds, for each network, dataset and number of training images, the lowest and the highest
validation accuracy after each epoch over several seeds; ``benchmarks/bands.py`` measures them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convscope.errors import expected_got
from convscope.evaluation import Evaluation
from convscope.networks import layers_of
from convscope.teaching.grading.verdict import require, row_counts

# Layers that only apply a function: Conv2D followed by ReLU is Conv2D with activation="relu".
_ACTIVATION_LAYERS = {"ReLU": "relu", "Softmax": "softmax"}
_HINTS = {
    "Conv2D": "keras.layers.Conv2D(filters, kernel_size, activation=…)",
    "MaxPooling2D": "keras.layers.MaxPooling2D(2), behind the convolutions",
    "Dropout": "keras.layers.Dropout(rate)",
    "Flatten": "keras.layers.Flatten(): a dense layer reads a row of numbers, not an image.",
    "Dense": "keras.layers.Dense(units, activation=…)",
}


@dataclass(frozen=True)
class _Layer:
    """A layer as a task describes it: its class and the settings that matter."""

    kind: str
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        shown = [str(value) for value in self.settings.values() if value not in (None, "linear", "valid")]
        return f"{self.kind}({', '.join(shown)})"


def judge_network(name: str, model: Any, input_shape: tuple[int, ...], classes: int) -> str:
    """Judge whether a model is a named network: the same layers, settings and number of parameters."""
    require(
        hasattr(model, "layers") and hasattr(model, "count_params"),
        expected_got("`model` as a Keras model", type(model).__name__),
        "model = keras.Sequential([keras.Input(input_shape), …])",
    )
    require(
        getattr(model, "built", False) and _shape(model, "input_shape") is not None,
        expected_got("a network that knows its input shape", "one without"),
        "Begin with keras.Input(x_train.shape[1:]).",
    )
    found_shape = _shape(model, "input_shape")
    require(
        found_shape == tuple(input_shape),
        expected_got(f"an input of shape {tuple(input_shape)}", found_shape),
        "keras.Input(x_train.shape[1:]): one image, without the batch axis.",
    )
    found = _read_layers(model)
    wanted = [_wanted(kind, settings) for kind, settings in layers_of(name, classes)]
    _require_output(model, found, classes)
    _require_kinds(found, wanted)
    for own, layer in zip(found, wanted, strict=True):
        _require_settings(own, layer)
    return _require_count(name, model, input_shape, classes)


def _shape(model: Any, attribute: str) -> tuple[int, ...] | None:
    """Read a shape without its batch axis; None where the model knows none."""
    try:
        shape = getattr(model, attribute)
    except (AttributeError, ValueError):
        return None
    return tuple(shape[1:]) if isinstance(shape, tuple) else None


def _read_layers(model: Any) -> list[_Layer]:
    """Read a model's layers; one that only activates belongs to the layer before it."""
    layers: list[_Layer] = []
    for layer in model.layers:
        kind, config = type(layer).__name__, layer.get_config()
        if kind == "InputLayer":
            continue
        activation = config.get("activation") if kind == "Activation" else _ACTIVATION_LAYERS.get(kind)
        if activation and layers and layers[-1].settings.get("activation") == "linear":
            layers[-1] = _Layer(layers[-1].kind, {**layers[-1].settings, "activation": activation})
        else:
            layers.append(_layer(kind, config))
    return layers


def _wanted(kind: str, settings: Mapping[str, Any]) -> _Layer:
    defaults: dict[str, Any] = {}
    if kind == "Conv2D":
        defaults = {"strides": 1, "dilation_rate": 1}
    elif kind == "MaxPooling2D":
        defaults = {"strides": settings["pool_size"], "padding": "valid"}
    return _layer(kind, {**defaults, "use_bias": True, **settings})


def _layer(kind: str, config: Mapping[str, Any]) -> _Layer:
    keys = {
        "Conv2D": (
            "filters",
            "kernel_size",
            "padding",
            "activation",
            "strides",
            "dilation_rate",
            "use_bias",
        ),
        "MaxPooling2D": ("pool_size", "strides", "padding"),
        "Dropout": ("rate",),
        "Dense": ("units", "activation", "use_bias"),
    }.get(kind, ())
    return _Layer(kind, {key: _plain(config.get(key)) for key in keys})


def _plain(value: Any) -> Any:
    """Write a setting in one way: 3 for (3, 3), a function by its name."""
    if isinstance(value, tuple | list) and len(set(value)) == 1:
        return value[0]
    if isinstance(value, dict):  # a serialised function or layer
        return str(value.get("config", value.get("class_name"))).lower()
    return value


def _require_output(model: Any, found: Sequence[_Layer], classes: int) -> None:
    """Require a probability for each class."""
    shape = _shape(model, "output_shape")
    flat = shape is not None and len(shape) == 1
    require(
        flat,
        expected_got(f"an output of shape ({classes},)", shape),
        "A dense layer on an image works on its channels alone and leaves an image.",
        _HINTS["Flatten"],
    )
    require(
        shape == (classes,),
        expected_got(f"an output for each of the {classes} classes", shape),
        "The last layer has as many units as there are classes.",
    )
    last = found[-1].settings.get("activation")
    linear = last in (None, "linear")
    require(
        last == "softmax",
        expected_got('a last layer with activation="softmax"', "none" if linear else f'"{last}"'),
        "Without it the outputs are any numbers, positive or negative: no probabilities, and the loss of "
        "one-hot targets makes no sense of them."
        if linear
        else "Only softmax makes the outputs of one image add up to 1.",
        f'keras.layers.Dense({classes}, activation="softmax")',
    )


def _require_kinds(found: Sequence[_Layer], wanted: Sequence[_Layer]) -> None:
    """Require the same kinds of layers in the same order; name the first that is missing or too many."""
    own, right = [layer.kind for layer in found], [layer.kind for layer in wanted]
    if own == right:
        return
    order = " → ".join(right)
    for kind in dict.fromkeys(right + own):
        have, need = own.count(kind), right.count(kind)
        require(
            have >= need,
            expected_got(_count(need, kind), have or "none"),
            _HINTS.get(kind, ""),
            f"In this order: {order}",
        )
        require(have <= need, expected_got(_count(need, kind), have), f"In this order: {order}")
    place = next(number for number, (a, b) in enumerate(zip(own, right, strict=True)) if a != b)
    require(
        False,
        expected_got(f"{right[place]} as layer {place + 1}", own[place]),
        "The layers are right, their order is not.",
        f"In this order: {order}",
    )


def _count(number: int, kind: str) -> str:
    return f"{number or 'no'} {kind} layer{'' if number == 1 else 's'}"


def _require_settings(found: _Layer, wanted: _Layer) -> None:
    for key, value in wanted.settings.items():
        own = found.settings.get(key)
        require(
            own == value,
            expected_got(f"{key}={value!r} in {wanted}", repr(own)),
            _setting_hint(key, found.kind),
            f"{wanted.kind}(…, {key}={value!r})",
        )


def _setting_hint(key: str, kind: str) -> str:
    hints = {
        "padding": 'With "same" the image keeps its size, and the dense layer behind it grows.',
        "activation": "Without an activation between them, two layers compute no more than one could.",
        "filters": "The number of filters decides how many channels come out.",
        "rate": "The rate is the share of the numbers that are set to zero.",
        "strides": "Left out, a convolution moves one pixel at a time, a pool by its own size.",
    }
    return hints.get(key, f"Read the task again, and the arguments of {kind}.")


def _require_count(name: str, model: Any, input_shape: tuple[int, ...], classes: int) -> str:
    """Compare the number of parameters with what the arithmetic gives."""
    from convscope.arithmetic import analyse_chain

    chain = [
        (kind, {"data_format": _data_format(model), **settings})
        for kind, settings in layers_of(name, classes)
    ]
    counts = [layer.parameters if layer else 0 for layer in analyse_chain(chain, tuple(input_shape))]
    found = model.count_params()
    require(
        found == sum(counts),
        expected_got(f"{sum(counts):,} parameters", f"{found:,}"),
        "Compare model.summary() with the table of the task.",
    )
    return f"{' + '.join(f'{count:,}' for count in counts if count)} = {found:,} parameters."


def _data_format(model: Any) -> str:
    formats = (layer.get_config().get("data_format") for layer in model.layers)
    return next((data_format for data_format in formats if data_format), "channels_last")


# Seeds not tried yet may fall outside what the few tried ones gave: the range is widened by this share of
# itself on both sides, and by a little of the error rate.
WIDENING = 0.75
ERROR_SLACK = 0.15


class Band(NamedTuple):
    """The lowest and highest accuracy that is credible, from 0 to 1."""

    low: float
    high: float


def band_of(network: str, dataset: str, images: int, epochs: int) -> Band:
    """Find the band of a training: of the measured number of images nearest to its own, within 20 %.

    Beyond the measured epochs the last counts; ``(0.8, 1)`` for a setting that was not measured.
    """
    measured = [
        entry
        for entry in _measured()
        if entry["network"] == network
        and entry["dataset"] == dataset
        and abs(entry["images"] - images) <= 0.2 * images
    ]
    if not measured:
        return Band(0.8, 1.0)
    nearest = min(measured, key=lambda entry: abs(entry["images"] - images))
    epoch = min(epochs, len(nearest["low"])) - 1
    low, high = nearest["low"][epoch], nearest["high"][epoch]
    spread = WIDENING * (high - low)
    slack = ERROR_SLACK * (1 - (low + high) / 2)
    return Band(max(0.0, low - spread - slack), min(1.0, high + spread + slack))


@cache
def _measured() -> list[dict[str, Any]]:
    text = resources.files("convscope.teaching.grading").joinpath("bands.json").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = json.loads(text)["bands"]
    return entries


Array = NDArray[Any]

# The loss that training reports and the one computed anew differ by rounding only.
LOSS_TOLERANCE = 0.02
LEAKED_SHARE = 0.01  # a few images may truly occur twice
ONE_HOT_LOSSES = ("categorical_crossentropy", "categoricalcrossentropy")


def judge_training(
    name: str,
    model: Any,
    history: Any,
    data_name: str,
    train: tuple[Array, Array],
    val: tuple[Array, Array],
    test: tuple[Array, Array],
    batch_size: int,
    epochs: int,
) -> str:
    """Judge a training by its history and by what the model makes of the validation images now.

    The parts are pairs of network input and one-hot targets; the name of the data decides the band.
    """
    classes = train[1].shape[1]
    judge_network(name, model, train[0].shape[1:], classes)
    _require_compiled(model)
    curves = _read_history(history, epochs)
    _require_parts_apart(train[0], val[0])
    _require_steps(history, len(train[0]), len(val[0]), batch_size)
    _require_validated_on(model, curves["val_loss"][-1], val, test, train)
    accuracy = curves["val_accuracy"][-1]
    _require_in_band(accuracy, name, data_name, len(train[0]), epochs)
    return f"{accuracy:.2%} of the validation images after {epochs} epochs, as it should be."


def _require_compiled(model: Any) -> None:
    require(
        getattr(model, "compiled", False),
        expected_got("a compiled model", "one without a loss"),
        'model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])',
    )
    loss = model.loss
    found = loss if isinstance(loss, str) else getattr(loss, "name", None) or getattr(loss, "__name__", loss)
    sparse = "sparse" in str(found)
    require(
        str(found).lower() in ONE_HOT_LOSSES,
        expected_got('the loss "categorical_crossentropy"', f'"{found}"'),
        "The sparse one takes class numbers; these targets are one-hot rows."
        if sparse
        else "For one probability per class and one-hot targets it is the cross-entropy over the classes.",
    )
    settings: dict[str, Any] = getattr(loss, "get_config", dict)()
    from_logits = settings.get("from_logits", False)
    require(
        not from_logits,
        expected_got("a loss of probabilities", "from_logits=True"),
        "The network ends in a softmax already.",
    )


def _read_history(history: Any, epochs: int) -> Mapping[str, Any]:
    curves: Mapping[str, Any] = getattr(history, "history", history)
    require(
        isinstance(curves, Mapping) and "loss" in curves,
        expected_got("`history` as convscope.fit gives it back", type(history).__name__),
        "history = convscope.fit(model, …)",
    )
    require(
        "accuracy" in curves,
        expected_got("the accuracy in the history", ", ".join(curves)),
        'model.compile(…, metrics=["accuracy"])',
    )
    require(
        "val_loss" in curves and "val_accuracy" in curves,
        expected_got("the loss and accuracy of validation data in the history", ", ".join(curves)),
        "convscope.fit(…, validation_data=(x_val, y_val))",
    )
    require(
        len(curves["loss"]) == epochs,
        expected_got(f"{epochs} epochs", len(curves["loss"])),
        "epochs=EPOCHS. To train anew, build and compile the model again first.",
    )
    require(
        np.isfinite(curves["loss"]).all(),
        expected_got("a finite loss", curves["loss"][-1]),
        "Are the images scaled to 0 to 1?",
    )
    return curves


def _require_parts_apart(train: Array, val: Array) -> None:
    shared = sum((row_counts(train) & row_counts(val)).values())
    require(
        shared <= LEAKED_SHARE * len(val),
        expected_got("no validation image in `x_train`", f"{shared:,} of {len(val):,}"),
        "The network knows these images already: their accuracy says nothing about new ones.",
    )


def _require_steps(history: Any, train: int, val: int, batch_size: int) -> None:
    """Compare the number of steps with the images that should have been seen."""
    steps = (getattr(history, "params", None) or {}).get("steps")
    if steps is None:
        return
    expected, with_val = math.ceil(train / batch_size), math.ceil((train + val) / batch_size)
    leaked = steps == with_val
    found = f"{steps} steps" + (", as many as training and validation images together take" if leaked else "")
    require(
        steps == expected,
        expected_got(
            f"{expected} steps in an epoch, for {train:,} images in batches of {batch_size}",
            found,
        ),
        "Train on x_train alone; validation images must stay new to the network."
        if leaked
        else "convscope.fit(model, x_train, y_train, batch_size=BATCH_SIZE, …)",
    )


def _require_validated_on(
    model: Any,
    reported: float,
    val: tuple[Array, Array],
    test: tuple[Array, Array],
    train: tuple[Array, Array],
) -> None:
    """Find out from the loss which images the training validated with."""
    if _agree(reported, _loss(model, val)):
        return
    others = {"test": test, "training": (train[0][: len(val[0])], train[1][: len(val[0])]), "all": train}
    culprit = next((part for part, pair in others.items() if _agree(reported, _loss(model, pair))), None)
    if culprit == "test":
        found = "the loss of the test images"
        hint = "The test images answer one question, at the very end; choices are made on validation images."
    elif culprit:
        found = "the loss of training images"
        hint = "The network knows its training images by heart; validation images are new to it."
    else:
        found = f"a loss of {reported:.4f} where the model now has {_loss(model, val):.4f}"
        hint = "Was the model changed after its training? Build, compile and train it again."
    require(
        False,
        expected_got("validation with (x_val, y_val)", found),
        hint,
        "validation_data=(x_val, y_val)",
    )


def _loss(model: Any, pair: tuple[Array, Array]) -> float:
    from convscope.training.api import predict

    return Evaluation.from_probabilities(predict(model, pair[0]), pair[1]).loss


def _agree(first: float, second: float) -> bool:
    return abs(first - second) <= LOSS_TOLERANCE * second + 1e-4


def _require_in_band(accuracy: float, name: str, data_name: str, images: int, epochs: int) -> None:
    band = band_of(name, data_name, images, epochs)
    seeds = f"{band.low:.1%} to {band.high:.1%} of the validation images right, as other seeds do"
    require(
        accuracy >= band.low,
        expected_got(seeds, f"{accuracy:.2%}"),
        "The network learns, but not what it could. Are the images scaled? Do images and targets belong "
        "together?",
        'Adam with its own learning rate: model.compile("adam", …).',
    )
    require(
        accuracy <= band.high,
        expected_got(seeds, f"{accuracy:.2%}, too good to be true"),
        "Has the network seen these images before?",
    )
