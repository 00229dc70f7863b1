"""Seconds before an hour: whether a network learns at all, from these images, with this loss.

It looks at what the network puts out, and lets a copy learn one batch by heart. Every network can do that
whose loss, output and labels fit together; one that cannot would waste the whole training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from convscope.environment import own_random_numbers
from convscope.errors import UsageError, sentence
from convscope.training.checks import loss_name
from convscope.training.events import EpochEnd, Event
from convscope.training.fit import fit, predict
from convscope.training.rehearsal import copied

IMAGES = 32
FEWER_IMAGES = 8  # where a step with all of them takes too long
STEPS = 60
_STEPS_MEANT = 3  # single steps jump
_FEWEST_STEPS = 20  # below these nothing is said of a network that has not learned
_RATES = (1e-3, 1e-2)
_ENOUGH_LOSS = 0.7  # of the loss at the beginning, or of guessing
_ENOUGH_ACCURACY = 0.9
_NO_FALL = 0.97  # a loss above this share of the first one has not moved
_TOLERANCE = 1e-3  # of probabilities, which some compute in bfloat16
_LARGEST_INPUT = 20.0  # what is scaled lies well within, with mean 0 and deviation 1 too
_SCALING = (
    keras.layers.Rescaling,
    keras.layers.Normalization,
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
)
_CATEGORICAL = ("categorical_crossentropy", "sparse_categorical_crossentropy")


@dataclass(frozen=True)
class Preflight:
    """How the trial went.

    Attributes
    ----------
    images, steps : int
        Images of the batch, and steps done with it.
    first_loss, last_loss : float
        Before the first step, and after the last one.
    accuracy : float
        On the batch, at the end.
    learned : bool or None
        None where it could not be told: the loss fell, but not far in the steps that there was time for.
    seconds : float
        What the steps after the first one took, in which everything is prepared.
    warning : str or None
        That the network is given inputs that nobody has scaled.
    """

    images: int
    steps: int
    first_loss: float
    last_loss: float
    accuracy: float
    learned: bool | None
    seconds: float = 0.0
    warning: str | None = None


@own_random_numbers()
def preflight(
    model: keras.Model,
    x: Any,
    y: Any,
    *,
    preprocess: Any = None,
    engine: str = "auto",
    seconds: float = 4.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Preflight:
    """Refuse a network whose loss, output and labels do not fit together, within about five seconds.

    Parameters
    ----------
    model : keras.Model
        Compiled and built, with one output for each class; its weights and all random generators are left
        as they are.
    x, y : arrays
        As for :func:`convscope.fit`.
    preprocess : Preprocess or None
        Then ``x`` holds raw uint8 images.
    engine : {"auto", "fast", "keras"}
        As for :func:`convscope.fit`.
    seconds : float
        For all steps; the first one of each trial, in which everything is prepared, is not counted.
    clock : callable
        Gives seconds.

    Returns
    -------
    Preflight
        How it went, where nothing is wrong.

    Raises
    ------
    UsageError
        When the output is not what the loss expects, nothing is left to train, or the network cannot learn
        a batch by heart.

    Examples
    --------
    >>> layers = [keras.Input((4,)), keras.layers.Dense(2, activation="softmax", kernel_initializer="zeros")]
    >>> model = keras.Sequential(layers)
    >>> model.compile("adam", "categorical_crossentropy")
    >>> x, y = np.eye(4, dtype=np.float32), np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    >>> preflight(model, x, y, seconds=60).learned
    True
    """
    targets = np.asarray(y)
    rows = spread_rows(targets, IMAGES)
    _require_something_to_train(model)
    images = np.asarray(x[rows])
    require_fitting_outputs(model, images, preprocess=preprocess, engine=engine)
    warning = _warn_of_unscaled(model, images if preprocess is None else preprocess.apply(images))
    trials: list[Preflight] = []
    left = seconds
    for number, rate in enumerate(_RATES, start=1):
        share = left - seconds * (1 - number / len(_RATES))
        batch = np.asarray(x[rows]), targets[rows]
        trial = _learn_by_heart(model, *batch, rate, preprocess, engine, clock, share)
        if trial.learned:
            return replace(trial, warning=warning)
        trials.append(trial)
        left -= trial.seconds
        if trial.steps < _FEWEST_STEPS and len(rows) > FEWER_IMAGES:
            rows = spread_rows(targets, FEWER_IMAGES)
    found = next((trial for trial in reversed(trials) if trial.learned is None), None)
    if found is not None:
        return replace(found, warning=warning)
    found = trials[-1]
    hint = (
        warning or "Its loss, output and labels do not fit together; --no-preflight trains it all the same."
    )
    expected = f"a network that can learn {found.images} images by heart"
    got = f"a loss of {found.last_loss:.3g} after {found.steps} steps, {found.first_loss:.3g} before them"
    raise UsageError(sentence(expected, got, hint))


def spread_rows(y: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Choose rows so that as many classes as possible are among them, in turns.

    Parameters
    ----------
    y : ndarray of shape (n, classes), (n, 1) or (n,)
        One-hot targets or class numbers.
    count : int
        How many to choose, at most.

    Returns
    -------
    ndarray of int64
        The first rows of each class, in ascending order.

    Examples
    --------
    >>> spread_rows(np.array([0, 0, 0, 1, 2]), 3).tolist()
    [0, 3, 4]
    """
    labels = y.argmax(axis=-1) if y.ndim > 1 and y.shape[-1] > 1 else y.reshape(len(y))
    turns = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        turns[mine] = np.arange(len(mine))
    return np.sort(np.argsort(turns, kind="stable")[:count])


