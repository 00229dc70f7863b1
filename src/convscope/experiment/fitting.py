"""Training a session's network, and evaluating it on the parts that it was not trained on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from convscope.data.catalog import Split
from convscope.evaluation import Evaluation
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.preparation import Prepared
from convscope.experiment.steering import Timetable, class_weights, steer
from convscope.preprocessing import one_hot
from convscope.training.checkpoint import TrainingState
from convscope.training.events import EpochEnd, Event, Listener, TrainBegin, tell

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Training:
    """What the training itself left behind."""

    history: dict[str, list[float]]
    seconds: float
    interrupted: bool


def train(
    model: keras.Model,
    prepared: Prepared,
    config: ExperimentConfig,
    listeners: Sequence[Listener] = (),
    state: TrainingState | None = None,
    plan: Mapping[str, Any] | None = None,
    timetable: Timetable | None = None,
) -> Training:
    """Train a compiled model on the prepared data, validating each epoch.

    Parameters
    ----------
    model : keras.Model
        Compiled; holds the trained weights afterwards.
    prepared : Prepared
        The data.
    config : ExperimentConfig
        What was asked for.
    listeners : sequence of callables
        Each receives every training event.
    state : TrainingState, optional
        Where to go on.
    plan : mapping, optional
        The fast engine's plan of an earlier run, to be used again.
    timetable : Timetable, optional
        Where there is a deadline.

    Returns
    -------
    Training
        The history of the finished epochs; ``interrupted`` after Ctrl-C.
    """
    from convscope.training.api import fit

    classes = len(prepared.class_names)
    history = {name: list(values) for name, values in state.history.items()} if state else {}

    def remember(event: Event) -> None:
        if isinstance(event, EpochEnd):
            for name, value in event.logs.items():
                history.setdefault(name, []).append(float(value))

    began = time.perf_counter()
    interrupted = False
    validated = prepared.validation is not None
    steering = steer(model, config, len(prepared.train), history, timetable, validated=validated)
    try:
        fit(
            model,
            *training_arrays(prepared),
            validation_data=_arrays(prepared.validation, classes) if prepared.validation else None,
            epochs=steering.epochs,
            schedule=steering.schedule,
            callbacks=steering.callbacks,
            plan=plan,
            resume_from=state,
            listeners=[remember, *_expecting(timetable, listeners)],
            on_divergence="raise",
            verbose=0,
            **fit_arguments(config, prepared),
        )
    except KeyboardInterrupt:
        interrupted = True
    return Training(history, time.perf_counter() - began, interrupted)


def training_arrays(prepared: Prepared) -> tuple[Any, Any]:
    """Return the images that are trained on, uint8 ``(n, h, w, c)``, and their one-hot targets."""
    return _arrays(prepared.train, len(prepared.class_names))


def fit_arguments(config: ExperimentConfig, prepared: Prepared) -> dict[str, Any]:
    """Gather the arguments of ``fit`` that a rehearsal shares with the training itself."""
    training = config.training
    return {
        "batch_size": training.batch_size,
        "seed": training.seed,
        "engine": training.engine,
        "precision": training.precision,
        "deterministic": training.deterministic,
        "preprocess": prepared.preprocess,
        "augment": config.augmentation,
        "class_weight": class_weights(config, prepared),
    }


def _expecting(timetable: Timetable | None, listeners: Sequence[Listener]) -> list[Listener]:
    """Tell listeners how many epochs are expected, where the time alone decides."""
    if timetable is None:
        return list(listeners)
    epochs = timetable.epochs

    def expect(event: Event) -> None:
        tell(tuple(listeners), replace(event, epochs=epochs) if isinstance(event, TrainBegin) else event)

    return [expect]


def evaluate_parts(model: keras.Model, prepared: Prepared) -> dict[str, Evaluation]:
    """Predict the parts that were not trained on, and hold the predictions against the labels.

    Parameters
    ----------
    model : keras.Model
        Trained.
    prepared : Prepared
        The data.

    Returns
    -------
    dict of str to Evaluation
        ``test``, and ``validation`` where there is one. Computed once: tables, figures and JSON read it.
    """
    from convscope.training.api import predict

    evaluations = {}
    for name, part in prepared.parts.items():
        if name != "train":
            probabilities = predict(model, part.images, preprocess=prepared.preprocess)
            evaluations[name] = Evaluation.from_probabilities(
                probabilities, part.labels, prepared.class_names, part.names
            )
    return evaluations


def _arrays(part: Split, classes: int) -> tuple[Any, Any]:
    """Return images and one-hot targets."""
    return part.images, one_hot(part.labels, classes)
