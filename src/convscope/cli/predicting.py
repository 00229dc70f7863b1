"""``convscope predict``, ``embed`` and ``export``: a trained network put to use."""

from __future__ import annotations

import csv
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli import waiting
from convscope.cli.output import SOME_FAILED, answered_all_the_same, fail, say, show_json, table, warn
from convscope.cli.parsing import DataNow, Device, Json, Run, find_run_or_export, require_inputs
from convscope.errors import UsageError, expected_got

if TYPE_CHECKING:
    from convscope.embedding import Embedding, FeatureTable
    from convscope.export import Bundle
    from convscope.export.exporting import ExportReport
    from convscope.inspection import Neighbours
    from convscope.prediction import Failure, Prediction

# Standard input is read whole; a longer list of paths than this is a mistake.
MOST_INPUT = 512 * 2**20
PLACES = ("second", "third")
MOST_NAMED, MOST_FAILURES = 3, 10
# So many images are predicted by torch alone before the compiled loops, which are faster, are loaded.
FEW = 16
# How a map of images can be laid out, and the seed of what is random in it.
METHODS, SEED = ("tsne", "pca"), 1338


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
    _require_new("--show", show, (".png",))
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
            _show_failures([one.reason for one in failures], fail, "--csv")
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


def _show_failures(reasons: Sequence[str], show: Callable[[str], None], option: str) -> None:
    """Say which inputs could not be read, and why; an option lists them all."""
    for reason in reasons[:MOST_FAILURES]:
        show(reason)
    if len(reasons) > MOST_FAILURES:
        show(f"{len(reasons) - MOST_FAILURES:,} more could not be read; {option} lists them all.")


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


def _require_new(option: str, file: Path | None, endings: tuple[str, ...]) -> None:
    """Refuse to write over a file: it might be a photograph."""
    if file is None:
        return
    if file.suffix.lower() not in endings:
        raise UsageError(expected_got(f"a file that ends in {' or '.join(endings)} for {option}", file))
    if file.exists():
        hint = "Choose another name."
        raise UsageError(expected_got(f"a new file for {option}", f"{file}, which is there", hint))
    if not file.absolute().parent.is_dir():
        raise UsageError(expected_got(f"a file in an existing folder for {option}", file))


