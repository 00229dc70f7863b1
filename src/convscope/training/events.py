"""What happens while a network trains, as frozen objects that listeners receive.

The loop yields events and owns no logging: the progress bar, the history file, Keras's callbacks and the
checkpoints are listeners. A listener is any callable that takes one event; it may raise to end the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convscope.errors import ConvscopeError, DivergedError, LoweringError, expected_got

if TYPE_CHECKING:
    from convscope.runs import RunDirectory
    from convscope.training.checkpoint import TrainingState


@dataclass(frozen=True)
class Event:
    """Base of every event."""


@dataclass(frozen=True)
class Notice(Event):
    """One sentence for the person who trains, such as the reason why the fast engine is not used."""

    text: str


@dataclass(frozen=True)
class Alert(Notice):
    """A notice that must not be overlooked, where several networks train too."""


@dataclass(frozen=True)
class TrainBegin(Event):
    """Training starts; epochs are counted from 0, ``steps`` is None where the input has no known length.

    ``plan`` says how the fast engine computes each op; recorded, it lets the run be repeated.
    """

    engine: str
    first_epoch: int
    epochs: int
    steps: int | None
    plan: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class EngineChange(Event):
    """Another engine goes on in the middle: Keras's own steps, where the fast engine cannot."""

    engine: str
    reason: str


@dataclass(frozen=True)
class EpochBegin(Event):
    """An epoch starts."""

    epoch: int


@dataclass(frozen=True)
class StepBegin(Event):
    """A step starts; its batch is at hand."""

    epoch: int
    step: int


@dataclass(frozen=True)
class StepEnd(Event):
    """A step is done; its numbers are read from the device only when somebody asks for them.

    ``logs`` are means over the epoch so far, as Keras shows them: ``loss``, then the compiled metrics.
    """

    epoch: int
    step: int
    steps: int | None
    read_logs: Callable[[], Mapping[str, float]] = field(repr=False)
    snapshot: Callable[[], TrainingState] = field(repr=False)

    @property
    def logs(self) -> Mapping[str, float]:
        """Means over the epoch so far, by name."""
        return self.read_logs()

    @property
    def loss(self) -> float:
        """Mean loss over the epoch so far."""
        return self.logs["loss"]

    @property
    def metrics(self) -> dict[str, float]:
        """Compiled metrics over the epoch so far, by name, without the loss."""
        return {name: value for name, value in self.logs.items() if name != "loss"}


@dataclass(frozen=True)
class ValidationBegin(Event):
    """The validation of an epoch starts."""


@dataclass(frozen=True)
class ValidationStepBegin(Event):
    """A batch of the validation starts."""

    step: int


@dataclass(frozen=True)
class ValidationStepEnd(Event):
    """A batch of the validation is done; ``read_logs`` gives the means so far."""

    step: int
    read_logs: Callable[[], Mapping[str, float]] = field(repr=False)


@dataclass(frozen=True)
class ValidationEnd(Event):
    """The validation is over; ``logs`` has its means, without ``val_`` before the names."""

    logs: Mapping[str, float]


@dataclass(frozen=True)
class EpochEnd(Event):
    """An epoch is over, its validation included; ``logs`` is what Keras's History records."""

    epoch: int
    logs: Mapping[str, float]
    seconds: float
    snapshot: Callable[[], TrainingState] = field(repr=False)


@dataclass(frozen=True)
class TrainBreak(Event):
    """Training ends before its end, by an error or by a person; the error is raised when all have heard."""

    error: BaseException


@dataclass(frozen=True)
class TrainEnd(Event):
    """Training is over and the model holds its final weights."""

    logs: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class RunBegin(Event):
    """The training of a run begins, or goes on with an epoch; ``record`` is what ``run.json`` will say."""

    run: RunDirectory
    record: Mapping[str, Any]
    first_epoch: int


@dataclass(frozen=True)
class RunEnd(Event):
    """All of a run is written that will be, whether or not there is one; ``status`` says how it ended.

    It is completed, interrupted, diverged, failed, or what the error says that ended it.
    """

    run: RunDirectory
    status: str


Listener = Callable[[Event], None]


def notify(listeners: Iterable[Listener], event: Event) -> None:
    """Hand an event to every listener, in order."""
    for listener in listeners:
        listener(event)


def reason_of(error: Exception) -> str:
    """Say in a sentence or two why the fast engine does not train, or trains no longer."""
    if isinstance(error, LoweringError):
        return str(error)
    first = next(iter(str(error).strip().splitlines()), "")
    return f"The fast engine failed: {type(error).__name__}: {first}"


def is_mistake(error: Exception) -> bool:
    """Say whether an error is the caller's own, with which Keras could not do anything either."""
    return isinstance(error, ConvscopeError) and not isinstance(error, LoweringError)


def diverged(epoch: int, step: int, loss: float) -> DivergedError:
    """Make the error for a mean loss that is no longer a number; epoch and step are counted from 0."""
    hint = "Lower the learning rate, or look at the input for values that are not finite."
    return DivergedError(expected_got(f"a finite loss in epoch {epoch + 1}, step {step + 1}", loss, hint))