def _require_something_to_train(model: keras.Model) -> None:
    if not model.trainable_variables:
        hint = "Every layer is frozen, or has no weights: set trainable to True."
        raise UsageError(sentence("a network with weights to train", "none", hint))


def require_fitting_outputs(
    model: keras.Model, images: NDArray[Any], *, preprocess: Any = None, engine: str = "auto"
) -> None:
    """Hold what a network puts out for some images against what its loss expects.

    Parameters
    ----------
    model : keras.Model
        Compiled and built, with one output for each class.
    images : ndarray
        A few, as for :func:`convscope.fit`.
    preprocess : Preprocess or None
        Then they are raw uint8 images.
    engine : {"auto", "fast", "keras"}
        As for :func:`convscope.fit`.

    Raises
    ------
    UsageError
        When the loss expects probabilities and gets something else, or the other way round.
    """
    outputs = predict(model, images, preprocess=preprocess, engine=engine)
    if not np.isfinite(outputs).all():
        hint = "Look at its weights and at the scaling of the images."
        raise UsageError(sentence("finite outputs of the network", "NaN or infinity", hint))
    loss, from_logits = loss_name(model), getattr(model.loss, "_fn_kwargs", {}).get("from_logits", False)
    if loss not in _CATEGORICAL:
        return
    sums = outputs.sum(axis=-1)
    inside = bool((outputs >= -_TOLERANCE).all() and (outputs <= 1 + _TOLERANCE).all())
    shares = inside and bool(np.abs(sums - 1).max() <= _TOLERANCE * outputs.shape[-1])
    if from_logits and shares:
        hint = "Leave out its softmax, or from_logits=True."
        raise UsageError(sentence(f"a network without softmax for {loss} from logits", "probabilities", hint))
    if not from_logits and not shares:
        found = f"numbers from {outputs.min():.3g} to {outputs.max():.3g} that add up to {sums.mean():.3g}"
        hint = "End the network with softmax over the classes."
        raise UsageError(sentence(f"probabilities that add up to 1 for {loss}", found, hint))


def _warn_of_unscaled(model: keras.Model, inputs: NDArray[Any]) -> str | None:
    """Notice raw pixels: they saturate a softmax, and no rate of learning suits them."""
    lowest, highest = float(inputs.min()), float(inputs.max())
    if max(-lowest, highest) <= _LARGEST_INPUT or _scales_first(model) or scales_its_input(model):
        return None
    hint = "Divide them by 255, or begin the network with keras.layers.Rescaling(1 / 255)."
    return sentence("inputs scaled to about 0 to 1", f"numbers from {lowest:g} to {highest:g}", hint)


def _scales_first(model: keras.Model) -> bool:
    """Whether a layer brings the inputs to scale before one with weights to train sees them."""
    for layer in model._flatten_layers(include_self=False, recursive=True):
        if isinstance(layer, _SCALING):
            return True
        if layer.trainable_weights and not hasattr(layer, "layers"):
            return False
    return False


