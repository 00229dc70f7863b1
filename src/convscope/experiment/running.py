"""The recipe of an experiment, top-down."""

from __future__ import annotations

import logging
import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from convscope.contents import read_record
from convscope.data.dataset import Dataset
from convscope.data.loading import load_again
from convscope.data.sources.base import count
from convscope.errors import ConvscopeError, DivergedError, InterruptedRunError, RunError, expected_got
from convscope.evaluation import Evaluation, test_set_log
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.fitting import (
    CheckpointListener,
    Timetable,
    Training,
    kept_epoch,
    say_how_it_ended,
    stop_on_signals,
    train,
)
from convscope.experiment.planning import try_out
from convscope.experiment.preparation import Session, begin_session
from convscope.experiment.results import (
    calibrate,
    evaluate_parts,
    examine_parts,
    write_evaluation,
    write_figures_of,
    write_novelty,
    write_statistics,
    write_training,
)
from convscope.experiment.transfer import fit_head, is_average, keep_better, known_features, rate_factors
from convscope.export import load_statistics
from convscope.lowering.devices import current_device, device_of
from convscope.lowering.processor import takes_bfloat16
from convscope.model_files import WEIGHTS_FILE, open_model
from convscope.report.rendering import write_report
from convscope.runs import (
    HISTORY_FILE,
    LOG_FILE,
    RUN_FILE,
    RunDirectory,
    create_run,
    lock_run,
    log_into,
    open_run,
    open_unfinished,
    write_errors_named,
)
from convscope.training.checkpoint import TrainingState, load_checkpoint, remove_checkpoints
from convscope.training.distributed import alone, join
from convscope.training.events import Listener, Notice, RunBegin, RunEnd, notify

_LOG = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("convscope.progress")

OnResult = Callable[[Any], None]


@dataclass(frozen=True, eq=False)
class Trained:
    """What came out of a training that has not seen the test images, and where it lies.

    ``seconds`` are those of the training alone; ``validation`` is None where no images were held back.
    """

    run: Path
    network: str
    data: str
    parameters: int
    seconds: float
    history: dict[str, list[float]]
    validation: Evaluation | None


@dataclass(frozen=True, eq=False)
class Result(Trained):
    """What came out of a whole experiment."""

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
    on_result: OnResult = lambda _result: None,
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
    on_result : callable, optional
        Receives the result as soon as it is known, before the report is written.

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
    facts = {"command": shlex.join(command), "with_report": with_report}
    return cast(Result, _run(config, dataset, target, listeners, facts, began, on_result))


def run_trial(
    config: ExperimentConfig,
    dataset: Dataset,
    target: Path,
    listeners: Sequence[Listener] = (),
    command: Sequence[str] = (),
) -> Trained:
    """Do an experiment up to its validation; only ``evaluate_on_test`` looks at the test images.

    Otherwise as ``run_experiment``, without figures and report; an interrupted one is resumed as any other.
    """
    facts = {"command": shlex.join(command), "with_report": False, "with_test": False}
    return _run(config, dataset, target, listeners, facts, None)


def _run(
    config: ExperimentConfig,
    dataset: Dataset,
    target: Path,
    listeners: Sequence[Listener],
    facts: Mapping[str, Any],
    began: float | None,
    on_result: OnResult = lambda _result: None,
) -> Trained:
    """Do an experiment; ``facts`` are kept in its record."""
    began = time.perf_counter() if began is None else began
    with create_run(target) as run, log_into(run):
        session = begin_session(config, dataset, listeners)
        record = session.describe() | {"status": "running", **facts}
        with_report = record["with_report"]
        with alone():
            session = fit_head(session, record, listeners)
            session = try_out(session, run, record, listeners, began=began, with_report=with_report)
        with _announced(run, record, listeners):
            return _train_and_finish(run, session, record, listeners, began=began, on_result=on_result)


