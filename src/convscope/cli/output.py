"""How the command line speaks: tables and sentences for people, one JSON object for machines."""

from __future__ import annotations

import json
import operator
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import typer

from convscope.cli import waiting
from convscope.errors import RunError

if TYPE_CHECKING:
    # rich takes a quarter of the time in which `convscope --help` answers, and help does not need it.
    from rich.console import Console

# A pipe has no width of its own; tables are then as wide as they need to be, up to this.
PIPE_COLUMNS = 160
# The exit code where some of several inputs could not be read.
SOME_FAILED = 3


def console(stderr: bool = False) -> Console:
    """Make a console that suits a terminal and a pipe."""
    from rich.console import Console

    waiting.done()
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
        say(f"  {line}", style="dim")


def warn(text: str) -> None:
    """Print a sentence that must not be overlooked, on standard error."""
    _print(console(stderr=True), text, "bold yellow")


def fail(text: str) -> None:
    """Print why a command failed, on standard error."""
    _print(console(stderr=True), f"Error: {text}", marked=len("Error:"))


def _print(
    target: Console, text: str, style: str | None = None, whole: bool = False, marked: int = 0
) -> None:
    """Print a text; what is longer than a line without a space is left to the terminal to break."""
    from rich.text import Text

    if target.is_terminal and not whole:
        text = "\n".join(_filled(line, target.width) for line in text.split("\n"))
    shown = Text(text)
    shown.stylize("bold red", 0, marked)
    target.print(shown, style=style, soft_wrap=True)


def _filled(line: str, width: int) -> str:
    """Break a line between words, but not in a `command`; what follows is indented as its beginning is."""
    indent = line[: len(line) - len(line.lstrip())]
    if len(line) <= width:
        return line
    held = re.sub("`[^`]+`", lambda command: command[0].replace(" ", "\0"), line)
    filled = textwrap.fill(
        _with_units(held), width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return filled.replace("\0", " ")


def show_help(context: typer.Context) -> None:
    """Show a group's commands to whoever names none."""
    if context.invoked_subcommand is None:
        say(context.get_help(), whole=True)


@contextmanager
def answered_all_the_same(
    write: Callable[[], object], refused_before: RunError | None = None
) -> Iterator[None]:
    """Write something, then let the block show the answer; what the disk refuses is raised behind it.

    So is what the disk had ``refused_before``.
    """
    refusals = [refused_before] if refused_before else []
    try:
        write()
    except RunError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        refusals.append(error)
    yield
    if refusals:
        raise RunError("\n".join(map(str, refusals))) from refusals[-1]


def show_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object and nothing else."""
    waiting.done()
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    left: Sequence[int] = (0,),
    spare: Sequence[int] = (),
) -> None:
    """Print a table; brackets in it are shown, not interpreted.

    Columns in ``left`` hold words and are set flush left, numbers flush right. A narrow terminal does without
    those in ``spare``, the first one first; then cells are broken between words and behind slashes.
    """
    from rich.table import Table
    from rich.text import Text

    if title:  # not the table's own title, which would break at the table's width
        say(title, style="bold")
    width = console().width
    shown = fitting(columns, rows, width, spare)
    cells = [[str(line[number]) for number in shown] for line in (columns, *rows)]
    room = width - 3 * len(shown) - 1  # beside each cell a space on both sides and a line; a line at the end
    lines = _broken(cells, room)
    grid = Table(header_style="bold")
    for number, header in zip(shown, lines[0], strict=True):
        justify: Literal["left", "right"] = "left" if number in left else "right"
        grid.add_column(Text(header), justify=justify, overflow="fold")
    for line in lines[1:]:
        grid.add_row(*map(Text, line))
    console().print(grid)


def fitting(
    columns: Sequence[str], rows: Sequence[Sequence[object]], width: int, spare: Sequence[int]
) -> list[int]:
    """Choose the columns of a table that a terminal has room for, by number."""
    shown, may_go = list(range(len(columns))), list(spare)
    widths = [max(len(str(cell)) for cell in cells) for cells in zip(columns, *rows, strict=True)]
    # Beside each cell a space on both sides and a line, and a line at the end.
    while may_go and sum(widths[number] + 3 for number in shown) + 1 > width:
        shown.remove(may_go.pop(0))
    return shown


def _broken(rows: list[list[str]], room: int) -> list[list[str]]:
    """Break the cells of a table that is wider than its room, the widest column's first."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    least = [max(len(word.rstrip()) for cell in column for word in _words(cell)) for column in columns]
    while sum(widths) > room and any(map(operator.gt, widths, least)):
        widest = max((width, number) for number, width in enumerate(widths) if width > least[number])[1]
        widths[widest] -= 1
    return [[_lines(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]


def _lines(cell: str, width: int) -> str:
    """Write a cell in lines of a width, broken between words."""
    lines = [""]
    for word in _words(cell):
        if lines[-1] and len((lines[-1] + word).rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.strip() for line in lines)


def _words(text: str) -> list[str]:
    """Take a text apart where a line may end."""
    words = re.findall(r"[^ /]*(?:/| +|$)", _with_units(text))[:-1] or [""]
    return [word.replace("\0", " ") for word in words]


def _with_units(text: str) -> str:
    """Hold a number and its unit together: the space between them becomes a zero."""
    return re.sub(r"(?<=\d) (?=(?:%|ms|s|min|h|[kMGT]?B)(?!\w))", "\0", text)
