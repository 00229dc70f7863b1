"""The program: its commands, and what becomes of an error."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.exceptions import Exit, TyperException

import convscope
from convscope.cli import datasets, exercise, exporting, inspecting, judging, predicting, training
from convscope.cli.output import fail, say
from convscope.errors import ConvscopeError

INTERRUPTED = 130

app = typer.Typer(
    name="convscope",
    help="Convolutional image classifiers: trained fast, measured honestly, opened up.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(exercise.app, name="exercise")
app.command("train")(training.train)
app.command("resume")(training.resume)
app.command("evaluate")(judging.evaluate)
app.command("compare")(judging.compare)
app.command("report")(judging.report)
app.command("inspect")(inspecting.inspect)
app.command("predict")(predicting.predict)
app.command("export")(exporting.export)
app.add_typer(datasets.app, name="data")


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"convscope {convscope.__version__}")
        raise Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Hold the options that come before a command."""


def main() -> None:
    """Run the program and exit; a person's mistake ends in one or two lines, never in a traceback."""
    try:
        code = app(prog_name="convscope", standalone_mode=False)
    except ConvscopeError as error:
        fail(str(error))
        code = error.exit_code
    except Exit as exit_:
        code = exit_.exit_code
        if code == INTERRUPTED:
            fail("Interrupted; nothing was left behind.")
    except TyperException as error:
        fail(f"{error.format_message()} Try `convscope --help`.")
        code = error.exit_code
    except BrokenPipeError:
        code = 0  # whoever read our output has seen enough
    sys.exit(code or 0)
