"""What decides an experiment's outcome, apart from the data themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from convscope.augmentation import Augmentation
from convscope.errors import UsageError, expected_got, unknown_name
from convscope.networks import require_network
from convscope.preprocessing import DATA_FORMATS, RESIZES, SCALINGS
from convscope.training import ENGINES, PRECISIONS, require_count, require_engine_for, schedules

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "adagrad", "nadam", "lion")
CLASS_WEIGHTS = ("none", "balanced")
MONITORS = ("loss", "accuracy")
KEEPS = ("best", "last")


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


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides an experiment's outcome, apart from the data themselves.

    Parameters
    ----------
    data : str
        The dataset's name, or the path of the images, as it is recorded with the run.
    reading : mapping
        How the images are read: ``size``, ``channels``, ``resize``, ``fold`` as in ``convscope.load``.
    network : str
        A name from ``convscope.networks``, or the path of a ``.keras`` file.
    weights : str, optional
        A file of weights for a pretrained network, instead of the published ones.
    size : int, optional
        Height and width that a pretrained network takes; its own default when left out.
    scaling, data_format, resize : str
        As in ``Preprocess``.
    validation_share : float
        The share of the training images held back for validation; 0 trains on all of them.
    stratify : bool
        Keep the classes' proportions in both parts.
    augmentation : Augmentation
        What may happen to training images; validation and evaluation never see it.
    preflight : bool
        See first whether a copy of the network overfits one batch, and refuse one that does not.
    optimizer_settings : mapping
        Arguments of the Keras optimizer beside its learning rate, such as ``beta_1``.
    training : TrainingConfig
        Epochs, batch size, optimizer, seed and the like.

    Raises
    ------
    UnknownNameError
        If a choice does not exist; the nearest valid one is named.
    UsageError
        If the share is impossible.

    Examples
    --------
    >>> ExperimentConfig("simple").training.epochs
    10
    """

    network: str = "deep"
    data: str = "mnist"
    reading: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    size: int | None = None
    scaling: str = "minmax"
    data_format: str = "channels_last"
    resize: str = "letterbox"
    validation_share: float = 0.3
    stratify: bool = True
    augmentation: Augmentation = field(default_factory=Augmentation)
    preflight: bool = False
    optimizer_settings: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        for kind, name, valid in (
            ("scaling", self.scaling, SCALINGS),
            ("data format", self.data_format, DATA_FORMATS),
            ("way to resize", self.resize, RESIZES),
        ):
            if name not in valid:
                raise unknown_name(kind, name, valid)
        if not self.network_file:
            require_network(self.network)
        if not 0 <= self.validation_share < 1:
            raise UsageError(expected_got("a validation share from 0 to below 1", self.validation_share))

    @property
    def network_file(self) -> Path | None:
        """The ``.keras`` file that holds the network, if it is not a named one."""
        return Path(self.network) if self.network.endswith(".keras") else None

    @property
    def network_name(self) -> str:
        """What the network is called: its name, or that of its file."""
        return self.network_file.stem if self.network_file else self.network

    @property
    def folder_name(self) -> str:
        """The network's name as a run's folder has it: some file systems refuse a colon."""
        return self.network_name.replace(":", "-")

    def describe(self, learning_rate: float) -> str:
        """Say what was chosen, by a person or for them; the learning rate is the optimizer's."""
        training = self.training
        find = training.find_learning_rate and training.learning_rate is None
        rate = "a learning rate to be found" if find else f"a learning rate of {learning_rate:.3g}"
        length = f"{training.epochs} epoch{'s' * (training.epochs > 1)}"
        if training.within is not None:
            length = f"{training.within:g} s"
        settings = self.augmentation.to_dict().items()
        augmentation = ", ".join(f"{name} {value}" for name, value in settings if value not in (0, "none"))
        return (
            f"Settings: network {self.network_name}, {length} in batches of {training.batch_size}, "
            f"{training.optimizer} with {rate} ({training.schedule}), augmentation: {augmentation or 'none'}"
        )

    def to_json(self) -> dict[str, Any]:
        """Give the settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ExperimentConfig:
        """Read what ``to_json`` gave."""
        known = [setting.name for setting in fields(cls)]
        for name in values:
            if name not in known:
                raise unknown_name("experiment setting", name, known)
        read = {
            "training": TrainingConfig.from_dict(values.get("training", {})),
            "augmentation": Augmentation.from_dict(values.get("augmentation", {})),
        }
        return cls(**{**values, **read})
