"""The lessons: what their sources say, and the two notebooks that are built from each."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import nbformat
import pytest
from lesson_outputs import complaints, full_marks, outputs, verdicts

import convscope
from convscope.data.loading import load
from convscope.errors import DataNotFoundError, RunError, UnknownNameError, UsageError
from convscope.teaching.grading import tasks_of
from convscope.teaching.grading.execution import execute
from convscope.teaching.lessons import data, epochs, load_data, notebooks
from convscope.teaching.lessons.data import LessonSettings
from convscope.teaching.lessons.notebooks import (
    PLACEHOLDER,
    build_notebook,
    cell_sources,
    lesson_names,
    parse_lesson,
    read_lesson,
    solution_notebook,
    without_marks,
    without_solution,
    write_notebooks,
)

NAMES = [
    "1-data-preparation",
    "2-first-convolution",
    "3-evaluation",
    "4-dense-and-dropout",
    "5-second-convolution-and-pooling",
    "6-shapes-and-weights",
    "7-your-own-digits",
]
every_lesson = pytest.mark.parametrize("name", NAMES)
both_versions = pytest.mark.parametrize("version", ["student", "solution"])
lesson_of = cache(read_lesson)
MARKS = re.compile(r"# (BEGIN SOLUTION|END SOLUTION|SOLUTION)\b")


def test_there_are_seven_lessons():
    assert lesson_names() == NAMES


@cache
def notebook_of(name, version):
    return build_notebook(lesson_of(name), version)


# Sources


@every_lesson
def test_a_lesson_holds_its_tasks_in_order(name):
    lesson = lesson_of(name)
    assert lesson.tasks == tuple(tasks_of(lesson.number))


@every_lesson
def test_every_task_has_a_text_hints_an_answer_and_a_check_in_this_order(name):
    roles = [(cell.role, cell.task) for cell in lesson_of(name).cells if cell.role not in ("given", "remark")]
    shape = re.sub(r"(hint )+", "hints ", "".join(f"{role} " for role, _ in roles))
    assert shape == "task hints answer check " * len(tasks_of(int(name[0])))
    answers, checks = ([task for role, task in roles if role == wanted] for wanted in ("answer", "check"))
    assert answers == checks == list(tasks_of(int(name[0])))


@every_lesson
def test_a_task_is_announced_by_its_number_and_asks_for_its_variables(name):
    cells = lesson_of(name).cells
    texts = [cell.source for cell in cells if cell.role == "task"]
    for place, (number, task) in enumerate(tasks_of(int(name[0])).items()):
        assert texts[place].startswith(f"### Task {number}\n")
        answer = next(cell.source for cell in cells if cell.role == "answer" and cell.task == number)
        for variable in task.answers:
            asked_for = any(f"`{variable}" in text for text in texts[: place + 1])
            assert asked_for or f"{variable} = {{" in answer, (number, variable)


@every_lesson
def test_students_see_keras_and_the_package_only(name):
    """No lesson imports a private room, or trains with anything but convscope.fit."""
    code = "\n".join(cell.source for cell in lesson_of(name).cells if cell.kind == "code")
    imported = {
        module.split(".")[0]
        for node in ast.walk(ast.parse(without_marks(code)))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert imported <= {"convscope", "keras", "matplotlib", "numpy", "sklearn", "PIL"}
    assert ".fit(" not in re.sub(r"(convscope|scaler|Preprocess)\.fit\(", "", code)
    assert not re.search(
        r"convscope\.[a-z]+\.[a-z]|convscope\._|from convscope import (?!lessons$)", code, re.M
    )


def test_an_unknown_lesson_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean '3-evaluation'"):
        read_lesson("3-evaluations")


def test_a_check_cell_holds_nothing_else():
    text = '# %% tags=["check"]\nx = 1\nconvscope.check("1.1")\n'
    with pytest.raises(
        UsageError, match=r'convscope\.check\("…"\) in 1-x, got .* A check cell holds nothing'
    ):
        parse_lesson("1-x", text)


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jupytext", None)
    with pytest.raises(UsageError, match=r"the package jupytext, .*convscope\[notebooks\]"):
        read_lesson(NAMES[0])


def test_without_sources_the_message_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(notebooks, "_HERE", tmp_path / "a" / "b" / "c")
    with pytest.raises(UsageError, match="the lessons' sources in the package, got none"):
        lesson_names()


# Taking solutions out and leaving them in

CUTS = {
    "block": (
        "# BEGIN SOLUTION\nx = 1\ny = 2\n# END SOLUTION",
        PLACEHOLDER,
        "x = 1\ny = 2",
    ),
    "function": (
        "def f(x):\n    # BEGIN SOLUTION\n    return x\n    # END SOLUTION",
        f"def f(x):\n    {PLACEHOLDER}",
        "def f(x):\n    return x",
    ),
    "two-blocks": (
        "# BEGIN SOLUTION\nx = 1\n# END SOLUTION\nz = 0\n# BEGIN SOLUTION\ny = 2\n# END SOLUTION",
        f"{PLACEHOLDER}\nz = 0\n{PLACEHOLDER}",
        "x = 1\nz = 0\ny = 2",
    ),
    "entry": ('    "A": (24, 24, 16),  # SOLUTION', '    "A": ...,', '    "A": (24, 24, 16),'),
    "assignment": ("x = [1, 2]  # SOLUTION", "x = ...", "x = [1, 2]"),
    "nothing": ("x = 1  # a remark", "x = 1  # a remark", "x = 1  # a remark"),
}


@pytest.mark.parametrize(("source", "student", "solution"), CUTS.values(), ids=CUTS)
def test_a_cell_is_cut_where_it_is_marked(source, student, solution):
    assert without_solution(source) == student
    assert without_marks(source) == solution


# Notebooks


@both_versions
@every_lesson
def test_a_notebook_is_valid_and_says_what_it_is(name, version):
    notebook = notebook_of(name, version)
    nbformat.validate(notebook)
    assert notebook.metadata.convscope == {"lesson": name, "version": version}
    identities = [cell.id for cell in notebook.cells]
    assert len(set(identities)) == len(identities)
    assert not MARKS.search("\n".join(cell.source for cell in notebook.cells))
    for cell in notebook.cells:
        assert cell.source.strip()
        if cell.cell_type == "code":
            ast.parse(cell.source)
            assert cell.outputs == []


@every_lesson
def test_a_solution_has_every_line_of_its_source(name):
    lesson = lesson_of(name)
    notebook = notebook_of(name, "solution")
    for built, cell in zip(notebook.cells, lesson.cells, strict=True):
        expected = without_marks(cell.source)
        assert built.source == expected or (cell.role == "hint" and cell.source in built.source)


@every_lesson
def test_a_student_version_holds_no_line_of_a_solution(name):
    lesson = lesson_of(name)
    cells = notebook_of(name, "student").cells
    student = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    answers = [cell for cell in lesson.cells if cell.role == "answer"]
    assert answers
    for cell in answers:
        given = set(without_solution(cell.source).splitlines())
        removed = [line for line in without_marks(cell.source).splitlines() if line not in given]
        assert removed, cell.task
        telling = [line.strip() for line in removed if len(line.strip()) > 25]
        assert [line for line in telling if line in student] == []
    remarks = {cell.source for cell in lesson.cells if cell.role == "remark"}
    assert not remarks & {cell.source for cell in cells}


@every_lesson
def test_a_student_version_has_a_place_to_fill_for_every_task(name):
    notebook = notebook_of(name, "student")
    empty = {
        cell.metadata.convscope.task
        for cell in notebook.cells
        if cell.metadata.get("convscope", {}).get("role") == "answer"
        and (PLACEHOLDER in cell.source or re.search(r": \.\.\.,", cell.source))
    }
    assert empty == set(tasks_of(int(name[0])))


@both_versions
@every_lesson
def test_hints_are_folded_away(name, version):
    lesson = lesson_of(name)
    notebook = notebook_of(name, version)
    hints = [cell.source for cell in lesson.cells if cell.role == "hint"]
    folded = [cell.source for cell in notebook.cells if cell.source.startswith("<details>\n<summary>Hint")]
    assert len(folded) == len(hints) >= len(tasks_of(lesson.number))
    for text, hint in zip(folded, hints, strict=True):
        assert text.endswith(f"</summary>\n\n{hint}\n\n</details>")


def test_several_hints_are_numbered_and_a_single_one_is_not():
    hints = '# %% [markdown] tags=["hint"]\n# One.\n\n' * 2
    text = f'{hints}# %% tags=["check"]\nconvscope.check("1.1")\n\n# %% [markdown] tags=["hint"]\n# Alone.\n'
    notebook = build_notebook(parse_lesson("1-x", text), "student")
    summaries = re.findall("<summary>(.*?)</summary>", "\n".join(cell.source for cell in notebook.cells))
    assert summaries == ["Hint 1", "Hint 2", "Hint"]


@both_versions
@every_lesson
def test_checks_can_neither_be_edited_nor_deleted(name, version):
    cells = notebook_of(name, version).cells
    checks = [cell for cell in cells if cell.metadata.get("convscope", {}).get("role") == "check"]
    assert [cell.source for cell in checks] == [
        f'convscope.check("{task}")' for task in tasks_of(int(name[0]))
    ]
    assert all(cell.metadata.editable is False and cell.metadata.deletable is False for cell in checks)


# Writing


def test_both_versions_of_all_lessons_are_written(tmp_path):
    written, kept = write_notebooks(tmp_path / "course")
    assert kept == []
    expected = [tmp_path / "course" / v / f"{name}.ipynb" for name in NAMES for v in ("student", "solution")]
    assert written == expected
    assert sorted(tmp_path.rglob("*.ipynb")) == sorted(expected)
    for path in written:
        nbformat.validate(nbformat.read(path, as_version=4))


def test_what_is_there_is_kept_unless_it_may_be_replaced(tmp_path):
    (path,), _ = write_notebooks(tmp_path, NAMES[:1], ["student"])
    path.write_text("my work", encoding="utf-8")
    written, kept = write_notebooks(tmp_path, NAMES[:2])
    assert path.read_text(encoding="utf-8") == "my work"
    assert kept == [path]
    assert sorted([*written, path]) == sorted(tmp_path.rglob("*.ipynb"))
    assert len(written) == 3
    write_notebooks(tmp_path, overwrite=True)
    assert path.read_text(encoding="utf-8").startswith("{")


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "course").write_text("a file", encoding="utf-8")
    with pytest.raises(RunError, match=r"to be able to write .*1-data-preparation\.ipynb, got .*course"):
        write_notebooks(tmp_path / "course", NAMES[:1])


@every_lesson
def test_solutions_are_delivered_executed_on_mnist_with_full_marks_and_no_warning(name):
    """After a change of a lesson: convscope exercise notebooks new --execute, and copy what it wrote."""
    notebook = solution_notebook(read_lesson(name))
    assert verdicts(notebook) == full_marks(name)
    assert complaints(notebook) == []
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
    assert not re.search(r"digits: 1,437|\b4,000 training|\b2,800 images", json.dumps(notebook))
    assert len(json.dumps(notebook)) < 400_000


@every_lesson
def test_a_solution_comes_executed_while_its_source_is_as_it_was(name, monkeypatch, tmp_path):
    fresh = build_notebook(read_lesson(name), "solution")
    fresh.cells[1].outputs = [nbformat.v4.new_output("stream", text="executed")]
    nbformat.write(fresh, tmp_path / f"{name}.ipynb")
    lesson = read_lesson(name)
    monkeypatch.setattr(notebooks, "source_folder", lambda: tmp_path)
    assert solution_notebook(lesson).cells[1].outputs
    changed = parse_lesson(name, '# %%\nprint("changed")\n')
    assert cell_sources(solution_notebook(changed)) == [("code", 'print("changed")')]


# Settings


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", LessonSettings()),
        ("quick", LessonSettings(quick=True)),
        ("digits, quick", LessonSettings("digits", True)),
        ("mnist", LessonSettings("mnist")),
    ],
    ids=["nothing", "quick", "both", "data"],
)
def test_the_environment_chooses_data_and_length(monkeypatch, words, expected):
    monkeypatch.setenv(data.VARIABLE, words)
    assert LessonSettings.from_environment() == expected
    monkeypatch.setenv(data.VARIABLE, expected.to_environment()[data.VARIABLE])
    assert LessonSettings.from_environment() == expected


def test_another_word_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv(data.VARIABLE, "quick,cifar")
    with pytest.raises(UsageError, match=r"CONVSCOPE_LESSONS to hold mnist, digits, quick, got 'cifar'"):
        load_data()


def test_where_there_is_no_mnist_the_digits_take_its_place(monkeypatch):
    def load_digits_alone(name):
        if name == "mnist":
            raise DataNotFoundError("no connection")
        return whole

    whole = load("digits")
    monkeypatch.delenv(data.VARIABLE, raising=False)
    monkeypatch.setattr("convscope.teaching.exercise.load", load_digits_alone)
    assert load_data() is whole
    monkeypatch.setenv(data.VARIABLE, "mnist")
    with pytest.raises(DataNotFoundError, match="no connection"):
        load_data()


def test_quick_takes_the_first_images_and_fewer_epochs(monkeypatch):
    whole = load("digits")
    monkeypatch.setenv(data.VARIABLE, "digits")
    longer = epochs(whole)
    monkeypatch.setenv(data.VARIABLE, "digits,quick")
    monkeypatch.setattr(data, "QUICK_TRAIN", 200)
    short = load_data()
    assert (len(short.train), len(short.test)) == (200, 360)
    assert (short.train.images == whole.train.images[:200]).all()
    assert short.fingerprint != whole.fingerprint
    assert 0 < epochs(short) < longer


def test_a_time_limit_is_a_positive_number():
    with pytest.raises(UsageError, match="a time limit of more than 0 seconds, got 0"):
        execute(nbformat.v4.new_notebook(), 0)


def test_the_teachers_page_counts_tasks_and_points_rightly():
    page = (Path(__file__).parent.parent / "docs" / "teaching.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) .*?\| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    counted = [
        (str(n), str(len(tasks_of(n))), str(sum(t.points for t in tasks_of(n).values()))) for n in range(1, 8)
    ]
    assert rows == counted


def test_the_sources_are_files_of_the_package():
    """A link is a text file where the system or git makes none."""
    folder = notebooks.source_folder()
    assert not folder.is_symlink()
    assert len([path for path in folder.iterdir() if path.suffix in (".py", ".ipynb")]) == 14


def test_the_names_that_notebooks_import_stay():
    """Notebooks that were handed out know neither where lessons and checks live, nor that they moved."""
    from convscope import grading, lessons
    from convscope.grading import check

    assert check is grading.check is convscope.check
    assert {"epochs", "load_data", "make_photographs", "make_quiz", "read_pictures"} <= set(dir(lessons))
