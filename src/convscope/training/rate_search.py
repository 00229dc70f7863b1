"""Looking for a learning rate: a copy of the network is trained at a rate that rises from step to step.

Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3, the range test: the loss
falls as soon as the rate is high enough to learn by, and rises where it is too high. A tenth of the rate at
which the loss is lowest learns fast and is not yet near the border.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from convscope.errors import DivergedError, sentence
from convscope.training.events import EpochEnd, Event
from convscope.training.fit import fit
from convscope.training.rehearsal import copied
from convscope.training.schedule import Exponential

STEPS = 120
LOWEST, HIGHEST = 1e-6, 1.0
_HIGHEST_OF_SGD = 10.0
_SAFETY = 10.0  # how far below the lowest loss the rate is chosen
_HOPELESS = 4.0  # times the lowest loss: the border is behind us
_WINDOW = 11  # steps over which the loss is averaged
_FEWEST_STEPS = 24


@dataclass(frozen=True, eq=False)
class RateSearch:
    """What a range test found.

    Attributes
    ----------
    rates, losses : ndarray of shape (n,), float64
        The learning rate and the loss of each step.
    smoothed : ndarray of shape (n,), float64
        The losses, averaged over neighbouring steps.
    found : float
        The rate to train with, one digit after the first: 0.0032.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    found: float


def find_learning_rate(
    model: keras.Model,
    x: Any,
    y: Any,
    **arguments: Any,
) -> RateSearch:
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
    rise = Exponential(LOWEST, high, STEPS)
    losses: list[float] = []
    with copied(model) as copy:

        def listen(event: Event) -> None:
            if isinstance(event, EpochEnd):
                losses.append(event.logs["loss"])
                copy.stop_training = _is_behind(losses)

        fit(
            copy, x, y, epochs=STEPS, steps_per_epoch=1, schedule=rise, verbose=0, listeners=[listen],
            **arguments,
        )  # fmt: skip
    return analyse([rise(step).learning_rate for step in range(len(losses))], losses)


def analyse(rates: Sequence[float], losses: Sequence[float]) -> RateSearch:
    """Choose a rate from the losses of a range test.

    Parameters
    ----------
    rates, losses : sequence of float
        Of each step, the rates ascending.

    Returns
    -------
    RateSearch
        With a tenth of the rate at which the averaged loss is lowest.

    Raises
    ------
    DivergedError
        When too few losses are finite.

    Examples
    --------
    >>> rates = np.geomspace(1e-6, 1, 121)
    >>> analyse(rates, np.abs(np.log10(rates) + 2)).found
    0.001
    """
    finite = np.isfinite(losses)
    count = len(losses) if finite.all() else int(np.argmin(finite))
    if count < _FEWEST_STEPS:
        expected = f"a finite loss in at least {_FEWEST_STEPS} steps of the search for a learning rate"
        hint = "Look at the images and at the network, or give --learning-rate."
        raise DivergedError(sentence(expected, f"{count} steps", hint))
    chosen = np.asarray(rates[:count], np.float64), np.asarray(losses[:count], np.float64)
    smoothed = _averaged(chosen[1])
    return RateSearch(*chosen, smoothed, _rounded(float(chosen[0][np.argmin(smoothed)]) / _SAFETY))


def _averaged(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average each loss with its neighbours, with fewer of them at both ends."""
    window = np.ones(_WINDOW)
    return np.convolve(losses, window, "same") / np.convolve(np.ones(len(losses)), window, "same")


def _is_behind(losses: list[float]) -> bool:
    """Say whether the loss has left its lowest value far behind, for good."""
    if not math.isfinite(losses[-1]):
        return True
    return len(losses) > _FEWEST_STEPS and min(losses[-3:]) > _HOPELESS * min(losses)


def _rounded(rate: float) -> float:
    """Round to two digits: nobody can tell rates apart that lie closer."""
    return float(f"{rate:.1e}")
