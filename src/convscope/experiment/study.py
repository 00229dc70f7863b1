"""The trials of a sweep in Optuna's storage, and who works on which: every trial is finished exactly once.

A sweep of n trials is the trials with the numbers 0 to n − 1 of an Optuna study. They are put there waiting;
a worker takes one by its lock, which a killed process sets free, so that another goes on with its trial.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from convscope.environment import own_warning_filters
from convscope.errors import RunError, UsageError, expected_got, reason, unknown_name
from convscope.experiment.space import Choice, Range, Space
from convscope.runs import locked, write_errors_named

_LOG = logging.getLogger(__name__)

JOURNAL_FILE = "journal.log"
DEFAULTS = "defaults"
# objective → the direction, and what an epoch's logs call it
OBJECTIVES: Mapping[str, tuple[Literal["maximize", "minimize"], str]] = {
    "accuracy": ("maximize", "val_accuracy"),
    "loss": ("minimize", "val_loss"),
}
# A trial whose process died so often without a new epoch is given up: it may be what kills it.
MOST_ATTEMPTS = 10
_OPENING_SECONDS = 60.0
# Whoever works elsewhere and gives no sign for so long is taken for dead.
SILENT_SECONDS = 300.0
# Folders of these are on another machine. Locks there depend on both ends, and SQLite's are known to fail.
_NETWORK = re.compile(
    r"nfs\d*|cifs|smb\d*|smbfs|afpfs|webdav|davfs|ncpfs|afs|ceph|lustre|gpfs|beegfs|glusterfs|"
    r"fuse\.(sshfs|glusterfs|ceph.*|s3fs|gcsfuse|rclone|blobfuse.*|goofys|juicefs)"
)
STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class TrialRow:
    """A trial as it is shown: its settings, what each epoch reached, and what became of it."""

    number: int
    state: str
    settings: Mapping[str, Any]
    curve: Mapping[int, float]
    value: float | None
    loss: float | None
    seconds: float | None
    reason: str
    place: str

    @property
    def name(self) -> str:
        """Its run's name."""
        return run_name(self.number)

    @property
    def over(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state not in ("waiting", "running")

    @property
    def epochs(self) -> int:
        """How many epochs it has come."""
        return max(self.curve, default=-1) + 1

    @property
    def reached(self) -> float | None:
        """What it reached; where it is not complete, in its last epoch."""
        return self.curve.get(self.epochs - 1) if self.value is None else self.value


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep is to do; all who take part in it have the same, but for ``trials``."""

    name: str
    folder: Path
    space: Space
    trials: int
    data: Mapping[str, Any] = field(default_factory=dict)  # name and fingerprint
    objective: str = "accuracy"
    sampler: str = "TPESampler"
    pruner: str = "MedianPruner"
    storage: str | None = None

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UsageError(expected_got("trials of at least 1", self.trials))
        if self.objective not in OBJECTIVES:
            raise unknown_name("objective", self.objective, OBJECTIVES)
        make_sampler(self.sampler, self.space, 0)
        make_pruner(self.pruner, self.space.pruner)

    @property
    def most_trials(self) -> int:
        """How many trials there are to be: no more than a grid has points."""
        if self.sampler != "GridSampler":
            return self.trials
        return min(self.trials, math.prod(len(one.grid() or ()) for one in self.space.searched.values()))

    def identity(self) -> dict[str, Any]:
        """Give what must be the same for all who take part."""
        own = {"data": dict(self.data), "objective": self.objective, "space": self.space.to_json()}
        return {**own, "sampler": self.sampler, "pruner": self.pruner}


class Study:
    """The trials of a sweep, shared with other processes."""

    def __init__(self, plan: SweepPlan) -> None:
        """Open the sweep, or begin it; one with other settings under this name is refused."""
        self.plan, self.folder = plan, plan.folder
        with write_errors_named(plan.folder, "Choose another --out."):
            plan.folder.mkdir(parents=True, exist_ok=True)
        direction, self.metric = OBJECTIVES[plan.objective]
        self.maximize = direction == "maximize"
        self.storage = open_storage(plan.storage, plan.folder)
        self._away = plan.storage is not None or network_file_system(plan.folder) is not None
        self._seen: dict[int, tuple[object, float]] = {}  # the last sign of life of others' trials, and when
        with locked(plan.folder / "opening", _OPENING_SECONDS), _quiet():
            self._study = optuna.create_study(
                storage=self.storage,
                study_name=plan.name,
                direction=direction,
                load_if_exists=True,
                sampler=make_sampler(plan.sampler, plan.space, 0),
                pruner=make_pruner(plan.pruner, plan.space.pruner),
            )
            self._id = self.storage.get_study_id_from_name(plan.name)
            self._require_same()
            known = self.storage.get_all_trials(self._id, deepcopy=False)
            begun = [one.number + 1 for one in known if one.state != TrialState.WAITING]
            # Whoever asks for fewer trials than there are already means the same sweep.
            self.trials = max([plan.most_trials, *begun])
            for _ in range(self.trials - len(known)):
                self._study.add_trial(optuna.create_trial(state=TrialState.WAITING))
        # Samplers end Optuna's own loop by this when they have tried everything; this loop counts.
        setattr(self._study, "stop", lambda: None)  # noqa: B010  mypy knows a method when it sees one

    def _require_same(self) -> None:
        """Refuse to take part in a sweep of the same name that is another one."""
        mine, found = self.plan.identity(), self._study.user_attrs.get("plan")
        if found is None:
            self._study.set_user_attr("plan", mine)
            return
        for name, value in mine.items():
            if found.get(name) != value:
                expected = f"the {name} of the sweep {self.plan.name} that was begun, {found.get(name)}"
                raise UsageError(expected_got(expected, value, "Give the new one another --name."))

    def _frozen(self) -> list[FrozenTrial]:
        trials = self.storage.get_all_trials(self._id, deepcopy=False)
        return sorted((one for one in trials if one.number < self.trials), key=lambda one: one.number)

    def rows(self) -> list[TrialRow]:
        """List the trials as they are now."""
        return [
            TrialRow(
                one.number,
                STATES[one.state],
                one.params,
                dict(sorted(one.intermediate_values.items())),
                one.values[0] if one.state == TrialState.COMPLETE else None,
                one.user_attrs.get("loss"),
                one.user_attrs.get("seconds"),
                one.user_attrs.get("reason", ""),
                one.user_attrs.get("place", ""),
            )
            for one in self._frozen()
        ]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return all(one.state.is_finished() for one in self._frozen())

    def winner(self) -> TrialRow | None:
        """Choose the best complete trial: by its value, of equal ones by its loss, then the first one."""
        sign = -1 if self.maximize else 1
        complete = [row for row in self.rows() if row.value is not None]
        return min(
            complete, key=lambda row: (sign * (row.value or 0), row.loss or 0, row.number), default=None
        )

    def importances(self) -> dict[str, float]:
        """Let Optuna say how much of the differences each setting explains; empty where it cannot yet."""
        varied = [one for one in self._frozen() if one.state == TrialState.COMPLETE]
        if len(varied) < 4 or len({one.values[0] for one in varied}) < 2:
            return {}
        try:
            with _quiet():
                evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
                return dict(optuna.importance.get_param_importances(self._study, evaluator=evaluator))
        except (RuntimeError, ValueError) as error:
            _LOG.info("Importances could not be computed. %s", error)
            return {}

    @property
    def defaults_failed(self) -> str:
        """Why there is nothing to compare the winner with; empty where there is or will be."""
        return str(self._study.user_attrs.get("defaults_failed", ""))

    def give_up_defaults(self, why: str) -> None:
        """Note that the defaults cannot be trained, so that nobody tries it again."""
        self._study.set_user_attr("defaults_failed", why)

    @property
    def place(self) -> str:
        """Name this folder on this machine: here a lock says who works."""
        return f"{platform.node()}:{self.folder.resolve()}"

    def claim(self, stack: ExitStack) -> Claim | None:
        """Take a trial that nobody works on, until ``stack`` ends: one that somebody began, or a new one."""
        candidates = [one for one in self._frozen() if not one.state.is_finished()]
        for one in sorted(candidates, key=lambda one: (one.state == TrialState.WAITING, one.number)):
            with ExitStack() as trying:
                if not hold(self.folder / f"{run_name(one.number)}-claim", trying):
                    continue
                if (found := self._take(one.number)) is not None:
                    if self._away:
                        trying.enter_context(self._alive(found._trial))
                    stack.push(trying.pop_all())
                    return found
        return None

    def _take(self, number: int) -> Claim | None:
        """Take a trial whose lock is held, unless somebody was faster before it was."""
        identity = self.storage.get_trial_id_from_study_id_trial_number(self._id, number)
        frozen = self.storage.get_trial(identity)
        if frozen.state == TrialState.WAITING:
            if not self.storage.set_trial_state_values(identity, TrialState.RUNNING):
                return None
        elif frozen.state != TrialState.RUNNING or not self._is_left(frozen):
            return None
        # A sampler of its own for each trial: what it draws depends on the trials before, not on who asks.
        with _quiet():
            self._study.sampler = make_sampler(self.plan.sampler, self.plan.space, number)
            trial = Trial(self._study, identity)
            trial.set_user_attr("place", self.place)
            values = {name: suggest(trial, name, one) for name, one in self.plan.space.searched.items()}
        epochs = len(frozen.intermediate_values)
        before = frozen.user_attrs.get("attempts", [0, 0])
        attempts = before[0] + 1 if epochs == before[1] else 1
        trial.set_user_attr("attempts", [attempts, epochs])
        run = self.folder / run_name(number)
        return Claim(number, values, run, attempts, trial, self._study, set(frozen.intermediate_values))

    def _is_left(self, frozen: FrozenTrial) -> bool:
        """Say whether nobody works any more on a trial whose lock is held here.

        Where others may work elsewhere, a lock says nothing about theirs: they give signs of life, and are
        taken for dead when there was none for some minutes by this process's own clock.
        """
        if not self._away or frozen.user_attrs.get("place") in (None, self.place):
            return True
        sign, now = frozen.user_attrs.get("alive"), time.monotonic()
        known, since = self._seen.setdefault(frozen.number, (sign, now))
        if known != sign:
            self._seen[frozen.number] = (sign, now)
        return known == sign and now - since > SILENT_SECONDS

    @contextmanager
    def _alive(self, trial: Trial) -> Iterator[None]:
        """Give signs of life while a trial is worked on."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(SILENT_SECONDS / 10):
                # What the storage refuses now, it may take the next time; the training matters more.
                with suppress(Exception):
                    trial.set_user_attr("alive", time.time())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@dataclass(frozen=True, eq=False)
class Claim:
    """A trial that this process works on; ``attempts`` counts the processes that began or took it up."""

    number: int
    values: Mapping[str, Any]
    run: Path
    attempts: int
    _trial: Trial
    _study: optuna.Study
    _reported: set[int]

    def report(self, epoch: int, value: float) -> bool:
        """Note what an epoch reached; say whether the pruner would end the trial."""
        if epoch not in self._reported:
            self._reported.add(epoch)
            self._trial.report(value, epoch)
        with _quiet():
            return bool(self._trial.should_prune())

    def finish(self, state: str, value: float | None = None, **facts: Any) -> bool:
        """Finish the trial, once; False where somebody else has."""
        for name, fact in facts.items():
            self._trial.set_user_attr(name, fact)
        found = {name: one for one, name in STATES.items()}[state]
        try:
            with _quiet():
                self._study.tell(self._trial, value, state=found)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError) as error:
            _LOG.warning("Trial %s was finished by somebody else. %s", self.number, error)
            return False
        return True


