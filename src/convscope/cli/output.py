"""How the command line speaks: tables and sentences for people, one JSON object for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # rich takes a quarter of the time in which `convscope --help` answers, and help does not need it.
    from rich.console import Console

# A pipe has no width of its own; tables are then as wide as they need to be, up to this.
PIPE_COLUMNS = 160


def console(stderr: bool = False) -> Console:
    """Make a console that suits a terminal and a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPE_COLUMNS, highlight=False)


def say(text: str, style: str | None = None) -> None:
    """Print a sentence; brackets in it are shown, not interpreted."""
    console().print(text, style=style, soft_wrap=True, markup=False)


def warn(text: str) -> None:
    """Print a sentence that must not be overlooked, on standard error."""
    console(stderr=True).print(text, style="bold yellow", soft_wrap=True, markup=False)


def fail(text: str) -> None:
    """Print why a command failed, on standard error."""
    from rich.text import Text

    console(stderr=True).print(Text.assemble(("Error:", "bold red"), " ", text), soft_wrap=True)


def show_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], left: Sequence[int] = (0,)
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
    """
    from rich.markup import escape
    from rich.table import Table

    if title:  # not the table's own title, which would break at the table's width
        say(title, style="bold")
    grid = Table(header_style="bold")
    for number, column in enumerate(columns):
        grid.add_column(escape(column), justify="left" if number in left else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(escape(str(cell)) for cell in row))
    console().print(grid)
