"""``convscope predict`` and ``export``: a trained network put to use."""

from __future__ import annotations

import csv
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli import waiting
from convscope.cli.embedding import require_new
from convscope.cli.output import answered_all_the_same, fail, say, show_json, table
from convscope.cli.parsing import DataNow, Device, Json, Run, find_run_or_export, require_inputs
from convscope.errors import UsageError, expected_got

if TYPE_CHECKING:
    from convscope.export import Bundle
    from convscope.export.exporting import ExportReport
    from convscope.prediction import Failure, Prediction

SOME_FAILED = 3
# Standard input is read whole; a longer list of paths than this is a mistake.
MOST_INPUT = 512 * 2**20
PLACES = ("second", "third")
MOST_NAMED, MOST_FAILURES = 3, 10
# So many images are predicted by torch alone before the compiled loops, which are faster, are loaded.
FEW = 16


def predict(
    run: Annotated[
        Path, typer.Argument(parser=find_run_or_export, help="A run, or a folder that export wrote.")
    ],
    files: Annotated[
        list[str], typer.Argument(help="Images, folders of images, or - for an image or paths on stdin.")
    ],
    abstain: Annotated[
        float | None, typer.Option(help="Give no label where the probability is below this, such as 0.8.")
    ] = None,
    show: Annotated[
        Path | None, typer.Option(help="Draw what the network sees into this new PNG file.")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print a row for each file.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="For many files: write a table to this new .parquet or .csv file."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="For --out: processes that predict. [default: 1]")
    ] = None,
    _device: Device = None,
    json: Json = False,
) -> None:
    """Predict image files: label, probability, doubts.

    The doubts are the next two classes, and what looks unlike the training images.

    With --out as a table, by several processes, which goes on where it was stopped.

    Example: convscope predict runs/my-run photo.jpg more-photos/ --abstain 0.8
    """
    if csv and json:
        raise UsageError(expected_got("--csv or --json", "both"))
    if not json:
        require_inputs(files)
    if out is not None:
        if csv or show is not None:
            raise UsageError(expected_got("--out alone", "--csv or --show beside it"))
        _predict_to_table(run, files, out, abstain, workers or 1, json)
        return
    if workers is not None:
        raise UsageError(expected_got("--workers beside --out", "no --out"))
    require_new("--show", show, (".png",))
    from convscope.export import load_bundle
    from convscope.prediction import Failure, Prediction, predict_files, require_threshold

    require_threshold(abstain)
    bundle = load_bundle(run)
    results = predict_files(bundle, files, abstain=abstain, standard_input=_read_standard_input)
    if csv:
        results = _print_rows(results)
    with _prepared_for(bundle, files):
        everything = list(results)
    predictions = [one for one in everything if isinstance(one, Prediction)]
    failures = [one for one in everything if isinstance(one, Failure)]
    counts = Counter("no label" if one.abstained else one.label for one in predictions)
    with answered_all_the_same(partial(_draw, bundle, predictions, show)):
        if json:
            show_json(
                {
                    "run": str(run),
                    "class_names": list(bundle.class_names),
                    "temperature": bundle.temperature,
                    "novelty": bundle.novelty.to_json() if bundle.novelty else None,
                    "counts": {name: counts[name] for name in bundle.class_names},
                    "predictions": [one.to_json() for one in predictions],
                    "failures": [one.to_json() for one in failures],
                }
            )
        elif not csv:
            _show(bundle, predictions, show)
        if not json:
            _show_failures(failures)
            if len(everything) > 1 and not csv:
                say(_summary(counts, len(failures)))
    if failures:
        raise typer.Exit(SOME_FAILED)


def _prepared_for(bundle: Bundle, files: Sequence[str]) -> AbstractContextManager[None]:
    """Leave out what takes longer to load than it saves for a few images."""
    if bundle.network is None or len(files) > FEW or not all(Path(file).is_file() for file in files):
        return nullcontext()
    from convscope.lowering.cpu import compiled

    return compiled.left_out()


def _predict_to_table(
    run: Path, files: Sequence[str], out: Path, abstain: float | None, workers: int, json: bool
) -> None:
    """Predict many files, with a bar on a terminal and a line now and then elsewhere."""
    from convscope.batch_prediction import predict_to_table

    began = time.perf_counter()
    with waiting.counting("Predicting", json) as on_progress:
        written = predict_to_table(
            run,
            files,
            out,
            abstain=abstain,
            workers=workers,
            standard_input=_read_standard_input,
            on_progress=on_progress,
        )
    seconds = time.perf_counter() - began
    if json:
        show_json({"run": str(run), **asdict(written), "file": str(out), "seconds": round(seconds, 3)})
    else:
        if written.found_done:
            say(f"{written.found_done:,} had been predicted before.")
        say(_summary(Counter(written.counts), written.failures))
        new = written.images - written.found_done
        say(f"{new:,} predicted in {seconds:.1f} s, {new / seconds:,.0f} a second")
        say(f"Table: {out}", whole=True)
    if written.failures:
        raise typer.Exit(SOME_FAILED)


def _read_standard_input() -> bytes:
    """Read standard input whole, up to what an image can be."""
    return sys.stdin.buffer.read(MOST_INPUT)


