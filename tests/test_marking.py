"""Grading a handed-in notebook: whose checks count, what ends it, and what is no notebook of a lesson."""

import asyncio
import csv
import json
import os
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from convscope.cli import main
from convscope.errors import DataError, DataNotFoundError, UsageError
from convscope.teaching.grading import MIME_TYPE, execution, marking, sign, tasks_of
from convscope.teaching.grading.execution import Execution, execute
from convscope.teaching.grading.marking import find_hand_ins, grade, grade_all
from convscope.teaching.lessons.notebooks import build_notebook, lesson_names, read_lesson

QUESTIONS = 'import convscope\nquestions = {"A": ({"filters": 16, "kernel_size": 5}, (28, 28, 1))}'
RIGHT_SHAPES = 'shapes = {"A": (24, 24, 16)}'
OPEN = (0, "open")


def hand_in(path, *sources, **metadata):
    """Write a notebook of lesson 2 as a student hands it in."""
    about = metadata or {"convscope": {"lesson": "2-first-convolution", "version": "student"}}
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources], metadata=about), path)
    return path


def checking(source, task):
    """Make a check cell whose text a student changed."""
    return new_code_cell(source, metadata={"convscope": {"role": "check", "task": task}})


def program(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["convscope", "exercise", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr()


def executed_by(monkeypatch, function):
    """Let a function stand in for the kernel."""

    async def execute_async(*arguments):
        return function(*arguments)

    monkeypatch.setattr(marking, "execute_async", execute_async)


# What counts, in a real kernel


@pytest.mark.slow
def test_only_the_lessons_own_checks_count(tmp_path, monkeypatch, capsys):
    forged = {"task": "2.3", "points": 99, "out_of": 1, "state": "right"}
    cells = [
        new_code_cell(f"{QUESTIONS}\nopen('left-behind', 'w').close()"),
        new_code_cell(RIGHT_SHAPES),
        new_code_cell("convscope.check = lambda task: 'all right'"),
        checking("'nothing to see here'", "2.1"),
        new_code_cell("import os\nraise RuntimeError(f'process {os.getpid()}')"),
        new_code_cell('convscope.check("2.2")'),
        checking(f"display({{{MIME_TYPE!r}: {forged}}}, raw=True)", "2.3"),
        new_code_cell('parameters = {"A": 400}'),
    ]
    path = tmp_path / "handed-in.ipynb"
    about = {"convscope": {"lesson": "2-first-convolution"}}
    nbformat.write(new_notebook(cells=cells, metadata=about), path)
    before = path.read_bytes()
    code, printed = program(
        monkeypatch, capsys, "grade", path, "--json", "--data", "digits", "--time-limit", 250
    )
    marks = json.loads(printed.out)
    assert code == 0
    assert [task["task"] for task in marks["tasks"]] == list(tasks_of(2))
    assert [(task["points"], task["state"]) for task in marks["tasks"]] == [(1, "right"), OPEN, OPEN, OPEN]
    assert (marks["points"], marks["out_of"], marks["timed_out"]) == (1, 5, False)
    (error,) = marks["errors"]
    assert (error["cell"], error["name"]) == (5, "RuntimeError")
    assert error["message"].startswith("process ")
    assert error["message"] != f"process {os.getpid()}"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_time_limit_ends_a_notebook_that_does_not_end(tmp_path):
    path = hand_in(tmp_path / "endless.ipynb", "import time\ntime.sleep(3600)")
    marks = grade(path, time_limit=8)
    assert marks.timed_out
    assert 8 <= marks.seconds < 60
    assert marks.points == 0
    assert {task["message"] for task in marks.tasks} == {
        f"Expected the check of task {task} to be reached, got the notebook ran out of time."
        for task in tasks_of(2)
    }


@pytest.mark.slow
def test_a_kernel_that_dies_is_told(tmp_path):
    marks = grade(hand_in(tmp_path / "dying.ipynb", "import os\nos._exit(1)"), time_limit=120)
    assert (marks.points, marks.timed_out) == (0, False)
    assert all("Kernel died" in task["message"] for task in marks.tasks)


@pytest.mark.slow
def test_of_a_notebook_that_prints_without_end_the_beginning_is_kept_and_every_verdict(monkeypatch):
    monkeypatch.setattr(execution, "OUTPUT_CAP", 100_000)
    shown = f"display({{{MIME_TYPE!r}: {{'task': '1.1'}}}}, raw=True)"
    cells = ["for _ in range(3000): print('x' * 999, flush=True)", shown]
    done = execute(new_notebook(cells=[new_code_cell(source) for source in cells]), time_limit=120)
    printed, verdict = done.notebook.cells
    assert 10_000 < sum(len(output.text) for output in printed.outputs) <= 200_000
    assert MIME_TYPE in verdict.outputs[0].data


@pytest.mark.slow
def test_a_notebook_runs_where_an_event_loop_runs_already():
    """As in Jupyter, where a teacher may grade from a cell."""
    notebook = new_notebook(cells=[new_code_cell("6 * 7")])

    async def in_a_cell():
        return execute(notebook, time_limit=120)

    # In a thread of its own: a browser's test may have left a loop in this one.
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(asyncio.run, in_a_cell()).result()
    (cell,) = done.notebook.cells
    assert cell.outputs[0].data["text/plain"] == "42"
    assert not done.timed_out


@pytest.mark.slow
@pytest.mark.parametrize("call", ["exit()", "quit()", "import sys\nsys.exit(1)", "raise SystemExit"])
def test_exit_ends_its_cell_and_not_the_notebook(call):
    notebook = new_notebook(cells=[new_code_cell(source) for source in ("x = 6", call, "x * 7")])
    done = execute(notebook, time_limit=120)
    assert done.died == ""
    assert done.notebook.cells[2].outputs[0].data["text/plain"] == "42"
    assert done.notebook.cells[1].outputs[0].ename == "SystemExit"


# What comes of an execution


def answered(notebook, task, points, signed=True):
    """Give a check cell the output of its check."""
    verdict = {"task": task, "title": "", "points": points, "out_of": 1, "message": "", "state": "right"}
    cell = next(cell for cell in notebook.cells if f'("{task}", ' in cell.source)
    key = cell.source.split('"')[-2]
    content = {**verdict, "signature": sign(verdict, key if signed else "guessed")}
    cell.outputs = [new_output("execute_result", {MIME_TYPE: content}, execution_count=1)]


def test_a_verdict_without_the_checks_signature_earns_nothing(tmp_path, monkeypatch):
    def execute(notebook, *_):
        answered(notebook, "2.1", 1, signed=False)
        return Execution(notebook, 1.0)

    executed_by(monkeypatch, execute)
    marks = grade(hand_in(tmp_path / "a.ipynb", 'convscope.check("2.1")'))
    assert marks.points == 0
    assert marks.tasks[0]["message"].endswith("got one that the notebook made itself.")


FORGERIES = {
    "the-check": (
        "import convscope.teaching.grading as g\nimport convscope.grading\n"
        "g.check = convscope.grading.check = convscope.check = lambda *_, **__: FORGED"
    ),
    "a-judge": (
        "import convscope.teaching.grading.tasks as tasks\nfrom dataclasses import replace\n"
        "for name in tasks.TASKS: tasks.TASKS[name] = replace(tasks.TASKS[name], judge=lambda **_: 'right')"
    ),
    "the-helpers": "import convscope.teaching.grading.tasks as c\nc._judge = lambda *_: 'right'",
    "the-verdict": "import convscope.teaching.grading.verdict as v\nv.Verdict.to_json = lambda self: FORGED",
    "the-modules": (
        "import sys, types\nfor name in list(sys.modules):\n"
        "    if name.startswith('convscope.teaching.grading'): sys.modules[name] = types.SimpleNamespace()"
    ),
    "what-is-displayed": (
        "get_ipython().display_formatter.mimebundle_formatter.for_type_by_name("
        "'convscope.teaching.grading.tasks', 'SignedVerdict', lambda *_, **__: {MIME: FORGED})"
    ),
    "what-is-run": (
        "import ast\nclass T(ast.NodeTransformer):\n    def visit_Module(self, tree):\n"
        "        return ast.parse('FORGED')\nget_ipython().ast_transformers.append(T())"
    ),
    "what-is-computed-with": "import numpy as np\nnp.asarray = lambda *_, **__: 1",
}


@pytest.mark.slow
def test_no_forgery_earns_a_point(tmp_path):
    """One kernel for each would take minutes; those that would spoil each other get one of their own."""
    known = list(FORGERIES)
    for names in (known[:3], known[3:5], *([name] for name in known[5:])):
        forged = "{'task': '2.2', 'points': 1, 'out_of': 1, 'message': '', 'state': 'right'}"
        cells = [
            f"{QUESTIONS}\nMIME = {MIME_TYPE!r}\n"
            f"class F(dict):\n    def _repr_mimebundle_(self, **_): return {{MIME: dict(self)}}\n"
            f"FORGED = F({forged})",
            'parameters = {"A": 1}',
            *(FORGERIES[name] for name in names),
            'convscope.check("2.2")',
        ]
        marks = grade(hand_in(tmp_path / "forged.ipynb", *cells), time_limit=250)
        assert marks.points == 0, names
        assert marks.tasks[1]["state"] in ("wrong", "open"), names
        reaching = [] if names == ["what-is-computed-with"] else list(range(3, 3 + len(names)))
        assert list(marks.suspicious) == [1, *reaching], names  # the first names the type of a verdict


@pytest.mark.parametrize("version", ["student", "solution"])
@pytest.mark.parametrize("name", lesson_names())
def test_no_lesson_is_suspicious(name, version):
    notebook = build_notebook(read_lesson(name), version)
    assert [cell.source for cell in notebook.cells if marking._MACHINERY.search(cell.source)] == []


def test_what_was_checked_before_the_limit_counts(tmp_path, monkeypatch, capsys):
    def execute(notebook, *_):
        answered(notebook, "2.1", 1)
        return Execution(notebook, 1800.2, timed_out=True)

    executed_by(monkeypatch, execute)
    path = hand_in(tmp_path / "slow.ipynb", 'convscope.check("2.1")')
    assert grade(path).points == 1
    code, printed = program(monkeypatch, capsys, "grade", path)
    assert code == 0
    assert "The time limit ended the notebook after 1800 s." in printed.out
    assert printed.out.splitlines()[-1] == "1 of 5 points, in 1800 s"


def test_a_check_is_asked_once_where_it_stands_first_and_at_the_end_where_it_is_missing(
    tmp_path, monkeypatch
):
    seen = []

    def execute(notebook, *_):
        seen.extend(cell.source for cell in notebook.cells)
        return Execution(notebook, 1.0)

    executed_by(monkeypatch, execute)
    grade(hand_in(tmp_path / "a.ipynb", 'convscope.check("2.2")', "x = 1", ' convscope.check("2.2") '))
    assert ".seal(" in seen[0]
    assert seen[2] == "x = 1"
    asked = {place: re.search(r'\]\("(\d\.\d)", "\w{64}", globals', seen[place]) for place in (1, 4, 5, 6)}
    first, *others = [found[1] for found in asked.values()]
    assert (first, others) == ("2.2", ["2.1", "2.3", "2.4"])
    assert len({source for source in seen if "globals" in source}) == 4  # a key for each


def test_the_data_and_the_time_limit_of_the_command_reach_the_notebook(tmp_path, monkeypatch, capsys):
    asked = []

    def execute(notebook, time_limit, environment):
        asked.append((time_limit, environment))
        return Execution(notebook, 1.0)

    executed_by(monkeypatch, execute)
    monkeypatch.delenv("CONVSCOPE_LESSONS", raising=False)
    path = hand_in(tmp_path / "a.ipynb", "x = 1")
    program(monkeypatch, capsys, "grade", path, "--data", "digits", "--quick", "--time-limit", "9")
    monkeypatch.setenv("CONVSCOPE_LESSONS", "mnist")
    program(monkeypatch, capsys, "grade", path)
    assert asked == [
        (9, {"CONVSCOPE_LESSONS": "digits,quick"}),
        (1800, {"CONVSCOPE_LESSONS": "mnist"}),
    ]


def test_a_lesson_is_known_by_its_checks_where_its_metadata_is_lost(tmp_path, monkeypatch):
    executed_by(monkeypatch, lambda notebook, *_: Execution(notebook, 1.0))
    path = hand_in(tmp_path / "a.ipynb", 'convscope.check("6.1")', language_info={"name": "python"})
    assert grade(path).lesson == 6


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_notebook_with_a_byte_order_mark_is_read(tmp_path, monkeypatch, encoding):
    executed_by(monkeypatch, lambda notebook, *_: Execution(notebook, 1.0))
    path = hand_in(tmp_path / "a.ipynb", "größe = 1")
    path.write_bytes(path.read_text("utf-8").encode(encoding))
    assert grade(path).lesson == 2


# What is no notebook of a lesson


NO_NOTEBOOKS = {
    "text": (b"x = 1", "a Jupyter notebook at a.ipynb, got no JSON from line 1 on."),
    "empty": (b"", "a Jupyter notebook at a.ipynb, got an empty file."),
    "other-json": (b"[1, 2]", "a Jupyter notebook at a.ipynb, got JSON that is no notebook."),
    "cells-are-a-number": (b'{"cells": 3}', "a Jupyter notebook at a.ipynb, got JSON that is no notebook."),
    "picture": (b"\x89PNG\x00", "a Jupyter notebook at a.ipynb, got bytes that are no text."),
    "merge": (
        b'{"cells": [\n<<<<<<< HEAD\n 1\n=======\n 2\n>>>>>>> theirs\n]}',
        "a Jupyter notebook at",
    ),
    "not-utf8": (b"\xff\xfe\x00", "a Jupyter notebook at"),
    "broken-cells": (b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [3]}', "a Jupyter note"),
    "no-lesson": (
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}',
        "a lesson's notebook",
    ),
    "metadata-of-others": (
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {"convscope": "x"}, "cells": []}',
        "a lesson's notebook",
    ),
    "lesson-99": (
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {"convscope": {"lesson": "99-x"}}, "cells": []}',
        "a lesson's notebook",
    ),
}


