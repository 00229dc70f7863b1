"""``convscope evaluate``, ``compare`` and ``report``: what finished runs are worth."""

from __future__ import annotations

import logging
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli import startup, waiting
from convscope.cli.output import SOME_FAILED, explain, say, show_json, table, warn
from convscope.cli.parsing import DataNow, Device, Json, Run, find_run, require_inputs
from convscope.errors import DataError, RunError, UsageError, expected_got

if TYPE_CHECKING:
    from convscope.contents import Contents
    from convscope.evaluation import Comparison, Evaluation
    from convscope.evaluation.novelty import UnknownCheck

# Below this probability --unknown abstains, unless told otherwise.
ABSTAIN = 0.8
SCORES = {"probability": "highest probability", "distance": "nearness to the training images"}
# How many images for which only one of two networks is right are printed for each.
SHOWN = 5


def evaluate(
    run: Run,
    part: Annotated[
        str | None,
        typer.Option(
            help="validation or test. Looking at the test set is counted. "
            "[default: test; beside --unknown validation, where the run has it]"
        ),
    ] = None,
    unknown: Annotated[
        Path | None, typer.Option(help="A folder of images of other things: how sure is the network of them?")
    ] = None,
    abstain: Annotated[
        float | None, typer.Option(help="For --unknown: the probability to abstain below. [default: 0.8]")
    ] = None,
    _device: Device = None,
    json: Json = False,
) -> None:
    """Show what a run is worth: accuracy, classes, calibration.

    With intervals, confused pairs and the worst errors. Or, with --unknown, what it makes of images that
    show none of its classes.

    Example: convscope evaluate runs/20260131-120000-exercise-mnist/deep --part validation
    """
    if part not in ("validation", "test", None):
        raise UsageError(expected_got("the part validation or test", repr(part)))
    if unknown is not None:
        _evaluate_unknown(run, part, unknown, abstain, json)
        return
    if abstain is not None:
        raise UsageError(expected_got("--abstain beside --unknown", "no --unknown"))
    part = part or "test"
    contents = _open(run)
    evaluation = _part(contents, part)
    uncounted = _count([contents] if part == "test" else [], "error analysis", "evaluate")
    if json:
        temperature = contents.calibration.to_json()
        show_json({"run": str(run), "part": part, "temperature": temperature, **evaluation.to_json()})
    else:
        _show_evaluation(contents, part, evaluation)
    if uncounted:
        raise uncounted


def _evaluate_unknown(run: Path, part: str | None, folder: Path, abstain: float | None, json: bool) -> None:
    """Show what a network makes of images that show none of its classes."""
    import numpy as np

    from convscope.evaluation.novelty import Share, check_unknown
    from convscope.prediction import Failure, Prediction, predict_files, require_threshold
    from convscope.runs import RunDirectory

    require_threshold(abstain)
    require_inputs([str(folder)])
    contents = _open(run)
    part = part or ("validation" if "validation" in contents.evaluations else "test")
    evaluation = _part(contents, part)
    bundle = contents.bundle
    logging.getLogger(waiting.PROGRESS).info("Predicting %s", folder)
    results = list(predict_files(bundle, [folder]))
    found = [one for one in results if isinstance(one, Prediction)]
    failures = [one for one in results if isinstance(one, Failure)]
    if not found:
        raise DataError(failures[0].reason)
    known, distances = evaluation.probabilities.max(axis=1), None
    stored = RunDirectory(run).read_arrays("predictions.npz").get(f"{part}_distances")
    far = [one.distance for one in found if one.distance is not None]
    if stored is not None and len(stored) == len(known) and len(far) == len(found):
        distances = stored, np.array(far, np.float32)
    novelty = bundle.novelty
    checked = check_unknown(
        known,
        evaluation.predictions == evaluation.labels,
        np.array([one.probability for one in found]),
        abstain=ABSTAIN if abstain is None else abstain,
        distances=distances,
        warned=(
            Share(novelty.alarms, novelty.validation) if novelty else None,
            Share(sum(bool(one.drift_warnings) for one in found), len(found)),
        ),
    )
    uncounted = _count([contents] if part == "test" else [], "error analysis", "evaluate --unknown")
    if json:
        failed = [one.to_json() for one in failures]
        show_json({"run": str(run), "part": part, **checked.to_json(), "failures": failed})
    else:
        _show_unknown(checked, f"{part} images of {contents.data_name}", folder)
        for failure in failures:
            warn(failure.reason)
    if uncounted:
        raise uncounted
    if failures:
        raise typer.Exit(SOME_FAILED)


