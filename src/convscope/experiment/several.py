"""Several experiments: one after the other, or side by side in processes with their share of the threads.

`main` is what one of these processes does: it trains what standard input names, one JSON object a line, and
answers with what happens.

In cross-validation each fold of the images is the test part of one network, so that every image is judged by
a network that never saw it; the evaluation of all is one of the settings, not of a single network.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np

from convscope import plotting
from convscope.data.dataset import Dataset
from convscope.data.loading import load_again, take_fold
from convscope.environment import share_of_threads
from convscope.errors import (
    ConvscopeError,
    DivergedError,
    InterruptedRunError,
    RunError,
    UsageError,
    expected_got,
)
from convscope.evaluation import Evaluation
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.results import write_figures
from convscope.experiment.running import Result, read_result, run_experiment
from convscope.experiment.workers import Worker, end, last_lines, stop_with_input
from convscope.lowering.devices import computing_on, current_device, require_device
from convscope.runs import RUN_FILE, RunDirectory, new_folder
from convscope.tracking import follow, read_targets
from convscope.training.checkpoint import TrainingState
from convscope.training.events import Alert, EpochEnd, Event, Listener, Notice, TrainBegin

# What the processes write on standard error, such as warnings.
WORKERS_LOG = "workers.log"
_POLL_SECONDS = 0.2
_ERRORS: Mapping[int, type[ConvscopeError]] = {
    2: UsageError,
    3: RunError,
    4: DivergedError,
    130: InterruptedRunError,
}


def run_several(
    configs: Mapping[str, ExperimentConfig],
    dataset: Dataset,
    out: Path,
    kind: str,
    *,
    command: Sequence[str] = (),
    listeners: Sequence[Listener] = (),
    on_begin: Callable[[str], None] = lambda _name: None,
    on_result: Callable[[Result], None] = lambda _result: None,
    on_event: Callable[[str, Event], None] = lambda _name, _event: None,
    with_report: bool = True,
    began: float | None = None,
    workers: int = 1,
    track: Sequence[str] = (),
) -> list[Result]:
    """Run experiments, each under its name in a folder of their own below ``out``.

    The folder's name has time, ``kind`` and dataset. Where a configuration reads a fold, its run gets that
    fold of the dataset. ``on_begin`` is called before each; a deadline counts from ``began`` for the first
    one. What was finished stays when another one fails.

    With one worker they are run one after the other, ``listeners`` receive every event, and ``on_result`` is
    called once a run's numbers are known, before its report is written, else after it. With several workers
    they are run side by side, each worker a process with its share of the threads: ``on_event`` receives
    what begins a training, ends an epoch or is noted, with the run's name, and the first error is raised
    when all the others are finished. ``track`` names the tools that these processes send their runs to.
    """
    results = []
    with new_folder(out, f"{datetime.now():%Y%m%d-%H%M%S}-{kind}-{dataset.name}") as folder:
        if workers > 1 and len(configs) > 1:
            return _run_side_by_side(
                configs, dataset, folder, workers, on_begin, on_result, on_event, command, with_report, track
            )
        for name, config in configs.items():
            on_begin(name)
            fold = config.reading.get("fold")
            part = take_fold(dataset, *fold) if fold else dataset
            result = run_experiment(
                config, part, folder / name, listeners, command,
                with_report=with_report, began=began, on_result=on_result,
            )  # fmt: skip
            began = None
            results.append(result)
    return results


def _run_side_by_side(
    configs: Mapping[str, ExperimentConfig],
    dataset: Dataset,
    folder: Path,
    workers: int,
    on_begin: Callable[[str], None],
    on_result: Callable[[Result], None],
    on_event: Callable[[str, Event], None],
    command: Sequence[str],
    with_report: bool,
    track: Sequence[str],
) -> list[Result]:
    """Run experiments in several processes, which load the data again."""
    log, device = folder / WORKERS_LOG, str(current_device())

    def task(name: str, config: ExperimentConfig) -> dict[str, Any]:
        reading = {key: value for key, value in config.reading.items() if key != "fold"}
        data = {
            "source": config.data,
            "fingerprint": dataset.fingerprint,
            "reading": {**reading, "resize": config.resize},
        }
        facts = {"command": list(command), "with_report": with_report, "device": device, "track": list(track)}
        return {"config": config.to_json(), "data": data, "target": str(folder / name), **facts}

    def on_message(name: str, message: Mapping[str, Any]) -> None:
        if "done" in message:
            results[name] = cast(Result, read_result(folder / name))
            on_result(results[name])
        elif message["event"] == "begin":
            on_begin(name)
            on_event(name, TrainBegin("", 0, message["epochs"], None))
        elif message["event"] == "epoch":
            on_event(name, EpochEnd(message["epoch"], message["logs"], message["seconds"], _no_snapshot))
        else:
            kind = Alert if message["event"] == "alert" else Notice
            on_event(name, kind(message["text"]))

    results: dict[str, Result] = {}
    try:
        tasks = {name: task(name, config) for name, config in configs.items()}
        failures = _train_side_by_side(tasks, workers, log, on_message)
    except KeyboardInterrupt as error:
        left = [name for name in configs if (folder / name / RUN_FILE).is_file() and name not in results]
        hint = (
            f"`convscope resume {shlex.quote(str(folder / left[0]))}` goes on with the first." if left else ""
        )
        text = (
            f"Interrupted. {len(results)} of {len(configs)} runs in {folder} are complete, {len(left)} begun."
        )
        raise InterruptedRunError(f"{text} {hint}".strip()) from error
    if failures:
        raise _failed(failures, len(configs))
    log.unlink(missing_ok=True)
    return [results[name] for name in configs]


def _no_snapshot() -> TrainingState:
    raise NotImplementedError("another process has the network")


def spread(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Condense the results of several seeds: of test accuracy and loss and of the seconds, mean and spread.

    ``deviation`` is that of the sample, with n − 1; 0 for a single result.
    """
    quantities = {
        "test_accuracy": [result.test.accuracy for result in results],
        "test_loss": [result.test.loss for result in results],
        "seconds": [result.seconds for result in results],
    }
    return {
        name: {
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
            "minimum": min(values),
            "maximum": max(values),
        }
        for name, values in quantities.items()
    }


