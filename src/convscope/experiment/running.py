"""The recipe of an experiment, top-down."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convscope.checkpoints import load_checkpoint, remove_checkpoints
from convscope.data.catalog import Dataset, load_again
from convscope.errors import DivergedError, InterruptedRunError, RunError, sentence
from convscope.evaluation import Evaluation, test_door
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.fitting import evaluate_parts, train
from convscope.experiment.keeping import Keeper, stop_on_signals
from convscope.experiment.rehearsing import rehearse
from convscope.experiment.session import Session, begin_session, describe_run
from convscope.experiment.steering import Timetable, say_how_it_ended
from convscope.experiment.writing import write_evaluation, write_figures, write_statistics, write_training
from convscope.report import write_report
from convscope.runs import RUN_FILE, RunDirectory, create_run, lock_run, open_unfinished
from convscope.training.events import Listener, Notice, tell
from convscope.training.state import TrainingState


@dataclass(frozen=True)
class Result:
    """What came out of an experiment, and where it lies.

    Attributes
    ----------
    run : Path
        The run directory.
    network, data : str
        The names of the model and of the dataset.
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
    data: str
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
    *,
    with_report: bool = True,
    began: float | None = None,
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
    with_report : bool
        Write ``report.html`` too, which takes some seconds.
    began : float, optional
        When the time of a deadline began to count, by ``time.perf_counter``; now, unless given.

    Returns
    -------
    Result
        The run's numbers.

    Raises
    ------
    ConvscopeError
        If data, network or training do not fit together, or the run cannot be written. No run is left, but
        for a training that diverged after its first checkpoint.
    InterruptedRunError
        If a person stopped the training; a run with status ``interrupted`` is left, without an evaluation,
        and can be resumed.
    """
    began = time.perf_counter() if began is None else began
    with create_run(target) as run:
        session = begin_session(config, dataset, listeners)
        record = describe_run(session, dataset) | {"command": shlex.join(command), "status": "running"}
        session = rehearse(session, run, record, listeners, began=began, with_report=with_report)
        return _train_and_finish(run, session, record, listeners, with_report=with_report, began=began)


def resume_experiment(path: str | Path, listeners: Sequence[Listener] = ()) -> Result:
    """Go on with a training that was interrupted, as if nothing had happened.

    Parameters
    ----------
    path : str or Path
        The run directory.
    listeners : sequence of callables
        Each receives every training event.

    Returns
    -------
    Result
        The run's numbers; weights, optimizer and history are those of an uninterrupted training.

    Raises
    ------
    RunError
        If the run is completed, has no checkpoint, is being trained by another process, or was made with
        other versions; the message names the field.
    DataError
        If the data have changed.
    InterruptedRunError
        If a person stops the training again.
    """
    run = open_unfinished(path)
    record = run.read_json(RUN_FILE)
    with lock_run(run.path):
        state, seconds = _resumable(run)
        dataset = load_again(record["data"])
        session = begin_session(ExperimentConfig.from_json(record["config"]), dataset, listeners)
        _refuse_differences(record, describe_run(session, dataset))
        return _train_and_finish(run, session, record, listeners, state, seconds)


def _train_and_finish(
    run: RunDirectory,
    session: Session,
    record: dict[str, Any],
    listeners: Sequence[Listener],
    state: TrainingState | None = None,
    seconds: float = 0.0,
    *,
    with_report: bool = True,
    began: float | None = None,
) -> Result:
    """Train to the end, keeping checkpoints; then evaluate and write everything."""
    model, prepared = session.model, session.prepared
    try:
        with stop_on_signals() as stop_asked:
            keeper = Keeper(run, record, stop_asked, seconds)
            timetable = Timetable(**record["timetable"]) if "timetable" in record else None
            training = train(
                model, prepared, session.config, [*listeners, keeper], state, record.get("plan"), timetable
            )
    except DivergedError:
        if run.published:
            run.write_json(RUN_FILE, record | {"status": "diverged"})
        raise
    record["seconds"] = seconds + training.seconds
    write_training(run, model, prepared.preprocess, training.history)
    write_statistics(run, prepared.train)
    if training.interrupted:
        run.write_json(RUN_FILE, record | {"status": "interrupted"})
        run.publish()
        hint = f"`convscope resume {run.path}` goes on."
        raise InterruptedRunError(f"Interrupted. {run.path} holds the network as it was then. {hint}")
    if timetable is not None:
        rate = float(model.optimizer.learning_rate)
        record["ended"] = {"learning_rate": rate, "after": time.perf_counter() - began if began else None}
    for line in say_how_it_ended(session.config.training, training.history, record.get("ended")):
        tell(tuple(listeners), Notice(line))
    test_door.consult_run(run, "final evaluation", by="train")
    evaluations = write_evaluation(run, evaluate_parts(model, prepared))
    subject = f"{model.name} on {record['data']['name']}"
    write_figures(run, evaluations["test"], prepared.test, training.history, subject)
    run.write_json(RUN_FILE, record | {"status": "completed"})
    run.publish()
    remove_checkpoints(run.path)
    if with_report:
        _report(run, session, listeners)
    return Result(
        run=run.path,
        network=model.name,
        data=record["data"]["name"],
        parameters=model.count_params(),
        seconds=record["seconds"],
        history=training.history,
        validation=evaluations.get("validation"),
        test=evaluations["test"],
    )


def _report(run: RunDirectory, session: Session, listeners: Sequence[Listener]) -> None:
    """Write the report; a report that cannot be made is told of, and the run is kept."""
    try:
        write_report(run.path, dataset=session.dataset)
    # Whatever goes wrong in a page must not cost an hour of training.
    except Exception as error:
        tell(tuple(listeners), Notice(f"The report could not be written: {type(error).__name__}: {error}"))


def _resumable(run: RunDirectory) -> tuple[TrainingState, float]:
    """Read the state to go on from."""
    arrays = load_checkpoint(run.path)
    if arrays is None:
        raise RunError(sentence(f"a checkpoint in {run.path}", "none", "Train anew."))
    seconds = arrays.pop("seconds", np.zeros(1))
    return TrainingState.from_arrays(arrays), float(seconds[0])


def _refuse_differences(recorded: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on where something that decides the result is no longer the same."""
    fields = {
        "classes": lambda record: record["data"]["class_names"],
        "split": lambda record: record["data"]["counts"],
        "seed": lambda record: record["seed"],
        "network": lambda record: record["network"],
        **{f"version of {name}": _version(name) for name in ("convscope", "keras", "torch", "numpy")},
    }
    for field, read in fields.items():
        before, found = read(recorded), read(now)
        if before != found:
            hint = "Restore it, or train anew."
            raise RunError(sentence(f"the {field} of the run, {before}", found, hint))


def _version(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda record: record["versions"].get(name)
