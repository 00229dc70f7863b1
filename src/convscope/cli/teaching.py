"""``convscope exercise``: its three networks, its notebooks and their grading, and a quiz."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli import startup, waiting
from convscope.cli.output import say, show_json, table, warn
from convscope.cli.parsing import Device, Json
from convscope.cli.settings import findable
from convscope.cli.training import show_data, show_next, show_result
from convscope.cli.waiting import PROGRESS
from convscope.errors import UsageError, expected_got

if TYPE_CHECKING:
    from convscope.data.dataset import Dataset
    from convscope.experiment.running import Result
    from convscope.teaching.grading.execution import CellError
    from convscope.teaching.grading.marking import Marks
    from convscope.teaching.quiz import QuizLayer, QuizNetwork

# A group that does the exercise itself when none of its commands is named.
app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)

TimeLimit = Annotated[float, typer.Option(help="Seconds for a whole notebook.")]
Data = Annotated[str | None, typer.Option(help="mnist or digits. [default: mnist, else digits]")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer images and epochs, to try things out.")]


@app.callback()
def exercise(
    context: typer.Context,
    network: Annotated[
        str,
        typer.Option(help="simple, dense, deep, stages, swift, normalized, or all for the exercise's three."),
    ] = "all",
    data: Annotated[
        str | None,
        typer.Option(help="mnist, digits, or a folder of IDX files. [default: mnist, else digits]"),
    ] = None,
    epochs: Annotated[int, typer.Option(help="How often the network sees each training image.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 128,
    seed: Annotated[int, typer.Option(help="Decides split, first weights, order and dropout.")] = 1338,
    out: Annotated[Path, typer.Option(help="The folder in which runs are written.")] = Path("runs"),
    engine: Annotated[str, typer.Option(help="auto, fast or keras.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    _device: Device = None,
    scaling: Annotated[str, typer.Option(help="minmax, unit, standard or raw.")] = "minmax",
    data_format: Annotated[str, typer.Option(help="channels_last or channels_first.")] = "channels_last",
    quiz: Annotated[
        bool, typer.Option("--quiz", help="Predict the shapes of random networks instead.")
    ] = False,
    json: Json = False,
) -> None:
    """Do the exercise, and compare it with what is published.

    Prepare, train, evaluate, draw.

    Example: convscope exercise --network simple --epochs 1
    """
    if context.invoked_subcommand:
        return
    if quiz:
        chosen = context.get_parameter_source("seed")
        _ask_quiz(seed if chosen is not None and chosen.name == "COMMANDLINE" else None, json)
        return
    # Heavy imports wait until the command is certain to be this one.
    from convscope.environment import versions
    from convscope.experiment.config import ExperimentConfig, TrainingConfig
    from convscope.teaching import exercise as exercises

    networks = exercises.networks_of(network)
    training = TrainingConfig(
        epochs=epochs, batch_size=batch_size, seed=seed, engine=engine, precision=precision
    )
    config = ExperimentConfig(scaling=scaling, data_format=data_format, training=training)
    dataset, notice = exercises.exercise_data(data)
    config = replace(config, data=findable(data) or dataset.name)
    if notice:
        warn(notice)
    if not json:
        show_data(dataset)
    startup.draw_beside()
    results = exercises.run_exercise(
        networks,
        config,
        dataset,
        out,
        command=["convscope", *sys.argv[1:]],
        listeners=waiting.training(json),
        on_begin=(lambda _name: None) if json else (lambda name: _show_network(name, config, dataset)),
        on_result=(lambda _result: None) if json else show_result,
    )
    if json:
        show_json(_as_json(dataset, results, versions()))
    else:
        _show_comparison(dataset, results)
        show_next(results[-1])


def _as_json(dataset: Dataset, results: list[Result], versions: dict[str, str]) -> dict[str, Any]:
    return {
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "counts": {"train": len(dataset.train), "test": len(dataset.test)},
        },
        "networks": {
            result.network: {
                "parameters": result.parameters,
                "test_loss": result.test.loss,
                "test_accuracy": result.test.accuracy,
                "seconds": result.seconds,
                "run": str(result.run),
            }
            for result in results
        },
        "versions": versions,
    }


def _show_network(name: str, config: Any, dataset: Dataset) -> None:
    from convscope.cli.inspecting import show_description
    from convscope.inspection import describe
    from convscope.networks import build

    shape = dataset.input_shape
    if config.data_format == "channels_first":
        shape = (shape[2], shape[0], shape[1])
    model = build(name, shape, len(dataset.class_names), config.data_format)
    say("")
    show_description(describe(model), f"{name} on {dataset.name}", arithmetic=False)


def _show_comparison(dataset: Dataset, results: list[Result]) -> None:
    from convscope.teaching.exercise import comparison

    forms = {"parameters": "{:,}", "test_accuracy": "{:.2%}", "test_loss": "{:.4f}"}
    columns = ["network", *(column for name in forms for column in (name.replace("_", " "), "published"))]
    rows = []
    for row in comparison(results):
        published = row["published"]
        cells = [row["network"]]
        for name, form in forms.items():
            cells += [form.format(row[name]), form.format(published[name]) if published else "–"]
        rows.append([*cells, f"{row['seconds']:.1f} s"])
    say("")
    title = f"This run on {dataset.name} beside the exercise's published results on mnist"
    table(title, [*columns, "training"], rows, spare=(2, 7))


@app.command("notebooks")
def notebooks(
    folder: Annotated[Path, typer.Argument(help="Where to write them; made where it is missing.")],
    lesson: Annotated[
        list[str] | None, typer.Option(help="Only this lesson; may be given again. [default: all]")
    ] = None,
    student_only: Annotated[bool, typer.Option("--student-only", help="Without the solutions.")] = False,
    execute: Annotated[
        bool, typer.Option("--execute", help="Run the solutions here; they come executed on MNIST.")
    ] = False,
    quiz: Annotated[bool, typer.Option("--quiz", help="A quiz of random networks as well.")] = False,
    seed: Annotated[int | None, typer.Option(help="Decides the quiz's networks. [default: random]")] = None,
    data: Data = None,
    quick: Quick = False,
    time_limit: TimeLimit = 3600,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    json: Json = False,
) -> None:
    """Write the exercise as notebooks, for students and solved.

    What is there is kept.

    Example: convscope exercise notebooks course --quiz
    """
    logging.getLogger(PROGRESS).info("Writing the notebooks")
    from convscope.teaching.lessons.notebooks import write_notebooks

    _require_sense(execute, student_only, data, quick)
    names = [_lesson_name(word) for word in lesson] if lesson else None
    if quiz:
        seed = _seed(seed) if overwrite else _seed_beside(folder, seed)
    versions = ("student",) if student_only else ("student", "solution")
    extra = _quiz_notebooks(seed, versions) if quiz and seed is not None else None
    written, kept = write_notebooks(folder, names, versions, overwrite, extra)
    runs = []
    if execute:
        solutions = [path for path in written if path.parent.name == "solution"]
        runs = [_execute(path, time_limit, data, quick, quiet=json) for path in solutions]
    if json:
        paths = {"notebooks": [str(path) for path in written], "kept": [str(path) for path in kept]}
        show_json({**paths, "quiz_seed": seed, "executed": runs})
        return
    for path in written:
        say(str(path))
    for path in kept:
        say(f"{path} is there already and was kept; --overwrite replaces it.")
    say(f"Open them with: jupyter lab {shlex.quote(str(folder))}", whole=True)


def _require_sense(execute: bool, student_only: bool, data: str | None, quick: bool) -> None:
    """Refuse options that would do nothing beside each other."""
    if execute and student_only:
        raise UsageError(expected_got("--execute or --student-only", "both", "Only solutions are executed."))
    if not execute and (data is not None or quick):
        hint = "Notebooks choose their data when they run; see CONVSCOPE_LESSONS in docs/teaching.md."
        raise UsageError(expected_got("--data and --quick beside --execute", "no --execute", hint))


def _lesson_name(word: str) -> str:
    """Find a lesson by its name or its number."""
    from convscope.errors import unknown_name
    from convscope.teaching.lessons.notebooks import lesson_names

    for name in lesson_names():
        if word in (name, name.split("-")[0]):
            return name
    raise unknown_name("lesson", word, lesson_names())


def _seed(seed: int | None) -> int:
    """Draw a seed that is short enough to be read aloud in class."""
    import random

    return random.randrange(10_000) if seed is None else seed  # noqa: S311  a quiz is not cryptography


def _seed_beside(folder: Path, seed: int | None) -> int:
    """Take the seed of a quiz that is kept in the folder: its two versions belong together."""
    from convscope.teaching.quiz import seed_of_quiz_in

    there = seed_of_quiz_in(folder)
    if there is not None and seed not in (None, there):
        hint = "Choose another folder, or replace the quiz with --overwrite."
        raise UsageError(expected_got(f"--seed {there}, as the quiz in {folder} has", seed, hint))
    return _seed(seed if there is None else there)


def _quiz_notebooks(seed: int, versions: tuple[str, ...]) -> dict[Path, Any]:
    from convscope.teaching.lessons.notebooks import build_notebook
    from convscope.teaching.quiz import quiz_lesson

    lesson = quiz_lesson(seed)
    return {Path(version) / f"{lesson.name}.ipynb": build_notebook(lesson, version) for version in versions}


def _execute(path: Path, time_limit: float, data: str | None, quick: bool, quiet: bool) -> dict[str, Any]:
    """Run a solution in its place."""
    from convscope.teaching.grading.execution import cell_errors, execute, shrink_figures
    from convscope.teaching.lessons.notebooks import require_tool, write_notebook

    notebook = require_tool("nbformat").read(path, as_version=4)
    done = execute(notebook, time_limit, _settings(data, quick).to_environment())
    shrink_figures(done.notebook)
    write_notebook(done.notebook, path)
    failed = cell_errors(done.notebook)
    if not quiet:
        say(f"{path.stem}: {'out of time after' if done.timed_out else 'ran'} {done.seconds:.0f} s")
        _show_errors(failed)
    return {
        "notebook": str(path),
        "seconds": round(done.seconds, 1),
        "timed_out": done.timed_out,
        "errors": [asdict(error) for error in failed],
    }


def _show_errors(errors: Sequence[CellError]) -> None:
    for error in errors:
        say(f"Cell {error.cell} failed: {error.name}: {error.message}")


def _settings(data: str | None, quick: bool) -> Any:
    """Take what the options say; what they leave out, the environment decides."""
    from convscope.errors import unknown_name
    from convscope.teaching.lessons.data import DATASETS, LessonSettings

    if data is not None and data not in DATASETS:
        raise unknown_name("lessons' dataset", data, DATASETS)
    around = LessonSettings.from_environment()
    return LessonSettings(data or around.dataset, quick or around.quick)


@app.command("grade")
def grade(
    hand_ins: Annotated[
        list[Path], typer.Argument(help="A student's notebook; or several, or folders of them.")
    ],
    csv: Annotated[Path | None, typer.Option(help="Write a table: a row for each hand-in.")] = None,
    workers: Annotated[int, typer.Option(help="Notebooks that run at a time.")] = 1,
    data: Data = None,
    quick: Quick = False,
    time_limit: TimeLimit = 1800,
    json: Json = False,
) -> None:
    """Mark notebooks by the lessons' own checks.

    Each is run in a process of its own.

    The notebooks' code runs with your rights; grade what strangers send you inside a container.

    Example: convscope exercise grade handed-in --csv marks.csv
    """
    logging.getLogger(PROGRESS).info("Loading the lessons' checks")
    from convscope.teaching.grading import marking

    settings = _settings(data, quick)
    files = marking.find_hand_ins(hand_ins)
    if csv is None and files == hand_ins and len(files) == 1:
        marks = marking.grade(files[0], time_limit, settings)
        show_json(marks.to_json()) if json else _show_marks(marks)
        return
    if csv is not None and not csv.absolute().parent.is_dir():
        raise UsageError(expected_got(f"a folder for {csv.name}", f"none at {csv.parent}", "Make it first."))
    done: list[Marks] = []

    def keep(marks: Marks) -> None:
        done.append(marks)
        if csv is not None:
            marking.write_marks(sorted(done, key=lambda one: files.index(Path(one.notebook))), csv)
        if not json:
            remarks = f"; {marks.remarks}" if marks.remarks else ""
            score = f"{marks.points} of {marks.out_of} points" if marks.out_of else "not marked"
            say(f"{len(done)}/{len(files)} {marks.notebook}: {score}, {marks.seconds:.0f} s{remarks}")

    began = time.perf_counter()
    try:
        marking.grade_all(files, time_limit, settings, workers, keep)
    finally:  # an interruption leaves what was graded until then
        done.sort(key=lambda one: files.index(Path(one.notebook)))
        seconds = time.perf_counter() - began
        if json:
            show_json({"hand_ins": [one.to_json() for one in done], "seconds": round(seconds, 1)})
        else:
            _show_class(done, len(files), seconds, csv)


def _show_class(marks: Sequence[Marks], hand_ins: int, seconds: float, csv: Path | None) -> None:
    folder = Path(os.path.commonpath([Path(one.notebook).parent for one in marks])) if marks else Path()
    rows = [
        [
            Path(one.notebook).relative_to(folder),
            one.lesson or "–",
            f"{one.points} of {one.out_of}" if one.out_of else "–",
            f"{one.seconds:.0f} s",
            one.remarks,
        ]
        for one in marks
    ]
    table(f"Hand-ins in {folder}", ["hand-in", "lesson", "points", "time", "remarks"], rows, (0, 4), (3, 1))
    unmarked = sum(not one.out_of for one in marks)
    unread = f"; {unmarked} could not be marked, see the remarks" if unmarked else ""
    say(f"{len(marks)} of {hand_ins} hand-ins graded in {seconds:.0f} s{unread}")
    if csv is not None and marks:
        say(f"Table: {csv}")


def _show_marks(marks: Marks) -> None:
    rows = [
        [task["task"], task["title"], f"{task['points']} of {task['out_of']}", task["message"]]
        for task in marks.tasks
    ]
    table(str(marks.notebook), ["task", "what it asks for", "points", "what the check says"], rows, (0, 1, 3))
    _show_errors(marks.errors)
    if marks.suspicious:
        cells = ", ".join(map(str, marks.suspicious))
        say(f"Read cell {cells}: its code reaches for what marks it.", style="bold yellow")
    if marks.timed_out:
        say(f"The time limit ended the notebook after {marks.seconds:.0f} s.")
    say(f"{marks.points} of {marks.out_of} points, in {marks.seconds:.0f} s")


def _ask_quiz(seed: int | None, json: bool) -> None:
    """Ask for the shapes and parameters of random networks, and show the arithmetic behind each answer."""
    from convscope.teaching.quiz import make_quiz

    seed = _seed(seed)
    networks = make_quiz(seed)
    if json:
        show_json({"seed": seed, "networks": [_quiz_as_json(network) for network in networks]})
        return
    say(
        f"Quiz {seed}: three random networks. Type each output shape as 26x26x32, and each number of "
        "parameters; an empty line shows the answer, q ends the quiz."
    )
    answers: list[bool] = []  # whether each was right, as far as the quiz got
    again = f"The same quiz again: convscope exercise --quiz --seed {seed}"
    try:
        for network in networks:
            _ask_network(network, answers)
    except (EOFError, KeyboardInterrupt) as left:
        questions = 2 * sum(len(network.layers) for network in networks)
        say(f"\n{sum(answers)} of {len(answers)} right, {questions - len(answers)} not asked. {again}")
        if isinstance(left, KeyboardInterrupt):
            raise
    else:
        say(f"\n{sum(answers)} of {len(answers)} right. {again}")


def _quiz_as_json(network: QuizNetwork) -> dict[str, Any]:
    layers = [asdict(layer) for layer in network.layers]
    for layer in layers:
        del layer["weight_shapes"]  # the arithmetic names them
    return {"input_shape": network.input_shape, "parameters": network.parameters, "layers": layers}


def _ask_network(network: QuizNetwork, answers: list[bool]) -> None:
    say(f"\n{network}")
    for layer in network.layers:
        say(f"\n{layer.name}: {layer}")
        answers.append(_ask("output shape", tuple(length or 0 for length in layer.output_shape)))
        answers.append(_ask("parameters", (layer.parameters,)))
        _show_arithmetic(layer)


def _ask(what: str, answer: tuple[int, ...]) -> bool:
    """Ask once, and again where the answer cannot be read; say whether it was right.

    Raises EOFError where the student ends the quiz.
    """
    from convscope.teaching.quiz import read_answer

    shown = "×".join(f"{number:,}" for number in answer)
    while True:
        sys.stdout.write(f"  {what}? ")
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line or line.strip().lower() in ("q", "quit", "exit"):
            raise EOFError
        if not line.strip():
            say(f"  {shown}")
            return False
        try:
            found = read_answer(line)
        except UsageError as error:
            say(f"  {error}")
            continue
        say("  right" if found == answer else f"  {expected_got(shown, '×'.join(f'{n:,}' for n in found))}")
        return found == answer


def _show_arithmetic(layer: QuizLayer) -> None:
    for line in layer.arithmetic:
        say(f"    {line}")
