"""What is tried on a copy of a network before the training: does it learn, how fast, at which rate.

The network itself and every random generator are left as they were.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from convscope import _keras_internals as internals
from convscope.environment import own_random_numbers
from convscope.errors import DivergedError, UsageError, expected_got
from convscope.lowering.devices import computing_on, device_of
from convscope.training.api import fit, predict
from convscope.training.events import EpochEnd, Event, StepEnd, TrainBegin
from convscope.training.request import loss_name
from convscope.training.schedules import Exponential

_WARM_UP = 3  # steps that take longer than those that follow
_FEWEST_MEASURED = 5  # that are measured, however short an epoch is
_BATCH_SIZE = 32  # Keras's own, where none is given
_PREDICTED = 256  # images by which the time of a prediction is measured


@contextmanager
def copied(model: keras.Model) -> Iterator[keras.Model]:
    """Give a copy of a compiled model, and leave every random generator as it was."""
    with own_random_numbers(), computing_on(device_of(model)):
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
        copy.compile(optimizer, loss=model.loss, metrics=["accuracy"])
        yield copy


@dataclass(frozen=True)
class Throughput:
    """How fast a training goes on this machine: a step, and the prediction of one image, in seconds.

    ``plan`` says how the fast engine computed, so that the training need not measure it again.
    """

    step_seconds: float
    image_seconds: float
    plan: Mapping[str, Any] | None

    def epoch_seconds(self, steps: int, validation_images: int) -> float:
        """Add up an epoch of so many steps and its validation."""
        return steps * self.step_seconds + validation_images * self.image_seconds


def measure_throughput(
    model: keras.Model,
    x: Any,
    y: Any,
    *,
    seconds: float = 1.5,
    image_seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    **arguments: Any,
) -> Throughput:
    """Measure how fast a training goes, on a copy of the network; a prediction, if that is not known yet."""
    moments: list[float] = []
    plans: list[Mapping[str, Any] | None] = [None]
    device = device_of(model)
    waits = device is not None and device.type != "cpu"  # a GPU has been told a step long before it is done
    with copied(model) as copy:

        def listen(event: Event) -> None:
            if isinstance(event, TrainBegin):
                plans[0] = event.plan
            elif isinstance(event, StepEnd):
                if waits:
                    event.read_logs()
                moments.append(clock())
                enough = len(moments) >= _WARM_UP + _FEWEST_MEASURED
                copy.stop_training = enough and moments[-1] - moments[_WARM_UP - 1] >= seconds

        steps_per_epoch = math.ceil(len(x) / (arguments.get("batch_size") or _BATCH_SIZE))
        epochs = math.ceil((_WARM_UP + _FEWEST_MEASURED) / steps_per_epoch)
        fit(copy, x, y, epochs=epochs, verbose=0, listeners=[listen], **arguments)
        if image_seconds is None:
            images, preprocess = x[:_PREDICTED], arguments.get("preprocess")
            predict(copy, images, preprocess=preprocess)  # the first prediction lowers the network
            began = clock()
            predict(copy, images, preprocess=preprocess)
            image_seconds = (clock() - began) / len(images)
    step_seconds = float(np.median(np.diff(moments[_WARM_UP - 1 :])))
    return Throughput(step_seconds, image_seconds, plans[0])


IMAGES = 32
FEWER_IMAGES = 8  # where a step with all of them takes too long
_OVERFIT_STEPS = 60
_STEPS_MEANT = 3  # single steps jump
_FEWEST_TOLD = 20  # below these nothing is said of a network that has not learned
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
    """How the trial went: losses before the first step and after the last, accuracy on the batch at the end.

    ``learned`` is None where the loss fell, but not far in the steps that there was time for. ``seconds`` are
    those of the steps after the first one, in which everything is prepared; a ``warning`` says that nobody
    has scaled the inputs.
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
        When the output is not what the loss expects, nothing is left to train, or the network does
        not overfit one batch.

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
    if not model.trainable_variables:
        hint = "Every layer is frozen, or has no weights: set trainable to True."
        raise UsageError(expected_got("a network with weights to train", "none", hint))
    images = np.asarray(x[rows])
    require_fitting_outputs(model, images, preprocess=preprocess, engine=engine)
    warning = _warn_of_unscaled(model, images if preprocess is None else preprocess.apply(images))
    trials: list[Preflight] = []
    left = seconds
    for number, rate in enumerate(_RATES, start=1):
        share = left - seconds * (1 - number / len(_RATES))
        batch = np.asarray(x[rows]), targets[rows]
        trial = _overfit_one_batch(model, *batch, rate, preprocess, engine, clock, share)
        if trial.learned:
            return replace(trial, warning=warning)
        trials.append(trial)
        left -= trial.seconds
        if trial.steps < _FEWEST_TOLD and len(rows) > FEWER_IMAGES:
            rows = spread_rows(targets, FEWER_IMAGES)
    found = next((trial for trial in reversed(trials) if trial.learned is None), None)
    if found is not None:
        return replace(found, warning=warning)
    found = trials[-1]
    hint = (
        warning or "Its loss, output and labels do not fit together; --no-preflight trains it all the same."
    )
    expected = f"a network that overfits one batch of {found.images} images"
    got = f"a loss of {found.last_loss:.3g} after {found.steps} steps, {found.first_loss:.3g} before them"
    raise UsageError(expected_got(expected, got, hint))


