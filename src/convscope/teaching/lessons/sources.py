"""The lessons' sources: plain Python files in jupytext's percent format, whose cells have roles.

A cell's tags give its role:

- ``task`` (text): what there is to do;
- ``hint`` (text): folded away until it is opened;
- ``answer`` (code): the solution. What stands between ``# BEGIN SOLUTION`` and ``# END SOLUTION``, and the
  value on each line that ends in ``# SOLUTION``, is missing in the student version;
- ``check`` (code): the call of ``convscope.check``;
- ``remark`` (text): in the solution only.

All other cells are the same in both versions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convscope.errors import UsageError, sentence, unknown_name

ROLES = ("task", "hint", "answer", "check", "remark")
CHECK = re.compile(r'^convscope\.check\("(?P<task>\d+\.\d+)"\)$')

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Cell:
    """One cell of a lesson, with the solution's marks; answers and checks know the number of their task."""

    kind: str
    role: str
    source: str
    task: str = ""


@dataclass(frozen=True)
class Lesson:
    """One lesson, such as ``1-data-preparation``, and its cells in order."""

    name: str
    cells: tuple[Cell, ...]

    @property
    def number(self) -> int:
        """The number that the name begins with."""
        return int(self.name.split("-")[0])

    @property
    def tasks(self) -> tuple[str, ...]:
        """The numbers of its tasks, in order."""
        return tuple(cell.task for cell in self.cells if cell.role == "check")


def source_folder() -> Path:
    """Name the folder of the package that holds the sources."""
    folder = _HERE / "sources"
    if not folder.is_dir():
        raise UsageError(
            sentence("the lessons' sources in the package", f"none in {_HERE}", "Install it anew.")
        )
    return folder


def lesson_names() -> list[str]:
    """List the lessons, in order."""
    return sorted(file.stem for file in source_folder().glob("[0-9]*.py"))


def read_lesson(name: str) -> Lesson:
    """Read a lesson's source."""
    if name not in lesson_names():
        raise unknown_name("lesson", name, lesson_names())
    text = (source_folder() / f"{name}.py").read_text(encoding="utf-8")
    return parse_lesson(name, text)


def parse_lesson(name: str, text: str) -> Lesson:
    """Read a lesson from the text of its source."""
    notebook = require_tool("jupytext").reads(text, fmt="py:percent")
    cells = [_cell(cell) for cell in notebook.cells]
    return Lesson(name, tuple(_with_tasks(name, cells)))


def _cell(cell: Any) -> Cell:
    roles = [tag for tag in cell.metadata.get("tags", ()) if tag in ROLES]
    return Cell(cell.cell_type, roles[0] if roles else "given", cell.source.strip())


def _with_tasks(name: str, cells: list[Cell]) -> list[Cell]:
    """Write into each answer the number of the task that the next check names."""
    task, numbered = "", []
    for cell in reversed(cells):
        if cell.role == "check":
            found = CHECK.match(cell.source)
            if found is None:
                hint = "A check cell holds nothing else."
                raise UsageError(sentence(f'convscope.check("…") in {name}', repr(cell.source), hint))
            task = found["task"]
        own = task if cell.role in ("answer", "check") else ""
        numbered.append(Cell(cell.kind, cell.role, cell.source, own))
    return numbered[::-1]


def require_tool(name: str) -> Any:
    """Import what comes with the extra ``notebooks``, or say what to install."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        hint = "Install it: pip install 'convscope[notebooks]'"
        raise UsageError(sentence(f"{name}, which makes notebooks", "no such package", hint)) from error
