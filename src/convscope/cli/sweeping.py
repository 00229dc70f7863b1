"""``convscope sweep``."""

from __future__ import annotations

import math
import queue
import sys
import time
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli.output import console, say, show_json, table, warn
from convscope.cli.parsing import Device, Json, Track, read_duration
from convscope.cli.settings import SETTINGS, check_settings, settle
from convscope.errors import DataNotFoundError, InterruptedRunError, RunError, UsageError, expected_got

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from convscope.data.dataset import Dataset
    from convscope.experiment.space import Space
    from convscope.experiment.study import Study, TrialRow
    from convscope.experiment.sweep import Outcome
    from convscope.training.events import Event

# So many rows of trials are shown while a sweep runs, and in the end.
SECONDS_BETWEEN_LOOKS = 0.5
# So many killed workers for each that there is are replaced before another trial is over.
MOST_KILLED = 5
SHOWN_RUNNING, SHOWN_IN_THE_END = 12, 20


def sweep(
    data: Annotated[str, typer.Argument(help="mnist, digits, or the path of your images.")],
    space: Annotated[
        Path, typer.Option(help="A TOML file: settings of train, fixed, as a list, or as a range.")
    ],
    trials: Annotated[int, typer.Option(help="How many trainings; more than before goes on.")] = 20,
    sampler: Annotated[str, typer.Option(help="How values are chosen, by Optuna's name.")] = "TPESampler",
    pruner: Annotated[
        str, typer.Option(help="Which trials are ended early, by Optuna's name; NopPruner: none.")
    ] = "MedianPruner",
    objective: Annotated[str, typer.Option(help="accuracy or loss, on the validation images.")] = "accuracy",
    timeout: Annotated[str | None, typer.Option(help="Begin no trial after this time: 30m, 8h.")] = None,
    workers: Annotated[
        int, typer.Option(help="So many trials side by side, in processes that share the threads.")
    ] = 1,
    storage: Annotated[
        str | None,
        typer.Option(help="A database's URL, for several machines. [default: a journal in the folder]"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The sweep's folder in --out. [default: sweep-DATA-SPACE]")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder in which sweeps are written.")] = Path("runs"),
    report: Annotated[bool, typer.Option(help="Write the winner's report.html.")] = True,
    track: Track = None,
    as_worker: Annotated[
        float | None, typer.Option(hidden=True, help="Train trials of this sweep for so many seconds.")
    ] = None,
    _device: Device = None,
    json: Json = False,
) -> None:
    """Search for better settings: trials, chosen by validation.

    The same command goes on with a sweep that was stopped, and takes part in one that runs.

    Example: convscope sweep digits --space space.toml --trials 20
    """
    from convscope.environment import require_package
    from convscope.experiment.space import read_space

    if workers < 1:
        raise UsageError(expected_got("workers of at least 1", workers))
    from convscope.tracking import follow, read_targets

    targets = read_targets(track or ())
    seconds = as_worker or (read_duration(timeout) if timeout else math.inf)
    until = time.monotonic() + seconds
    if not space.is_file():
        raise DataNotFoundError(expected_got("a TOML file for --space", f"nothing at {space}"))
    found = read_space(space, SETTINGS)
    _check_space(found, data, space)
    require_package("optuna", "sweep")
    known: dict[str, Dataset] = {}
    config, dataset = settle(data, found.settings({}), quiet=json, known=known)
    if not config.validation_share and dataset.validation is None:
        hint = "Trials are chosen by their validation."
        raise UsageError(expected_got("a validation share above 0", config.validation_share, hint))
    from convscope.experiment.study import Study, SweepPlan
    from convscope.experiment.sweep import conclude, work
    from convscope.experiment.workers import stop_with_input

    name = name or f"sweep-{dataset.name}-{space.stem}"
    plan = SweepPlan(
        name=name,
        folder=out / name,
        space=found,
        trials=trials,
        data={"name": dataset.name, "fingerprint": dataset.fingerprint},
        objective=objective,
        sampler=sampler,
        pruner=pruner,
        storage=storage,
    )
    study = Study(plan)
    display = _Display(study, json or as_worker is not None)
    tracking = follow(targets, display.alert if as_worker is None else _tell_whoever_started_this)

    def train_here() -> None:
        work(
            study,
            lambda given: settle(data, given, quiet=True, known=known),
            command=["convscope", *sys.argv[1:]],
            listeners=lambda _run: [display.listen, *tracking],
            on_change=display.refresh,
            until=until,
        )

    if as_worker is not None:
        stop_with_input()
        train_here()
        return
    try:
        with display:
            if workers == 1:
                train_here()
            else:
                _train_in_workers(study, workers, until, display)
    except (KeyboardInterrupt, InterruptedRunError) as error:
        done = sum(row.over for row in study.rows())
        text = f"Interrupted. {done} of {study.trials} trials in {study.folder} are done."
        raise InterruptedRunError(f"{text} The same command goes on.") from error
    outcome = conclude(study, tracking, with_report=report)
    if json:
        show_json({"sweep": str(study.folder), **outcome.to_json()})
    else:
        _show_outcome(study, outcome)


def _tell_whoever_started_this(text: str) -> None:
    sys.stdout.write(dumps({"alert": text}) + "\n")
    sys.stdout.flush()


def _train_in_workers(study: Study, workers: int, until: float, display: _Display) -> None:
    """Let processes train the trials, and replace one that is killed."""
    from convscope.environment import share_of_threads
    from convscope.experiment.workers import Worker, end, last_lines

    threads, log = share_of_threads(workers), study.folder / "workers.log"
    messages = queue.SimpleQueue[tuple[Worker, dict[str, Any] | None]]()

    def start() -> Worker:
        left = ["--as-worker", str(until - time.monotonic())]
        worker = Worker(["convscope", *sys.argv[1:], *left], threads, log)
        worker.listen(messages)
        return worker

    team, killed, done = [start() for _ in range(workers)], 0, 0
    try:
        while team:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            display.refresh()
            while not messages.empty():
                if (message := messages.get()[1]) and "alert" in message:
                    display.alert(message["alert"])
            over = sum(row.over for row in study.rows())
            killed, done = (0 if over > done else killed), over
            for worker in [one for one in team if one.process.poll() is not None]:
                team.remove(worker)
                code = worker.process.returncode
                if code < 0 and time.monotonic() < until:
                    killed += 1
                    if killed > MOST_KILLED * workers:
                        words = last_lines(log)
                        hint = f"See {log}. {words}"
                        raise RunError(expected_got("workers that are not killed", f"{killed} times", hint))
                    team.append(start())
                elif code > 0 and not team and not study.finished and time.monotonic() < until:
                    found = f"one that ended with code {code}: {last_lines(log)}"
                    raise RunError(expected_got("a worker that trains the trials", found, f"See {log}."))
    finally:
        end(team)


def _check_space(space: Space, data: str, file: Path) -> None:
    """Refuse values that no training can have, each with the setting that it is of."""
    for name, one in space.searched.items():
        for value in one.ends:
            try:
                check_settings(data, space.settings({name: value}))
            except UsageError as error:
                raise UsageError(f"{file}, {name}: {error}") from error
    try:
        check_settings(data, space.settings({}))
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


class _Display:
    """Shows how a sweep goes on: a table that changes on a terminal, a line for each trial elsewhere."""

    def __init__(self, study: Study, json: bool) -> None:
        self._study, self._json = study, json
        self._reported: set[int] = set()
        self._alerts: set[str] = set()
        self._live: Live | None = None

    def __enter__(self) -> _Display:
        self._reported = {row.number for row in self._study.rows() if row.over}
        if self._reported and not self._json:
            say(f"Going on: {len(self._reported)} of {self._study.trials} trials are done.")
        if not self._json and sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(console=console(), transient=True, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def listen(self, event: Event) -> None:
        """Watch a run that this process trains."""
        from convscope.training.events import EpochEnd

        if isinstance(event, EpochEnd):
            self.refresh()

    def alert(self, text: str) -> None:
        """Say what must not be overlooked, once: each trial may have met it."""
        if text in self._alerts:
            return
        self._alerts.add(text)
        if self._live is not None:
            self._live.stop()
        warn(text)
        if self._live is not None:
            self._live.start()

    def refresh(self) -> None:
        """Show the trials as they are now."""
        if self._json:
            return
        rows = self._study.rows()
        if self._live is not None:
            self._live.update(self._picture(rows), refresh=True)
            return
        for row in rows:
            if row.over and row.number not in self._reported:
                self._reported.add(row.number)
                done = f"{sum(row.over for row in rows)}/{len(rows)}"
                _, _, _, reached, *values = _cells(row, list(row.settings))
                settings = ", ".join(map(" ".join, zip(row.settings, values, strict=True)))
                say(f"{done} {row.name} {row.state} · {reached} · {settings}{_left(rows)}", whole=True)

    def _picture(self, rows: list[TrialRow]) -> Table:
        from rich.table import Table
        from rich.text import Text

        over = sum(row.over for row in rows)
        title = f"{self._study.plan.name}: {over} of {len(rows)} trials{_left(rows)}"
        grid = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
        names = list(self._study.plan.space.searched)
        for column in ("trial", "state", "epoch", self._study.plan.objective, *names):
            grid.add_column(Text(column), justify="left" if column in ("trial", "state") else "right")
        for row in _shown(rows, self._study.maximize, SHOWN_RUNNING):
            grid.add_row(*_cells(row, names))
        return grid


def _shown(rows: Sequence[TrialRow], maximize: bool, most: int) -> list[TrialRow]:
    """Give the trials that are shown: those that run, then the best ones."""
    from convscope.experiment.sweep import ranked

    begun = [row for row in ranked(rows, maximize) if row.state != "waiting"]
    return sorted(begun, key=lambda row: row.state != "running")[:most]


def _cells(row: TrialRow, names: list[str]) -> list[str]:
    from convscope.experiment.sweep import written

    reached = "–" if row.reached is None else f"{row.reached:.4f}"
    return [
        row.name,
        row.state,
        str(row.epochs),
        reached,
        *(written(row.settings.get(name)) for name in names),
    ]


def _left(rows: list[TrialRow]) -> str:
    """Say how long the rest will take, by the trials that are over; nothing before there is one."""
    from convscope.report.formatting import duration

    seconds = [row.seconds for row in rows if row.over and row.seconds]
    left = sum(not row.over for row in rows)
    if not seconds or not left:
        return ""
    running = max(1, sum(row.state == "running" for row in rows))
    return f", about {duration(sum(seconds) / len(seconds) * left / running)} left"


def _show_outcome(study: Study, outcome: Outcome) -> None:
    """Print the best trials, and what they are worth."""
    from convscope.experiment.sweep import PAGE_FILE

    names = list(study.plan.space.searched)
    rows = list(outcome.rows)
    shown = _shown(rows, study.maximize, SHOWN_IN_THE_END)
    columns = ["trial", "state", "epochs", study.plan.objective, *names]
    over = sum(row.over for row in rows)
    best = "" if len(shown) == len(rows) else f", the best {len(shown)}"
    table(f"{over} of {len(rows)} trials{best}", columns, [_cells(row, names) for row in shown], left=(0, 1))
    reasons = {row.reason for row in rows if row.reason}
    for reason in sorted(reasons)[:3]:
        say(f"Failed: {reason}")
    for line in outcome.sentences:
        say(line)
    if outcome.importances:
        parts = (f"{name} {share:.0%}" for name, share in outcome.importances.items())
        say(f"Of the differences in {study.plan.objective} these settings explain: {', '.join(parts)}.")
    say(f"Page: {(study.folder / PAGE_FILE).absolute().as_uri()}", whole=True)
    if outcome.winner is not None and outcome.winner_result is not None:
        say(f"Run: {outcome.winner_result.run}", whole=True)