def run_name(number: int) -> str:
    """Name the run of a trial."""
    return f"trial-{number:04d}"


def hold(path: Path, stack: ExitStack) -> bool:
    """Hold the lock of a path until ``stack`` ends; say whether it was free."""
    try:
        stack.enter_context(locked(path))
    except RunError as error:
        if isinstance(error.__cause__, Timeout):
            return False
        raise
    return True


def suggest(trial: Trial, name: str, one: Range | Choice) -> Any:
    """Ask for a value of a setting; a trial that was begun before gives the same again."""
    if isinstance(one, Choice):
        return trial.suggest_categorical(name, one.values)
    if one.whole:
        return trial.suggest_int(name, int(one.low), int(one.high), step=int(one.step or 1), log=one.log)
    return trial.suggest_float(name, one.low, one.high, step=one.step, log=one.log)


def make_sampler(name: str, space: Space, number: int) -> optuna.samplers.BaseSampler:
    """Make a sampler by Optuna's name, for the trial of a number; its arguments are the space file's."""
    names = [one for one in optuna.samplers.__all__ if one.endswith("Sampler") and "Base" not in one]
    names.remove("PartialFixedSampler")  # a space file fixes what is fixed
    arguments = dict(space.sampler)
    if name == "GridSampler":
        grid = {key: one.grid() for key, one in space.searched.items()}
        endless = [key for key, values in grid.items() if values is None]
        if endless:
            hint = f"Give {endless[0]} a list, or a range with a step."
            raise UsageError(
                expected_got("a finite list of values for each setting of a grid", endless[0], hint)
            )
        arguments = {"search_space": grid, **arguments}
    elif name not in ("QMCSampler", "BruteForceSampler"):  # these go through one sequence, whoever asks
        mixed = np.random.SeedSequence([int(arguments.get("seed", 0)), number])  # seeds in a row are alike
        arguments["seed"] = int(mixed.generate_state(1)[0])
    return cast(optuna.samplers.BaseSampler, _make("sampler", optuna.samplers, name, names, arguments))


