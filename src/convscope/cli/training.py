"""``convscope train``."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli import startup, waiting
from convscope.cli.output import explain, say, show_json, table, warn
from convscope.cli.parsing import DataNow, Device, Json, Run, Track
from convscope.cli.settings import SETTINGS, refuse_both, settle
from convscope.environment import is_one_of_several
from convscope.errors import UsageError, expected_got

# When the program began, all but its first moments: a deadline is a promise about the whole command.
_BEGAN = time.perf_counter()

if TYPE_CHECKING:
    from convscope.data.dataset import Dataset
    from convscope.experiment.config import ExperimentConfig
    from convscope.experiment.running import Result, Trained
    from convscope.tracking.tools import Target
    from convscope.training.events import Listener


def train(
    data: Annotated[str, typer.Argument(help="mnist, digits, or the path of your images.")],
    network: Annotated[
        str | None,
        typer.Option(
            help="A network by name, keras:NAME, or a .keras file. [default: deep; own images: normalized]"
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="A file of weights for a pretrained network, instead of the published ones."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Settings under one name: exercise, swift, photographs, images, pretrained."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the training images. [default: 10; own images: 40, 20 from 3,000 images on, "
            "10 from 10,000 on]"
        ),
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(help="Be done this time after the start, with the report, the rate annealed: 60s, 2m."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Stop when the validation accuracy is reached: 99%.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a better validation; keep the best.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Which epoch's weights to take: best (on the validation images) or last. [default: best; "
            "mnist and digits: last]"
        ),
    ] = None,
    monitor: Annotated[
        str | None,
        typer.Option(
            help="What --patience and --keep watch: loss or accuracy. [default: loss; --until: accuracy]"
        ),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="none, digits, photographs, strong, or settings: shift=0.1,flip=horizontal (also rotate, "
            "zoom, erase, contrast, mixup, cutmix). [default: none; own colour images: photographs]"
        ),
    ] = None,
    class_weights: Annotated[
        str | None, typer.Option(help="none, or balanced: rare classes count as much. [default: none]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step. [default: 128; own images: 64; few images: fewer]")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adam, sgd, adamw, … [default: adam]")] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="The highest one, where it changes. [default: the optimizer's; own images: 0.01]"),
    ] = None,
    find_learning_rate: Annotated[
        bool | None,
        typer.Option("--find-learning-rate", help="Find the learning rate first, by a range test."),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="constant, one-cycle, cosine or plateau. [default: constant; own images and --within: "
            "one-cycle]"
        ),
    ] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="From 0 to below 1. [default: 0]")] = None,
    validation_share: Annotated[
        float | None,
        typer.Option(help="Share of the training images held back. [default: 0.3; own images: 0.2]"),
    ] = None,
    scaling: Annotated[
        str | None, typer.Option(help="minmax, unit, standard or raw. [default: minmax; own images: unit]")
    ] = None,
    data_format: Annotated[
        str | None, typer.Option(help="channels_last or channels_first. [default: channels_last]")
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(help="letterbox (whole, with a border), crop or stretch. [default: letterbox]"),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Height and width to bring your images to, in pixels.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="With --seeds or --folds: so many trainings side by side, in processes that share the "
            "threads. Otherwise threads that decode your images; the result is the same with any."
        ),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="auto, fast or keras. [default: auto]")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16. [default: auto]")] = None,
    deterministic: Annotated[
        bool | None, typer.Option("--deterministic", help="Plan by fixed rules, not by measurement.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The first seed. [default: 1338]")] = None,
    seeds: Annotated[int, typer.Option(help="Train this often, each time with the next seed.")] = 1,
    folds: Annotated[
        int | None,
        typer.Option(help="Cross-validation: a network for each fold, tested on the images it never saw."),
    ] = None,
    add: Annotated[
        Path | None,
        typer.Option(help="A folder of corrected labels, as `convscope serve RUN --keep` writes it."),
    ] = None,
    preflight: Annotated[
        bool, typer.Option(help="First see whether a copy of the network overfits one batch.")
    ] = True,
    out: Annotated[Path, typer.Option(help="The folder in which runs are written.")] = Path("runs"),
    report: Annotated[bool, typer.Option(help="Write report.html for each run.")] = True,
    track: Track = None,
    _device: Device = None,
    json: Json = False,
) -> None:
    """Train a network and write a run.

    Some defaults are others for images of your own. With a --network they keep epochs, batch size, learning
    rate and schedule of mnist and digits; grey ones of 28×28 pixels keep all of their settings.

    Example: convscope train my-photographs --within 2m
    """
    given = {name: value for name, value in locals().items() if name in SETTINGS}
    if seeds < 1:
        raise UsageError(expected_got("seeds of at least 1", seeds))
    if folds is not None and folds < 2:
        raise UsageError(expected_got("folds of at least 2", folds))
    refuse_both("--folds", folds, "--seeds", seeds if seeds > 1 else None)
    refuse_both("--folds", folds, "--add", add)
    several = folds or seeds
    if several > 1 and is_one_of_several():
        hint = "Start it without torchrun, with --workers."
        raise UsageError(expected_got("one training on several processes", f"{several}", hint))
    if several > 1 and workers is not None and workers < 1:
        raise UsageError(expected_got("workers of at least 1", workers))
    from convscope.tracking import read_targets

    targets = read_targets(track or ())
    if is_one_of_several():
        from convscope.training.distributed import join  # it loads Keras

        join()  # at once: reading may take one machine longer than another
    readers = workers if several == 1 else None
    config, dataset = settle(data, given, workers=readers, add=add, quiet=json)
    if not json:
        show_data(dataset)
    options: dict[str, Any] = {
        "command": ["convscope", *sys.argv[1:]],
        "listeners": followed(json, targets),
        "with_report": report,
        "began": _BEGAN,
        "workers": (workers or 1) if several > 1 else 1,
    }
    if is_one_of_several():
        _train_together(config, dataset, out, json, options)
        return
    if report and options["workers"] == 1:
        startup.draw_beside()
    with waiting.SideBySide(json, several, warn) as on_event:
        options |= {"on_event": on_event, "track": list(map(str, targets))}
        if folds is None:
            _train_seeds(config, dataset, out, seeds, json, options)
        else:
            _train_folds(config, dataset, out, folds, json, options)


def followed(json: bool, targets: Sequence[Target]) -> list[Listener]:
    """Show a training and let tools follow it; what fails is a line of what is shown, or a warning."""
    from convscope.tracking import follow
    from convscope.training.events import Alert, notify

    shown = waiting.training(json)
    return [*shown, *follow(targets, warn if json else lambda text: notify(shown, Alert(text)))]


def _train_seeds(
    config: ExperimentConfig, dataset: Dataset, out: Path, seeds: int, json: bool, options: dict[str, Any]
) -> None:
    """Train with one seed or several, and print what came out."""
    from convscope.experiment.several import run_several  # it loads Keras

    show: Callable[[Result], None] = (lambda _result: None) if json else show_result
    results = run_several(_with_seeds(config, seeds), dataset, out, "train", on_result=show, **options)
    if seeds > 1 and not json:
        _show_spread(f"{seeds} seeds on {dataset.name}", results)
    _show_all(dataset, results, json)


def _train_together(
    config: ExperimentConfig, dataset: Dataset, out: Path, json: bool, options: dict[str, Any]
) -> None:
    """Train one network on several processes, and print on the first what came out."""
    from convscope.experiment.running import Result  # it loads Keras
    from convscope.experiment.together import train_together

    taken = {name: options[name] for name in ("listeners", "command", "with_report")}
    show: Callable[[Result], None] = (lambda _result: None) if json else show_result
    result = train_together(config, dataset, out, **taken, on_result=show)
    if isinstance(result, Result):
        _show_all(dataset, [result], json)


def _show_all(dataset: Dataset, results: list[Result], json: bool) -> None:
    """Print runs as JSON, or what can be done with the last one."""
    if json:
        show_json({**_as_json(dataset.name, results), "left_out": dict(dataset.left_out)})
    else:
        show_next(results[-1])


def _train_folds(
    config: ExperimentConfig, dataset: Dataset, out: Path, folds: int, json: bool, options: dict[str, Any]
) -> None:
    """Train a network for each fold, and print what they say together."""
    from convscope.experiment.several import cross_validate  # it loads Keras

    def show(result: Result) -> None:
        say(f"\n{result.run.name}: {result.test.summary()}\n")

    on_result: Callable[[Result], None] = (lambda _result: None) if json else show
    found = cross_validate(config, dataset, folds, out, on_result=on_result, **options)
    if json:
        own = {"cross_validation": found.to_json(), "left_out": dict(dataset.left_out)}
        show_json({**_as_json(dataset.name, list(found.results)), **own})
        return
    evaluation, names = found.evaluation, found.evaluation.class_names
    _show_spread(f"{folds} folds of {dataset.name}", list(found.results))
    say(f"\nEvery image, answered by the network that never saw it: {evaluation.summary()}")
    say(f"\n{evaluation.report()}\n")
    pairs = [
        f"{pair.images} of {names[pair.true]} taken for {names[pair.predicted]}"
        for pair in evaluation.confused_pairs(3)
    ]
    if pairs:
        say(f"Confused most often: {'; '.join(pairs)}.")
    say(f"Folder: {found.folder}", whole=True)
    say("These networks measure the settings. For one network of all images, train without --folds.")


def resume(
    run: Run,
    data: DataNow = None,
    report: Annotated[
        bool | None, typer.Option(help="Write report.html. [default: as when the run began]")
    ] = None,
    track: Track = None,
    _device: Device = None,
    json: Json = False,
) -> None:
    """Go on with a training that was interrupted, bit for bit.

    The tools that followed it go on, too, unless --track names others.

    Example: convscope resume runs/20260131-120000-train-mnist/deep
    """
    from convscope.runs import open_unfinished

    open_unfinished(run)  # a wrong path is answered before Keras is loaded
    from convscope.tracking import followed_by, read_targets

    targets = read_targets(track) if track else followed_by(run, warn)
    from convscope.experiment.running import Result
    from convscope.experiment.together import resume_together

    def show(result: Trained) -> None:
        if isinstance(result, Result) and not json:
            show_result(result)

    listeners = followed(json, targets)
    result = resume_together(run, listeners, with_report=report, data=data, on_result=show)
    if result is None:
        return  # the first process speaks
    if not isinstance(result, Result):
        _show_trial(result, json)
    elif json:
        show_json(_as_json(None, [result]))
    else:
        show_next(result)


def _show_trial(trained: Trained, json: bool) -> None:
    """Print what came out of a sweep's trial, whose test images nobody has looked at."""
    validation = trained.validation
    if json:
        accuracy = validation.accuracy if validation else None
        show_json({"run": str(trained.run), "validation_accuracy": accuracy})
    else:
        say(f"\n{trained.network} on {trained.data}, validation images: {validation}")
        say(
            f"Run: {trained.run}. It belongs to a sweep, whose winner alone sees the test images.", whole=True
        )