def evaluate_on_test(
    path: str | Path, listeners: Sequence[Listener] = (), *, by: str, with_report: bool = True
) -> Result:
    """Evaluate a run of ``run_trial`` on the test images, which is counted; where that is done, read it."""
    run = open_run(path)
    record = run.read_json(RUN_FILE)
    if record.get("with_test", True):
        return cast(Result, read_result(path))
    with lock_run(run.path), log_into(run):
        dataset = load_again(record["data"])
        session = begin_session(ExperimentConfig.from_json(record["config"]), dataset)
        session = replace(session, model=open_model(str(run.path)))
        history = run.read_table(HISTORY_FILE)
        epochs = len(history.pop("epoch", []))
        record |= {"with_test": True, "with_report": with_report}
        training = Training(history, record["seconds"], interrupted=False)
        with _announced(run, record, listeners, epochs):
            evaluations = _evaluate(run, session, record, (), training, by=by)
            if with_report:
                _report(run, session, ())
        return cast(Result, _result(run, record, history, evaluations))


def read_result(path: str | Path) -> Trained:
    """Read what came out of a completed run; a ``Result`` where its test images were looked at."""
    contents = read_record(path)
    return _result(RunDirectory(path), contents.record, contents.history, contents.evaluations)


def _result(
    run: RunDirectory,
    record: Mapping[str, Any],
    history: dict[str, list[float]],
    evaluations: Mapping[str, Evaluation],
) -> Trained:
    found: dict[str, Any] = {
        "run": run.path,
        "network": record["network"]["name"],
        "data": record["data"]["name"],
        "parameters": record["network"]["parameters"],
        "seconds": record["seconds"],
        "history": history,
        "validation": evaluations.get("validation"),
    }
    return Result(**found, test=evaluations["test"]) if "test" in evaluations else Trained(**found)


def resume_experiment(
    path: str | Path,
    listeners: Sequence[Listener] = (),
    *,
    with_report: bool | None = None,
    data: str | Path | None = None,
    on_result: OnResult = lambda _result: None,
) -> Trained:
    """Go on with a training that was interrupted, as if nothing had happened.

    Weights, optimizer and history are those of an uninterrupted training, to the last bit where the machine
    is the same. Whether a report is written was said when the run began, unless it is said anew; ``data`` is
    where the data are now, if no longer where the run found them. Of a run that began with ``run_trial`` the
    test images are not looked at; of any other what comes out is a ``Result``. A run whose versions, data or
    network are no longer the same is refused.
    """
    run = open_unfinished(path)
    record = run.read_json(RUN_FILE)
    with lock_run(run.path), log_into(run):
        state, seconds = _resumable(run)
        if data is not None:
            record["data"]["source"] = str(Path(data).resolve() if Path(data).exists() else data)
        dataset = load_again(record["data"])
        session = begin_session(ExperimentConfig.from_json(record["config"]), dataset, listeners)
        now = session.describe()
        _refuse_differences(record, now)
        record["network"]["name"] = now["network"]["name"]  # earlier versions took Keras's own
        session = _on_this_machine(session, record, now["device"], listeners)
        with alone():
            session = fit_head(session, record, listeners)
        if with_report is not None:
            record["with_report"] = with_report
        with _announced(run, record, listeners, state.epoch if state else 0):
            return _train_and_finish(run, session, record, listeners, state, seconds, on_result=on_result)


@contextmanager
def _announced(
    run: RunDirectory, record: Mapping[str, Any], listeners: Sequence[Listener], first_epoch: int = 0
) -> Iterator[None]:
    """Tell listeners of a run's begin, and of its end, whatever that is."""
    status = "failed"
    notify(listeners, RunBegin(run, record, first_epoch))
    try:
        yield
        status = "completed"
    except DivergedError:
        status = "diverged"
        raise
    except (InterruptedRunError, KeyboardInterrupt):
        status = "interrupted"
        raise
    except Exception as error:
        status = getattr(error, "run_status", status)
        raise
    finally:
        notify(listeners, RunEnd(run, status))


def _on_this_machine(
    session: Session, record: dict[str, Any], device: dict[str, Any], listeners: Sequence[Listener]
) -> Session:
    """Say what another machine than the one where the run began means, and do without what it lacks."""
    before = record.get("device", {})
    decisive = ("torch_device", "processor", "processor_class", "torch_threads")
    if any(before.get(name) != device[name] for name in decisive):
        record.setdefault("resumed_on", []).append(device)
        places = " and goes on with ".join(
            f"{one.get('processor')} ({one.get('torch_device')}, threads: {one.get('torch_threads')})"
            for one in (before, device)
        )
        text = f"This run began with {places}: its last bits may differ from those of one machine."
        notify(listeners, Notice(text))
    training, used = session.config.training, device_of(session.model) or current_device()
    if training.precision != "bfloat16" or takes_bfloat16(training=True, device=str(used)):
        return session
    notify(listeners, Notice("This run computes in bfloat16, which this machine refuses: float32 here."))
    config = replace(session.config, training=replace(training, precision="float32"))
    return replace(session, config=config)


