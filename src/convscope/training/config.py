"""What a training is to do, as plain values that can be written into a run and read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from convscope.errors import UsageError, expected_got, unknown_name
from convscope.training import schedules

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "adagrad", "nadam", "lion")
ENGINES = ("auto", "fast", "keras")
CLASS_WEIGHTS = ("none", "balanced")
MONITORS = ("loss", "accuracy")
KEEPS = ("best", "last")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of one training.

    Attributes
    ----------
    epochs, batch_size : int
        At least 1.
    optimizer : str
        A Keras optimizer by its short name, one of ``OPTIMIZERS``.
    learning_rate : float or None
        The constant or the highest rate; None for the optimizer's own default.
    schedule : str
        ``constant``, ``one-cycle``, ``cosine`` or ``plateau``.
    find_learning_rate : bool
        Look for the learning rate by a range test before the training, where none is given.
    label_smoothing : float
        Between 0 and 1, 1 excluded.
    class_weights : str
        ``none``, or ``balanced``: all classes matter alike, however many images they have.
    within : float or None
        Seconds from the run's begin in which all is to be done, with its report; the epochs follow from them,
        not from ``epochs``.
    until : float or None
        The validation accuracy, above 0 to 1, at which the training stops.
    patience : int or None
        Stop after so many epochs without a better validation.
    keep : str or None
        Which weights the network has in the end: those of the ``last`` epoch, or of the one with the
        ``best`` validation, where there is one. None for the best with ``patience``, the last without.
    monitor : str
        What ``patience`` and ``keep`` watch on the validation images: ``loss`` or ``accuracy``.
    seed : int
        At least 0; order, masks and initial weights follow it.
    engine, precision : str
        See :func:`convscope.fit`.
    deterministic : bool
        Choose the plan by fixed rules instead of by measurement.

    Raises
    ------
    UsageError
        When a value is out of its range.
    UnknownNameError
        When a name is not known.

    Examples
    --------
    >>> TrainingConfig(epochs=3).to_dict()["optimizer"]
    'adam'
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "adam"
    learning_rate: float | None = None
    schedule: str = "constant"
    find_learning_rate: bool = False
    label_smoothing: float = 0.0
    class_weights: str = "none"
    within: float | None = None
    until: float | None = None
    patience: int | None = None
    keep: str | None = None
    monitor: str = "loss"
    seed: int = 1338
    engine: str = "auto"
    precision: str = "auto"
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        for name in ("epochs", "batch_size"):
            require_count(name, getattr(self, name), 1)
        require_count("seed", self.seed, 0)
        if self.patience is not None:
            require_count("patience", self.patience, 1)
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise UsageError(expected_got("a learning rate above 0", self.learning_rate))
        if self.within is not None and not 0 < self.within < math.inf:
            raise UsageError(expected_got("a time above 0 s", self.within))
        if self.until is not None and not 0 < self.until <= 1:
            raise UsageError(expected_got("an accuracy above 0 % and up to 100 %", f"{self.until:.6g}"))
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(expected_got("label smoothing from 0 to below 1", self.label_smoothing))
        for kind, name, valid in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, schedules.NAMES),
            ("class weight", self.class_weights, CLASS_WEIGHTS),
            ("monitor", self.monitor, MONITORS),
            ("epoch to keep", self.keeps, KEEPS),
            ("engine", self.engine, ENGINES),
            ("precision", self.precision, PRECISIONS),
        ):
            if name not in valid:
                raise unknown_name(kind, name, valid)
        require_engine_for(self.precision, self.engine)

    @property
    def keeps(self) -> str:
        """Which epoch's weights are taken: ``best`` or ``last``."""
        return self.keep or ("last" if self.patience is None else "best")

    def to_dict(self) -> dict[str, Any]:
        """Give the settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """Read the settings that :meth:`to_dict` gave."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise unknown_name("training setting", name, known)
        return cls(**values)


def require_engine_for(precision: str, engine: str) -> None:
    """Refuse bfloat16 where Keras's engine was asked for, which computes in the types of the model."""
    if engine == "keras" and precision == "bfloat16":
        hint = "Keras's computes in the model's own types."
        raise UsageError(expected_got("the fast engine for precision bfloat16", "engine keras", hint))


def require_count(name: str, value: object, least: int) -> None:
    """Refuse anything but a whole number of at least ``least``."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < least:
        raise UsageError(expected_got(f"{name} of at least {least}, a whole number", repr(value)))
