"""``convscope embed``: the features of images, a map of them, the nearest to a photograph."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli import waiting
from convscope.cli.output import answered_all_the_same, say, show_json, table, warn
from convscope.cli.parsing import Device, Json
from convscope.errors import UsageError, expected_got

if TYPE_CHECKING:
    from convscope.embedding import Embedding, FeatureTable
    from convscope.inspection import Neighbours

SOME_FAILED = 3
MOST_FAILURES = 10
METHODS = ("tsne", "pca")
SEED = 1338


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
    from convscope.embedding import embed as compute
    from convscope.embedding import nearest_to

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
            from convscope.runs import RunDirectory

            RunDirectory(out.absolute().parent).write_arrays(out.name, embedding.to_arrays())
        _write_map(embedding, source, map, method)
        if show is not None and asked is not None and found is not None:
            from convscope.embedding import draw_similar
            from convscope.plotting import png_bytes

            _write(show, png_bytes(draw_similar(embedding, asked, found)))

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
    require_new("--out", files["features"], (".npz", ".parquet"))
    require_new("--map", files["map"], (".html",))
    require_new("--show", files["figure"], (".png",))


def require_new(option: str, file: Path | None, endings: tuple[str, ...]) -> None:
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


def _write(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    from convscope.runs import RunDirectory

    RunDirectory(file.absolute().parent).write_bytes(file.name, content)


def _write_map(embedding: Embedding, source: str, file: Path | None, method: str) -> None:
    if file is None:
        return
    from convscope.embedding import lay_out
    from convscope.report.rendering import render_map

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
    _write(file, page.encode("utf-8", "backslashreplace"))


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
    for failure in failures[:MOST_FAILURES]:
        warn(failure)
    if len(failures) > MOST_FAILURES:
        warn(f"{len(failures) - MOST_FAILURES:,} more could not be read; --json lists them all.")
    return bool(failures)