def scales_its_input(model: keras.Model) -> bool:
    """Tell whether a network brings pixels from 0 to 255 to a range of about 1 itself.

    That may be ``Rescaling``, ``Normalization`` or a division: random pixels are sent through what comes
    before the first layer with weights to learn, and the range behind it is looked at.

    Parameters
    ----------
    model : keras.Model
        Built, with one batch of images as its input.

    Examples
    --------
    >>> layers = [keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(2, 3)]
    >>> scales_its_input(keras.Sequential(layers)), scales_its_input(keras.Sequential(layers[::2]))
    (True, False)
    """
    batch, *shape = model.input_shape
    pixels = np.random.default_rng(0).integers(0, 2, (batch or 2, *(side or 64 for side in shape))) * 255.0
    behind = _before_weights(model, keras.ops.convert_to_tensor(pixels, "float32"))
    spread = float(np.ptp(keras.ops.convert_to_numpy(behind)))
    return 1 / _LARGEST_INPUT < spread < _LARGEST_INPUT


def _before_weights(model: keras.Model, images: Any) -> Any:
    """Send images through a network until the first layer with weights that training or running changes."""
    operations = model.layers if isinstance(model, keras.Sequential) else model.operations
    first = next((operation for operation in operations if _has_weights(operation)), None)
    if first is None:
        return images
    start = first._inbound_nodes[-1].input_tensors[0]
    if all(start is not one for one in model.inputs):
        images = keras.Model(model.inputs, start)([images], training=False)
    return _before_weights(first, images) if isinstance(first, keras.Model) else images


def _has_weights(operation: Any) -> bool:
    """Tell whether an operation, or one inside it, has weights other than a mean and variance to scale by."""
    if isinstance(operation, keras.Model):
        return any(_has_weights(layer) for layer in operation.layers)
    return bool(getattr(operation, "weights", ())) and not isinstance(operation, keras.layers.Normalization)


def _learn_by_heart(
    model: keras.Model,
    images: NDArray[Any],
    targets: NDArray[Any],
    rate: float,
    preprocess: Any,
    engine: str,
    clock: Callable[[], float],
    seconds: float,
) -> Preflight:
    """Train a copy on one batch until it knows it, or the steps or the seconds are used up."""
    losses: list[float] = []
    accuracies: list[float] = []
    chance = math.log(model.output_shape[-1]) if loss_name(model) in _CATEGORICAL else math.inf
    began, now = math.inf, 0.0
    with copied(model) as copy:
        copy.compile(keras.optimizers.Adam(rate), loss=model.loss, metrics=["accuracy"])

        def listen(event: Event) -> None:
            nonlocal began, now
            if isinstance(event, EpochEnd):
                now = clock()
                began = min(began, now)  # the first step prepares everything, and takes as long as that takes
                losses.append(event.logs["loss"])
                accuracies.append(event.logs["accuracy"])
                late = len(losses) >= _STEPS_MEANT and now - began > seconds
                copy.stop_training = late or _knows(losses, accuracies, chance)

        fit(
            copy,
            images,
            targets,
            batch_size=len(images),
            epochs=STEPS,
            verbose=0,
            seed=0,
            engine=engine,
            deterministic=True,
            preprocess=preprocess,
            listeners=[listen],
        )
    learned = True if _knows(losses, accuracies, chance) else None
    if (
        learned is None
        and len(losses) >= _FEWEST_STEPS
        and np.mean(losses[-_STEPS_MEANT:]) > _NO_FALL * losses[0]
    ):
        learned = False
    return Preflight(len(images), len(losses), losses[0], losses[-1], accuracies[-1], learned, now - began)


def _knows(losses: list[float], accuracies: list[float], chance: float) -> bool:
    """Say whether the batch is learned; the means of three steps, because dropout makes single ones jump.

    The loss is held against the first one and against that of a network that guesses, the lower of them.
    """
    if len(losses) < _STEPS_MEANT:
        return False
    loss, accuracy = np.mean(losses[-_STEPS_MEANT:]), np.mean(accuracies[-_STEPS_MEANT:])
    return bool(loss <= _ENOUGH_LOSS * min(losses[0], chance) or accuracy >= _ENOUGH_ACCURACY)