@dataclass(frozen=True)
class Failure:
    """Why a run of several is not there."""

    name: str
    message: str
    code: int


def _train_side_by_side(
    tasks: Mapping[str, Mapping[str, Any]],
    workers: int,
    log: Path,
    on_message: Callable[[str, Mapping[str, Any]], None],
) -> list[Failure]:
    """Train runs, so many at a time; what one cannot finish does not keep the others from it.

    A task has what ``run_experiment`` needs: ``config``, ``data`` (as a run records it), ``target``,
    ``command``, ``with_report``, ``device`` and ``track``. ``on_message`` gets a run's name and what happens
    to it: ``{"event": …}``, or ``{"done": true}``. When a person stops it, all workers end first, and their
    runs can be resumed.
    """
    waiting, running, failures = deque(tasks.items()), dict[Worker, str](), list[Failure]()
    threads, messages = share_of_threads(workers), queue.SimpleQueue[tuple[Worker, dict[str, Any] | None]]()

    def start() -> Worker:
        worker = Worker(["convscope", "worker"], threads, log)
        worker.listen(messages)
        return worker

    team = [start() for _ in range(min(workers, len(tasks)))]
    try:
        while team:
            try:
                worker, message = messages.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if message is None:
                team.remove(worker)
                name = running.pop(worker, None)
                if name is not None:
                    failures.append(Failure(name, _why_it_died(worker.process.returncode, log), 3))
                    if waiting:
                        team.append(start())
                continue
            if "event" in message:
                on_message(running[worker], message)
                continue
            name = running.pop(worker, "")
            if "failed" in message:
                failures.append(Failure(name, message["failed"], message["code"]))
            elif name:
                on_message(name, message)
            if waiting:
                running[worker], task = waiting.popleft()
                worker.send(task)
            else:
                worker.stop()
    finally:
        end(team)
    return failures


def _failed(failures: Sequence[Failure], runs: int) -> ConvscopeError:
    """Make the error that names the runs which failed."""
    first = failures[0]
    others = "" if len(failures) == runs else " The others are complete."
    lines = "; ".join(f"{one.name}: {one.message}" for one in failures[:3])
    more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
    text = f"{len(failures)} of {runs} runs failed: {lines}{more}{others}"
    return _ERRORS.get(first.code, RunError)(text)


def _why_it_died(code: int, log: Path) -> str:
    """Say how a process ended that did not say so itself."""
    if code < 0:
        with suppress(ValueError):
            return f"its process was ended by {signal.Signals(-code).name}."
    return f"its process ended with code {code}: {last_lines(log)} See {log}."


def main() -> None:
    """Train what standard input names, until it ends."""
    # Whatever a library prints must not stand among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def answer(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    with suppress(KeyboardInterrupt):  # whoever wants that knows it
        stop_with_input(tasks.put)
        known: dict[str, Any] = {}
        answer({"ready": True})
        while line := tasks.get():
            answer(_train(json.loads(line), known, answer))


