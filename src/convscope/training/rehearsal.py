"""What is tried out on a copy of a network before it is trained, without a trace in the network itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from convscope.environment import own_random_numbers
from convscope.lowering.devices import computing_on, device_of
from convscope.training.events import Event, StepEnd, TrainBegin
from convscope.training.fit import fit, predict

_WARM_UP = 3  # steps that take longer than those that follow
_FEWEST_STEPS = 5  # that are measured, however short an epoch is
_BATCH_SIZE = 32  # Keras's own, where none is given
_PREDICTED = 256  # images by which the time of a prediction is measured


@contextmanager
def copied(model: keras.Model) -> Iterator[keras.Model]:
    """Give a copy of a compiled model, and leave every random generator as it was.

    Parameters
    ----------
    model : keras.Model
        Compiled and built.

    Yields
    ------
    keras.Model
        The same layers and weights, compiled with the same loss and a new optimizer of the same settings.

    Examples
    --------
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> model.compile("sgd", "mse")
    >>> with copied(model) as copy:
    ...     copy.set_weights([np.ones((4, 2)), np.ones(2)])
    >>> model.layers[0].bias.numpy().tolist()
    [0.0, 0.0]
    """
    with own_random_numbers(), computing_on(device_of(model)):
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
        copy.compile(optimizer, loss=model.loss, metrics=["accuracy"])
        yield copy


@dataclass(frozen=True)
class Throughput:
    """How fast a training goes on this machine.

    Attributes
    ----------
    step_seconds : float
        One step of training.
    image_seconds : float
        The prediction of one image, in validation and evaluation.
    plan : mapping or None
        How the fast engine computed, so that the training need not measure it again.
    """

    step_seconds: float
    image_seconds: float
    plan: Mapping[str, Any] | None

    def epoch_seconds(self, steps: int, validation_images: int) -> float:
        """Add up an epoch of so many steps and its validation.

        Examples
        --------
        >>> Throughput(0.1, 0.001, None).epoch_seconds(20, 1000)
        3.0
        """
        return steps * self.step_seconds + validation_images * self.image_seconds


def measure_throughput(
    model: keras.Model,
    x: Any,
    y: Any,
    *,
    seconds: float = 1.5,
    clock: Callable[[], float] = time.perf_counter,
    **arguments: Any,
) -> Throughput:
    """Measure how fast a training goes, on a copy of the network.

    Parameters
    ----------
    model : keras.Model
        Compiled and built; left as it is.
    x, y : arrays
        As for :func:`convscope.fit`.
    seconds : float
        How long to measure, beside the time that preparation and warm-up take.
    clock : callable
        Gives seconds.
    **arguments
        Of :func:`convscope.fit`: batch size, preprocessing, augmentation, engine and the like.

    Returns
    -------
    Throughput
        The median step of those measured.
    """
    moments: list[float] = []
    plans: list[Mapping[str, Any] | None] = [None]
    with copied(model) as copy:

        def listen(event: Event) -> None:
            if isinstance(event, TrainBegin):
                plans[0] = event.plan
            elif isinstance(event, StepEnd):
                moments.append(clock())
                enough = len(moments) >= _WARM_UP + _FEWEST_STEPS
                copy.stop_training = enough and moments[-1] - moments[_WARM_UP - 1] >= seconds

        steps_per_epoch = math.ceil(len(x) / (arguments.get("batch_size") or _BATCH_SIZE))
        epochs = math.ceil((_WARM_UP + _FEWEST_STEPS) / steps_per_epoch)
        fit(copy, x, y, epochs=epochs, verbose=0, listeners=[listen], **arguments)
        chosen = slice(0, _PREDICTED)
        images, preprocess = x[chosen], arguments.get("preprocess")
        predict(copy, images, preprocess=preprocess)  # the first prediction lowers the network
        began = clock()
        predict(copy, images, preprocess=preprocess)
        predicted = clock() - began
    step_seconds = float(np.median(np.diff(moments[_WARM_UP - 1 :])))
    return Throughput(step_seconds, predicted / len(images), plans[0])
