"""A sweep: trainings with other settings, the best by its validation, one look at the test images.

A trial is an ordinary run in the sweep's folder, without the test images. Beside the trials stands one run
with the searched settings as they are by default, so that the winner has something to be compared with.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from convscope import plotting
from convscope.data.dataset import Dataset
from convscope.errors import ConvscopeError, DivergedError, InterruptedRunError, RunError, expected_got
from convscope.evaluation import Comparison, compare
from convscope.evaluation.test_set_log import TEST_SET_LOG
from convscope.experiment.config import ExperimentConfig
from convscope.experiment.running import (
    Result,
    Trained,
    evaluate_on_test,
    read_result,
    resume_experiment,
    run_trial,
)
from convscope.experiment.space import Range
from convscope.experiment.study import DEFAULTS, MOST_ATTEMPTS, Claim, Study, TrialRow, hold
from convscope.report.rendering import render_sweep
from convscope.runs import RUN_FILE, RunDirectory, lock_run, locked
from convscope.training.events import EpochBegin, EpochEnd, Event, Listener

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOG = logging.getLogger(__name__)

SWEEP_FILE, PAGE_FILE = "sweep.json", "sweep.html"
# How often somebody looks who waits for the trials of others.
POLL_SECONDS = 0.5

# The settings of a trial as `train` takes them → what is trained, and on what.
Settle = Callable[[Mapping[str, Any]], tuple[ExperimentConfig, Dataset]]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a sweep found: the winner and the defaults on the test images, where both runs are at hand."""

    rows: Sequence[TrialRow]
    winner: TrialRow | None
    winner_result: Trained | None
    defaults: Trained | None
    comparison: Comparison | None
    importances: Mapping[str, float]
    sentences: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Give everything as JSON values."""
        return {
            "trials": [{**asdict(row), "run": row.name} for row in self.rows],
            "winner": None
            if self.winner is None
            else {"run": self.winner.name, **_scores(self.winner_result)},
            "defaults": None if self.defaults is None else _scores(self.defaults),
            "comparison": None if self.comparison is None else self.comparison.to_json(),
            "importances": dict(self.importances),
            "sentences": list(self.sentences),
        }


def _scores(trained: Trained | None) -> dict[str, Any]:
    """Give what a run reached on both parts, as far as that is known."""
    validation = trained.validation if trained else None
    test = trained.test if isinstance(trained, Result) else None
    return {
        "validation_accuracy": validation.accuracy if validation else None,
        "validation_loss": validation.loss if validation else None,
        "test_accuracy": test.accuracy if test else None,
    }


def work(
    study: Study,
    settle: Settle,
    *,
    command: Sequence[str] = (),
    listeners: Callable[[str], Sequence[Listener]] = lambda _name: (),
    on_change: Callable[[], None] = lambda: None,
    until: float = math.inf,
) -> None:
    """Train trial after trial until none is left, and those that others work on are finished too.

    ``listeners`` gives those of a run by its name; no trial is begun after ``until``, by ``time.monotonic``.
    A trial that a person stops is resumed when anybody goes on with the sweep.
    """
    while time.monotonic() < until:
        with ExitStack() as held:
            compared = is_complete(study.folder / DEFAULTS) or study.defaults_failed
            if not compared and hold(study.folder / "defaults-claim", held):
                try:
                    _train(study.folder / DEFAULTS, settle, {}, study, listeners(DEFAULTS), command)
                except DivergedError as error:
                    study.give_up_defaults(str(error))
            elif (claim := study.claim(held)) is not None:
                _run(claim, study, settle, listeners(claim.run.name), command)
            elif study.finished and compared:
                return
            else:
                time.sleep(POLL_SECONDS)
        on_change()


def _run(
    claim: Claim, study: Study, settle: Settle, listeners: Sequence[Listener], command: Sequence[str]
) -> None:
    """Train one trial, and note what became of it."""
    if claim.attempts > MOST_ATTEMPTS:
        claim.finish("failed", reason=f"Its process died {MOST_ATTEMPTS} times.")
        return
    reporting = _Reporter(claim, study.metric)
    try:
        trained = _train(claim.run, settle, claim.values, study, [*listeners, reporting], command)
        validation = trained.validation
        if validation is None:
            raise RunError(expected_got("a validation share above 0", "no validation images"))
    except optuna.TrialPruned:
        _mark_pruned(claim.run)
        claim.finish("pruned", seconds=reporting.seconds)
    except InterruptedRunError:
        raise
    except DivergedError as error:
        claim.finish("failed", reason=f"diverged: {error}")
    except ConvscopeError as error:
        if isinstance(error, RunError) and isinstance(error.__cause__, OSError):
            raise  # a full disk would only cost the other trials too
        claim.finish("failed", reason=str(error))
    # One network that nobody foresaw must not cost the others.
    except Exception as error:
        _LOG.warning("Trial %s failed.", claim.number, exc_info=error)
        claim.finish("failed", reason=f"{type(error).__name__}: {error}")
    else:
        value = validation.accuracy if study.maximize else validation.loss
        claim.finish("complete", value, loss=validation.loss, seconds=trained.seconds)


def _train(
    run: Path,
    settle: Settle,
    values: Mapping[str, Any],
    study: Study,
    listeners: Sequence[Listener],
    command: Sequence[str],
) -> Trained:
    """Train a run of the sweep, go on with it, or read what came out of it."""
    if is_complete(run):
        return read_result(run)
    if run.exists():
        try:
            return resume_experiment(run, listeners)
        except (DivergedError, InterruptedRunError):
            raise
        except RunError as error:
            if isinstance(error.__cause__, OSError):
                raise
            _LOG.warning("%s is trained anew: it cannot be resumed. %s", run.name, error)
            shutil.rmtree(run, ignore_errors=True)
    config, dataset = settle(study.plan.space.settings(values))
    return run_trial(config, dataset, run, listeners, command)


class _PrunedError(optuna.TrialPruned):
    run_status = "pruned"


class _Reporter:
    """Tells the study what each epoch reached, and ends the training where the pruner wants that."""

    def __init__(self, claim: Claim, metric: str) -> None:
        self._claim, self._metric = claim, metric
        self._prune = False
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochEnd) and self._metric in event.logs:
            self._prune = self._claim.report(event.epoch, float(event.logs[self._metric]))
        # Not at once: by now the epoch's checkpoint is written, and a last epoch was not for nothing.
        elif isinstance(event, EpochBegin) and self._prune:
            raise _PrunedError


def _mark_pruned(run: Path) -> None:
    """Say in a run that was ended early why it is not complete; it can be resumed."""
    if run.exists():
        with suppress(RunError), lock_run(run):
            RunDirectory(run).update_json(RUN_FILE, lambda record: {**(record or {}), "status": "pruned"})


def is_complete(run: Path) -> bool:
    """Say whether a run is finished."""
    if not (run / RUN_FILE).is_file():
        return False
    return RunDirectory(run).read_json(RUN_FILE).get("status") == "completed"


def conclude(study: Study, listeners: Sequence[Listener] = (), *, with_report: bool = True) -> Outcome:
    """Give the winner its one look at the test images, and say whether it beats the defaults by chance."""
    with locked(study.folder / "conclusion", -1):
        rows, winner, defaults = study.rows(), study.winner(), None
        if is_complete(study.folder / DEFAULTS):
            defaults = evaluate_on_test(study.folder / DEFAULTS, listeners, by="sweep", with_report=False)
        winner_result: Trained | None = None
        comparison = None
        if winner is not None and is_complete(study.folder / winner.name):
            winner_result = evaluate_on_test(
                study.folder / winner.name, listeners, by="sweep", with_report=with_report
            )
        if isinstance(winner_result, Result) and defaults is not None:
            comparison = compare(defaults.test, winner_result.test, "the defaults", "the winner")
        found = Outcome(rows, winner, winner_result, defaults, comparison, study.importances(), ())
        found = replace(found, sentences=_sentences(found, study))
        files = RunDirectory(study.folder)
        files.write_json(SWEEP_FILE, {**study.plan.identity(), **found.to_json()})
        with plotting.embedded():
            figures = _figures(found, study)
            for name, figure in figures.items():
                file = f"figures/{name.lower().replace(' ', '-')}.png"
                files.write_bytes(file, plotting.png_bytes(figure))
            files.write_bytes(PAGE_FILE, _page(found, study, figures).encode("utf-8", "backslashreplace"))
        return found


def _figures(found: Outcome, study: Study) -> dict[str, Figure]:
    """Draw what the trials reached, with which settings, and which of these matter."""
    objective = study.plan.objective
    defaults = found.defaults.validation if found.defaults else None
    default = None if defaults is None else defaults.accuracy if study.maximize else defaults.loss
    early = [row.reached if row.state == "pruned" else None for row in found.rows]
    complete = [row for row in found.rows if row.value is not None]
    searched = study.plan.space.searched
    logarithmic = [name for name, one in searched.items() if isinstance(one, Range) and one.log]
    return {
        "History": plotting.plot_trials(
            [row.value for row in found.rows],
            ended_early=early,
            defaults=default,
            objective=objective,
        ),
        "Parallel coordinates": plotting.plot_parallel_coordinates(
            [row.settings for row in complete],
            [row.value for row in complete if row.value is not None],
            logarithmic=logarithmic,
            objective=objective,
        ),
        "Importance": plotting.plot_importances(found.importances),
    }


def _page(found: Outcome, study: Study, figures: Mapping[str, Figure]) -> str:
    plan = study.plan
    names = list(plan.space.searched)
    reasons = ["reason"] if any(row.reason for row in found.rows) else []
    rows = [
        [
            *(row.name, row.state, str(row.epochs), written(row.reached)),
            *(written(row.settings.get(name)) for name in names),
            *(row.reason for _ in reasons),
        ]
        for row in ranked(found.rows, study.maximize)
    ]
    fixed = [(name, str(value)) for name, value in plan.space.fixed.items()]
    space = [(name, str(one)) for name, one in plan.space.searched.items()] + fixed
    return render_sweep(
        f"{plan.name}: {len(found.rows)} trials on {plan.data.get('name', 'the data')}",
        found.sentences,
        figures,
        ["trial", "state", "epochs", plan.objective, *names, *reasons],
        rows,
        space,
        f"Values were chosen by Optuna's {plan.sampler}, trials ended early by its {plan.pruner}.",
    )


def ranked(rows: Sequence[TrialRow], maximize: bool) -> list[TrialRow]:
    """Order trials: the best first, then those that are not complete."""
    sign = -1 if maximize else 1
    return sorted(rows, key=lambda row: (math.inf if row.value is None else sign * row.value, row.number))


def written(value: Any) -> str:
    """Write a setting's value."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _sentences(found: Outcome, study: Study) -> list[str]:
    """Say in words what was found, and how far that can be trusted."""
    if found.winner is None:
        return ["No trial is complete: there is no winner."]
    if found.winner_result is None or found.winner_result.validation is None:
        return [f"The winner is {found.winner.name}; its run is at {found.winner.place}, not here."]
    validation = found.winner_result.validation
    settings = ", ".join(f"{name} {written(value)}" for name, value in found.winner.settings.items())
    lines = [
        f"The winner by its validation is {found.winner.name} ({settings}): {validation.accuracy:.2%} of "
        f"{validation.images:,} validation images, at a loss of {validation.loss:.4f}."
    ]
    if study.defaults_failed:
        lines.append(f"The defaults diverged. {study.defaults_failed}")
    elif found.defaults is not None and found.defaults.validation is not None:
        other = found.defaults.validation
        lines.append(f"The defaults reach {other.accuracy:.2%} there, at a loss of {other.loss:.4f}.")
    trials = sum(row.value is not None for row in found.rows)
    if trials > 1:
        luck = expected_luck(trials, validation.accuracy, validation.images)
        lines.append(
            f"The best of {trials} trials on the same validation images is partly the luckiest one: of "
            f"{trials} equally good networks the best would seem better than it is by up to "
            f"{100 * luck:.1f} points. Its validation accuracy is optimistic; the test images tell."
        )
    if found.comparison is not None:
        sentence = found.comparison.sentence()
        lines.append(f"{sentence[0].upper()}{sentence[1:]}")
    looked = [row for row in found.rows if (study.folder / row.name / TEST_SET_LOG).is_file()]
    if len(looked) > 1:
        lines.append(
            f"{len(looked)} trials have been the winner so far and looked at the test images: the more do, "
            "the less the test images say."
        )
    return lines


def expected_luck(trials: int, accuracy: float, images: int) -> float:
    """Estimate by how much the best of several equally good networks seems better than it is.

    The expected largest of n normal errors (G. Blom, "Statistical estimates and transformed beta-variables",
    1958). Networks that err on the same images differ by less, so it is an upper end.
    """
    from scipy.special import ndtri

    share = (trials - 0.375) / (trials + 0.25)
    return float(ndtri(share)) * math.sqrt(accuracy * (1 - accuracy) / images)
