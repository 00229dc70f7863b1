"""The whole state of a training as plain arrays, so that it can be written down and taken up again.

Order and dropout masks are functions of the seed and of the absolute epoch and step; so weights, the
optimizer's variables, the position, the epoch's running sums and what callbacks remember are all there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from convscope.errors import RunError, sentence

_PARTS = ("weights", "optimizer", "metrics", "callbacks")
_STOPPED = "stopped"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """A training, stopped between two steps.

    Attributes
    ----------
    seed : int
        The seed that order and masks follow.
    epoch : int
        Epochs that are over, counted from 0 whatever ``initial_epoch`` was.
    step : int
        Steps done inside the epoch that has begun; 0 between two epochs.
    weights : dict of str to ndarray
        The model's variables in Keras's order, moving statistics included, by path.
    optimizer : dict of str to ndarray
        The optimizer's variables in Keras's order, by path.
    metrics : dict of str to ndarray
        Running sums of loss and metrics inside the epoch; empty between two epochs.
    history : dict of str to list of float
        What Keras's History has recorded, one value for each epoch.
    callbacks : dict of str to ndarray
        What the callbacks remember, see :mod:`convscope.training.callback_state`.
    stopped : bool
        Whether somebody has set ``model.stop_training``: no further step is to be done.
    """

    seed: int
    epoch: int
    step: int
    weights: Mapping[str, np.ndarray] = field(repr=False)
    optimizer: Mapping[str, np.ndarray] = field(repr=False)
    metrics: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    history: Mapping[str, list[float]] = field(default_factory=dict)
    callbacks: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    stopped: bool = False

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Flatten the state into one dictionary of arrays.

        Returns
        -------
        dict of str to ndarray
            ``position`` is int64 ``(3,)`` with seed, epoch and step; the other keys are
            ``part/number/name``, where the number keeps the order; ``stopped`` is there where it is true.

        Examples
        --------
        >>> state = TrainingState(7, 2, 0, {"dense/bias": np.zeros(3)}, {}, {}, {"loss": [0.5, 0.25]})
        >>> sorted(state.to_arrays())
        ['history/loss', 'position', 'weights/0000/dense/bias']
        """
        arrays = {"position": np.array([self.seed, self.epoch, self.step], np.int64)}
        for part in _PARTS:
            for number, (name, array) in enumerate(getattr(self, part).items()):
                arrays[f"{part}/{number:04d}/{name}"] = array
        for name, values in self.history.items():
            arrays[f"history/{name}"] = np.array(values, np.float64)
        if self.stopped:
            arrays[_STOPPED] = np.array([1], np.int64)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> TrainingState:
        """Rebuild a state from what :meth:`to_arrays` gave.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            The flattened state, in any order.

        Returns
        -------
        TrainingState
            Equal to the one that was flattened.

        Raises
        ------
        RunError
            When the position is missing or a key belongs to no part.

        Examples
        --------
        >>> state = TrainingState(7, 2, 0, {"dense/bias": np.zeros(3)}, {}, {}, {"loss": [0.5, 0.25]})
        >>> TrainingState.from_arrays(state.to_arrays()).history
        {'loss': [0.5, 0.25]}
        """
        if "position" not in arrays:
            raise RunError(sentence("a training state with its position", f"the keys {sorted(arrays)[:3]}"))
        parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in _PARTS}
        history: dict[str, list[float]] = {}
        for key in sorted(arrays):
            part, _, rest = key.partition("/")
            if part == "history":
                history[rest] = np.asarray(arrays[key]).tolist()
            elif part in parts:
                parts[part][rest.partition("/")[2]] = arrays[key]
            elif key not in ("position", _STOPPED):
                raise RunError(sentence("a part of a training state", repr(key)))
        seed, epoch, step = (int(number) for number in arrays["position"])
        return cls(seed, epoch, step, history=history, stopped=_STOPPED in arrays, **parts)