def _train_and_finish(
    run: RunDirectory,
    session: Session,
    record: dict[str, Any],
    listeners: Sequence[Listener],
    state: TrainingState | None = None,
    seconds: float = 0.0,
    *,
    began: float | None = None,
    on_result: OnResult,
) -> Trained:
    """Train to the end, keeping checkpoints; then evaluate and write everything, the report last."""
    try:
        training = _train(run, session, record, listeners, state, seconds)
        if training.interrupted:
            raise KeyboardInterrupt
        if "timetable" in record:
            optimizer, batch = session.model.optimizer, session.config.training.batch_size
            record["ended"] = {
                "learning_rate": float(optimizer.learning_rate),
                "passes": int(optimizer.iterations) / math.ceil(len(session.prepared.train) / batch),
                "after": time.perf_counter() - began if began else None,
            }
        settings = session.config.training
        averaged = is_average(record)
        if averaged:  # of no single epoch
            settings = replace(settings, keep="last")
        record["kept_epoch"] = kept_epoch(settings, training.history)
        head = session.head is not None
        ended = record.get("ended")
        for line in say_how_it_ended(settings, training.history, ended, head=head, averaged=averaged):
            notify(listeners, Notice(line))
        evaluations = _evaluate(run, session, record, listeners, training)
    except KeyboardInterrupt as error:
        if not (run.path / WEIGHTS_FILE).is_file():
            raise
        with write_errors_named(run.path):
            run.write_json(RUN_FILE, record | {"status": "interrupted"})
            run.publish()
        kept = f"Interrupted. {run.path} holds the network as it was then."
        raise InterruptedRunError(f"{kept} {_how_to_go_on(run)}") from error
    except RunError as error:
        if not run.published:
            raise
        raise RunError(f"{error} {_how_to_go_on(run)}") from error
    remove_checkpoints(run.path)
    result = _result(run, record, training.history, evaluations)
    try:
        on_result(result)
    except Exception as error:  # whoever wanted to know may be gone
        error.run_status = "completed"  # type: ignore[attr-defined]
        raise
    finally:
        if record.get("with_report", True):
            _report(run, session, listeners)
    return result


def _train(
    run: RunDirectory,
    session: Session,
    record: dict[str, Any],
    listeners: Sequence[Listener],
    state: TrainingState | None,
    seconds: float,
) -> Training:
    """Train, keeping checkpoints, and write the network as it was in the end."""
    config, model, prepared, group = session.config, session.model, session.prepared, join()
    timetable = Timetable(**record["timetable"]) if "timetable" in record else None
    plan, is_left_out = record.get("plan"), record.get("fine_tuning") == "left out"
    # Keras's own optimizers have one rate for all layers.
    by_stage = session.head is not None and config.training.engine != "keras"
    try:
        with stop_on_signals() as asked_here:
            stop_asked = asked_here
            if group is not None:
                stop_asked, rate = group.stop_together(stop_asked), float(model.optimizer.learning_rate)
                group.same((config, rate, by_stage, is_left_out, state, plan))  # as together.py takes it
            all_listeners: list[Listener] = [*listeners, CheckpointListener(run, record, stop_asked, seconds)]
            if is_left_out:
                training = Training({}, 0.0, interrupted=False)
            else:
                factors = rate_factors(model) if by_stage else None
                training = train(model, prepared, config, all_listeners, state, plan, timetable, factors)
    except DivergedError:
        if run.published:
            run.write_json(RUN_FILE, record | {"status": "diverged"})
        raise
    record["seconds"] = seconds + training.seconds
    if session.head and not training.interrupted:
        history, lines = keep_better(session, training.history, record)
        training = replace(training, history=history)
        for line in lines:
            notify(listeners, Notice(line))
    with write_errors_named(run.path):
        write_training(run, model, prepared.preprocess, training.history)
    write_statistics(run, prepared.train)
    return training