def make_pruner(name: str, arguments: Mapping[str, Any]) -> optuna.pruners.BasePruner:
    """Make a pruner by Optuna's name; its arguments are the space file's."""
    names = [one for one in optuna.pruners.__all__ if one.endswith("Pruner") and "Base" not in one]
    names.remove("PatientPruner")  # it wraps another one
    if name == "MedianPruner":
        # Where a rate rises first and batch statistics settle, early epochs say nothing.
        arguments = {"n_startup_trials": 5, "n_warmup_steps": 5, **arguments}
    return cast(optuna.pruners.BasePruner, _make("pruner", optuna.pruners, name, names, dict(arguments)))


def _make(kind: str, module: Any, name: str, names: list[str], arguments: dict[str, Any]) -> Any:
    if name not in names:
        raise unknown_name(kind, name, names)
    try:
        with _quiet():
            return getattr(module, name)(**arguments)
    except (TypeError, ValueError) as error:
        hint = f"They stand in the space file, in the table [{kind}]."
        raise UsageError(expected_got(f"arguments that {name} takes", reason(error), hint)) from error
    except ImportError as error:
        raise UsageError(expected_got(f"the packages that {name} needs", reason(error))) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's log and its warnings about experimental parts to itself."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with own_warning_filters():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Open where the trials are kept: a journal in the sweep's folder, or a database."""
    if url is None:
        file = str((folder / JOURNAL_FILE).resolve())
        with write_errors_named(folder, "Choose another --out."):
            return JournalStorage(JournalFileBackend(file, lock_obj=cast(Any, JournalLock(file))))
    if "://" not in url:
        raise UsageError(expected_got("a database's URL such as postgresql://user@host/name", repr(url)))
    from sqlalchemy.pool import NullPool  # comes with Optuna

    options: dict[str, Any] = {"poolclass": NullPool}  # no connection is kept that nobody would close
    if url.startswith("sqlite"):
        file = url.partition(":///")[2]
        if found := network_file_system(Path(file or ".").absolute().parent):
            hint = "Locks there can fail: leave out --storage for a journal, or name a database server."
            raise UsageError(expected_got("SQLite in a folder of this machine", f"{file} on {found}", hint))
        options["connect_args"] = {"timeout": 60}
    try:
        with _quiet():
            if url.startswith("redis"):
                return optuna.storages.get_storage(url)
            return RDBStorage(url, engine_kwargs=options)
    except Exception as error:  # whatever a database's driver raises
        raise RunError(expected_got(f"to reach the storage {url.split('@')[-1]}", reason(error))) from error


class JournalLock:
    """The lock of a journal, of the kind that works where the file lies; it mends what a killed writer left.

    On a disk of this machine the kernel's, which a killed process sets free. On a network folder and on
    Windows Optuna's, a file made exclusively, which is taken away from whoever has it for half a minute.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        away = sys.platform == "win32" or network_file_system(self._file.parent) is not None
        self.inner: Any = JournalFileOpenLock(file) if away else FileLock(f"{file}.lock")

    def acquire(self) -> bool:
        """Wait for the lock; take the half line away that a process left which was killed as it wrote."""
        self.inner.acquire()
        try:
            _mend(self._file)
        except BaseException:
            self.inner.release()
            raise
        return True

    def release(self) -> None:
        """Let others write."""
        self.inner.release()


def _mend(file: Path) -> None:
    """Cut a file off behind its last whole line."""
    with file.open("rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        if not end or (stream.seek(end - 1) and stream.read(1) == b"\n"):
            return
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)


def network_file_system(folder: Path) -> str | None:
    """Name the file system of a folder if it is another machine's; None for a disk of this one."""
    if str(folder).startswith("\\\\"):
        return "a network share"
    best, found = -1, ""
    with suppress(OSError):
        place = folder.resolve()
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            _, mounted, kind, *_ = line.split(" ")
            point = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), mounted))
            if place.is_relative_to(point) and len(point.parts) >= best:
                best, found = len(point.parts), kind
    return found if _NETWORK.fullmatch(found) else None
