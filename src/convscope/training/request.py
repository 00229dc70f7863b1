"""One call of ``fit``, sorted out and checked, as both engines read it."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import keras
import numpy as np

from convscope import _keras_internals as internals
from convscope.errors import UsageError, expected_got
from convscope.training import require_count
from convscope.training.checkpoint import TrainingState
from convscope.training.events import Event, Listener, Notice, notify
from convscope.training.inputs import (
    ArrayInput,
    BatchPlan,
    Input,
    Shuffle,
    StreamInput,
    first_leaf,
    is_array,
    leaves_of,
    map_leaves,
    plan_batches,
    read_input,
    to_array,
)
from convscope.training.schedules import Schedule

if TYPE_CHECKING:
    from convscope.augmentation import Augmentation
    from convscope.preprocessing import Preprocess
    from convscope.training.distributed import Group


@dataclass(frozen=True)
class FitRequest:
    """Everything that an engine needs to know; arguments keep their names from Keras's ``fit``."""

    model: keras.Model
    train: Input
    validation: Input | None
    plan: BatchPlan | None  # None for a stream
    validation_plan: BatchPlan | None
    epochs: int
    initial_epoch: int
    seed: int
    seeded: bool  # whether the user gave the seed: then dropout masks follow it too
    callbacks: Sequence[keras.callbacks.Callback] = ()
    listeners: tuple[Listener, ...] = ()
    shuffle: Shuffle = True
    augment: Augmentation | None = None
    class_weight: Mapping[int, float] | None = None
    steps_per_epoch: int | None = None
    validation_steps: int | None = None
    validation_freq: int | Sequence[int] = 1
    schedule: Schedule | None = None
    rate_factors: Mapping[str, float] | None = None
    resume_from: TrainingState | None = None
    stop_on_divergence: bool = False
    precision: str = "auto"
    deterministic: bool = False
    lowering_plan: Mapping[str, Any] | None = None
    device: str | None = None
    strict: bool = False
    engine: str = "auto"
    group: Group | None = None  # of processes that train together
    history: keras.callbacks.History = field(default_factory=keras.callbacks.History)

    def notify(self, event: Event) -> None:
        """Hand an event to every listener."""
        notify(self.listeners, event)

    def say_that_keras_trains(self, reason: str) -> None:
        """Say that Keras trains, and why it is not the fast engine."""
        text = f"Training with Keras's own fit. {reason}"
        if self.precision == "bfloat16":
            text += " It computes in the model's own types, not in bfloat16."
        if self.rate_factors:
            text += " All layers learn at one rate: Keras's optimizers know no other."
        self.notify(Notice(text))
        if not self.listeners:  # nobody has heard it
            warnings.warn(text, stacklevel=4)


