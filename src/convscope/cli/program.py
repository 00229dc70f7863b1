"""The program: its commands, and what becomes of an error."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import Abort, Exit, TyperException

import convscope
from convscope.cli import (
    INTERRUPTED,
    datasets,
    inspecting,
    judging,
    predicting,
    serving,
    sweeping,
    teaching,
    training,
)
from convscope.cli.output import fail, say, show_help
from convscope.environment import is_one_of_several, leads
from convscope.errors import ConvscopeError, RunError, UsageError, expected_got, reason

UNFORESEEN, NO_DISK = 1, 3
_FOR_SEVERAL = ("train", "resume")  # what several processes do together
LARGEST_LOG = 2**20
_LOG = logging.getLogger("convscope")

app = typer.Typer(
    name="convscope",
    help="Convolutional image classifiers: trained fast, measured honestly, opened up.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(teaching.app, name="exercise")
app.command("train")(training.train)
app.command("sweep")(sweeping.sweep)
app.command("resume")(training.resume)
app.command("evaluate")(judging.evaluate)
app.command("compare")(judging.compare)
app.command("report")(judging.report)
app.command("explore")(serving.explore)
app.command("runs")(judging.list_runs)
app.command("inspect")(inspecting.inspect)
app.command("predict")(predicting.predict)
app.command("embed")(predicting.embed)
app.command("export")(predicting.export)
app.command("serve")(serving.serve)
app.command("doctor")(inspecting.doctor)
app.add_typer(datasets.app, name="data")


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"convscope {convscope.__version__}")
        raise Exit


def _show_log(wanted: bool) -> None:
    if wanted:
        _LOG.addHandler(logging.StreamHandler())
        _LOG.setLevel(logging.DEBUG)


@app.command("worker", hidden=True)
def _worker() -> None:
    """Train what standard input names: what `train --workers` starts.

    Example: convscope train digits --seeds 4 --workers 2
    """
    from convscope.experiment.several import main

    main()


@app.callback()
def _program(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    _debug: Annotated[
        bool, typer.Option("--debug", callback=_show_log, help="Show what is logged, with tracebacks.")
    ] = False,
) -> None:
    """Hold the options that come before a command; without one, show what there is."""
    if is_one_of_several() and context.invoked_subcommand not in _FOR_SEVERAL:
        command = context.invoked_subcommand or "convscope"
        found = f"{command} on {os.environ['WORLD_SIZE']}"
        raise UsageError(expected_got(f"one process, but for {' and '.join(_FOR_SEVERAL)}", found))
    show_help(context)


@contextmanager
def _logging_as_before() -> Iterator[None]:
    """Undo afterwards what ``--debug`` does to the process."""
    handlers, level = list(_LOG.handlers), _LOG.level
    try:
        yield
    finally:
        _LOG.handlers[:] = handlers
        _LOG.setLevel(level)


def run() -> int:
    """Run the command that was typed; return its exit code."""
    with _logging_as_before():
        try:
            code = app(prog_name="convscope", standalone_mode=False)
        except ConvscopeError as error:
            _LOG.debug("The error below was raised here:", exc_info=error)
            hint = f" Try `{_typed_command()} --help`." if isinstance(error, UsageError) else ""
            # What is wrong with the command is so for each of several processes.
            if leads() or os.environ.get("LOCAL_RANK") == "0" or isinstance(error, RunError):
                fail(f"{error}{hint}")
            return error.exit_code
        except TyperException as error:
            message, context = error.format_message(), getattr(error, "ctx", None)
            stop = "" if message.endswith((".", "?", "!")) else "."
            command = context.command_path if context else _typed_command()
            fail(f"{message}{stop} Try `{command} --help`.")
            return error.exit_code
        except Abort as error:
            raise KeyboardInterrupt from error  # standard input ended where an answer was expected
        except BrokenPipeError:
            return 0  # whoever read our output has seen enough
        except OSError as error:
            if error.filename is not None or not _output_is_refused():
                raise
            fail(expected_got("to be able to write to standard output", reason(error)))
            return NO_DISK
        except Exception as error:
            _LOG.debug("The error below was raised here:", exc_info=error)
            raise
        if code == INTERRUPTED:  # that is how typer says it
            raise KeyboardInterrupt
        return code or 0


def _output_is_refused() -> bool:
    """Say whether it is standard output that cannot be written, such as a file on a full disk."""
    try:
        sys.stdout.write("\n")  # what could not be written is not tried again by itself
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _typed_command() -> str:
    """Give the command that was typed with its group, such as ``convscope data check``."""
    words, group = ["convscope"], typer.main.get_command(app)
    for word in sys.argv[1:]:
        commands = getattr(group, "commands", {})
        if word in commands:
            words, group = [*words, word], commands[word]
    return " ".join(words)


def fail_unexpectedly(error: Exception) -> int:
    """Keep the traceback of what nobody foresaw, and say where; return the exit code."""
    from convscope.environment import cache_folder

    found = " ".join(f"{type(error).__name__}: {error}".split())
    file = None
    for folder in (cache_folder, lambda: Path(tempfile.mkdtemp(prefix="convscope-"))):
        with suppress(OSError):
            file = _keep_traceback(error, folder())
            break
    kept = f"Its traceback is in {file}." if file else "There was no place to keep its traceback."
    fail(f"{found[:500]}\nNobody foresaw this. {kept}")
    return NO_DISK if isinstance(error, OSError) else UNFORESEEN


def _keep_traceback(error: Exception, folder: Path) -> Path:
    """Append a traceback to the log in a folder, which begins anew where it has become large."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "log.txt"
    fresh = not file.is_file() or file.stat().st_size > LARGEST_LOG
    with file.open("w" if fresh else "a", encoding="utf-8", errors="backslashreplace") as stream:
        command = " ".join(["convscope", *sys.argv[1:]])
        stream.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {convscope.__version__} {command}\n")
        stream.writelines(traceback.format_exception(error))
    return file