def _show_unknown(checked: UnknownCheck, known: str, folder: Path) -> None:
    """Print how unknown images fare beside known ones."""
    level, (_, sure) = max(checked.sure.items())
    say(f"Known: {checked.known:,} {known}. Unknown: {checked.unknown:,} images in {folder}.")
    say(f"{sure.count:,} of {sure.of:,} unknown images get a label with a probability of {level} or more.")
    rows = [[f"get a label, at least {level:.0%} sure", *shares] for level, shares in checked.sure.items()]
    rows.append([f"get no label when abstaining below {checked.abstain:g}", *checked.stopped])
    before, warned = checked.warned
    rows.append(["are called unlike the training images", before or "?", warned])
    table("Share of the images that", ["", "known", "unknown"], rows)
    stopped, cost = checked.stopped[1].value, checked.right_stopped.value
    say(f"Abstaining below {checked.abstain:g} stops {stopped:.1%} of the unknown images, and costs "
        f"{cost:.1%} of the right answers on known ones.")  # fmt: skip
    if before:
        say(f"How often known images are called unlike was measured on {before.of:,} validation images.")
    rows = [
        [SCORES[name], f"{one.area:.3f} ({one.interval.low:.3f} to {one.interval.high:.3f})", one.passing]
        for name, one in checked.separations.items()
    ]
    columns = ["score", "AUROC", "unknown that pass with 95 % of the known"]
    table("How well known and unknown can be told apart", columns, rows)
    explain("AUROC")


def _show_evaluation(contents: Contents, part: str, evaluation: Evaluation) -> None:
    """Print what an evaluation found."""
    say(f"{contents.network_name} on {contents.data_name}, {part} images: {evaluation}")
    calibration = evaluation.reliability.expected_error
    say(
        f"Balanced accuracy {evaluation.balanced_accuracy:.2%}, Cohen's kappa {evaluation.kappa:.4f}, Brier "
        f"score {evaluation.brier_score:.4f}, expected calibration error {calibration:.2%}"
    )
    explain("balanced accuracy", "Cohen's kappa", "Brier score", "expected calibration error")
    say(contents.calibration.sentence())
    explain("temperature")
    _show_confused(evaluation)
    worst = evaluation.worst_errors(10)
    rows = [
        [
            evaluation.name_of(index),
            evaluation.class_names[evaluation.labels[index]],
            evaluation.class_names[evaluation.predictions[index]],
            f"{evaluation.probabilities[index].max():.3f}",
        ]
        for index in worst
    ]
    if rows:
        table("Worst errors", ["image", "true", "predicted", "probability"], rows, left=(0, 1, 2))