def flatten_callbacks(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Give the callbacks as a list, whatever form Keras's ``fit`` takes them in."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    return keras.tree.flatten(callbacks) if callbacks else []


def resolve_seed(seed: int | None, resume_from: TrainingState | None) -> int:
    """Choose the seed of the order: the user's, the resumed training's, or one from Python's generator.

    Python's generator is the one that ``keras.utils.set_random_seed`` seeds.
    """
    if seed is not None:
        require_count("seed", seed, 0)
        return int(seed)
    if resume_from is not None:
        return resume_from.seed
    return random.randrange(2**31)  # noqa: S311  shuffling is not cryptography


def set_validation_apart(
    train: Input, validation_split: float, validation_data: Any
) -> tuple[Input, Input | None]:
    """Find the validation data: given, or the last rows of the training data."""
    if validation_data is not None:
        parts = validation_data if isinstance(validation_data, (tuple, list)) else (validation_data,)
        if len(parts) > 3:
            expected = "validation_data of x, y and sample_weight"
            raise UsageError(expected_got(expected, f"{len(parts)} parts"))
        x, y, sample_weight = (*parts, None, None)[:3]
        return train, read_input(x, y, sample_weight, train.preprocess)
    if not validation_split:
        return train, None
    if isinstance(train, StreamInput):
        hint = "Give validation_data instead."
        raise UsageError(expected_got("arrays beside validation_split", type(train.batches).__name__, hint))
    return train.split(validation_split)


def plan_rows(
    data: Input | None,
    batch_size: int | None,
    steps: int | None,
    shuffle: Shuffle,
    seed: int,
    first_epoch: int = 0,
) -> BatchPlan | None:
    """Plan the batches of arrays; a stream, or nothing, has no plan."""
    if not isinstance(data, ArrayInput):
        return None
    return plan_batches(data.rows, batch_size, steps, shuffle, seed, first_epoch)


def plan_validation(data: Input | None, batch_size: int | None, steps: int | None) -> BatchPlan | None:
    """Plan the batches of validation: in the given order, each row at most once."""
    plan = plan_rows(data, batch_size, steps, False, 0)
    if plan is not None and plan.steps > plan.steps_per_pass:
        return replace(plan, steps_per_epoch=None)
    return plan


METHODS_THAT_PREDICT = ("predict_step", "make_predict_function", "predict_function")
METHODS_THAT_TRAIN = (
    "train_step", "test_step", "make_train_function", "make_test_function", "train_function",
    "test_function", "compute_loss", "compute_metrics",
)  # fmt: skip
_NO_NUMBERS = tuple("OSU")  # kinds of NumPy's types: objects, bytes, text
_CATEGORICAL = "categorical_crossentropy"
_SPARSE = "sparse_categorical_crossentropy"
_BINARY = ("binary_crossentropy", "binary_focal_crossentropy")
_PROBABILITIES = (*_BINARY, _CATEGORICAL, "categorical_focal_crossentropy")  # what their targets are
_ELEMENTWISE = (  # these compare each target with its output, and take the mean over the last axis
    *_BINARY, "categorical_focal_crossentropy", "categorical_hinge", "cosine_similarity", "hinge", "huber",
    "kl_divergence", "log_cosh", "mean_absolute_error", "mean_absolute_percentage_error",
    "mean_squared_error", "mean_squared_logarithmic_error", "poisson", "squared_hinge",
)  # fmt: skip

Shape = tuple[int | None, ...]
Looked = TypeVar("Looked", bound=Input | None)


def input_shape(model: keras.Model) -> Shape | None:
    """Give the shape of a model's only input, without the batch axis."""
    return _single_shape(model, "inputs")


def require_fitting_images(expected: Shape | None, data: Input | None) -> None:
    """Refuse images of another shape than the model's input."""
    if expected is None or not isinstance(data, ArrayInput) or keras.tree.is_nested(data.x):
        return
    found = getattr(data.preprocess, "input_shape", tuple(data.x.shape[1:]))
    with_channel, without_channel = (*found, 1), (found[:-1] if found and found[-1] == 1 else found)
    if not any(_matches(shape, expected) for shape in (found, with_channel, without_channel)):
        turned = len(found) == len(expected) and set(found) == set(expected)
        hint = "Look at the order of the axes: channels last or first?" if turned else ""
        raise UsageError(expected_got(f"images of shape {expected}", found, hint))


def require_fitting(model: keras.Model, data: Input | None) -> None:
    """Refuse images, targets or weights that the model and its compiled loss cannot work with."""
    if not isinstance(data, ArrayInput):
        return
    data.require_rows()
    require_fitting_images(input_shape(model), data)
    if data.y is None:
        return
    for y in leaves_of(data.y):
        if isinstance(y, np.ndarray) and y.dtype.kind not in "fiub":
            raise UsageError(expected_got("numbers as targets", f"an array of type {y.dtype}"))
    shape = _single_shape(model, "outputs")
    for loss, y in _pairs(model.loss, data.y):
        if y is not None:
            _require_fitting_loss(loss, y, shape)
    weight = first_leaf(data.sample_weight)
    if shape is not None and weight is not None and not keras.tree.is_nested(model.loss):
        _require_fitting_weight(model.loss, first_leaf(data.y), weight, shape)


def with_checks(model: keras.Model, data: Looked, part: str, *, training: bool = True) -> Looked:
    """Let each batch of a stream be held against the model before an engine takes it.

    A model that trains or predicts in a way of its own knows what it takes.
    """
    methods = METHODS_THAT_TRAIN if training else METHODS_THAT_PREDICT
    if not isinstance(data, StreamInput) or own_method(model, methods) is not None:
        return data
    return replace(data, check=partial(_require_fitting_batch, model, data.preprocess, part, training))


def _require_fitting_batch(
    model: keras.Model, preprocess: Preprocess | None, part: str, training: bool, batch: Any, name: str
) -> None:
    """Refuse a batch that the model cannot work with; the message begins with the batch's name."""
    try:
        x, y, weight = _parts_of(batch) if training else (*_parts_of(batch)[:1], None, None)
        for word, value in (("x", x), ("y", y), ("sample_weight", weight)):
            _require_numbers(word, value)
        _require_known_inputs(model, x)
        x, y, weight = (map_leaves(to_array, value) for value in (x, y, weight))
        data = ArrayInput(x, y, weight, preprocess)
        if not training:
            require_fitting_images(input_shape(model), data)
            return
        if y is None and any(loss is not None for loss in keras.tree.flatten(model.loss)):
            raise UsageError(expected_got("targets y for the loss", "none", "Let each batch hold (x, y)."))
        if data.rows == 0:
            raise UsageError(expected_got("at least one row", "none"))
        require_fitting(model, data)
    except UsageError as error:
        raise type(error)(f"{name[0].upper()}{name[1:]} of the {part}: {error}") from None


def _parts_of(batch: Any) -> tuple[Any, Any, Any]:
    """Take a batch apart as Keras does."""
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if not 0 < len(parts) <= 3:
        expected = "a batch of (x, y) or (x, y, sample_weight)"
        raise UsageError(expected_got(expected, f"a {type(batch).__name__} of {len(parts)}"))
    return (*parts, None, None)[:3]


def _require_numbers(name: str, value: Any) -> None:
    """Refuse what is no array of numbers; an optional input or output may be missing."""
    if value is None and name == "x":
        raise UsageError(expected_got("an array as x", "None"))
    for leaf in leaves_of(value):
        if not is_array(leaf):
            hint = "np.asarray makes an array of a list."
            raise UsageError(expected_got(f"arrays as {name}", f"a {type(leaf).__name__}", hint))
        if getattr(getattr(leaf, "dtype", None), "kind", "") in _NO_NUMBERS:
            raise UsageError(expected_got(f"numbers as {name}", f"an array of type {leaf.dtype}"))


def _require_known_inputs(model: keras.Model, x: Any) -> None:
    """Refuse a dictionary that lacks one of a functional model's inputs."""
    inputs = getattr(model, "inputs", None) if model.built else None
    if not isinstance(x, Mapping) or not inputs:
        return
    names = [tensor.name for tensor in inputs]
    named = getattr(model, "input", None)
    if not set(names) <= set(x) and not (isinstance(named, Mapping) and set(named) <= set(x)):
        expected = f"x as an array, or a dict of {', '.join(names)}"
        raise UsageError(expected_got(expected, f"a dict of {', '.join(map(str, x))}"))


def _pairs(loss: Any, y: Any) -> list[tuple[Any, Any]]:
    """Bring losses and targets together where their structures say how; each is of one output."""
    if isinstance(loss, Mapping) and isinstance(y, Mapping):
        return [pair for name in y if name in loss for pair in _pairs(loss[name], y[name])]
    if isinstance(loss, (list, tuple)) and isinstance(y, (list, tuple)):
        return [pair for one, part in zip(loss, y, strict=False) for pair in _pairs(one, part)]
    losses, leaves = keras.tree.flatten(loss), keras.tree.flatten(y)
    if len(losses) == 1:
        return [(losses[0], leaf) for leaf in leaves]
    return list(zip(losses, leaves, strict=True)) if len(losses) == len(leaves) else []


def _require_fitting_loss(loss: Any, y: Any, shape: Shape | None) -> None:
    """Hold the targets of one output against its loss; a shape of None lets every shape pass."""
    if math.prod(y.shape) == 0:
        return
    name, settings = _named(loss, tuple(y.shape), shape)
    if shape is not None and name in _ELEMENTWISE and not _combine(tuple(y.shape[1:]), shape):
        raise UsageError(expected_got(f"targets of shape {_with_rows(shape)} for {name}", tuple(y.shape)))
    classes = None
    if shape is not None and settings.get("axis", -1) == -1 and shape[-1] != 1:
        classes = shape[-1]
        _require_fitting_shape(name, tuple(y.shape), shape)
    if name in _PROBABILITIES:
        lowest, highest = float(y.min()), float(y.max())
        if not (lowest >= 0 and highest <= 1):
            hint = "Give 0 and 1 for the two classes, or their probabilities." if name in _BINARY else ""
            expected = f"targets from 0 to 1 for {name}"
            raise UsageError(expected_got(expected, f"{lowest:g} to {highest:g}", hint))
    if name == _SPARSE and classes is not None:
        ignored = settings.get("ignore_class")
        _require_class_numbers(y if ignored is None else y[y != ignored], classes)


def _require_fitting_shape(name: str, found: tuple[int, ...], shape: Shape) -> None:
    """Tell one-hot targets from class numbers; ``shape`` is the output's, without the axis of the rows."""
    elements = shape[:-1]
    if name == _CATEGORICAL and not _matches(found[1:], shape):
        hint = f"One-hot encode the labels, or compile with {_SPARSE}."
        expected = f"one-hot targets of shape {_with_rows(shape)} for {name}"
        raise UsageError(expected_got(expected, found, hint))
    if name == _SPARSE and not any(_matches(found[1:], fit) for fit in (elements, (*elements, 1))):
        hint = f"Give the class numbers, or compile with {_CATEGORICAL}."
        expected = f"class numbers of shape {_with_rows(elements)} for {name}"
        raise UsageError(expected_got(expected, found, hint))


def _require_fitting_weight(loss: Any, y: Any, weight: Any, shape: Shape) -> None:
    """Hold the examples' weights against the losses, one for each element of all axes but the last."""
    name, settings = _named(loss, tuple(y.shape), shape)
    if name not in (*_ELEMENTWISE, _CATEGORICAL, _SPARSE) or settings.get("axis", -1) != -1:
        return
    if not _combine(tuple(weight.shape[1:]), shape[:-1]):
        expected = f"sample_weight of shape {_with_rows(shape[:-1])}"
        raise UsageError(expected_got(expected, tuple(weight.shape)))


def _combine(found: tuple[int, ...], shape: Shape) -> bool:
    """Say whether Keras can compute with arrays of these shapes, element by element; rows left out."""
    longer, shorter = sorted([(None, *found), (None, *shape)], key=len, reverse=True)
    if len(longer) == len(shorter) + 1 and longer[-1] == 1:
        longer = longer[:-1]  # (n, ..., 1) beside (n, ...)
    return len(longer) == len(shorter) and all(
        a is None or b is None or a == b or 1 in (a, b) for a, b in zip(longer, shorter, strict=True)
    )


def _require_class_numbers(y: Any, classes: int) -> None:
    if len(y) == 0:
        return
    lowest, highest = float(y.min()), float(y.max())
    if not (lowest >= 0 and highest < classes):
        wrong = highest if lowest >= 0 else lowest
        expected = f"class numbers from 0 to {classes - 1}, one for each output"
        raise UsageError(expected_got(expected, f"{wrong:g}"))


def loss_name(model: keras.Model) -> str:
    """Name the compiled loss as Keras's functions are named; empty for what is not looked at."""
    name, settings = _named(model.loss, None, None)
    return "" if settings.get("ignore_class") is not None else name


def _named(loss: Any, found: tuple[int, ...] | None, shape: Shape | None) -> tuple[str, Mapping[str, Any]]:
    """Name a loss as Keras's functions are named, with its settings; empty for what is not known.

    ``"crossentropy"`` depends on the shapes of target and output, as in Keras.
    """
    if isinstance(loss, str):
        if loss not in ("crossentropy", "ce"):
            loss = keras.losses.get(loss)
        elif found is None or shape is None:
            loss = None
        elif shape[-1] == 1:
            return "binary_crossentropy", {}
        else:
            return (_SPARSE if len(found) <= len(shape) or found[-1] == 1 else _CATEGORICAL), {}
    return str(getattr(getattr(loss, "fn", loss), "__name__", "")), internals.settings_of(loss)


def _single_shape(model: keras.Model, side: str) -> Shape | None:
    """Give the shape of the only input or output, without the batch axis; None where there is none."""
    tensors = getattr(model, side, None) if model.built else None
    return tuple(tensors[0].shape[1:]) if tensors is not None and len(tensors) == 1 else None


def _matches(found: tuple[int, ...], expected: Shape) -> bool:
    return len(found) == len(expected) and all(
        e is None or f == e for f, e in zip(found, expected, strict=True)
    )


def _with_rows(shape: Shape) -> str:
    return f"({', '.join(['n', *map(str, shape)])}{'' if shape else ','})"


def own_method(model: keras.Model, names: Sequence[str]) -> str | None:
    """Name the first of these methods that a model does not take from Keras.

    ``train_function`` and its like, which Keras makes when it first needs them, are looked at too.
    """
    for name in names:
        found, usual = getattr(model, name, None), getattr(keras.Model, name, None)
        if usual is not None:
            is_own = getattr(found, "__func__", found) is not usual
        else:
            is_own = found is not None and not internals.is_made_by_keras(found)
        if is_own:
            return name
    return None
