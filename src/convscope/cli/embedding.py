"""``convscope embed``: the features of images, a map of them, the nearest to a photograph."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.output import answered_all_the_same, say, show_json, table, warn
from convscope.cli.parsing import Device, Json
from convscope.errors import UsageError, expected_got

if TYPE_CHECKING:
    from convscope.embedding import Embedding
    from convscope.inspection import Neighbours

SOME_FAILED = 3
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
        typer.Option(help="A file of weights for it, in the place of the published ones."),
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
    _device: Device = None,
    json: Json = False,
) -> None:
    """Compute the features of images, and find those that are alike.

    Without --out, --map and --similar, features and map are written to the current folder.

    Example: convscope embed photos/ --similar photo.jpg --show alike.png
    """
    if method not in METHODS:
        raise UsageError(expected_got(f"--method {' or '.join(METHODS)}", repr(method)))
    if show is not None and not similar:
        raise UsageError(expected_got("--show beside --similar", "no --similar"))
    if out is None and map is None and not similar:
        stem = Path(source).resolve().name or "images"
        out, map = Path(f"{stem}-features.npz"), Path(f"{stem}-map.html")
    for option, file, endings in (
        ("--out", out, (".npz", ".parquet")),
        ("--map", map, (".html",)),
        ("--show", show, (".png",)),
    ):
        require_new(option, file, endings)
    if out is not None and out.suffix.lower() == ".parquet":
        from convscope.environment import require_package

        require_package("pyarrow", "parquet")
    from convscope.embedding import embed as compute
    from convscope.embedding import nearest_to

    embedding, asked = compute(source, network or "", similar=similar or (), size=size, weights=weights)
    found = None if asked is None else nearest_to(embedding, asked, count)

    def write() -> None:
        _write_features(embedding, out)
        _write_map(embedding, source, map, method)
        if show is not None and asked is not None and found is not None:
            from convscope.embedding import draw_similar
            from convscope.plotting import png_bytes

            _write(show, png_bytes(draw_similar(embedding, asked, found)))

    failures = [*embedding.failures, *(asked.failures if asked else ())]
    with answered_all_the_same(write):
        if json:
            files = {"features": out, "map": map, "figure": show}
            show_json(
                {
                    "network": embedding.network,
                    "images": len(embedding.names),
                    "features": embedding.features.shape[1],
                    "similar": _similar_as_json(embedding, asked, found),
                    "files": {name: str(file) for name, file in files.items() if file},
                    "failures": failures,
                }
            )
        else:
            images, features = embedding.features.shape
            say(f"{images:,} images, {features:,} features each, of {embedding.network}")
            if asked is not None and found is not None:
                _show_similar(embedding, asked, found)
            for what, file in (("Features", out), ("Map", map), ("The nearest images", show)):
                if file is not None:
                    say(f"{what}: {shlex.quote(str(file))}", whole=True)
            for failure in failures:
                warn(failure)
    if failures:
        raise typer.Exit(SOME_FAILED)


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


def _write(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    from convscope.runs import RunDirectory

    RunDirectory(file.absolute().parent).write_bytes(file.name, content)


def _write_features(embedding: Embedding, file: Path | None) -> None:
    from convscope.runs import RunDirectory

    if file is None:
        return
    if file.suffix.lower() == ".parquet":
        _write(file, embedding.to_parquet())
    else:
        RunDirectory(file.absolute().parent).write_arrays(file.name, embedding.to_arrays())


def _write_map(embedding: Embedding, source: str, file: Path | None, method: str) -> None:
    if file is None:
        return
    from convscope.embedding import lay_out
    from convscope.report.image_map import render_map

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


def _nearest(embedding: Embedding, found: Neighbours, row: int) -> list[tuple[str, str, float]]:
    """List name, class and distance of the images nearest to one."""
    from convscope.embedding import distance

    pairs = zip(found.indices[row], found.similarities[row], strict=True)
    return [
        (embedding.names[index], embedding.classes[index], distance(float(cosine))) for index, cosine in pairs
    ]


def _similar_as_json(
    embedding: Embedding, asked: Embedding | None, found: Neighbours | None
) -> list[dict[str, object]]:
    if asked is None or found is None:
        return []
    return [
        {
            "file": name,
            "nearest": [
                {"file": file, "class": label or None, "distance": far}
                for file, label, far in _nearest(embedding, found, row)
            ],
        }
        for row, name in enumerate(asked.names)
    ]


def _show_similar(embedding: Embedding, asked: Embedding, found: Neighbours) -> None:
    for row, name in enumerate(asked.names):
        rows = [[file, label or "–", f"{far:.3f}"] for file, label, far in _nearest(embedding, found, row)]
        table(f"Most like {name}", ["image", "class", "distance"], rows, left=(0, 1))
    say("A distance of 0 is the same to the network, one of 1.4 has nothing in common with it.")
