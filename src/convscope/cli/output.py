"""How the command line speaks: tables and sentences for people, one JSON object for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import typer

if TYPE_CHECKING:
    # rich takes a quarter of the time in which `convscope --help` answers, and help does not need it.
    from rich.console import Console
    from rich.text import Text

# A pipe has no width of its own; tables are then as wide as they need to be, up to this.
PIPE_COLUMNS = 160


def console(stderr: bool = False) -> Console:
    """Make a console that suits a terminal and a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPE_COLUMNS, highlight=False)


def say(text: str, style: str | None = None, *, whole: bool = False) -> None:
    """Print a sentence; brackets in it are shown, not interpreted.

    A terminal's lines end between words, but for a text that is ``whole``, such as a command to be pasted.
    """
    _print(console(), text, style, whole)


def explain(*words: str) -> None:
    """Print what words mean, under the lines in which they stand."""
    from convscope import glossary

    for line in glossary.explain(*words):
        console().print(f"  {line}", style="dim", markup=False)


def warn(text: str) -> None:
    """Print a sentence that must not be overlooked, on standard error."""
    _print(console(stderr=True), text, "bold yellow")


def fail(text: str) -> None:
    """Print why a command failed, on standard error."""
    from rich.text import Text

    _print(console(stderr=True), Text.assemble(("Error:", "bold red"), " ", text))


def _print(target: Console, text: str | Text, style: str | None = None, whole: bool = False) -> None:
    """Print a text; names and addresses that are longer than a line are left to the terminal to break."""
    whole = whole or not target.is_terminal
    target.print(text, style=style, soft_wrap=whole, overflow="ignore", crop=False, markup=False)


def show_help(context: typer.Context) -> None:
    """Show a group's commands to whoever names none."""
    if context.invoked_subcommand is None:
        say(context.get_help(), whole=True)


def show_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    left: Sequence[int] = (0,),
    spare: Sequence[int] = (),
) -> None:
    """Print a table.

    Parameters
    ----------
    title : str
        Above the table; none where it is empty.
    columns : sequence of str
        Headers.
    rows : sequence of sequences
        Cells; shown as they print.
    left : sequence of int
        Which columns hold words and are set flush left; numbers are set flush right.
    spare : sequence of int
        Which columns a narrow terminal does without, the first one first.
    """
    from rich.markup import escape
    from rich.table import Table

    if title:  # not the table's own title, which would break at the table's width
        say(title, style="bold")
    shown = fitting(columns, rows, console().width, spare)
    grid = Table(header_style="bold")
    for number in shown:
        justify: Literal["left", "right"] = "left" if number in left else "right"
        grid.add_column(escape(columns[number]), justify=justify, overflow="fold")
    for row in rows:
        grid.add_row(*(escape(str(row[number])) for number in shown))
    console().print(grid)


def fitting(
    columns: Sequence[str], rows: Sequence[Sequence[object]], width: int, spare: Sequence[int]
) -> list[int]:
    """Choose the columns of a table that a terminal has room for, by number.

    Examples
    --------
    >>> fitting(["layer", "input", "output"], [["conv", "28×28", "26×26"]], 20, spare=[1])
    [0, 2]
    """
    shown, may_go = list(range(len(columns))), list(spare)
    widths = [max(len(str(cell)) for cell in cells) for cells in zip(columns, *rows, strict=True)]
    # Beside each cell a space on both sides and a line, and a line at the end.
    while may_go and sum(widths[number] + 3 for number in shown) + 1 > width:
        shown.remove(may_go.pop(0))
    return shown