@pytest.mark.parametrize(("content", "message"), NO_NOTEBOOKS.values(), ids=NO_NOTEBOOKS)
def test_what_is_no_notebook_is_told_in_a_line(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    path = Path("a.ipynb")
    path.write_bytes(content)
    code, printed = program(monkeypatch, capsys, "grade", path)
    assert code == 3
    assert printed.err.startswith(f"Error: Expected {message}")
    assert len(printed.err.splitlines()) <= 2


@pytest.mark.parametrize(("marker", "line"), [("<<<<<<< HEAD", 2), ("=======", 2), (">>>>>>> theirs", 2)])
def test_a_merge_marker_is_named_with_its_line(tmp_path, marker, line):
    (tmp_path / "a.ipynb").write_bytes(b'{"cells": [\r\n' + marker.encode() + b"\r\n]}")
    with pytest.raises(DataError, match=rf"the merge marker {marker[:7]} in line {line}\. Resolve"):
        grade(tmp_path / "a.ipynb")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"a Jupyter notebook at .*a\.ipynb, got no such file"):
        grade(tmp_path / "a.ipynb")


def test_a_folder_with_the_name_of_a_notebook_is_called_one(tmp_path):
    (tmp_path / "a.ipynb").mkdir()
    with pytest.raises(DataNotFoundError, match=r"a Jupyter notebook at .*a\.ipynb, got a folder"):
        grade(tmp_path / "a.ipynb")


