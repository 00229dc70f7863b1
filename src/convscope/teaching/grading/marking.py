"""Students' notebooks → their points, by running each with its lesson's own checks."""

from __future__ import annotations

import asyncio
import csv
import hmac
import io
import json
import logging
import os
import re
import secrets
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convscope.errors import ConvscopeError, DataError, DataNotFoundError, UsageError, expected_got
from convscope.runs import write_file
from convscope.teaching.grading import MIME_TYPE, TASKS, Verdict, sign, tasks_of
from convscope.teaching.grading.execution import CellError, Execution, cell_errors, execute_async, wait_for
from convscope.teaching.lessons.data import LessonSettings
from convscope.teaching.lessons.notebooks import CHECK, require_tool

SIZE_CAP = 64 * 2**20
SHOWN_ERRORS = 3
_LOG = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("convscope.progress")
# What no solution of a lesson needs, and who forges marks would begin with.
_MACHINERY = re.compile(
    r"convscope\.(teaching\.)?grading|verdict\+json|ast_transformers|input_transformers|events\.register|displayhook"
    r"|display_formatter|display_pub|sys\.modules|settrace|setprofile|builtins|\bctypes\b|\bgc\b|_getframe"
    r"|\bIn\[|_ih\b|history_manager|convscope\.check\s*=[^=]|setattr\(\s*convscope"
)
# As Git leaves them at the beginning of a line, where a notebook's JSON has none.
_MERGE_MARKER = re.compile(r"^(<{7}|={7}|>{7}|\|{7})(?=[ \r\n]|$)", re.MULTILINE)


