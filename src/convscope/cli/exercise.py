"""``convscope exercise``; its notebooks and their grading are in ``lessons``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli import lessons, waiting
from convscope.cli.output import say, show_json, table, warn
from convscope.cli.parsing import Device, Json
from convscope.cli.settings import findable
from convscope.cli.training import show_data, show_next, show_result

if TYPE_CHECKING:
    from convscope.data.dataset import Dataset
    from convscope.experiment.running import Result


# A group that does the exercise itself when none of its commands is named.
app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.command("notebooks")(lessons.notebooks)
app.command("grade")(lessons.grade)


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
        lessons.ask_quiz(seed if chosen is not None and chosen.name == "COMMANDLINE" else None, json)
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
