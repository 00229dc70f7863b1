"""Whether a model is the network that a task asks for, read from its layers and its parameter count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convscope.errors import sentence
from convscope.networks import layers_of
from convscope.teaching.grading.verdict import require

# Layers that only apply a function: Conv2D followed by ReLU is Conv2D with activation="relu".
_ACTIVATION_LAYERS = {"ReLU": "relu", "Softmax": "softmax"}
_IMAGE_RANK = 4  # (n, h, w, c)
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
        sentence("`model` as a Keras model", type(model).__name__),
        "model = keras.Sequential([keras.Input(input_shape), …])",
    )
    require(
        getattr(model, "built", False) and _shape(model, "input_shape") is not None,
        sentence("a network that knows its input shape", "one without"),
        "Begin with keras.Input(x_train.shape[1:]).",
    )
    found_shape = _shape(model, "input_shape")
    require(
        found_shape == tuple(input_shape),
        sentence(f"an input of shape {tuple(input_shape)}", found_shape),
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
        sentence(f"an output of shape ({classes},)", shape),
        "A dense layer on an image works on its channels alone and leaves an image.",
        _HINTS["Flatten"],
    )
    require(
        shape == (classes,),
        sentence(f"an output for each of the {classes} classes", shape),
        "The last layer has as many units as there are classes.",
    )
    last = found[-1].settings.get("activation")
    linear = last in (None, "linear")
    require(
        last == "softmax",
        sentence('a last layer with activation="softmax"', "none" if linear else f'"{last}"'),
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
            sentence(_count(need, kind), have or "none"),
            _HINTS.get(kind, ""),
            f"In this order: {order}",
        )
        require(have <= need, sentence(_count(need, kind), have), f"In this order: {order}")
    place = next(number for number, (a, b) in enumerate(zip(own, right, strict=True)) if a != b)
    require(
        False,
        sentence(f"{right[place]} as layer {place + 1}", own[place]),
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
            sentence(f"{key}={value!r} in {wanted}", repr(own)),
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
        sentence(f"{sum(counts):,} parameters", f"{found:,}"),
        "Compare model.summary() with the table of the task.",
    )
    return f"{' + '.join(f'{count:,}' for count in counts if count)} = {found:,} parameters."


def _data_format(model: Any) -> str:
    formats = (layer.get_config().get("data_format") for layer in model.layers)
    return next((data_format for data_format in formats if data_format), "channels_last")
