"""The recipe of an experiment, top-down."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convscope import environment
from convscope.data.catalog import Dataset, Split
from convscope.errors import InterruptedRunError
from convscope.evaluation import Evaluation
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.model import build_model, image_shape_of, load_network
from convscope.experiment.preparation import Prepared, prepare
from convscope.experiment.writing import write_evaluation, write_figures, write_statistics, write_training
from convscope.preprocessing import one_hot
from convscope.runs import create_run
from convscope.training.events import EpochEnd, Event, Notice
from convscope.training.schedule import Schedule, make_schedule

if TYPE_CHECKING:
    import keras

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Result:
    """What came out of an experiment, and where it lies.

    Attributes
    ----------
    run : Path
        The run directory.
    network : str
        The model's name.
    parameters : int
        Weights in all.
    seconds : float
        Training alone: without loading, evaluation and figures.
    history : dict of lists
        A value for each epoch.
    validation : Evaluation or None
        None where no images were held back.
    test : Evaluation
        Of the test images.
    """

    run: Path
    network: str
    parameters: int
    seconds: float
    history: dict[str, list[float]]
    validation: Evaluation | None
    test: Evaluation


def run_experiment(
    config: ExperimentConfig,
    dataset: Dataset,
    target: Path,
    listeners: Sequence[Listener] = (),
    command: Sequence[str] = (),
) -> Result:
    """Do a whole experiment and write its run directory.

    Parameters
    ----------
    config : ExperimentConfig
        What to do.
    dataset : Dataset
        What to do it with.
    target : Path
        The run directory to make.
    listeners : sequence of callables
        Each receives every training event.
    command : sequence of str
        The command line that led here, for the record.

    Returns
    -------
    Result
        The run's numbers.

    Raises
    ------
    ConvscopeError
        If data, network or training do not fit together, or the run cannot be written; no run is left.
    InterruptedRunError
        If a person stopped the training; a run with status ``interrupted`` is left, without an evaluation.
    """
    with create_run(target) as run:
        loaded = load_network(config)
        prepared = prepare(dataset, config, image_shape_of(loaded, config.data_format) if loaded else None)
        _tell(prepared.describe(), listeners)
        model = build_model(config, prepared.preprocess.input_shape, len(prepared.class_names), loaded)
        training = train(model, prepared, config, listeners)
        write_training(run, model, prepared.preprocess, training.history)
        write_statistics(run, prepared.train)
        record = describe_run(config, dataset, prepared, model) | {
            "command": shlex.join(command),
            "seconds": training.seconds,
        }
        if training.interrupted:
            run.write_json("run.json", record | {"status": "interrupted"})
        else:
            evaluations = evaluate_parts(model, prepared)
            write_evaluation(run, evaluations)
            subject = f"{model.name} on {dataset.name}"
            write_figures(run, evaluations["test"], prepared.test, training.history, subject)
            run.write_json("run.json", record | {"status": "completed"})
    if training.interrupted:
        what = f"{target} holds the network as it was then, without an evaluation."
        raise InterruptedRunError(f"Interrupted. {what}")
    return Result(
        run=target,
        network=model.name,
        parameters=model.count_params(),
        seconds=training.seconds,
        history=training.history,
        validation=evaluations.get("validation"),
        test=evaluations["test"],
    )


@dataclass(frozen=True)
class Training:
    """What the training itself left behind."""

    history: dict[str, list[float]]
    seconds: float
    interrupted: bool


def train(
    model: keras.Model, prepared: Prepared, config: ExperimentConfig, listeners: Sequence[Listener] = ()
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

    Returns
    -------
    Training
        The history of the finished epochs; ``interrupted`` after Ctrl-C.
    """
    from convscope.training.fit import fit

    settings = config.training
    classes = len(prepared.class_names)
    history: dict[str, list[float]] = {}

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


def describe_run(
    config: ExperimentConfig, dataset: Dataset, prepared: Prepared, model: keras.Model
) -> dict[str, Any]:
    """Gather what somebody needs to judge or repeat the run.

    Parameters
    ----------
    config : ExperimentConfig
        What was asked for.
    dataset : Dataset
        What it was done with.
    prepared : Prepared
        How the data were prepared.
    model : keras.Model
        The network.

    Returns
    -------
    dict
        JSON values.
    """
    return {
        "config": config.to_json(),
        "seed": config.training.seed,
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "counts": {name: len(part) for name, part in prepared.parts.items()},
            "class_names": list(dataset.class_names),
            "preparation": prepared.describe(),
        },
        "network": {"name": model.name, "parameters": model.count_params()},
        **environment.describe(),
    }


def _arrays(part: Split, classes: int) -> tuple[Any, Any]:
    """Return images and one-hot targets."""
    return part.images, one_hot(part.labels, classes)


def _schedule(model: keras.Model, config: ExperimentConfig, images: int) -> Schedule | None:
    """Stretch the schedule over all steps of the training."""
    training = config.training
    steps = training.epochs * math.ceil(images / training.batch_size)
    return make_schedule(training.schedule, float(model.optimizer.learning_rate), steps)


def _tell(lines: Sequence[str], listeners: Sequence[Listener]) -> None:
    for line in lines:
        for listener in listeners:
            listener(Notice(line))