def _evaluate(
    run: RunDirectory,
    session: Session,
    record: dict[str, Any],
    listeners: Sequence[Listener],
    training: Training,
    *,
    by: str = "train",
) -> dict[str, Evaluation]:
    """Evaluate the network and complete the run; numbers that cannot be written are shown."""
    model, prepared = session.model, session.prepared
    subject = f"{session.config.network_name} on {record['data']['name']}"
    _PROGRESS.info("Evaluating %s", subject)
    part = "test" if record.get("with_test", True) else "validation"
    if part == "test":
        known = known_features(session)
        raw, distances, novelty = examine_parts(model, prepared, load_statistics(run), known)
    else:
        raw, distances, novelty = evaluate_parts(model, prepared, [part]), {}, None
    try:
        if part == "test":
            test_set_log.log_use(run, "final evaluation", by=by)
        write_novelty(run, novelty)
        evaluations = write_evaluation(run, raw, distances)
        if part == "test":
            _PROGRESS.info("Drawing figures")
            write_figures_of(run, evaluations["test"], prepared.test.images, training.history, subject)
        run.write_json(RUN_FILE, record | {"status": "completed"})
        with write_errors_named(run.path):
            run.publish()
    except RunError:
        _, calibrated = calibrate(raw)
        if part in calibrated:
            notify(listeners, Notice(f"{subject}, {part} images: {calibrated[part]}"))
        raise
    return evaluations


def _report(run: RunDirectory, session: Session, listeners: Sequence[Listener]) -> None:
    """Write the report; where it cannot be made, that is noted, and the run is kept."""
    try:
        write_report(run.path, dataset=session.dataset)
    except KeyboardInterrupt as error:
        kept = f"Interrupted. {run.path} is complete but for its report."
        raise InterruptedRunError(
            f"{kept} `convscope report {shlex.quote(str(run.path))}` writes it."
        ) from error
    # Whatever goes wrong in a page must not cost an hour of training.
    except Exception as error:
        _LOG.warning("The report could not be written.", exc_info=error)
        reason = str(error) if isinstance(error, ConvscopeError) else f"{type(error).__name__}: {error}"
        text = f"The report could not be written: {reason} See {run.path / LOG_FILE}."
        notify(listeners, Notice(text))


def _resumable(run: RunDirectory) -> tuple[TrainingState | None, float]:
    """Read the state to go on from; None is the beginning, where a training was stopped before any."""
    arrays = load_checkpoint(run.path)
    if arrays is None:
        if (run.path / HISTORY_FILE).is_file() and not run.read_table(HISTORY_FILE)["epoch"]:
            return None, 0.0
        raise RunError(expected_got(f"a checkpoint in {run.path}", "none", "Train anew."))
    seconds = arrays.pop("seconds", np.zeros(1))
    return TrainingState.from_arrays(arrays), float(seconds[0])


def _how_to_go_on(run: RunDirectory) -> str:
    """Say from where ``convscope resume`` would go on."""
    try:
        state, _ = _resumable(run)
    except RunError as error:
        return f"It cannot be resumed: {error}"
    command = f"`convscope resume {shlex.quote(str(run.path))}`"
    if state is None:
        return f"{command} begins again: it had not come far enough to go on from there."
    steps = f" and {state.step} steps" if state.step else ""
    return f"{command} goes on after {count(state.epoch, 'epoch')}{steps}."


def _refuse_differences(recorded: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on where something that decides the result is no longer the same."""
    fields = {
        "classes": lambda record: record["data"]["class_names"],
        "split": lambda record: record["data"]["counts"],
        "seed": lambda record: record["seed"],
        # Not its name: older runs have the one that Keras gave to a network from a file.
        "network": lambda record: f"{record['network']['parameters']} parameters",
        **{f"version of {name}": _version(name) for name in ("convscope", "keras", "torch", "numpy")},
    }
    for field, read in fields.items():
        before, found = read(recorded), read(now)
        if before != found:
            hint = "Restore it, or train anew."
            raise RunError(expected_got(f"the {field} of the run, {before}", found, hint))


def _version(name: str) -> Callable[[dict[str, Any]], Any]:
    # What follows a plus names the build: the same release for a GPU, or for a processor alone.
    return lambda record: str(record["versions"].get(name)).partition("+")[0]
