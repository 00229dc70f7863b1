"""The quiz: its answers against Keras's own shapes and counts, and how it is asked in a terminal."""

import io
import json
import re
import sys

import convscope  # isort: skip  (it chooses Keras's back end, before Keras is imported)
import keras
import pytest

from convscope.cli import main
from convscope.errors import UsageError
from convscope.teaching.lessons.notebooks import build_notebook, without_marks
from convscope.teaching.quiz import make_quiz, quiz_lesson, read_answer

SEEDS = range(60)


def keras_layer(layer):
    """Build the layer itself; its weights are zeros, which cost least."""
    made = getattr(keras.layers, layer.type)(**layer.settings)
    if hasattr(made, "kernel_initializer"):
        made.kernel_initializer = keras.initializers.Zeros()
    made.build((None, *layer.input_shape))
    return made


@pytest.mark.parametrize("seed", SEEDS)
def test_the_answers_are_keras_own(seed):
    for network in make_quiz(seed):
        shape = network.input_shape
        for layer in network.layers:
            assert layer.input_shape == shape
            own = keras_layer(layer)
            shape = own.compute_output_shape((None, *shape))[1:]
            assert layer.output_shape == shape, (network, layer.name)
            assert layer.parameters == own.count_params(), (network, layer.name)
            assert layer.weight_shapes == tuple(tuple(weight.shape) for weight in own.weights)


def test_whole_networks_have_as_many_parameters_as_the_quiz_says():
    for network in make_quiz(7):
        layers = [getattr(keras.layers, layer.type)(**layer.settings) for layer in network.layers]
        model = keras.Sequential([keras.Input(network.input_shape), *layers])
        assert model.count_params() == network.parameters
        assert model.output_shape[1:] == network.layers[-1].output_shape


def test_the_arithmetic_ends_in_the_answer():
    for layer in (layer for seed in range(10) for network in make_quiz(seed) for layer in network.layers):
        text = f"{layer} {layer.input_shape} {layer.arithmetic}".replace(",", "")
        if layer.parameters:
            assert re.search(rf"= {layer.parameters}\b", text), layer.arithmetic
        for length in layer.output_shape:
            assert re.search(rf"(?<!\d){length}(?!\d)", text), layer.arithmetic


def test_quizzes_differ_grow_and_repeat_themselves():
    quizzes = [make_quiz(seed) for seed in SEEDS]
    assert len({str(network) for quiz in quizzes for network in quiz}) > 0.9 * 3 * len(SEEDS)
    assert make_quiz(5) == make_quiz(5)
    for quiz in quizzes:
        counts = [sum(layer.type == "Conv2D" for layer in network.layers) for network in quiz]
        assert counts == [1, 2, 3]
    seen = {key for quiz in quizzes for network in quiz for layer in network.layers for key in layer.settings}
    assert seen >= {"filters", "kernel_size", "strides", "padding", "dilation_rate", "use_bias", "pool_size"}


# As notebooks


@pytest.mark.parametrize("seed", [3, 1338])
def test_a_quiz_as_a_lesson_gets_full_marks_for_its_own_answers(seed):
    lesson = quiz_lesson(seed)
    namespace = {}
    for cell in lesson.cells:
        if cell.kind == "code" and cell.role != "check":
            exec(without_marks(cell.source), namespace)
    verdicts = [convscope.check(task, **namespace) for task in lesson.tasks]
    assert all(verdicts), [str(verdict) for verdict in verdicts if not verdict]


def test_the_students_quiz_holds_no_answer():
    student = build_notebook(quiz_lesson(3), "student")
    code = [cell.source for cell in student.cells if cell.cell_type == "code"]
    blanks = sum(source.count(": ...,") for source in code)
    assert blanks == 2 * sum(len(network.layers) for network in make_quiz(3))
    assert not any(re.search(r'": [(\d]', source) for source in code)


WRONG_QUIZ_ANSWERS = {
    "a-shape": ("8.1", "shapes_a", (1, 2, 3), "another output shape of"),
    "an-open-entry": ("8.1", "shapes_a", ..., "to be filled in"),
    "a-word": ("8.3", "shapes_b", "26x26", "as a shape such as"),
    "a-count": ("8.2", "parameters_a", 7, "parameters of"),
    "a-shape-for-a-count": ("8.4", "parameters_b", (3, 3), "as one number"),
    "a-fraction": ("8.6", "parameters_c", 0.5, "parameters of"),
}