def show_data(dataset: Dataset) -> None:
    """Say in one line what will be trained on."""
    height, width, channels = dataset.input_shape
    say(
        f"Data: {dataset.name}, {len(dataset.train):,} training and {len(dataset.test):,} test images of "
        f"{height}×{width}×{channels}, {len(dataset.class_names)} classes, "
        f"fingerprint {dataset.fingerprint[:12]}"
    )
    explain("fingerprint")


def show_result(result: Result) -> None:
    """Print what came out of one network."""
    say(f"\n{result.network} on {result.data}, {result.test.images:,} test images:")
    say(str(result.test))
    say(f"Run: {result.run}", whole=True)


def show_next(result: Result) -> None:
    """Say what can be done with a run: its report, and commands that can be pasted."""
    run, report = shlex.quote(str(result.run)), result.run / "report.html"
    if report.is_file():
        say(f"Report: {report.absolute().as_uri()}", whole=True)
    say("Next:")
    say(f"  convscope report {run} --open", whole=True)
    say(f"  convscope predict {run} {shlex.quote(_example_image(result))}", whole=True)


def _example_image(result: Result) -> str:
    """Find a test image that is a file of its own; where there is none, the person has to name one."""
    from convscope.runs import RUN_FILE, RunDirectory

    source = Path(RunDirectory(result.run).read_json(RUN_FILE)["data"]["source"])
    file = source / result.test.name_of(0)
    return str(file) if file.is_file() else "IMAGE.png"