def spread_rows(y: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Choose rows so that as many classes as possible are among them, in turns."""
    labels = y.argmax(axis=-1) if y.ndim > 1 and y.shape[-1] > 1 else y.reshape(len(y))
    turns = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        turns[mine] = np.arange(len(mine))
    return np.sort(np.argsort(turns, kind="stable")[:count])


def require_fitting_outputs(
    model: keras.Model, images: NDArray[Any], *, preprocess: Any = None, engine: str = "auto"
) -> None:
    """Hold what a network puts out for some images against what its loss expects."""
    outputs = predict(model, images, preprocess=preprocess, engine=engine)
    if not np.isfinite(outputs).all():
        hint = "Look at its weights and at the scaling of the images."
        raise UsageError(expected_got("finite outputs of the network", "NaN or infinity", hint))
    loss, from_logits = loss_name(model), internals.settings_of(model.loss).get("from_logits", False)
    if loss not in _CATEGORICAL:
        return
    sums = outputs.sum(axis=-1)
    inside = bool((outputs >= -_TOLERANCE).all() and (outputs <= 1 + _TOLERANCE).all())
    shares = inside and bool(np.abs(sums - 1).max() <= _TOLERANCE * outputs.shape[-1])
    if from_logits and shares:
        hint = "Leave out its softmax, or from_logits=True."
        expected = f"a network without softmax for {loss} from logits"
        raise UsageError(expected_got(expected, "probabilities", hint))
    if not from_logits and not shares:
        found = f"numbers from {outputs.min():.3g} to {outputs.max():.3g} that add up to {sums.mean():.3g}"
        hint = "End the network with softmax over the classes."
        raise UsageError(expected_got(f"probabilities that add up to 1 for {loss}", found, hint))


def _warn_of_unscaled(model: keras.Model, inputs: NDArray[Any]) -> str | None:
    """Notice raw pixels: they saturate a softmax, and no rate of learning suits them."""
    lowest, highest = float(inputs.min()), float(inputs.max())
    if max(-lowest, highest) <= _LARGEST_INPUT or _scales_first(model) or scales_its_input(model):
        return None
    hint = "Divide them by 255, or begin the network with keras.layers.Rescaling(1 / 255)."
    return expected_got("inputs scaled to about 0 to 1", f"numbers from {lowest:g} to {highest:g}", hint)


def _scales_first(model: keras.Model) -> bool:
    """Whether a layer brings the inputs to scale before one with weights to train sees them."""
    for layer in internals.all_layers(model)[1:]:
        if isinstance(layer, _SCALING):
            return True
        if layer.trainable_weights and not hasattr(layer, "layers"):
            return False
    return False


def scales_its_input(model: keras.Model) -> bool:
    """Tell whether a network brings pixels from 0 to 255 to a range of about 1 itself.

    That may be ``Rescaling``, ``Normalization`` or a division: random pixels are sent through what comes
    before the first layer with weights to learn, and the range behind it is looked at.
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
    start = internals.inbound_nodes(first)[-1].input_tensors[0]
    if all(start is not one for one in model.inputs):
        images = keras.Model(model.inputs, start)([images], training=False)
    return _before_weights(first, images) if isinstance(first, keras.Model) else images


def _has_weights(operation: Any) -> bool:
    """Tell whether an operation, or one inside it, has weights other than a mean and variance to scale by."""
    if isinstance(operation, keras.Model):
        return any(_has_weights(layer) for layer in operation.layers)
    return bool(getattr(operation, "weights", ())) and not isinstance(operation, keras.layers.Normalization)


def _overfit_one_batch(
    model: keras.Model,
    images: NDArray[Any],
    targets: NDArray[Any],
    rate: float,
    preprocess: Any,
    engine: str,
    clock: Callable[[], float],
    seconds: float,
) -> Preflight:
    """Train a copy on one batch until it is overfitted, or the steps or the seconds are used up."""
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
                copy.stop_training = late or _has_overfit(losses, accuracies, chance)

        fit(
            copy,
            images,
            targets,
            batch_size=len(images),
            epochs=_OVERFIT_STEPS,
            verbose=0,
            seed=0,
            engine=engine,
            deterministic=True,
            preprocess=preprocess,
            listeners=[listen],
        )
    learned = True if _has_overfit(losses, accuracies, chance) else None
    if (
        learned is None
        and len(losses) >= _FEWEST_TOLD
        and np.mean(losses[-_STEPS_MEANT:]) > _NO_FALL * losses[0]
    ):
        learned = False
    return Preflight(len(images), len(losses), losses[0], losses[-1], accuracies[-1], learned, now - began)


def _has_overfit(losses: list[float], accuracies: list[float], chance: float) -> bool:
    """Say whether the batch is learned; the means of three steps, because dropout makes single ones jump.

    The loss is held against the first one and against that of a network that guesses, the lower of them.
    """
    if len(losses) < _STEPS_MEANT:
        return False
    loss, accuracy = np.mean(losses[-_STEPS_MEANT:]), np.mean(accuracies[-_STEPS_MEANT:])
    return bool(loss <= _ENOUGH_LOSS * min(losses[0], chance) or accuracy >= _ENOUGH_ACCURACY)


RATE_STEPS = 120
LOWEST, HIGHEST = 1e-6, 1.0
_HIGHEST_OF_SGD = 10.0
_SAFETY = 10.0  # how far below the lowest loss the rate is chosen
_HOPELESS = 4.0  # times the lowest loss: the border is behind us
_WINDOW = 11  # steps over which the loss is averaged
_FEWEST_FINITE = 24


@dataclass(frozen=True, eq=False)
class RateSearch:
    """What a range test found: rate, loss and averaged loss of each step (n,), and the rate to train with."""

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    found: float


def find_learning_rate(model: keras.Model, x: Any, y: Any, **arguments: Any) -> RateSearch:
    """Find a learning rate by a range test on a copy of the network.

    Parameters
    ----------
    model : keras.Model
        Compiled and built; its weights and all random generators are left as they are.
    x, y : arrays
        The training data, as for :func:`convscope.fit`.
    **arguments
        Of :func:`convscope.fit`: batch size, preprocessing, augmentation, engine and the like.

    Returns
    -------
    RateSearch
        Rates, losses, and the rate to train with: the peak of one-cycle, the beginning of the others.

    Raises
    ------
    DivergedError
        When the loss is not finite from the beginning.

    Examples
    --------
    >>> layers = [keras.Input((4,)), keras.layers.Dense(2, activation="softmax")]
    >>> model = keras.Sequential(layers)
    >>> model.compile("adam", "categorical_crossentropy")
    >>> x, y = np.eye(4, dtype=np.float32), np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    >>> 0.001 < find_learning_rate(model, x, y, seed=1338).found < 1
    True
    """
    high = _HIGHEST_OF_SGD if isinstance(model.optimizer, keras.optimizers.SGD) else HIGHEST
    rise = Exponential(LOWEST, high, RATE_STEPS)
    losses: list[float] = []
    with copied(model) as copy:

        def listen(event: Event) -> None:
            if isinstance(event, EpochEnd):
                losses.append(event.logs["loss"])
                copy.stop_training = _is_behind(losses)

        fit(
            copy, x, y, epochs=RATE_STEPS, steps_per_epoch=1, schedule=rise, verbose=0, listeners=[listen],
            **arguments,
        )  # fmt: skip
    return choose_rate([rise(step).learning_rate for step in range(len(losses))], losses)


def choose_rate(rates: Sequence[float], losses: Sequence[float]) -> RateSearch:
    """Choose a rate from the losses of a range test."""
    finite = np.isfinite(losses)
    count = len(losses) if finite.all() else int(np.argmin(finite))
    if count < _FEWEST_FINITE:
        expected = f"a finite loss in at least {_FEWEST_FINITE} steps of the search for a learning rate"
        hint = "Look at the images and at the network, or give --learning-rate."
        raise DivergedError(expected_got(expected, f"{count} steps", hint))
    chosen = np.asarray(rates[:count], np.float64), np.asarray(losses[:count], np.float64)
    smoothed = _averaged(chosen[1])
    found = float(chosen[0][np.argmin(smoothed)]) / _SAFETY
    # Two digits: nobody can tell rates apart that lie closer.
    return RateSearch(*chosen, smoothed, float(f"{found:.1e}"))


def _averaged(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average each loss with its neighbours, with fewer of them at both ends."""
    window = np.ones(_WINDOW)
    return np.convolve(losses, window, "same") / np.convolve(np.ones(len(losses)), window, "same")


def _is_behind(losses: list[float]) -> bool:
    """Say whether the loss has left its lowest value far behind, for good."""
    if not math.isfinite(losses[-1]):
        return True
    return len(losses) > _FEWEST_FINITE and min(losses[-3:]) > _HOPELESS * min(losses)
