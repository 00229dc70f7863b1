"""Progress for a person who watches: a bar in a terminal or notebook, a line per epoch elsewhere.

This is the one place beside the command line that writes to a stream, because ``fit`` stands in for Keras's
``fit``, whose users expect to see the training go on.
"""

from __future__ import annotations

import importlib
import io
import sys
import textwrap
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from convscope.errors import UsageError, expected_got
from convscope.training.events import (
    EpochBegin,
    EpochEnd,
    Event,
    Listener,
    Notice,
    StepEnd,
    TrainBegin,
    TrainBreak,
    TrainEnd,
)

_SECONDS_BETWEEN_LOOKS = 0.2
_SHORTEST_BAR, _LONGEST_BAR, _NOTEBOOK_COLUMNS = 4, 24, 100


def progress_listener(verbose: str | int) -> tuple[Listener, ...]:
    """Choose the listener that Keras's ``verbose`` asks for."""
    if verbose not in ("auto", 0, 1, 2):
        raise UsageError(expected_got('verbose "auto", 0, 1 or 2', repr(verbose)))
    if verbose == 0:
        return ()
    if verbose == 2:
        return (EpochLines(sys.stdout),)
    if _in_notebook():
        return (_Bar(_Notebook()),)
    if sys.stdout.isatty():
        return (_Bar(_Terminal(sys.stdout)),)
    return (EpochLines(sys.stdout),)


class EpochLines:
    """Writes one line at the end of each epoch, for pipes and log files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._epochs = stream, 0

    def __call__(self, event: Event) -> None:
        """Write a line if the event is the end of an epoch, or a notice."""
        if isinstance(event, TrainBegin):
            self._epochs = event.epochs
        elif isinstance(event, (EpochEnd, Notice)):
            text = event.text if isinstance(event, Notice) else describe_epoch(event, self._epochs)
            self._stream.write(text + "\n")
            self._stream.flush()


def describe_epoch(event: EpochEnd, epochs: int, width: int | None = None) -> str:
    """Say in one line how an epoch went; in short where that does not fit into so many columns.

    ``epochs`` is how many there are, or are expected where a deadline decides.
    """
    number = event.epoch + 1
    begin = [f"Epoch {number}/{max(epochs, number)}", _duration(event.seconds)]
    line = " · ".join([*begin, *_numbers(event.logs)])
    if width is None or len(line) <= width:
        return line
    logs = {
        name.replace("accuracy", "acc").replace("learning_rate", "lr"): event.logs[name]
        for name in event.logs
    }
    parts = [
        _numbers({name: value for name, value in logs.items() if name.startswith("val_") is validation})
        for validation in (False, True)
    ]
    return " · ".join([*begin, *(" ".join(part).replace(" val ", " ") for part in parts if part)])


class _Bar:
    """Draws the epoch that runs as a bar, and leaves a line for each epoch that is over."""

    def __init__(self, screen: _Terminal | _Notebook) -> None:
        self._screen = screen
        self._epochs = 0
        self._began = self._looked = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrainBegin):
            self._epochs = event.epochs
        elif isinstance(event, EpochBegin):
            self._began = self._looked = time.perf_counter()
        elif isinstance(event, StepEnd):
            now = time.perf_counter()  # reading a number makes the step wait for its device
            if now - self._looked >= _SECONDS_BETWEEN_LOOKS:
                self._looked = now
                self._screen.draw(self._line(event, now - self._began))
        elif isinstance(event, EpochEnd):
            self._screen.keep(describe_epoch(event, self._epochs, self._screen.width))
        elif isinstance(event, Notice):
            self._screen.keep(event.text)
        elif isinstance(event, (TrainEnd, TrainBreak)):
            self._screen.close()

    def _line(self, event: StepEnd, seconds: float) -> Table:
        """Lay out a line in which bar and numbers take the room that there is."""
        line, done, steps = Table.grid(padding=(0, 1)), event.step + 1, event.steps
        head = f"Epoch {event.epoch + 1}/{max(self._epochs, event.epoch + 1)}"
        bar: list[RenderableType] = []
        parts = [f"step {done}"]
        line.add_column(no_wrap=True)
        if steps:
            line.add_column(max_width=_LONGEST_BAR)
            bar = [ProgressBar(total=steps, completed=done)]
            parts = [f"{done}/{steps}", f"{_duration(seconds / done * (steps - done))} left"]
        line.add_column(no_wrap=True)
        room = (self._screen.width or _NOTEBOOK_COLUMNS) - len(head) - _SHORTEST_BAR - 2
        for part in _numbers(event.logs):
            if len(" · ".join([*parts, part])) <= room:
                parts.append(part)
        line.add_row(head, *bar, " · ".join(parts))
        return line


class _Terminal:
    """Lines that stay, and below them one that changes."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        self._live: Live | None = None

    @property
    def width(self) -> int:
        return self._console.width

    def draw(self, line: Table) -> None:
        """Replace the line that changes."""
        if self._live is None:
            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(line, refresh=True)

    def keep(self, line: str) -> None:
        """Add a line that stays, and remove the one that changes."""
        self.close()
        self._console.print(Text(line))

    def close(self) -> None:
        """Remove the line that changes."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class _Notebook:
    """The same in a notebook's cell, through IPython's own display, which needs no widgets."""

    width = None

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._handle: Any = None

    def draw(self, line: Table) -> None:
        """Replace the line that changes."""
        # Without force_jupyter, rich would add an empty output to the cell each time.
        console = Console(file=io.StringIO(), width=_NOTEBOOK_COLUMNS, force_jupyter=False)
        with console.capture() as capture:
            console.print(line)
        self._show([*self._kept, capture.get().rstrip()])

    def keep(self, line: str) -> None:
        """Add a line that stays, and remove the one that changes."""
        # JupyterLab would end a long line inside a word.
        self._kept.append(textwrap.fill(line, _NOTEBOOK_COLUMNS, break_long_words=False))
        self._show(self._kept)

    def close(self) -> None:
        """Leave what is shown."""

    def _show(self, lines: list[str]) -> None:
        page = {"text/plain": "\n".join(lines)}
        if self._handle is None:
            display = importlib.import_module("IPython.display").display  # only notebooks have IPython
            self._handle = display(page, raw=True, display_id=True)
        else:
            self._handle.update(page, raw=True)


def _in_notebook() -> bool:
    """Say whether the code runs in a notebook's kernel, without importing IPython."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def _numbers(logs: Mapping[str, float]) -> list[str]:
    """Losses and metrics as text, the training's own first."""
    names = sorted(logs, key=lambda name: (name.startswith("val_"), "loss" not in name, name))
    return [f"{name.replace('_', ' ')} {_number(logs[name])}" for name in names]


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2e}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