def compare(
    first: Annotated[
        list[Path],
        typer.Argument(parser=find_run, help="Two runs; or runs before --with, for several seeds."),
    ],
    second: Annotated[
        list[Path] | None,
        typer.Option("--with", parser=find_run, help="A run of the other side; repeat it for each seed."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare runs on the same images: better, worse, or chance.

    Example: convscope compare runs/a/simple runs/a/deep
    """
    if second is None and len(first) != 2:
        hint = "With several seeds: convscope compare A1 A2 --with B1 --with B2."
        raise UsageError(expected_got("two runs", len(first), hint))
    sides = [[_open(run) for run in side] for side in (first[:1], first[1:])]
    if second is not None:
        sides = [[_open(run) for run in side] for side in (first, second)]
    _refuse_other_data([run for side in sides for run in side])
    from convscope.evaluation import compare as compare_two
    from convscope.evaluation import compare_seeds

    evaluations = [[_part(run, "test") for run in side] for side in sides]
    labels = _labels(sides)
    if len(sides[0]) == len(sides[1]) == 1:
        found: Any = compare_two(evaluations[0][0], evaluations[1][0], *labels)
    else:
        found = compare_seeds(evaluations[0], evaluations[1], *labels)
    settings = _differing_settings(sides)
    uncounted = _count([run for side in sides for run in side], "comparison", "compare")
    if json:
        show_json({**found.to_json(), "settings": settings})
    else:
        say(str(found))
        if settings:
            listed = "; ".join(f"{name} {_said(a)} and {_said(b)}" for name, (a, b) in settings.items())
            say(f"They were trained differently: {listed}.")
        if second is None:
            _show_differences(found, evaluations[0][0], evaluations[1][0])
    if uncounted:
        raise uncounted


def report(
    run: Run,
    data: DataNow = None,
    open: Annotated[
        bool, typer.Option("--open", help="Show it in a browser; one that is there is not written anew.")
    ] = False,
    _device: Device = None,
    json: Json = False,
) -> None:
    """Write a run's report: one HTML file that needs no other.

    Example: convscope report latest --open
    """
    file = run / "report.html"
    if not open or data is not None or not file.is_file():
        startup.draw_beside()
        from convscope.report.rendering import write_report

        file = write_report(run, data=data, consulted_by="convscope report")
    if open:
        webbrowser.open(file.absolute().as_uri())
    if json:
        show_json({"report": str(file), "bytes": file.stat().st_size})
    else:
        say(f"Report: {file.absolute().as_uri()} ({file.stat().st_size / 1e6:.1f} MB)", whole=True)


def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, four folders deep.")] = Path("runs"),
    json: Json = False,
) -> None:
    """List the runs in a folder, the newest first.

    Runs are named from there on. The accuracy is that on the validation images, by which one chooses; of a
    run that is not finished, that of its best epoch so far.

    Example: convscope runs
    """
    from convscope.runs import describe_runs

    if folder != Path("runs") and not folder.is_dir():
        raise RunError(expected_got("a folder in which runs are", f"{folder}, which is none"))
    found = describe_runs(folder)
    if json:
        show_json({"runs": found})
    elif not found:
        say(f"There is no run in {folder}. `convscope train digits` makes one.")
    else:
        rows = [
            [
                Path(one["run"]).relative_to(folder).as_posix(),
                one["began"][:16].replace("T", " "),
                one["data"],
                one["network"],
                "–" if one["validation_accuracy"] is None else f"{one['validation_accuracy']:.2%}",
                f"{one['bytes'] / 1e6:.1f} MB",
                one["status"],
            ]
            for one in found
        ]
        columns = ["run", "began", "data", "network", "validation", "size", "status"]
        # The names that runs are given hold date, network and data; the narrow terminal does without these.
        table(f"{len(rows)} in {folder}", columns, rows, left=(0, 1, 2, 3, 6), spare=(1, 3, 2, 5))


def _open(run: Path) -> Contents:
    from convscope.contents import read_record

    return read_record(run)


def _part(contents: Contents, part: str) -> Evaluation:
    """Take the evaluation of a part."""
    if part not in contents.evaluations:
        status = contents.record.get("status", "unknown")
        expected = f"predictions for the {part} images in {contents.path}"
        raise RunError(expected_got(expected, f"none (status: {status})"))
    return contents.evaluations[part]


def _count(runs: Sequence[Contents], purpose: str, command: str) -> RunError | None:
    """Count a use of each run's test set, before anything of it is shown; return the first refusal."""
    from convscope.evaluation import test_set_log
    from convscope.runs import RunDirectory

    tried = [test_set_log.try_to_log_use(RunDirectory(run.path), purpose, by=command) for run in runs]
    return next(filter(None, tried), None)


def _refuse_other_data(runs: list[Contents]) -> None:
    """Refuse to compare what was tested on different images."""
    prints = {run.record.get("data", {}).get("fingerprint"): run.data_name for run in runs}
    if len(prints) > 1:
        found = " and ".join(f"{name} ({str(value)[:12]})" for value, name in prints.items())
        raise UsageError(expected_got("runs on the same data", found))


def _differing_settings(sides: list[list[Contents]]) -> dict[str, tuple[list[Any], list[Any]]]:
    """Name the settings in which the sides' trainings differ, with the values on each side."""
    found: list[dict[str, list[Any]]] = [{}, {}]
    for values, side in zip(found, sides, strict=True):
        for run in side:
            trained = len(next(iter(run.history.values()), ()))
            settings = _flat({**run.record.get("config", {}), "epochs trained": trained})
            for name, value in settings.items():
                values[name] = [*values.get(name, []), *([] if value in values.get(name, []) else [value])]
    known = [name for name in {**found[0], **found[1]} if name not in ("network", "data")]
    differing = {name: (found[0].get(name, []), found[1].get(name, [])) for name in known}
    differing = {name: both for name, both in differing.items() if both[0] != both[1]}
    if max(map(len, sides)) > 1:  # then seeds differ on purpose
        differing.pop("seed", None)
    if differing.get("epochs") == differing.get("epochs trained"):
        differing.pop("epochs trained", None)
    return differing


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Lay nested settings out: those of the training by their own names, others behind their group's."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        title = f"{prefix}{name}".replace("_", " ")
        inner = "" if name == "training" else f"{title} "
        flat |= _flat(value, inner) if isinstance(value, Mapping) else {title: value}
    return flat


def _said(values: Sequence[Any]) -> str:
    """Write the values of a setting on one side."""
    words = ["default" if value is None else str(value) for value in values]
    return " or ".join(words) or "not set"


def _labels(sides: list[list[Contents]]) -> tuple[str, str]:
    """Name the two sides after their networks, and after their runs where those are the same."""
    first, second = (side[0].network_name for side in sides)
    if first != second:
        return first, second
    first, second = (side[0].path.name for side in sides)
    return first, second if first != second else f"{second} (other)"


def _show_differences(found: Comparison, first: Evaluation, second: Evaluation) -> None:
    """Print some of the images on which just one of two networks is right."""
    alone = [*found.only_a_right[:SHOWN], *found.only_b_right[:SHOWN]]
    rows = [
        [
            first.name_of(index),
            *(first.class_names[one[index]] for one in (first.labels, first.predictions, second.predictions)),
        ]
        for index in alone
    ]
    if rows:
        count = len(found.only_a_right) + len(found.only_b_right)
        title = f"Some of the {count} images on which just one is right"
        table(title, ["image", "true", found.label_a, found.label_b], rows, left=(0, 1, 2, 3))


def _show_confused(evaluation: Evaluation) -> None:
    rows = [
        [evaluation.class_names[pair.true], evaluation.class_names[pair.predicted], pair.images]
        for pair in evaluation.confused_pairs(5)
    ]
    if rows:
        say("")
        table("Most confused", ["true", "predicted", "images"], rows, left=(0, 1))
