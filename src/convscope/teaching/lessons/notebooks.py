"""A lesson's source → two notebooks: the solution, and the student version with tasks to fill in.

The sources are plain Python files in jupytext's percent format. A cell's tags give its role:

- ``task`` (text): what there is to do;
- ``hint`` (text): folded away until it is opened;
- ``answer`` (code): the solution. What stands between ``# BEGIN SOLUTION`` and ``# END SOLUTION``, and the
  value on each line that ends in ``# SOLUTION``, is missing in the student version;
- ``check`` (code): the call of ``convscope.check``;
- ``remark`` (text): in the solution only.

All other cells are the same in both versions.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from convscope.environment import require_package
from convscope.errors import UsageError, expected_got, unknown_name
from convscope.runs import write_file

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
            expected_got("the lessons' sources in the package", f"none in {_HERE}", "Install it anew.")
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
    task, cells = "", list[Cell]()
    for cell in reversed(require_tool("jupytext").reads(text, fmt="py:percent").cells):
        role = next((tag for tag in cell.metadata.get("tags", ()) if tag in ROLES), "given")
        source = cell.source.strip()
        if role == "check":
            found = CHECK.match(source)
            if found is None:
                hint = "A check cell holds nothing else."
                raise UsageError(expected_got(f'convscope.check("…") in {name}', repr(source), hint))
            task = found["task"]
        # An answer has the number of the task that the next check names.
        cells.append(Cell(cell.cell_type, role, source, task if role in ("answer", "check") else ""))
    return Lesson(name, tuple(reversed(cells)))


def require_tool(name: str) -> Any:
    """Import what comes with the extra ``notebooks``, or say what to install."""
    require_package(name, "notebooks")
    return importlib.import_module(name)


VERSIONS = ("student", "solution")
PLACEHOLDER = "# your code here"

_BLOCK = re.compile(
    r"^(?P<indent>[ \t]*)# BEGIN SOLUTION\n(?P<body>.*?)^[ \t]*# END SOLUTION[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_LINE = re.compile(r'^(?P<head>\s*(?:"[^"]*":|\w+ =)) .*?(?P<comma>,?)\s+# SOLUTION[ \t]*$', re.MULTILINE)
_MARK = re.compile(r"[ \t]+# SOLUTION[ \t]*$", re.MULTILINE)


def without_solution(source: str) -> str:
    """Take the solution out of a cell."""
    source = _BLOCK.sub(lambda block: f"{block['indent']}{PLACEHOLDER}", source)
    return _LINE.sub(lambda line: f"{line['head']} ...{line['comma']}", source)


def without_marks(source: str) -> str:
    """Leave the solution in a cell, and take out the marks around it."""
    return _MARK.sub("", _BLOCK.sub(lambda block: block["body"].rstrip("\n"), source))


def build_notebook(lesson: Lesson, version: str) -> Any:
    """Make one version of a lesson ("student" or "solution") as a notebook, not yet executed.

    Cells of a task name it in their metadata, by which grading finds them.
    """
    nbformat = require_tool("nbformat")
    cells = [cell for cell in lesson.cells if version == "solution" or cell.role != "remark"]
    notebook = nbformat.v4.new_notebook(
        cells=[
            _build_cell(cell, version, f"{lesson.name[0]}-{place:03d}", title)
            for place, (cell, title) in enumerate(zip(cells, _hint_titles(cells), strict=True))
        ],
        metadata={
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "convscope": {"lesson": lesson.name, "version": version},
        },
    )
    nbformat.validate(notebook)
    return notebook


def _hint_titles(cells: Iterable[Cell]) -> list[str]:
    """Give each cell what its fold is called: hints that follow each other are numbered, others need none."""
    titles = []
    for folded, run in groupby(cells, key=lambda cell: cell.role == "hint"):
        length = len(list(run))
        numbered = folded and length > 1
        titles += [f"Hint {number}" if numbered else "Hint" for number in range(1, length + 1)]
    return titles


def _build_cell(cell: Cell, version: str, identity: str, title: str) -> Any:
    v4 = require_tool("nbformat").v4
    metadata: dict[str, Any] = {"convscope": {"role": cell.role, "task": cell.task}} if cell.task else {}
    if cell.kind == "markdown":
        text = cell.source
        if cell.role == "hint":
            text = f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>"
        return v4.new_markdown_cell(text, id=identity, metadata=metadata)
    if cell.role == "check":
        metadata |= {"editable": False, "deletable": False}
    source = cell.source
    if cell.role == "answer":
        source = without_marks(source) if version == "solution" else without_solution(source)
    return v4.new_code_cell(source, id=identity, metadata=metadata)


def solution_notebook(lesson: Lesson) -> Any:
    """Make a lesson's solution, executed where an execution of these very cells came with the package."""
    nbformat = require_tool("nbformat")
    fresh = build_notebook(lesson, "solution")
    stored = source_folder() / f"{lesson.name}.ipynb"
    if not stored.is_file():
        return fresh
    executed = nbformat.read(stored, as_version=4)
    return executed if cell_sources(executed) == cell_sources(fresh) else fresh


def cell_sources(notebook: Any) -> list[tuple[str, str]]:
    """List kind and text of each cell, to tell whether two notebooks say the same."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def write_notebooks(
    folder: Path,
    names: Sequence[str] | None = None,
    versions: Iterable[str] = VERSIONS,
    overwrite: bool = False,
    extra: dict[Path, Any] | None = None,
) -> tuple[list[Path], list[Path]]:
    """Write the lessons' notebooks that are missing into ``folder/student`` and ``folder/solution``.

    ``extra`` are more notebooks by their paths below the folder. Gives what was written, and what was there
    already and kept as it is.
    """
    built: dict[Path, Any] = {}
    for name in names or lesson_names():
        lesson = read_lesson(name)
        for version in versions:
            make = solution_notebook(lesson) if version == "solution" else build_notebook(lesson, version)
            built[folder / version / f"{name}.ipynb"] = make
    built |= {folder / path: notebook for path, notebook in (extra or {}).items()}
    kept = [path for path in built if os.path.lexists(path) and not overwrite]
    written = [path for path in built if path not in kept]
    for path in written:
        write_notebook(built[path], path)
    return written, kept


def write_notebook(notebook: Any, path: Path) -> None:
    """Write one notebook, whole or not at all."""
    write_file(path, f"{require_tool('nbformat').writes(notebook)}\n".encode())
