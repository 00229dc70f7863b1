"""What is found out before a training, on copies of the network: preflight, learning rate, throughput."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from convscope import plotting
from convscope.errors import UsageError, expected_got
from convscope.evaluation.novelty import SAMPLE
from convscope.experiment.fitting import Timetable, fit_arguments, training_arrays
from convscope.experiment.preparation import Session
from convscope.experiment.results import write_figures
from convscope.experiment.transfer import MOST_MEASURED
from convscope.runs import RunDirectory
from convscope.training.events import Listener, Notice, notify

_PROGRESS = logging.getLogger("convscope.progress")

# What a run takes beside training and prediction: its files, its figures, and its report; seconds of one
# core as fast as those of 2024, which are stretched by how long this process has had to wait for its own.
_WRITING_SECONDS = 1.8
_REPORT_SECONDS = 2.6
_MOST_WAITING = 4.0
# What a report computes of some images, layer by layer, takes as long as the prediction of so many.
_LOOKED_INTO = 200
# Of a deadline that is kept free, since nothing is foreseen exactly; and that is the training's in any case.
_SPARE_SHARE, _LEAST_SHARE = 0.04, 0.25
# With fewer images fine-tuning has been worse than the head alone.
LEAST_TO_FINE_TUNE = 100
# A step of training takes as long as the prediction of its images so many times.
_TRAINING_COST = 2.5
_IMPORTED, _COMPUTED_AT_IMPORT = time.perf_counter(), time.process_time()


def try_out(
    session: Session,
    run: RunDirectory,
    record: dict[str, Any],
    listeners: Sequence[Listener] = (),
    *,
    began: float | None = None,
    with_report: bool = True,
) -> Session:
    """Try out what was asked for; return a session with the learning rate that was found.

    The rate and the timetable are added to ``record``, which is what ``run.json`` holds. The time of a
    deadline counts from ``began``, by ``time.perf_counter``, and has to suffice for a report too if there is
    to be one.
    """
    began = time.perf_counter() if began is None else began
    training = session.config.training

    def say(text: str) -> None:
        notify(listeners, Notice(text))

    for name, value in (("until", training.until), ("patience", training.patience)):
        if value is not None and session.prepared.validation is None:
            hint = "Give a validation share above 0."
            raise UsageError(expected_got(f"validation images to stop by with {name}", "none", hint))
    if session.head is not None:
        pass  # it has just learned something
    elif session.config.preflight:
        _preflight(session, say)
    elif session.config.network_file:
        _require_probabilities(session)
    if training.find_learning_rate and training.learning_rate is None:
        _PROGRESS.info("Finding a learning rate")
        session = _find_learning_rate(session, run, say)
        record["config"] = session.config.to_json()
    reason = _why_no_fine_tuning(session, began, with_report)
    if reason:
        record["fine_tuning"] = "left out"
        say(f"Fine-tuning is left out: {reason}")
    elif training.within is not None:
        _PROGRESS.info("Measuring how long an epoch takes")
        timetable, plan = _measure(session, training.within, began, with_report)
        many = "1 epoch" if timetable.epochs == 1 else f"{timetable.epochs} epochs"
        share = f"{timetable.seconds:.0f} of the {training.within:g} s are left for the training"
        say(f"deadline: {share}, about {many}")
        record["timetable"], record["plan"] = asdict(timetable), plan
    return session


def _preflight(session: Session, say: Callable[[str], None]) -> None:
    from convscope.training.dry_runs import preflight

    _PROGRESS.info("Seeing whether a copy of the network overfits one batch")
    prepared, engine = session.prepared, session.config.training.engine
    x, y = training_arrays(prepared)
    trial = preflight(session.model, x, y, preprocess=prepared.preprocess, engine=engine)
    if trial.warning is not None:
        say(f"preflight: {trial.warning}")
    if trial.learned is None:
        each = trial.seconds / max(trial.steps - 1, 1)
        say(
            f"preflight: the loss of {trial.images} images went from {trial.first_loss:.3g} to "
            f"{trial.last_loss:.3g} in {trial.steps} steps; at {each:.1f} s a step there was no time to see "
            "whether the network overfits them, as it should"
        )
    else:
        done = f"the network overfits one batch of {trial.images} images in {trial.steps} steps"
        say(f"preflight: {done}, as it should")


def _require_probabilities(session: Session) -> None:
    """Refuse a network from a file that the evaluation would refuse, before it is trained."""
    from convscope.training.dry_runs import IMAGES, require_fitting_outputs

    prepared, engine = session.prepared, session.config.training.engine
    x, _ = training_arrays(prepared)
    images = np.asarray(x[:IMAGES])
    require_fitting_outputs(session.model, images, preprocess=prepared.preprocess, engine=engine)


def _find_learning_rate(session: Session, run: RunDirectory, say: Callable[[str], None]) -> Session:
    from convscope.training.dry_runs import find_learning_rate

    x, y = training_arrays(session.prepared)
    search = find_learning_rate(session.model, x, y, **fit_arguments(session.config, session.prepared))
    session.model.optimizer.learning_rate = search.found
    subject = f"{session.config.network_name} on {session.dataset.name}"
    figure = plotting.plot_rate_search(search.rates, search.losses, search.smoothed, search.found)
    write_figures(run, {"learning-rate": figure}, subject)
    say(
        f"learning rate: {search.found:.2g}, a tenth of the rate at which the loss was lowest in "
        f"{len(search.rates)} steps from {search.rates[0]:.0e} to {search.rates[-1]:.2g}"
    )
    training = replace(session.config.training, learning_rate=search.found)
    return replace(session, config=replace(session.config, training=training))


def _measure(session: Session, within: float, began: float, with_report: bool) -> tuple[Timetable, Any]:
    """Measure how fast the training goes, and divide the time."""
    from convscope.training.dry_runs import measure_throughput

    prepared, head = session.prepared, session.head
    x, y = training_arrays(prepared)
    speed = measure_throughput(
        session.model,
        x,
        y,
        seconds=min(0.8, within / 40),
        image_seconds=head.image_seconds if head else None,
        **fit_arguments(session.config, prepared),
    )
    held_back = len(prepared.validation) if prepared.validation else 0
    left = within - (time.perf_counter() - began)
    seconds = divide_time(within, left, _seconds_afterwards(session, speed.image_seconds, with_report))
    steps = math.ceil(len(prepared.train) / session.config.training.batch_size)
    epochs = max(1, round(seconds / speed.epoch_seconds(steps, held_back)))
    return Timetable(seconds, held_back * speed.image_seconds, epochs), speed.plan


def divide_time(within: float, left: float, afterwards: float) -> float:
    """Give the training what is ``left`` of ``within`` seconds, less what comes ``afterwards``; but some."""
    return max(left - afterwards - _SPARE_SHARE * within, _LEAST_SHARE * within)


def _why_no_fine_tuning(session: Session, began: float, with_report: bool) -> str:
    """Say why the network of a fitted head is not trained any further; empty where it is."""
    head, training, prepared = session.head, session.config.training, session.prepared
    if head is None:
        return ""
    if len(prepared.train) < LEAST_TO_FINE_TUNE:
        return f"{len(prepared.train)} training images are fewer than {LEAST_TO_FINE_TUNE}"
    reached = head.row.get("val_accuracy", 0.0)
    if training.until is not None and reached >= training.until:
        return f"the head alone reaches {reached:.2%} of the validation images"
    if training.within is None:
        return ""
    held_back = len(prepared.validation) if prepared.validation else 0
    epoch = head.image_seconds * (_TRAINING_COST * len(prepared.train) + held_back)
    afterwards = _seconds_afterwards(session, head.image_seconds, with_report)
    left = training.within - (time.perf_counter() - began) - afterwards
    if left > epoch:
        return ""
    return f"an epoch takes about {epoch:.0f} s, and {max(left, 0):.0f} of {training.within:g} s are left"


def _seconds_afterwards(session: Session, image_seconds: float, with_report: bool) -> float:
    """Estimate what comes after the training: predictions, files, figures, report."""
    prepared = session.prepared
    images, train = len(prepared.test), len(prepared.train)
    if prepared.validation:
        images += len(prepared.validation) + min(train, SAMPLE)  # how far apart they are in feature space
        if session.head is not None:  # the average of weights
            images += len(prepared.validation) + min(train, MOST_MEASURED)
    if with_report:
        images += _LOOKED_INTO
    return images * image_seconds + _writing_seconds(with_report)


def _writing_seconds(with_report: bool) -> float:
    """Estimate what files and report take; each second more as this process has to wait for its core."""
    computed = time.process_time() - _COMPUTED_AT_IMPORT
    passed = time.perf_counter() - _IMPORTED
    stretch = min(max(passed / computed, 1.0), _MOST_WAITING) if computed else 1.0
    return (_WRITING_SECONDS + _REPORT_SECONDS * with_report) * stretch
