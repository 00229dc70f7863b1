"""Every lesson, run from top to bottom as it is handed out: on MNIST and digits, solved and untouched."""

import pytest
from lesson_outputs import complaints, full_marks, verdicts

from convscope.teaching.grading.execution import execute
from convscope.teaching.grading.marking import grade
from convscope.teaching.lessons.data import LessonSettings
from convscope.teaching.lessons.notebooks import build_notebook, lesson_names, read_lesson, write_notebook

every_lesson = pytest.mark.parametrize("name", lesson_names())
TIME_LIMIT = 280


@pytest.mark.slow
@every_lesson
def test_a_solution_runs_on_mnist_with_full_marks_and_without_a_warning(name, real_mnist):
    environment = LessonSettings("mnist", quick=True).to_environment()
    done = execute(build_notebook(read_lesson(name), "solution"), TIME_LIMIT, environment)
    assert complaints(done.notebook) == []
    assert verdicts(done.notebook) == full_marks(name)
    assert not done.timed_out


@pytest.mark.slow
@pytest.mark.parametrize("version", ["solution", "student"])
@every_lesson
def test_on_the_digits_a_solution_gets_full_marks_and_an_untouched_notebook_none(name, version, tmp_path):
    path = tmp_path / f"{name}.ipynb"
    write_notebook(build_notebook(read_lesson(name), version), path)
    marks = grade(path, TIME_LIMIT, LessonSettings("digits", quick=True))
    assert marks.errors == ()
    assert not marks.timed_out
    expected = full_marks(name) if version == "solution" else dict.fromkeys(full_marks(name), ("open", 0))
    assert {task["task"]: (task["state"], task["points"]) for task in marks.tasks} == expected
    assert marks.points == (marks.out_of if version == "solution" else 0)


MISTAKES = {
    "1-data-preparation": {
        "1.1": (
            "random_state=1338, stratify=labels",
            "shuffle=False",
            "in the order of the file, cut in two",
        ),
        "1.2": (
            "scaler.fit_transform(as_table(images_train))",
            "scaler.fit(as_table(images)).transform(as_table(images_train))",
            "got one fitted on the training and validation images",
        ),
        "1.3": ("reshape((len(scaled_val), *input_shape))", "copy()", "`x_val` of shape (432, 28, 28, 1)"),
        "1.4": (
            "y_train = keras.utils.to_categorical(labels_train, 10)",
            "y_train = labels_train",
            "`y_train` of shape (1005, 10), got (1005,)",
        ),
    },
    "2-first-convolution": {
        "2.1": ('"A": (24, 24, 16)', '"A": (28, 28, 16)', 'which padding="same" would give'),
        "2.2": ("5 * 5 * 1 * 16 + 16", "5 * 5 * 1 * 16", "which comes of leaving out the biases"),
        "2.3": ("", "", ""),
        "2.4": (
            "    x_train,\n    y_train,\n",
            "    np.concatenate([x_train, x_val]),\n    np.concatenate([y_train, y_val]),\n",
            "as many as training and validation images together take",
        ),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_handed_in_notebook_with_mistakes_is_told_what_is_wrong(name, tmp_path):
    notebook = build_notebook(read_lesson(name), "solution")
    mistakes = MISTAKES[name]
    for cell in notebook.cells:
        about = cell.metadata.get("convscope", {})
        if about.get("role") == "answer":
            right, wrong, _ = mistakes[about["task"]]
            assert right in cell.source
            cell.source = cell.source.replace(right, wrong)
    write_notebook(notebook, tmp_path / "handed-in.ipynb")
    marks = grade(tmp_path / "handed-in.ipynb", TIME_LIMIT, LessonSettings("digits", quick=True))
    assert marks.errors == ()
    for task in marks.tasks:
        right, _, message = mistakes[task["task"]]
        assert message in task["message"]
        assert (task["points"] == 0) == bool(right)
        assert bool(task["hint"]) == bool(right)
