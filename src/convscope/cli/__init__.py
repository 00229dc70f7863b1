"""The command line: parse, call, print, exit code.

    program.py    the commands by their names      parsing.py    what is typed: shared options, readers
    training.py   train, resume                    output.py     tables, sentences, JSON
    sweeping.py   sweep                            settings.py   from what is typed to what is trained
    judging.py    evaluate, compare, report, runs  startup.py    soon ready, soon gone
    inspecting.py inspect, doctor                  waiting.py    what is busy, until it is done
    predicting.py predict, embed, export           datasets.py   data list | fetch | info | check | undo
    serving.py    explore, serve                   teaching.py   exercise: notebooks, grading, quiz

Exit codes: 0 done; 1 an error of the program's own; 2 a wrong command or argument; 3 data or run missing,
unreadable or wrong, or a disk that refuses; 4 training diverged; 130 interrupted.
"""

from __future__ import annotations

import io
import os
import pathlib
import signal
import sys
from types import FrameType

from convscope.cli import waiting
from convscope.environment import leads

__all__ = ["main", "start"]

INTERRUPTED = 130


def start() -> None:
    """Run the program in a process that is its own; what ``convscope`` and ``python -m convscope`` call."""
    from convscope.cli import startup

    if leads():
        waiting.show_waiting()
    else:  # the first process speaks for all
        sys.stdout = pathlib.Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  open as long as the process
    startup.own_this_process()
    try:
        main()
    except SystemExit as stop:
        startup.ends_with(stop.code if isinstance(stop.code, int) else 1)
        raise


def main() -> None:
    """Run the program and exit; whatever happens ends in one or two lines, never in a traceback.

    Everything is imported in here, so that an interruption of the imports is answered as any other is.
    """
    interrupted = False

    def note(_number: int, _frame: FrameType | None) -> None:
        # An import that is cut off ends in errors of many kinds; what caused them is remembered.
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    _write_what_we_say()
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:  # else somebody has decided otherwise, such as nohup
        signal.signal(signal.SIGINT, note)
    try:
        try:
            from convscope.cli import program

            code = program.run()
        finally:
            waiting.done()
    except (KeyboardInterrupt, Exception) as error:
        if interrupted or isinstance(error, KeyboardInterrupt):
            sys.stderr.write("Interrupted.\n")
            code = INTERRUPTED
        else:
            code = _fail(error)
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(code)


def _fail(error: Exception) -> int:
    """Say what nobody foresaw, also where a part of the program cannot be loaded."""
    try:
        from convscope.cli import program
    except Exception:  # the same again; rich and the log may be what is missing
        found = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stderr.write(f"Error: {found}\nA part of convscope cannot be loaded. Install it again.\n")
        return 1
    return program.fail_unexpectedly(error)


def _write_what_we_say() -> None:
    """Let both channels take any character; a file or a pipe gets UTF-8, whatever the locale is.

    A terminal gets its own encoding, and escapes for what that does not have.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() not in ("utf-8", "utf8"):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")
