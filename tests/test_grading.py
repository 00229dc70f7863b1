"""The check itself: how it finds an answer, what it says, how its hints go on, and that it never crashes."""

import json

import numpy as np
import pytest

import convscope
from convscope.errors import UnknownNameError
from convscope.teaching.grading import MIME_TYPE, TASKS, Verdict, tasks, tasks_of
from convscope.teaching.grading.verdict import CheckFailed, as_number, as_shape, as_table, close, row_counts

QUESTIONS = {"A": ({"filters": 16, "kernel_size": 5}, (28, 28, 1))}


@pytest.fixture(autouse=True)
def first_hints():
    tasks._met.clear()


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Did you mean '1\.2'\?"):
        convscope.check("1.2.")


@pytest.mark.parametrize("task", TASKS)
def test_a_task_without_an_answer_is_open_and_earns_nothing(task):
    verdict = convscope.check(task)
    assert (verdict.state, verdict.points) == ("open", 0)
    assert verdict.out_of == TASKS[task].points > 0
    assert "nothing" in verdict.message


GARBAGE = {
    "none": None,
    "word": "done",
    "number": 3,
    "nan": float("nan"),
    "list": [[1, 2], [3]],
    "dictionary": {"A": 1},
    "empty": np.empty((0, 0)),
    "objects": np.array([object()]),
    "function": lambda *_: 1 / 0,
    "type": dict,
}


@pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE)
def test_no_answer_crashes_a_check(value):
    for task, entry in TASKS.items():
        verdict = convscope.check(task, **dict.fromkeys((*entry.answers, *entry.given), value))
        assert verdict.points == 0, task
        assert verdict.message, task
        assert str(verdict).startswith(("✗", "○")), task


def test_answers_are_found_where_the_call_stands():
    namespace = {"convscope": convscope, "questions": QUESTIONS, "shapes": {"A": (24, 24, 16)}}
    exec('verdict = convscope.check("2.1")', namespace)
    assert namespace["verdict"].state == "right"


def test_an_answer_given_by_hand_wins():
    namespace = {"convscope": convscope, "questions": QUESTIONS, "shapes": {"A": (24, 24, 16)}}
    exec('verdict = convscope.check("2.1", shapes={"A": (1, 1, 1)})', namespace)
    assert namespace["verdict"].state == "wrong"


def test_asking_again_gives_the_next_hint_and_the_last_one_stays():
    hints = [convscope.check("2.1", questions=QUESTIONS, shapes={"A": (28, 28, 16)}).hint for _ in range(4)]
    assert hints[0].startswith("Without padding")
    assert hints[1].startswith("Along each axis")
    assert (
        hints[2] == hints[3] == "A: height and width: ⌊(28 − 5)/1⌋ + 1 = 24, and as many channels as filters."
    )


def test_another_mistake_begins_with_its_own_first_hint():
    convscope.check("2.1", questions=QUESTIONS, shapes={"A": (28, 28, 16)})
    verdict = convscope.check("2.1", questions=QUESTIONS, shapes={"A": (25, 25, 16)})
    assert verdict.hint.startswith("At the last place the whole kernel must still fit")


def test_dots_left_standing_are_no_answer():
    verdict = convscope.check("2.1", questions=QUESTIONS, shapes={"A": ...})
    assert verdict.state == "open"
    assert "`shapes['A']` to be filled in, got the dots" in verdict.message


def test_what_comes_from_the_cells_above_is_asked_for():
    verdict = convscope.check("2.1", shapes={"A": (24, 24, 16)})
    assert verdict.message.startswith("Expected `questions` from the cells above, got nothing.")


def test_an_error_inside_a_judge_is_told_as_a_mistake_of_the_answer():
    verdict = convscope.check("3.2", test_labels=np.array([0, 1]), predicted="xx", confusion=np.eye(2))
    assert verdict.state == "wrong"
    assert verdict.message.startswith("Expected an answer that can be checked, got")


# Verdicts


def verdict(points=0, answered=True, message="Expected 1 < 2, got <b>."):
    return Verdict("1.1", "split", points, 1, message, "Try & see.", answered)


@pytest.mark.parametrize(
    ("one", "state", "mark"),
    [
        (verdict(points=1), "right", "✓"),
        (verdict(), "wrong", "✗"),
        (verdict(answered=False), "open", "○"),
    ],
    ids=["right", "wrong", "open"],
)
def test_a_verdict_says_its_state(one, state, mark):
    assert one.state == state
    assert str(one).startswith(mark)
    assert bool(one) is (state == "right")


def test_a_verdict_shows_names_as_text_and_leaves_itself_for_grading():
    bundle = verdict()._repr_mimebundle_()
    assert "&lt;b&gt;" in bundle["text/html"]
    assert "<b>" not in bundle["text/html"]
    assert "<code>x</code>" in verdict(message="`x`")._as_html()
    assert bundle["text/plain"] == repr(verdict())
    assert json.loads(json.dumps(bundle[MIME_TYPE])) == bundle[MIME_TYPE]
    assert bundle[MIME_TYPE]["points"] == 0


def test_every_lesson_has_tasks_with_titles_and_points():
    assert [len(tasks_of(lesson)) for lesson in range(1, 9)] == [4, 4, 6, 4, 3, 4, 3, 6]
    for task in TASKS.values():
        assert task.title
        assert task.points in (1, 2)
        assert task.answers


# Reading values


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((26, 26, 32), (26, 26, 32)),
        ([26, 26], (26, 26)),
        (10, (10,)),
        ((None, 5), (5,)),
        (np.array([3, 4]), (3, 4)),
    ],
    ids=["tuple", "list", "number", "batch-axis", "array"],
)
def test_shapes_are_read_as_people_write_them(value, expected):
    assert as_shape(value, "shape") == expected


def test_numbers_are_read_from_any_kind_of_scalar():
    import torch

    assert as_number(torch.tensor([0.5], requires_grad=True), "x") == 0.5
    assert as_number(np.float32(0.5), "x") == 0.5
    with pytest.raises(CheckFailed, match=r"`x` as one number, got an array of shape \(2,\)"):
        as_number([1, 2], "x")


def test_a_table_needs_all_its_entries():
    with pytest.raises(CheckFailed, match="an entry 'B' in `shapes`, got none"):
        as_table({"A": 1}, "shapes", ["A", "B"])


def test_equal_rows_are_counted_with_what_belongs_to_them():
    images, labels = np.array([[1, 2], [1, 2], [1, 2]], np.uint8), np.array([0, 0, 1])
    assert sorted(row_counts(images, labels).values()) == [1, 2]


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(1.0005, 1, True), (1.1, 1, False), (0, 0, True), (1, 0, False)]
)
def test_closeness_is_relative(first, second, expected):
    assert close(first, second, 1e-3) is expected


def test_an_answer_that_draws_leaves_no_figure_and_takes_none_away():
    from matplotlib import pyplot

    mine = pyplot.figure()

    def draws(*_):
        pyplot.figure()
        return 0

    try:
        for task, entry in TASKS.items():
            convscope.check(task, **dict.fromkeys((*entry.answers, *entry.given), draws))
        assert pyplot.get_fignums() == [mine.number]
    finally:
        pyplot.close(mine)
