"""One experiment on several processes: the first writes the run, all train; a restart goes on from it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from convscope.data.dataset import Dataset
from convscope.data.loading import load_again
from convscope.errors import DataError, UsageError, expected_got
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.fitting import stop_on_signals, train
from convscope.experiment.preparation import begin_session
from convscope.experiment.running import (
    OnResult,
    Trained,
    read_result,
    resume_experiment,
    run_experiment,
)
from convscope.experiment.transfer import rate_factors
from convscope.runs import RUN_FILE, RunDirectory, new_folder, open_unfinished
from convscope.training.distributed import Group, attempt, join
from convscope.training.events import EpochEnd, Event, Listener, StepEnd

_RUN = "convscope-run"  # under which the launcher remembers the run of an earlier attempt


def train_together(
    config: ExperimentConfig,
    dataset: Dataset,
    out: Path,
    *,
    listeners: Sequence[Listener] = (),
    command: Sequence[str] = (),
    with_report: bool = True,
    on_result: OnResult = lambda _result: None,
) -> Trained | None:
    """Train one network on all processes; the first gets what came out, the others None.

    Where the launcher has started them anew, the run that an earlier attempt began goes on.
    """
    _refuse_deadline(config)
    group = join()
    if group is None:
        hint = "Leave the work to Keras's own fit, in a script of yours."
        raise UsageError(expected_got("no keras.distribution beside torchrun", "one", hint))
    fingerprint = group.same(dataset.fingerprint)
    if fingerprint != dataset.fingerprint:  # another machine may have others under the same name
        found = f"{dataset.name}, {dataset.fingerprint[:12]}"
        hint = "Copy the data of the first machine to all others."
        raise DataError(
            expected_got(f"the first process's data, fingerprint {fingerprint[:12]}", found, hint)
        )
    if not group.leads:
        _train_along(group, config, dataset)
        return None
    begun = _begun(group)
    if begun is not None:
        if RunDirectory(begun).read_json(RUN_FILE).get("status") != "completed":
            return resume_experiment(begun, listeners, on_result=on_result)
        result = read_result(begun)
        on_result(result)
        return result
    with new_folder(out, f"{datetime.now():%Y%m%d-%H%M%S}-train-{dataset.name}") as folder:
        target = folder / config.network_name
        group.memory.set(_RUN, str(target.resolve()))
        return run_experiment(
            config, dataset, target, listeners, command, with_report=with_report, on_result=on_result
        )


def resume_together(
    path: str | Path,
    listeners: Sequence[Listener] = (),
    *,
    with_report: bool | None = None,
    data: str | Path | None = None,
    on_result: OnResult = lambda _result: None,
) -> Trained | None:
    """Go on with a training, on as many processes as there are now; arguments as for one process."""
    group = join()
    if group is not None:
        _refuse_deadline(ExperimentConfig.from_json(open_unfinished(path).read_json(RUN_FILE)["config"]))
    if group is None or group.leads:
        return resume_experiment(path, listeners, with_report=with_report, data=data, on_result=on_result)
    record = open_unfinished(path).read_json(RUN_FILE)
    if data is not None:
        record["data"]["source"] = str(Path(data).resolve() if Path(data).exists() else data)
    _train_along(group, ExperimentConfig.from_json(record["config"]), load_again(record["data"]))
    return None


def _train_along(group: Group, config: ExperimentConfig, dataset: Dataset) -> None:
    """Train a network together with the first process, which writes the run."""
    session = begin_session(config, dataset)
    settled: Any = group.same(None)  # as running.py gives it
    config, rate, by_stage, is_left_out, state, plan = settled
    if is_left_out:
        return
    session.model.optimizer.learning_rate = rate
    factors = rate_factors(session.model) if by_stage else None
    with stop_on_signals() as stop_asked:
        stop = group.stop_together(stop_asked)

        def listen(event: Event) -> None:
            if isinstance(event, StepEnd | EpochEnd) and stop():
                raise KeyboardInterrupt

        train(session.model, session.prepared, config, [listen], state, plan, rate_factors=factors)


def _refuse_deadline(config: ExperimentConfig) -> None:
    """Refuse a deadline: each process would follow a clock of its own."""
    if config.training.within is not None:
        hint = "Give epochs, or train in one process."
        raise UsageError(
            expected_got("no deadline on several processes", f"{config.training.within:g} s", hint)
        )


def _begun(group: Group) -> Path | None:
    """Find the run that an earlier attempt of these processes has begun, if it came to a checkpoint."""
    if not attempt() or not group.memory.check([_RUN]):
        return None
    path = Path(group.memory.get(_RUN).decode())
    return path if (path / RUN_FILE).is_file() else None
