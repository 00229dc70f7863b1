"""What is seen while a command is busy: a spinner on a terminal, a line in a pipe; both on standard error.

Whatever takes time says so with ``logging.getLogger("convscope.progress").info("Reading mnist")``, and the
command line shows the last of these until something is printed. Nothing is shown of what is done in a second.
"""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.live import Live
    from rich.spinner import Spinner

    from convscope.training.events import Listener

PROGRESS = "convscope.progress"
PATIENCE = 1.0  # seconds


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
                self._spinner.update(_spinning(text))

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
                        _spinning(text),
                        console=Console(file=self._stream),
                        transient=True,
                        redirect_stdout=False,
                        redirect_stderr=False,
                    )
                    self._spinner.start(refresh=True)
                else:
                    self._stream.write(f"{text}\n")
                    self._stream.flush()


def _spinning(text: str) -> Spinner:
    from rich.spinner import Spinner

    return Spinner("dots", text)


_shown: Waiting | None = None


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


def training(json: bool) -> tuple[Listener, ...]:
    """Give the listeners that show a training: its bar or its lines, unless there is only JSON to come."""
    from convscope.training.events import EpochEnd, Event, Notice, StepEnd, TrainBegin
    from convscope.training.progress import progress_listener

    speaking = () if json else (EpochEnd, Notice, StepEnd) if sys.stdout.isatty() else (EpochEnd, Notice)

    def listen(event: Event) -> None:
        if isinstance(event, TrainBegin):
            logging.getLogger(PROGRESS).info("Training")
        elif isinstance(event, speaking):
            done()

    return listen, *(() if json else progress_listener("auto"))
