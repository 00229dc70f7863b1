"""Helper processes of a command: with their share of the threads, and stopped in an orderly way.

A worker is a program that calls `stop_with_input`. It ends when its standard input does: so it stops after a
checkpoint when it is told to, and also when whoever started it is no longer there.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from convscope.environment import THREADS

# The last lines that a worker wrote before it died, which say why.
_SHOWN_LINES = 3


class Worker:
    """A process of its own; what it says on standard error is kept in a file."""

    def __init__(self, arguments: Sequence[str], threads: int, log: Path) -> None:
        own: dict[str, Any] = {"process_group": 0}  # a terminal's Ctrl-C is for whoever started it
        if sys.platform == "win32":
            own = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        with log.open("ab") as errors:
            self.process = subprocess.Popen(  # noqa: S603  this program itself
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
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

    @property
    def _stdout(self) -> IO[bytes]:
        if self.process.stdout is None:
            raise ValueError("a worker without standard output")
        return self.process.stdout

    def listen(self, into: queue.SimpleQueue[tuple[Worker, dict[str, Any] | None]]) -> None:
        """Put what it says into a queue, and None when it has ended."""

        def read() -> None:
            with self._stdout as lines:
                for line in lines:
                    with suppress(ValueError):
                        into.put((self, json.loads(line)))
            self.process.wait()
            self.stop()
            into.put((self, None))

        threading.Thread(target=read, daemon=True).start()


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


def last_lines(log: Path) -> str:
    """Give the last lines that workers wrote."""
    with suppress(OSError):
        return " ".join(
            log.read_text(encoding="utf-8", errors="replace").split("\n")[-_SHOWN_LINES - 1 :]
        ).strip()
    return ""


def stop_with_input(on_line: Callable[[bytes], None] = lambda _line: None) -> None:
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