def _train(task: Mapping[str, Any], known: dict[str, Any], answer: Callable[[Any], None]) -> dict[str, Any]:
    """Train one run; say what came of it."""

    def listen(event: Event) -> None:
        if isinstance(event, TrainBegin):
            answer({"event": "begin", "epochs": event.epochs})
        elif isinstance(event, EpochEnd):
            logs = {name: float(value) for name, value in event.logs.items()}
            answer({"event": "epoch", "epoch": event.epoch, "logs": logs, "seconds": event.seconds})
        elif isinstance(event, Notice):
            answer({"event": "notice", "text": event.text})

    def say(text: str) -> None:
        answer({"event": "alert", "text": text})

    began = time.perf_counter()
    try:
        listeners = [listen, *follow(read_targets(task["track"]), say)]
        config = ExperimentConfig.from_json(task["config"])
        fold = config.reading.get("fold")
        key = json.dumps(task["data"], sort_keys=True)
        if key not in known:
            known[key] = load_again(task["data"])
        dataset = take_fold(known[key], *fold) if fold else known[key]
        with computing_on(require_device(task["device"])):
            run_experiment(
                config, dataset, Path(task["target"]), listeners, task["command"],
                with_report=task["with_report"], began=began,
            )  # fmt: skip
    except ConvscopeError as error:
        return {"failed": str(error), "code": error.exit_code}
    # One run that nobody foresaw must not cost the others.
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return {"failed": f"{type(error).__name__}: {error}.", "code": 1}
    return {"done": True}


PREDICTIONS_FILE, SUMMARY_FILE = "out_of_fold.npz", "cross_validation.json"


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """The runs of all folds, what they say together about every image, and the folder that holds both."""

    folder: Path
    results: Sequence[Result]
    evaluation: Evaluation

    def to_json(self) -> dict[str, Any]:
        """Give the evaluation of the out-of-fold predictions, and each fold's accuracy, as JSON values."""
        return {
            "folds": [
                {"run": result.run.name, "images": result.test.images, "accuracy": result.test.accuracy}
                for result in self.results
            ],
            "evaluation": self.evaluation.to_json(),
        }


def cross_validate(
    config: ExperimentConfig, dataset: Dataset, folds: int, out: Path, **options: Any
) -> CrossValidation:
    """Train one network for each fold, and evaluate what each answers for the images of its fold.

    A part of the other folds' images is held back for the choice of the epoch, as in any training, so that
    nothing is chosen by the images that are counted. ``options`` are those of ``run_several``. Fewer than two
    folds, and a class with fewer different images than there are folds, are refused.
    """
    if folds < 2:
        raise UsageError(expected_got("at least 2 folds", folds))
    seed = config.training.seed
    take_fold(dataset, 1, folds, seed)  # too few images are refused before a folder is made
    configs = {
        f"{config.folder_name}-fold-{number}": replace(
            config, reading={**config.reading, "fold": [number, folds, seed]}
        )
        for number in range(1, folds + 1)
    }
    results = run_several(configs, dataset, out, "folds", **options)
    evaluations = [result.test for result in results]
    evaluation = Evaluation.from_probabilities(
        np.concatenate([one.probabilities for one in evaluations]),
        np.concatenate([one.labels for one in evaluations]),
        dataset.class_names,
        [one.name_of(row) for one in evaluations for row in range(one.images)],
    )
    # Probabilities are those that `predict` answers; the loss is the networks' own, as in each fold.
    loss = np.average([one.loss for one in evaluations], weights=[one.images for one in evaluations])
    evaluation = replace(evaluation, loss=float(loss))
    found = CrossValidation(results[0].run.parent, results, evaluation)
    _write_folds(found, f"{config.network_name} on {dataset.name}, {folds} folds")
    return found


def _write_folds(found: CrossValidation, subject: str) -> None:
    """Write predictions, numbers and figures beside the runs."""
    evaluation, files = found.evaluation, RunDirectory(found.folder)
    files.write_arrays(
        PREDICTIONS_FILE,
        {
            "probabilities": evaluation.probabilities.astype(np.float32),
            "labels": evaluation.labels,
            "names": np.array([evaluation.name_of(row) for row in range(evaluation.images)]),
        },
    )
    files.write_json(SUMMARY_FILE, found.to_json())
    figures = {
        "confusion_matrix": plotting.plot_confusion_matrix(evaluation.confusion, evaluation.class_names),
        "reliability": plotting.plot_reliability(evaluation.reliability),
    }
    write_figures(files, figures, subject)