def test_a_notebook_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(marking, "SIZE_CAP", 2**20)
    path = tmp_path / "a.ipynb"
    path.write_bytes(b" " * (2**20 + 1))
    with pytest.raises(DataError, match=r"of at most 1 MiB, got 1,048,577 bytes"):
        grade(path)


WRONG_COMMANDS = {
    "data": (["grade", "a.ipynb", "--data", "digit"], "Did you mean 'digits'"),
    "lesson": (["notebooks", "course", "--lesson", "3-evaluations"], "Did you mean '3-evaluation'"),
    "no-file": (["grade"], "Missing argument"),
    "nothing-to-execute": (
        ["notebooks", "course", "--execute", "--student-only"],
        "got both. Only solutions",
    ),
    "data-for-nothing": (["notebooks", "course", "--data", "digits"], "--data and --quick beside --execute"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_COMMANDS.values(), ids=WRONG_COMMANDS)
def test_wrong_commands_end_in_a_line(monkeypatch, capsys, arguments, message):
    code, printed = program(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in printed.err


# A whole class


def test_hand_ins_are_found_at_any_depth_and_checkpoints_left_out(tmp_path):
    for name in ("b.ipynb", "ada/a.ipynb", "ada/.ipynb_checkpoints/a-checkpoint.ipynb", "__MACOSX/._b.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "ada" / "notes.txt").touch()
    found = find_hand_ins([tmp_path, tmp_path / "b.ipynb"])
    assert found == [tmp_path / "ada" / "a.ipynb", tmp_path / "b.ipynb"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataNotFoundError, match=r"hand-ins \(\*\.ipynb\) at .*none, got no notebook in it"):
        find_hand_ins([tmp_path / "none"])
    with pytest.raises(DataNotFoundError, match=r"at .*nowhere, got no such file or folder"):
        find_hand_ins([tmp_path / "nowhere"])


def test_a_class_gets_a_table_and_what_is_wrong_with_one_stops_no_other(tmp_path, monkeypatch, capsys):
    def execute(notebook, time_limit, environment):
        text = notebook.cells[1].source
        if text == "endless":
            return Execution(notebook, time_limit, timed_out=True)
        if text == "dying":
            return Execution(notebook, 1.0, died="Kernel died")
        if text == "unforeseen":
            raise RuntimeError("two\nlines")
        answered(notebook, "2.1", 1)
        return Execution(notebook, 1.0)

    executed_by(monkeypatch, execute)
    folder = tmp_path / "handed-in"
    folder.mkdir()
    for name in ("=solved", "dying", "endless", "forging", "unforeseen"):
        source = "import ctypes" if name == "forging" else name.strip("=")
        hand_in(folder / f"{name}.ipynb", source)
    (folder / "broken.ipynb").write_text("{", encoding="utf-8")
    monkeypatch.chdir(folder)
    code, printed = program(monkeypatch, capsys, "grade", ".", "--csv", "../marks.csv", "--time-limit", "9")
    assert code == 0
    assert "6 of 6 hand-ins graded" in printed.out
    assert "2 could not be marked, see the remarks" in printed.out
    with (tmp_path / "marks.csv").open(newline="", encoding="utf-8-sig") as stream:
        rows = {row.pop("notebook"): row for row in csv.DictReader(stream)}
    remarks = {name: row["remarks"] for name, row in rows.items()}
    assert list(rows) == [
        "./=solved.ipynb", "broken.ipynb", "dying.ipynb", "endless.ipynb", "forging.ipynb", "unforeseen.ipynb"
    ]  # fmt: skip
    assert rows["./=solved.ipynb"] == {
        "lesson": "2", "points": "1", "out_of": "5", "2.1": "1", "2.2": "0", "2.3": "0", "2.4": "0",
        "seconds": "1.0", "remarks": "",
    }  # fmt: skip
    assert {rows["broken.ipynb"][column] for column in ("2.1", "points", "out_of")} == {""}
    assert remarks["broken.ipynb"].startswith("Expected a Jupyter notebook at broken.ipynb, got ")
    assert remarks["dying.ipynb"] == "Kernel died"
    assert remarks["endless.ipynb"] == "the time limit of 9 s ended it"
    assert remarks["forging.ipynb"] == "read cell 1: its code reaches for what marks it"
    assert remarks["unforeseen.ipynb"] == "RuntimeError: two lines"


def test_a_class_as_json_is_one_object(tmp_path, monkeypatch, capsys):
    executed_by(monkeypatch, lambda notebook, *_: Execution(notebook, 1.0))
    files = [hand_in(tmp_path / f"{name}.ipynb", "x = 1") for name in "ab"]
    code, printed = program(monkeypatch, capsys, "grade", *files, "--json")
    assert code == 0
    shown = json.loads(printed.out)["hand_ins"]
    assert [one["notebook"] for one in shown] == [str(file) for file in files]
    assert shown[0]["problem"] == ""


def test_workers_share_the_threads_unless_somebody_chose_their_number(tmp_path, monkeypatch):
    asked = []

    def execute(notebook, _limit, environment):
        asked.append(environment.get("OMP_NUM_THREADS"))
        return Execution(notebook, 1.0)

    executed_by(monkeypatch, execute)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    files = [hand_in(tmp_path / f"{name}.ipynb", "x = 1") for name in "ab"]
    grade_all(files, workers=3)
    grade_all(files)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    grade_all(files, workers=2)
    assert asked == ["2", "2", None, None, None, None]
    with pytest.raises(UsageError, match="at least 1 worker, got 0"):
        grade_all(files, workers=0)


def test_no_more_notebooks_run_at_a_time_than_there_are_workers(tmp_path, monkeypatch):
    running, most = 0, 0

    async def execute_async(notebook, *_):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return Execution(notebook, 1.0)

    monkeypatch.setattr(marking, "execute_async", execute_async)
    grade_all([hand_in(tmp_path / f"{name}.ipynb", "x = 1") for name in "abcdef"], workers=2)
    assert most == 2


def test_an_interruption_ends_the_kernels_and_keeps_what_was_graded(tmp_path, monkeypatch, capsys):
    ended = []

    async def execute_async(notebook, *_):
        if notebook.cells[1].source == "quick":
            return Execution(notebook, 1.0)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    monkeypatch.setattr(marking, "execute_async", execute_async)
    for name in ("1-quick", "2-slow", "3-never"):
        hand_in(tmp_path / f"{name}.ipynb", name[2:])
    code, printed = program(monkeypatch, capsys, "grade", tmp_path, "--csv", tmp_path / "marks.csv")
    assert code == 130
    assert ended == [True]
    assert "1 of 3 hand-ins graded" in printed.out
    assert len((tmp_path / "marks.csv").read_text(encoding="utf-8-sig").splitlines()) == 2


def test_a_table_that_cannot_be_written_is_said_before_anything_runs(tmp_path, monkeypatch, capsys):
    path = hand_in(tmp_path / "a.ipynb", "x = 1")
    code, printed = program(monkeypatch, capsys, "grade", path, "--csv", tmp_path / "none" / "marks.csv")
    assert code == 2
    assert "Expected a folder for marks.csv, got none at" in printed.err


@pytest.mark.slow
def test_a_class_of_all_kinds_is_graded_by_one_command(tmp_path, monkeypatch, capsys):
    """As a teacher finds it in a folder; one kernel each, two at a time."""
    lesson = read_lesson("2-first-convolution")
    solved, empty = (build_notebook(lesson, version) for version in ("solution", "student"))
    solved.cells = [cell for cell in solved.cells if cell.metadata.get("convscope", {}).get("task") != "2.4"]
    nbformat.write(solved, tmp_path / "1-solved.ipynb")
    nbformat.write(empty, tmp_path / "2-empty.ipynb")
    right = [QUESTIONS, RIGHT_SHAPES, 'convscope.check("2.1")']
    hand_in(tmp_path / "3-half.ipynb", *right, "def (:", "exit()", "while True: print('x' * 999)")
    hand_in(tmp_path / "4-dying.ipynb", *right, "import os\nos._exit(3)")
    forgery = f"display({{{MIME_TYPE!r}: {{'task': '2.1', 'points': 1, 'out_of': 1}}}}, raw=True)"
    cells = [new_code_cell("import convscope"), checking(forgery, "2.1"), new_code_cell(forgery)]
    about = {"convscope": {"lesson": "2-first-convolution"}}
    nbformat.write(new_notebook(cells=cells, metadata=about), tmp_path / "5-forged.ipynb")
    (tmp_path / "6-broken.ipynb").write_text('{"cells": [', encoding="utf-8")
    (tmp_path / "7-merged.ipynb").write_text('{"cells": [\n<<<<<<< HEAD\n]}', encoding="utf-8")
    (tmp_path / "8-nothing.ipynb").touch()
    options = ["--workers", 2, "--data", "digits", "--quick", "--time-limit", 40]
    code, printed = program(monkeypatch, capsys, "grade", tmp_path, "--csv", tmp_path / "marks.csv", *options)
    assert code == 0
    with (tmp_path / "marks.csv").open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["points"] for row in rows] == ["3", "0", "1", "1", "0", "", "", ""], printed.out
    remarks = [row["remarks"] for row in rows]
    assert remarks[:2] == ["", ""]
    assert remarks[2].startswith("the time limit of 40 s ended it; cell 4 failed: SyntaxError; cell 5 failed")
    assert "Kernel died" in remarks[3]
    assert "read cell 3" in remarks[4]
    assert all(remark.startswith("Expected a Jupyter notebook at ") for remark in remarks[5:])


# Writing from the command line


def test_the_command_writes_the_chosen_lessons_and_a_quiz(tmp_path, monkeypatch, capsys):
    course = tmp_path / "course"
    arguments = [
        "notebooks",
        course,
        "--lesson",
        "3",
        "--lesson",
        "6-shapes-and-weights",
        "--quiz",
        "--seed",
        5,
    ]
    code, printed = program(monkeypatch, capsys, *arguments, "--json")
    assert code == 0
    names = ["3-evaluation", "6-shapes-and-weights", "8-quiz"]
    expected = {
        str(course / version / f"{name}.ipynb") for version in ("student", "solution") for name in names
    }
    assert set(json.loads(printed.out)["notebooks"]) == expected == {str(p) for p in course.rglob("*.ipynb")}
    assert json.loads(printed.out)["quiz_seed"] == 5


def test_the_command_keeps_what_is_there_and_says_so(tmp_path, monkeypatch, capsys):
    arguments = ["notebooks", tmp_path, "--lesson", "1", "--quiz"]
    code, printed = program(monkeypatch, capsys, *arguments, "--student-only", "--json")
    seed = json.loads(printed.out)["quiz_seed"]
    mine = tmp_path / "student" / "1-data-preparation.ipynb"
    mine.write_text("my work", encoding="utf-8")
    code, printed = program(monkeypatch, capsys, *arguments)
    assert code == 0
    assert f"{mine} is there already and was kept; --overwrite replaces it." in printed.out
    assert mine.read_text(encoding="utf-8") == "my work"
    solution = (tmp_path / "solution" / "8-quiz.ipynb").read_text(encoding="utf-8")
    assert f"make_quiz(seed={seed})" in solution  # of the same networks as the student version that was kept
    code, printed = program(monkeypatch, capsys, *arguments, "--seed", seed + 1)
    assert code == 2
    assert f"Expected --seed {seed}, as the quiz in {tmp_path} has, got {seed + 1}." in printed.err


def test_student_versions_alone(tmp_path, monkeypatch, capsys):
    program(monkeypatch, capsys, "notebooks", tmp_path / "course", "--student-only")
    assert {path.parent.name for path in tmp_path.rglob("*.ipynb")} == {"student"}


@pytest.mark.slow
def test_execute_runs_a_solution_and_tells_of_cells_that_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "keras.py").write_text("raise ImportError('no keras here')", encoding="utf-8")
    arguments = [
        "notebooks",
        tmp_path / "course",
        "--lesson",
        "1",
        "--execute",
        "--data",
        "digits",
        "--quick",
    ]
    code, printed = program(monkeypatch, capsys, *arguments)
    assert code == 0
    assert "1-data-preparation: ran" in printed.out
    assert "Cell 2 failed: ImportError: no keras here" in printed.out
    solution = nbformat.read(tmp_path / "course" / "solution" / "1-data-preparation.ipynb", as_version=4)
    assert any(cell.get("outputs") for cell in solution.cells)
