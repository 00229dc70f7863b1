"""Trainings side by side: processes with their share of the threads, which end in order when they are to.

A worker is this module run as a program, or a command that calls `obey`. It trains the runs that it is sent,
one JSON object a line, and answers with what happens. It ends when its standard input does: so it stops in
order, with a checkpoint, when it is told to, and also when whoever started it is no longer there.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from convscope.errors import (
    ConvscopeError,
    DivergedError,
    InterruptedRunError,
    RunError,
    UsageError,
)

# Every library that has threads of its own reads one of these when it is loaded.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_POLL_SECONDS = 0.2
# The last lines that a worker wrote before it died, which say why.
_LAST_WORDS = 3
_ERRORS: Mapping[int, type[ConvscopeError]] = {
    2: UsageError,
    3: RunError,
    4: DivergedError,
    130: InterruptedRunError,
}


def share_of_threads(workers: int) -> int:
    """Divide this process's processors, or the threads that it was given, among so many workers."""
    get = getattr(os, "sched_getaffinity", None)
    cores = len(get(0)) if get else os.cpu_count() or 1
    given = os.environ.get(THREADS[0], "")
    return max(1, (min(cores, int(given)) if given.isdecimal() and int(given) else cores) // workers)


class Worker:
    """A process of its own; what it says on standard error is kept in a file."""

    def __init__(self, arguments: Sequence[str], threads: int, log: Path, *, listen: bool = True) -> None:
        own: dict[str, Any] = {"process_group": 0}  # a terminal's Ctrl-C is for whoever started it
        if sys.platform == "win32":
            own = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        with log.open("ab") as errors:
            self.process = subprocess.Popen(  # noqa: S603  this program itself
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if listen else subprocess.DEVNULL,
                stderr=errors,
                env=os.environ | dict.fromkeys(THREADS, str(threads)),
                **own,
            )

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a line."""
        with suppress(OSError):  # it is gone, which its other end says too
            self._stdin.write(json.dumps(message).encode() + b"\n")
            self._stdin.flush()

    def stop(self) -> None:
        """Let it end: at once if it has nothing to do, otherwise after a checkpoint."""
        with suppress(OSError):
            self._stdin.close()

    @property
    def _stdin(self) -> IO[bytes]:
        if self.process.stdin is None:
            raise ValueError("a worker without standard input")
        return self.process.stdin

    def listen(self, into: queue.SimpleQueue[tuple[Worker, dict[str, Any] | None]]) -> None:
        """Put what it says into a queue, and None when it has ended."""

        def read() -> None:
            for line in self.process.stdout or ():
                with suppress(ValueError):
                    into.put((self, json.loads(line)))
            self.process.wait()
            into.put((self, None))

        threading.Thread(target=read, daemon=True).start()


@dataclass(frozen=True)
class Failure:
    """Why a run of several is not there."""

    name: str
    message: str
    code: int


@dataclass
class _Busy:
    """What the workers of `train_side_by_side` do just now."""

    tasks: deque[tuple[str, Mapping[str, Any]]]
    running: dict[Worker, str] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def train_side_by_side(
    tasks: Mapping[str, Mapping[str, Any]],
    workers: int,
    log: Path,
    on_message: Callable[[str, Mapping[str, Any]], None],
) -> list[Failure]:
    """Train runs, so many at a time; what one cannot finish does not keep the others from it.

    A task has what ``run_experiment`` needs: ``config``, ``data`` (as a run records it), ``target``,
    ``command``, ``with_report`` and ``device``. ``on_message`` gets a run's name and what happens to it:
    ``{"event": …}``, or ``{"done": true}``.

    Raises
    ------
    KeyboardInterrupt
        When a person stopped it; by then all workers have ended, and their runs can be resumed.
    """
    busy = _Busy(deque(tasks.items()))
    threads, heard = share_of_threads(workers), queue.SimpleQueue[tuple[Worker, dict[str, Any] | None]]()

    def start() -> Worker:
        worker = Worker([__spec__.name if __spec__ else __name__], threads, log)
        worker.listen(heard)
        return worker

    team = [start() for _ in range(min(workers, len(tasks)))]
    try:
        while team:
            try:
                worker, message = heard.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if message is None:
                team.remove(worker)
                name = busy.running.pop(worker, None)
                if name is not None:
                    code = worker.process.returncode
                    busy.failures.append(Failure(name, _why_it_died(code, log), 3))
                if busy.tasks and name is not None:
                    team.append(start())
                continue
            if "event" in message:
                on_message(busy.running[worker], message)
                continue
            name = busy.running.pop(worker, "")
            if "failed" in message:
                busy.failures.append(Failure(name, message["failed"], message["code"]))
            elif name:
                on_message(name, message)
            if busy.tasks:
                busy.running[worker], task = busy.tasks.popleft()
                worker.send(task)
            else:
                worker.stop()
    finally:
        end(team)
    return busy.failures


def end(team: Sequence[Worker]) -> None:
    """Let workers stop where they are, and wait for them; a second Ctrl-C kills them."""
    for worker in team:
        worker.stop()
    try:
        for worker in team:
            worker.process.wait()
    except KeyboardInterrupt:
        for worker in team:
            worker.process.kill()
        raise


def failed(failures: Sequence[Failure], runs: int) -> ConvscopeError:
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
    return f"its process ended with code {code}: {last_words(log)} See {log}."


def last_words(log: Path) -> str:
    """Give the last lines that workers wrote."""
    with suppress(OSError):
        return " ".join(
            log.read_text(encoding="utf-8", errors="replace").split("\n")[-_LAST_WORDS - 1 :]
        ).strip()
    return ""


def obey(on_line: Callable[[bytes], None] = lambda _line: None) -> None:
    """Stop this process in order when its standard input ends; before, ``on_line`` gets every line of it."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)

    def watch() -> None:
        for line in sys.stdin.buffer:
            on_line(line)
        on_line(b"")
        main = threading.main_thread().ident
        if hasattr(signal, "pthread_kill") and main is not None:
            signal.pthread_kill(main, signal.SIGTERM)  # wakes it up, wherever it waits
        else:
            signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Train what standard input names, until it ends."""
    # Whatever a library prints must not stand among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def answer(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        obey(tasks.put)
        known: dict[str, Any] = {}
        answer({"ready": True})
        while line := tasks.get():
            answer(_train(json.loads(line), known, answer))
    except KeyboardInterrupt:
        sys.exit(130)


def _train(task: Mapping[str, Any], known: dict[str, Any], answer: Callable[[Any], None]) -> dict[str, Any]:
    """Train one run; say what came of it."""
    from convscope.data.loading import load_again, take_fold
    from convscope.experiment.config import ExperimentConfig
    from convscope.experiment.running import run_experiment
    from convscope.lowering.devices import computing_on, require_device
    from convscope.training.events import EpochEnd, Event, Notice, TrainBegin

    def listen(event: Event) -> None:
        if isinstance(event, TrainBegin):
            answer({"event": "begin", "epochs": event.epochs})
        elif isinstance(event, EpochEnd):
            logs = {name: float(value) for name, value in event.logs.items()}
            answer({"event": "epoch", "epoch": event.epoch, "logs": logs, "seconds": event.seconds})
        elif isinstance(event, Notice):
            answer({"event": "notice", "text": event.text})

    began = time.perf_counter()
    try:
        config = ExperimentConfig.from_json(task["config"])
        fold = config.reading.get("fold")
        key = json.dumps(task["data"], sort_keys=True)
        if key not in known:
            known[key] = load_again(task["data"])
        dataset = take_fold(known[key], *fold) if fold else known[key]
        with computing_on(require_device(task["device"])):
            run_experiment(
                config, dataset, Path(task["target"]), [listen], task["command"],
                with_report=task["with_report"], began=began,
            )  # fmt: skip
    except ConvscopeError as error:
        return {"failed": str(error), "code": error.exit_code}
    # One run that nobody foresaw must not cost the others.
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return {"failed": f"{type(error).__name__}: {error}.", "code": 1}
    return {"done": True}


if __name__ == "__main__":
    main()