def _with_seeds(config: ExperimentConfig, seeds: int) -> dict[str, ExperimentConfig]:
    """Repeat a configuration with consecutive seeds; one alone is named after its network."""
    name = config.folder_name
    if seeds == 1:
        return {name: config}
    first = config.training.seed
    return {
        f"{name}-seed-{seed}": replace(config, training=replace(config.training, seed=seed))
        for seed in range(first, first + seeds)
    }


def _as_json(data: str | None, results: list[Result]) -> dict[str, Any]:
    from convscope.experiment.several import spread
    from convscope.runs import RUN_FILE, RunDirectory

    def stages(result: Result) -> dict[str, Any]:
        """Give what each stage of a training on a pretrained network brought, where it had some."""
        found = RunDirectory(result.run).read_json(RUN_FILE).get("stages")
        return {"stages": found} if found else {}

    return {
        **({"data": data} if data else {}),
        "runs": [
            {
                "run": str(result.run),
                "network": result.network,
                "parameters": result.parameters,
                "seconds": result.seconds,
                "validation_accuracy": result.validation.accuracy if result.validation else None,
                "test_accuracy": result.test.accuracy,
                "test_loss": result.test.loss,
                **stages(result),
            }
            for result in results
        ],
        "spread": spread(results),
    }


def _show_spread(title: str, results: list[Result]) -> None:
    """Print mean, deviation and range over several runs."""
    from convscope.experiment.several import spread

    forms = {"test_accuracy": "{:.3%}", "test_loss": "{:.4f}", "seconds": "{:.2f} s"}
    keys = ("mean", "deviation", "minimum", "maximum")
    rows = [
        [name.replace("_", " "), *(forms[name].format(values[key]) for key in keys)]
        for name, values in spread(results).items()
    ]
    say("")
    columns = [title, "mean", "standard deviation", "lowest", "highest"]
    table(title, columns, rows)