def embed(
    source: Annotated[
        str, typer.Argument(help="A folder of images, a run, or anything that can be trained on.")
    ],
    network: Annotated[
        str | None,
        typer.Option(
            help="efficientnet-lite0, which needs no training, keras:NAME, or a run. "
            "[default: the run's own, or the first]"
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Height and width in which such a network sees the images. [default: 192]"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="A file of weights for it, instead of the published ones."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the features to this new .npz or .parquet file.")
    ] = None,
    map: Annotated[
        Path | None, typer.Option(help="Write a map of the images to this new .html file.")
    ] = None,
    method: Annotated[str, typer.Option(help="How the map is laid out: tsne or pca.")] = "tsne",
    similar: Annotated[
        list[Path] | None, typer.Option(help="Show the images most like this one; may be repeated.")
    ] = None,
    count: Annotated[int, typer.Option(help="How many of them.", min=1)] = 8,
    show: Annotated[Path | None, typer.Option(help="Draw them into this new .png file.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="For a .parquet table: processes that compute. [default: 1]")
    ] = None,
    _device: Device = None,
    json: Json = False,
) -> None:
    """Compute the features of images, and find those that are alike.

    Without --out, --map and --similar, features and map are written to the current folder.

    For many images, --out features.parquet goes on where it was stopped, and --workers computes in several
    processes.

    Example: convscope embed photos/ --similar photo.jpg --show alike.png
    """
    if out is None and map is None and not similar:
        stem = Path(source).resolve().name or "images"
        out, map = Path(f"{stem}-features.npz"), Path(f"{stem}-map.html")
    files = {"features": out, "map": map, "figure": show}
    table_file = out if out is not None and out.suffix.lower() == ".parquet" else None
    _require_possible(files, method, similar or (), None if table_file else workers)
    from convscope.embedding import draw_similar, nearest_to
    from convscope.embedding import embed as compute
    from convscope.runs import RunDirectory, write_file

    written = None
    if table_file is not None:
        written = _write_table(source, table_file, network, size, weights, workers or 1, json)
        if map is None and not similar:
            if _answer(written, [], files, json):
                raise typer.Exit(SOME_FAILED)
            return
    embedding, asked = compute(
        source, network or "", similar=similar or (), size=size, weights=weights, table=table_file
    )
    found = None if asked is None else nearest_to(embedding, asked, count)

    def write() -> None:
        if out is not None and table_file is None:
            RunDirectory(out.absolute().parent).write_arrays(out.name, embedding.to_arrays())
        _write_map(embedding, source, map, method)
        if show is not None and asked is not None and found is not None:
            from convscope.plotting import png_bytes

            write_file(show, png_bytes(draw_similar(embedding, asked, found)))

    with answered_all_the_same(write):
        similar_to = [] if asked is None or found is None else _similar(embedding, asked, found)
        failed = _answer(embedding, similar_to, files, json, asked.failures if asked else ())
    if failed:
        raise typer.Exit(SOME_FAILED)


def _require_possible(
    files: dict[str, Path | None], method: str, similar: Sequence[Path], workers: int | None
) -> None:
    """Refuse options that do not fit together; ``workers`` are those for which there is no table."""
    if method not in METHODS:
        raise UsageError(expected_got(f"--method {' or '.join(METHODS)}", repr(method)))
    if files["figure"] is not None and not similar:
        raise UsageError(expected_got("--show beside --similar", "no --similar"))
    if workers is not None:
        raise UsageError(expected_got("--workers beside --out FILE.parquet", "no such table"))
    _require_new("--out", files["features"], (".npz", ".parquet"))
    _require_new("--map", files["map"], (".html",))
    _require_new("--show", files["figure"], (".png",))


def _write_table(
    source: str,
    file: Path,
    network: str | None,
    size: int | None,
    weights: str | None,
    workers: int,
    json: bool,
) -> FeatureTable:
    """Compute many features, with a bar on a terminal and a line now and then elsewhere."""
    from convscope.embedding import embed_to_table

    with waiting.counting("Computing features", json) as on_progress:
        written = embed_to_table(
            source, file, network or "", size=size, weights=weights, workers=workers, on_progress=on_progress
        )
    if written.found_done and not json:
        say(f"{written.found_done:,} had been gone through before.")
    return written


def _write_map(embedding: Embedding, source: str, file: Path | None, method: str) -> None:
    if file is None:
        return
    from convscope.embedding import lay_out
    from convscope.report.rendering import render_map
    from convscope.runs import write_file

    laid, places = lay_out(embedding, method, SEED)
    explained = f" ({100 * laid.explained:.0f} % of the variance)" if laid.explained is not None else ""
    page = render_map(
        laid.points,
        [embedding.names[place] for place in places],
        [embedding.classes[place] for place in places],
        lambda row: embedding.pixels(int(places[row])),
        title=Path(source).resolve().name or source,
        network=embedding.network,
        method=f"{'t-SNE' if laid.method == 'tsne' else 'PCA'}{explained}",
        count=len(embedding.names),
    )
    write_file(file, page.encode("utf-8", "backslashreplace"))


def _similar(embedding: Embedding, asked: Embedding, found: Neighbours) -> list[dict[str, Any]]:
    """List the images nearest to each that was asked about."""
    from convscope.embedding import distance

    def nearest(row: int) -> list[dict[str, Any]]:
        pairs = zip(found.indices[row], found.similarities[row], strict=True)
        return [
            {
                "file": embedding.names[index],
                "class": embedding.classes[index] or None,
                "distance": distance(float(cosine)),
            }
            for index, cosine in pairs
        ]

    return [{"file": name, "nearest": nearest(row)} for row, name in enumerate(asked.names)]


def _answer(
    result: Embedding | FeatureTable,
    similar: list[dict[str, Any]],
    files: dict[str, Path | None],
    json: bool,
    more_failures: Sequence[str] = (),
) -> bool:
    """Say what was computed; whether something could not be read."""
    failures = [*result.failures, *more_failures]
    if json:
        answer = {"network": result.network, "images": result.images, "features": result.length}
        written = {name: str(file) for name, file in files.items() if file}
        show_json(answer | {"similar": similar, "files": written, "failures": failures})
        return bool(failures)
    say(f"{result.images:,} images, {result.length:,} features each, of {result.network}")
    for one in similar:
        rows = [[near["file"], near["class"] or "–", f"{near['distance']:.3f}"] for near in one["nearest"]]
        table(f"Most like {one['file']}", ["image", "class", "distance"], rows, left=(0, 1))
    if similar:
        say("A distance of 0 is the same to the network, one of 1.4 has nothing in common with it.")
    for what, name in (("Features", "features"), ("Map", "map"), ("The nearest images", "figure")):
        if file := files[name]:
            say(f"{what}: {shlex.quote(str(file))}", whole=True)
    _show_failures(failures, warn, "--json")
    return bool(failures)


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
