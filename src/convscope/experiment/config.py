"""What decides an experiment's outcome, apart from the data themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from convscope.augmentation import Augmentation
from convscope.errors import UsageError, expected_got, unknown_name
from convscope.networks import require_network
from convscope.preprocessing import DATA_FORMATS, RESIZES, SCALINGS
from convscope.training.config import TrainingConfig


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
