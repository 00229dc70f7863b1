"""Training a session's network, and evaluating it on the parts that it was not trained on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convscope.data.catalog import Split
from convscope.evaluation import Evaluation
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.preparation import Prepared
from convscope.preprocessing import one_hot
from convscope.training.events import EpochEnd, Event, Listener
from convscope.training.schedule import Schedule, make_schedule
from convscope.training.state import TrainingState

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
) -> Training:
    """Train a compiled model on the prepared data, validating each epoch.

    Parameters
    ----------
    model : keras.Model
        Compiled; holds the trained weights afterwards.
    prepared : Prepared
        The data.
    config : ExperimentConfig
        Epochs, batch size, seed, engine.
    listeners : sequence of callables
        Each receives every training event.
    state : TrainingState, optional
        Where to go on.
    plan : mapping, optional
        The fast engine's plan of an earlier run, to be used again.

    Returns
    -------
    Training
        The history of the finished epochs; ``interrupted`` after Ctrl-C.
    """
    from convscope.training.fit import fit

    settings = config.training
    classes = len(prepared.class_names)
    history = {name: list(values) for name, values in state.history.items()} if state else {}

    def remember(event: Event) -> None:
        if isinstance(event, EpochEnd):
            for name, value in event.logs.items():
                history.setdefault(name, []).append(float(value))

    begin = time.perf_counter()
    interrupted = False
    try:
        fit(
            model,
            *_arrays(prepared.train, classes),
            validation_data=_arrays(prepared.validation, classes) if prepared.validation else None,
            preprocess=prepared.preprocess,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            seed=settings.seed,
            schedule=_schedule(model, config, len(prepared.train)),
            engine=settings.engine,
            precision=settings.precision,
            deterministic=settings.deterministic,
            plan=plan,
            resume_from=state,
            listeners=[remember, *listeners],
            on_divergence="raise",
            verbose=0,
        )
    except KeyboardInterrupt:
        interrupted = True
    return Training(history, time.perf_counter() - begin, interrupted)


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
    from convscope.training.fit import predict

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


def _schedule(model: keras.Model, config: ExperimentConfig, images: int) -> Schedule | None:
    """Stretch the schedule over all steps of the training."""
    training = config.training
    steps = training.epochs * math.ceil(images / training.batch_size)
    return make_schedule(training.schedule, float(model.optimizer.learning_rate), steps)