@dataclass(frozen=True)
class Marks:
    """What a notebook earned: points for each task, cells that failed, and what a person should look at.

    ``suspicious`` are cells, counted from 1, whose code reaches for what marks it; ``problem`` says why the
    notebook could not be marked, or not to its end.
    """

    notebook: str
    lesson: int
    points: int
    out_of: int
    tasks: tuple[dict[str, Any], ...]
    errors: tuple[CellError, ...]
    seconds: float
    timed_out: bool
    suspicious: tuple[int, ...] = ()
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Give the marks as plain numbers, lists and strings."""
        return {**asdict(self), "seconds": round(self.seconds, 1)}

    @property
    def remarks(self) -> str:
        """What a person should know beside the points, in a line."""
        failed = [f"cell {error.cell} failed: {error.name}" for error in self.errors]
        reaching = ", ".join(map(str, self.suspicious))
        read = f"read cell {reaching}: its code reaches for what marks it" if reaching else ""
        return "; ".join(filter(None, [self.problem, read, *failed[:SHOWN_ERRORS]]))


def grade(path: Path, time_limit: float = 1800, settings: LessonSettings | None = None) -> Marks:
    """Run a student's notebook and mark it; what was checked before the time limit (in seconds) counts.

    The checks that count are the lesson's own: those in the notebook are replaced by them, and missing ones
    are added at its end. They are set aside before the notebook's first cell runs, and each verdict is signed
    with a key that stands in its check cell alone, so that a notebook cannot change or print one. The file is
    left as it is, and its code runs in an empty, temporary folder.
    """
    return wait_for(_grade(path, time_limit, settings.to_environment() if settings else {}))


async def _grade(path: Path, time_limit: float, environment: Mapping[str, str]) -> Marks:
    notebook = _read(path)
    lesson = _lesson_of(notebook, path)
    suspicious = tuple(
        number
        for number, cell in enumerate(notebook.cells, start=1)
        if cell.cell_type == "code" and not _task_of(cell) and _MACHINERY.search(cell.source)
    )
    name, key = secrets.token_hex(16), secrets.token_hex(32)
    own_checks = _with_own_checks(notebook, lesson, name, key)
    # The first cell sets the checks aside; it is none of the notebook's.
    nbformat = require_tool("nbformat")
    notebook.cells.insert(0, nbformat.v4.new_code_cell(_SEAL.format(name=name)))
    _PROGRESS.info("Running %s", path)
    done = await execute_async(notebook, time_limit, environment)
    del done.notebook.cells[0]
    verdicts = [
        _verdict(task, done.notebook.cells[cell], done, _key_of(task, key))
        for task, cell in own_checks.items()
    ]
    return Marks(
        notebook=str(path),
        lesson=lesson,
        points=sum(verdict["points"] for verdict in verdicts),
        out_of=sum(verdict["out_of"] for verdict in verdicts),
        tasks=tuple(verdicts),
        errors=tuple(cell_errors(done.notebook)),
        seconds=done.seconds,
        timed_out=done.timed_out,
        suspicious=suspicious,
        problem=f"the time limit of {time_limit:g} s ended it" if done.timed_out else done.died,
    )


def find_hand_ins(paths: Iterable[Path]) -> list[Path]:
    """List the notebooks that paths name: files themselves, and those at any depth of a folder."""
    found: dict[Path, None] = {}
    for path in paths:
        inside = [path]
        if path.is_dir():
            inside = [
                file
                for file in sorted(path.rglob("*.ipynb"))
                # Jupyter's checkpoints and what a Mac puts into an archive are nobody's work.
                if not any(part.startswith((".", "__MACOSX")) for part in file.relative_to(path).parts)
            ]
        if not inside or not path.exists():
            missing = "no notebook in it" if path.exists() else "no such file or folder"
            raise DataNotFoundError(expected_got(f"hand-ins (*.ipynb) at {path}", missing))
        found |= dict.fromkeys(inside)
    return list(found)


def grade_all(
    paths: Iterable[Path],
    time_limit: float = 1800,
    settings: LessonSettings | None = None,
    workers: int = 1,
    on_marks: Callable[[Marks], None] = lambda _marks: None,
) -> list[Marks]:
    """Mark hand-ins; whatever goes wrong with one is said in its marks, and stops no other.

    So many run at a time as there are workers, who share the processor's threads. ``on_marks``
    receives each hand-in's marks as soon as it is done, in another thread.
    """
    if workers < 1:
        raise UsageError(expected_got("at least 1 worker", workers))
    if time_limit <= 0:
        raise UsageError(expected_got("a time limit of more than 0 seconds", time_limit))
    for tool in ("nbformat", "nbclient", "ipykernel"):
        require_tool(tool)
    environment = settings.to_environment() if settings else {}
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))

    async def all_of_them() -> list[Marks]:
        free = asyncio.Semaphore(workers)

        async def one(path: Path) -> Marks:
            async with free:
                marks = await _grade_anything(path, time_limit, environment)
            on_marks(marks)
            return marks

        return await asyncio.gather(*map(one, paths))

    return wait_for(all_of_them())


async def _grade_anything(path: Path, time_limit: float, environment: Mapping[str, str]) -> Marks:
    try:
        return await _grade(path, time_limit, environment)
    except Exception as error:  # a hand-in may be anything at all, and the class goes on
        _LOG.debug("%s could not be graded", path, exc_info=error)
        said = str(error) if isinstance(error, ConvscopeError) else f"{type(error).__name__}: {error}"
        problem = " ".join(said.replace(str(path), path.name).split())
        return Marks(str(path), 0, 0, 0, (), (), 0.0, timed_out=False, problem=problem)


def write_marks(marks: Iterable[Marks], file: Path) -> None:
    """Write a table for spreadsheets, whole or not at all: a row for each hand-in, a column for each task."""
    rows = [
        {
            # A name that begins like a formula would be computed by a spreadsheet.
            "notebook": f"./{one.notebook}" if one.notebook[0] in "=+-@" else one.notebook,
            "lesson": one.lesson or "",
            "points": one.points if one.out_of else "",
            "out_of": one.out_of or "",
            **{task["task"]: task["points"] for task in one.tasks},
            "seconds": round(one.seconds, 1),
            "remarks": one.remarks,
        }
        for one in marks
    ]
    tasks = [task for task in TASKS if any(task in row for row in rows)]
    columns = ["notebook", "lesson", "points", "out_of", *tasks, "seconds", "remarks"]
    stream = io.StringIO(newline="")
    table = csv.DictWriter(stream, columns, restval="")
    table.writeheader()
    table.writerows(rows)
    write_file(file, stream.getvalue().encode("utf-8-sig"))  # as spreadsheets know UTF-8


def _read(path: Path) -> Any:
    nbformat = require_tool("nbformat")
    expected = f"a Jupyter notebook at {path}"
    if not path.is_file():
        raise DataNotFoundError(expected_got(expected, "a folder" if path.is_dir() else "no such file"))
    try:
        if path.stat().st_size > SIZE_CAP:
            raise DataError(
                expected_got(f"{expected} of at most {SIZE_CAP >> 20} MiB", f"{path.stat().st_size:,} bytes")
            )
        content = path.read_bytes()
        # A byte-order mark is what some editors of Windows put before a text.
        text = content.decode("utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
        if marker := _MERGE_MARKER.search(text):
            line = text.count("\n", 0, marker.start()) + 1
            hint = "Resolve the conflict and save the notebook again."
            raise DataError(expected_got(expected, f"the merge marker {marker[0]} in line {line}", hint))
        if not text.strip():
            raise DataError(expected_got(expected, "an empty file"))
        value = json.loads(text)
        if not isinstance(value, dict) or not isinstance(value.get("cells", []), list):
            raise DataError(expected_got(expected, "JSON that is no notebook"))
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(expected_got(expected, "bytes that are no text")) from error
    except json.JSONDecodeError as error:
        found = f"no JSON from line {error.lineno} on"
        hint = "The file may be cut off, or of another kind; ask for it again."
        raise DataError(expected_got(expected, found, hint)) from error
    except Exception as error:  # nbformat raises whatever JSON and its schema make of a file
        found = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise DataError(expected_got(expected, found)) from error
    return notebook


def _lesson_of(notebook: Any, path: Path) -> int:
    """Find the lesson by the notebook's metadata, or by the checks in it."""
    named = re.match(r"\d+", str(_own_metadata(notebook).get("lesson", "")))
    called = re.findall(
        r'convscope\.check\("(\d+)\.\d+"\)', "\n".join(cell.source for cell in notebook.cells)
    )
    numbers = [int(named[0])] if named else [int(number) for number in called]
    if not numbers or not tasks_of(numbers[0]):
        raise DataError(expected_got(f"a lesson's notebook in {path}", "one without a lesson's tasks"))
    return numbers[0]