def _print_rows(results: Iterable[Prediction | Failure]) -> Iterator[Prediction | Failure]:
    """Print a CSV row for each result as soon as it is known."""
    from convscope.prediction import COLUMNS, in_csv

    waiting.done()
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for one in results:
        writer.writerow(in_csv(one.to_row()))
        yield one


def _show(bundle: Bundle, predictions: list[Prediction], sheet: Path | None) -> None:
    """Print predictions as a table, and below it what is unlike the training images."""
    if predictions:
        rows = [
            [
                one.name,
                f"abstains ({one.label})" if one.abstained else one.label,
                f"{one.probability:.2%}",
                *(f"{label} {value:.2%}" for label, value in one.ranked[1:]),
                *([""] * (len(PLACES) + 1 - len(one.ranked))),
            ]
            for one in predictions
        ]
        columns = ["file", "label", "probability", "then", "then"]
        table(f"{len(predictions):,} predicted", columns, rows, left=(0, 1, 3, 4))
    odd = [one for one in predictions if one.drift_warnings]
    if odd:
        subject = f"{len(odd):,} of {len(predictions):,} unlike the training images"
        say(f"{subject}; read their labels with doubt:", style="bold yellow")
    for line in _grouped(odd):
        say(f"  {line}")
    if odd and bundle.novelty:
        say(bundle.novelty.sentence())
    if bundle.statistics is None:
        say("This run did not record what training images look like; no input was compared with them.")
    if sheet:
        say(f"What the network sees: {sheet}")


def _grouped(odd: Iterable[Prediction]) -> Iterator[str]:
    """Say each kind of doubt once, the most common first: which images it is about, and one's numbers."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for one in odd:
        for warning in one.drift_warnings:
            kind, _, detail = warning.partition(": ")
            kinds.setdefault(kind, []).append((one.name, detail))
    for kind, cases in sorted(kinds.items(), key=lambda item: -len(item[1])):
        name, detail = cases[0]
        if len(cases) == 1:
            yield f"{name}: {kind}: {detail}"
        else:
            names = _listed([name for name, _ in cases])
            yield f"{len(cases):,} images {kind}: {names}; of the first one {detail}"


def _listed(names: Sequence[str]) -> str:
    """Name the first ones, and count the others."""
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _show_failures(failures: Sequence[Failure]) -> None:
    """Say which inputs could not be read, and why."""
    for failure in failures[:MOST_FAILURES]:
        fail(failure.reason)
    if len(failures) > MOST_FAILURES:
        fail(f"{len(failures) - MOST_FAILURES:,} more could not be read; --csv lists them all.")


def _summary(counts: Counter[str], failures: int) -> str:
    """Count the labels, and what could not be read."""
    parts = [f"{label} ({count:,})" for label, count in counts.most_common()]
    parts += [f"not read ({failures:,})"] if failures else []
    return f"In all {counts.total() + failures:,}: {', '.join(parts)}"


def _draw(bundle: Bundle, predictions: list[Prediction], file: Path | None) -> None:
    """Write the contact sheet, if there is to be one, whole or not at all."""
    if file is None:
        return
    from convscope.plotting import png_bytes
    from convscope.prediction import draw_sheet
    from convscope.runs import write_file

    write_file(file, png_bytes(draw_sheet(bundle, predictions)))


def export(
    run: Run,
    format: Annotated[
        str,
        typer.Option(help="onnx, int8 (onnx in 8 bits), keras, torch (torch.export) or module (source)."),
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The folder to make. [default: beside the run, RUN-FORMAT]")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="For onnx: the network in 8 bits, too.")] = False,
    data: DataNow = None,
    _device: Device = None,
    json: Json = False,
) -> None:
    """Export a run to ONNX, Keras or torch, checked against it.

    It becomes a folder that can be used elsewhere; the check is made on the run's test images. In 8 bits a
    network is smaller and faster; it is refused where that costs more than 1 % of the accuracy on validation
    images.

    Example: convscope export runs/my-run --format int8
    """
    from convscope.export.exporting import export_run

    report = export_run(run, format, out, int8=int8, data=data)
    if json:
        show_json(report.to_json())
    else:
        _show_export(report)
    if report.uncounted:
        raise report.uncounted


def _show_export(report: ExportReport) -> None:
    """Print what an export is worth."""
    rows = [
        [
            one.name,
            _size(one.size),
            "?" if one.accuracy is None else f"{one.accuracy:.2%}",
            f"{one.same_labels:.2%}",
            f"{one.largest_difference:.1e}",
            *(f"{milliseconds:#.3g} ms" for milliseconds in one.milliseconds.values()),
        ]
        for one in report.networks
    ]
    batches = [f"{batch} image{'s' * (batch > 1)}" for batch in report.networks[0].milliseconds]
    columns = ["network", "size", "accuracy", "same labels", "largest difference", *batches]
    table(f"Checked on {report.images}", columns, rows)
    for note in report.notes:
        say(note)
    say(f"Export: {report.path}", whole=True)
    say("Next:")
    say(f"  convscope predict {shlex.quote(str(report.path))} IMAGE.png", whole=True)


def _size(size: int) -> str:
    return f"{size / 2**20:.2f} MB" if size >= 2**20 else f"{size / 2**10:.0f} kB"
