"""What is seen while a command is busy: a spinner on a terminal, a line in a pipe; both on standard error.

Whatever takes time says so with ``logging.getLogger("convscope.progress").info("Reading mnist")``, and the
command line shows the last of these until something is printed. Nothing is shown of what is done in a second.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.live import Live
    from rich.spinner import Spinner

    from convscope.training.events import Event, Listener

PROGRESS = "convscope.progress"
PATIENCE = 1.0  # seconds
SECONDS_BETWEEN_LINES = 5.0


class Waiting(logging.Handler):
    """Shows on a stream what is being done, until told that it is done."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(logging.INFO)
        self._stream = stream
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._spinner: Live | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Show another text from now on."""
        text = f"{record.getMessage()} …"
        with self._lock:
            if self._spinner is None:
                self._stop_timer()
                self._timer = threading.Timer(PATIENCE, self._show, [text])
                self._timer.daemon = True
                self._timer.start()
            else:
                self._spinner.update(self._spinning(text))

    def done(self) -> None:
        """Remove what is shown; something else is about to be."""
        with self._lock:
            self._stop_timer()
            if self._spinner is not None:
                self._spinner.stop()
                self._spinner = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _show(self, text: str) -> None:
        with self._lock:
            if self._timer is not threading.current_thread():
                return  # done, or something else is, while this one waited for the lock
            with suppress(OSError, ValueError):  # a stream that is closed has no reader
                if self._stream.isatty():
                    from rich.console import Console
                    from rich.live import Live

                    self._spinner = Live(
                        self._spinning(text),
                        console=Console(file=self._stream),
                        transient=True,
                        redirect_stdout=False,
                        redirect_stderr=False,
                    )
                    self._spinner.start(refresh=True)
                else:
                    self._stream.write(f"{text}\n")
                    self._stream.flush()

    def _spinning(self, text: str) -> Spinner:
        from rich.spinner import Spinner

        return Spinner("dots" if "utf" in str(self._stream.encoding).lower() else "line", text)


_shown: Waiting | None = None
_several: SideBySide | None = None


def show_waiting() -> None:
    """Show from now on what this process is busy with."""
    global _shown  # noqa: PLW0603  a process has one standard error
    _shown = Waiting(sys.stderr)
    logger = logging.getLogger(PROGRESS)
    logger.addHandler(_shown)
    logger.setLevel(logging.INFO)


def done() -> None:
    """Remove what is shown; something else is about to be."""
    if _shown is not None:
        _shown.done()
    if _several is not None:
        _several.hide()


def training(json: bool) -> tuple[Listener, ...]:
    """Give the listeners that show a training: its bar or its lines, unless there is only JSON to come."""
    from convscope.training.events import EpochEnd, Notice, StepEnd, TrainBegin
    from convscope.training.progress import progress_listener

    speaking = () if json else (EpochEnd, Notice, StepEnd) if sys.stdout.isatty() else (EpochEnd, Notice)

    def listen(event: Event) -> None:
        if isinstance(event, TrainBegin):
            logging.getLogger(PROGRESS).info("Training")
        elif isinstance(event, speaking):
            done()

    return listen, *(() if json else progress_listener("auto"))


@contextmanager
def counting(what: str, json: bool) -> Iterator[Callable[[int, int], None]]:
    """Show how much is done: a bar on a terminal, elsewhere a line now and then; nothing for JSON."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(file=sys.stderr),
        transient=True,
        disable=json or not sys.stderr.isatty(),
    )
    task = bar.add_task(what, total=None)
    last = time.monotonic()

    def show(number: int, of: int) -> None:
        nonlocal last
        done()
        bar.start()
        bar.update(task, completed=number, total=of)
        if not json and not sys.stderr.isatty() and time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            sys.stderr.write(f"{what}: {number:,} of {of:,}\n")
            sys.stderr.flush()

    try:
        yield show
    finally:
        bar.stop()


class SideBySide:
    """Shows what other processes train: a table on a terminal, a line for each epoch elsewhere."""

    def __init__(self, json: bool, runs: int, warn: Callable[[str], None]) -> None:
        self._json, self._runs, self._warn = json, runs, warn
        self._begun: dict[str, tuple[float, int]] = {}  # when, and of how many epochs
        self._last: dict[str, tuple[int, str]] = {}  # epochs that are over, and what the last one was
        self._alerts: set[Event] = set()
        self._live: Live | None = None

    def __enter__(self) -> Callable[[str, Event], None]:
        global _several  # noqa: PLW0603  a process has one standard output
        _several = self
        return self._show_event

    def __exit__(self, *_error: object) -> None:
        global _several  # noqa: PLW0603  as above
        _several = None
        self.hide()

    def hide(self) -> None:
        """Remove what is shown, until something happens again."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show_event(self, name: str, event: Event) -> None:
        from convscope.training.events import Alert, EpochEnd, TrainBegin
        from convscope.training.progress import describe_epoch

        if _shown is not None:
            _shown.done()
        if isinstance(event, TrainBegin):
            self._begun[name] = (time.monotonic(), event.epochs)
        elif isinstance(event, EpochEnd):
            self._last[name] = (event.epoch + 1, describe_epoch(event, self._begun[name][1]))
        elif isinstance(event, Alert) and event not in self._alerts:  # each network may have met the same
            self._alerts.add(event)
            self.hide()
            self._warn(event.text)
            return
        else:
            return  # what is noted while one network trains would be in the way of the others
        if not self._json and sys.stdout.isatty():
            self._draw()
        elif not self._json and isinstance(event, EpochEnd):
            sys.stdout.write(f"{name}: {self._last[name][1]}\n")
            sys.stdout.flush()

    def _draw(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text

        if self._live is None:
            self._live = Live(console=Console(highlight=False), transient=True, auto_refresh=False)
            self._live.start()
        grid = Table.grid(padding=(0, 2))
        for name, (epochs, line) in self._last.items():
            if epochs < self._begun[name][1]:
                grid.add_row(Text(name, style="bold"), Text(line))
        over = sum(epochs >= self._begun[name][1] for name, (epochs, _) in self._last.items())
        grid.add_row(
            Text(f"{over} of {self._runs} trained", style="dim"), Text(self._time_left(), style="dim")
        )
        self._live.update(grid, refresh=True)

    def _time_left(self) -> str:
        """Say how long the rest takes, by the epochs that are over."""
        from convscope.report.formatting import duration

        epochs = sum(epochs for epochs, _ in self._last.values())
        if not epochs:
            return ""
        each = [count for _, count in self._begun.values()]
        passed = time.monotonic() - min(began for began, _ in self._begun.values())
        left = self._runs * max(each) - epochs
        return f"about {duration(passed / epochs * left)} left"