def _own_metadata(part: Any) -> Mapping[str, Any]:
    """Give what the lessons wrote into the metadata of a notebook or a cell; others may have changed it."""
    own = part.metadata.get("convscope")
    return own if isinstance(own, Mapping) else {}


def _with_own_checks(notebook: Any, lesson: int, name: str, key: str) -> dict[str, int]:
    """Put the lesson's checks into the notebook; return the cell of each."""
    places: dict[str, int] = {}
    for number, cell in enumerate(notebook.cells):
        task = _task_of(cell)
        if task in tasks_of(lesson) and task not in places:
            cell.source = _call(task, name, key)
            places[task] = number
    new_cell = require_tool("nbformat").v4.new_code_cell
    for task in tasks_of(lesson):
        if task not in places:
            places[task] = len(notebook.cells)
            notebook.cells.append(new_cell(_call(task, name, key)))
    return {task: places[task] for task in tasks_of(lesson)}


def _task_of(cell: Any) -> str:
    """Name the task that a cell checks, by its metadata or its text; nothing for other cells."""
    if cell.cell_type != "code":
        return ""
    own = _own_metadata(cell)
    if own.get("role") == "check":
        return str(own.get("task", ""))
    found = CHECK.match(cell.source.strip())
    return found["task"] if found else ""


_SEAL = '__import__("convscope.teaching.grading").teaching.grading.seal("{name}")'


def _call(task: str, name: str, key: str) -> str:
    """Write a call of the check that was set aside; no variable of the notebook can stand in for it."""
    return f'__import__("sys").modules["{name}"]("{task}", "{_key_of(task, key)}", globals())'


def _key_of(task: str, key: str) -> str:
    """Derive a key for one check from that of the whole: a cell that reads one learns no other."""
    return hmac.new(key.encode(), task.encode(), "sha256").hexdigest()


def _verdict(task: str, cell: Any, done: Execution, key: str) -> dict[str, Any]:
    """Read a check's verdict from its cell's outputs; one that it did not sign is none."""
    forged = False
    for output in cell.get("outputs", ()):
        verdict = output.get("data", {}).get(MIME_TYPE)
        if not isinstance(verdict, dict):
            continue
        signature = verdict.pop("signature", "")
        if verdict.get("task") == task and hmac.compare_digest(str(signature), sign(verdict, key)):
            return dict(verdict)
        forged = True
    if forged:
        return _without_points(task, "one that the notebook made itself")
    reason = "the notebook ran out of time" if done.timed_out else done.died or "it failed; see the errors"
    return _without_points(task, reason)


def _without_points(task: str, reason: str) -> dict[str, Any]:
    """Make the verdict of a check that gave none."""
    message = expected_got(f"the check of task {task} to be reached", reason)
    entry = TASKS[task]
    return Verdict(task, entry.title, 0, entry.points, message, answered=False).to_json()