@pytest.mark.parametrize(
    ("task", "variable", "value", "message"), WRONG_QUIZ_ANSWERS.values(), ids=WRONG_QUIZ_ANSWERS
)
def test_wrong_answers_of_the_quiz(task, variable, value, message):
    layers = make_quiz(3)["abc".index(variable[-1])].layers
    attribute = "output_shape" if variable.startswith("shapes") else "parameters"
    answers = {layer.name: getattr(layer, attribute) for layer in layers} | {layers[0].name: value}
    verdict = convscope.check(task, **{f"layers_{variable[-1]}": layers, variable: answers})
    assert verdict.points == 0
    assert message in verdict.message


# Typed answers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("26x26x32", (26, 26, 32)),
        ("(26, 26, 32)", (26, 26, 32)),
        ("26 26 32\n", (26, 26, 32)),
        ("[26 × 26 × 32]", (26, 26, 32)),
        ("216,650", (216650,)),
        ("1,199,882", (1199882,)),
        ("10", (10,)),
        ("(10,)", (10,)),
    ],
)
def test_answers_are_read_as_people_type_them(text, expected):
    assert read_answer(text) == expected


@pytest.mark.parametrize("text", ["", "ten", "3.5", "-3", "26x?"])
def test_what_is_no_number_is_asked_for_again(text):
    with pytest.raises(UsageError, match="whole numbers such as 26x26x32 or 320"):
        read_answer(text)


def ask(monkeypatch, capsys, typed, *options):
    monkeypatch.setattr(sys, "argv", ["convscope", "exercise", "--quiz", "--seed", "3", *options])
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return capsys.readouterr().out


def right_answers(seed):
    return "".join(
        f"{'x'.join(map(str, layer.output_shape))}\n{layer.parameters}\n"
        for network in make_quiz(seed)
        for layer in network.layers
    )


def test_right_answers_are_counted_and_explained(monkeypatch, capsys):
    out = ask(monkeypatch, capsys, right_answers(3))
    asked = 2 * sum(len(network.layers) for network in make_quiz(3))
    assert f"{asked} of {asked} right. The same quiz again: convscope exercise --quiz --seed 3" in out
    assert out.count("  right") == asked
    assert all(line in out for network in make_quiz(3) for line in network.layers[0].arithmetic)


def test_a_wrong_answer_gets_the_right_one_and_an_unreadable_one_another_chance(monkeypatch, capsys):
    first = make_quiz(3)[0].layers[0]
    right = "x".join(map(str, first.output_shape))
    out = ask(monkeypatch, capsys, f"many\n{right}\n99\n")
    assert "Expected whole numbers such as 26x26x32 or 320, got 'many'." in out
    assert f"Expected {first.parameters:,}, got 99." in out
    assert "1 of 2 right, " in out.splitlines()[-1]


@pytest.mark.parametrize("end", ["", "q\n", "Q\n9\n", "quit\n"], ids=["ctrl-d", "q", "Q", "quit"])
def test_the_quiz_can_be_left_with_its_score(monkeypatch, capsys, end):
    first, second, third = right_answers(3).splitlines(keepends=True)[:3]
    out = ask(monkeypatch, capsys, f"{first}{second}\n{end}")
    assert third.strip().replace("x", "×") in out
    left = 2 * sum(len(network.layers) for network in make_quiz(3)) - 3
    assert out.splitlines()[-1] == (
        f"2 of 3 right, {left} not asked. The same quiz again: convscope exercise --quiz --seed 3"
    )


def test_ctrl_c_leaves_the_quiz_with_its_score_too(monkeypatch, capsys):
    class Input(io.StringIO):
        def readline(self):
            line = super().readline()
            if not line:
                raise KeyboardInterrupt
            return line

    monkeypatch.setattr(sys, "argv", ["convscope", "exercise", "--quiz", "--seed", "3"])
    monkeypatch.setattr(sys, "stdin", Input(right_answers(3).split("\n", 1)[0] + "\n"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert "\n1 of 1 right, " in capsys.readouterr().out


def test_the_quiz_as_json_holds_networks_and_answers(monkeypatch, capsys):
    printed = json.loads(ask(monkeypatch, capsys, "", "--json"))
    assert printed["seed"] == 3
    for shown, network in zip(printed["networks"], make_quiz(3), strict=True):
        assert shown["parameters"] == network.parameters
        assert [tuple(layer["output_shape"]) for layer in shown["layers"]] == [
            layer.output_shape for layer in network.layers
        ]
