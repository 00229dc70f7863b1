"""Images → the features of a network: to keep, to be laid out in a plane, to find the nearest.

The network is a backbone with published weights, which needs no training, or that of a run.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convscope.data.dataset import Dataset, Split, printable
from convscope.data.decode import SUFFIXES, ImageError, decode, quiet_pillow, read_bytes
from convscope.data.loading import load, load_again
from convscope.data.sources.base import SPLIT_NAMES
from convscope.data.sources.folder import walk
from convscope.errors import DataError, RunError, UsageError, expected_got
from convscope.evaluation.novelty import reduce
from convscope.export import load_bundle
from convscope.export.bundle_files import digest_of_network
from convscope.networks.pretrained import (
    DEFAULT,
    DEFAULT_SIZE,
    backbone,
    is_pretrained,
    preprocess_for,
)
from convscope.parts import (
    file_stamp,
    in_parts,
    pack,
    part_file,
    part_size,
    parts_of,
    require_new,
    require_workers,
    unpack,
)
from convscope.preprocessing import Preprocess
from convscope.runs import RUN_FILE, find_run, open_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convscope.inspection import EmbeddingMap, Neighbours

_PROGRESS = logging.getLogger("convscope.progress")
# Images that are decoded before the network is asked.
CHUNK = 64
# Images in a part of a table, at most.
PART = 512
# Longer features, of networks that end in a whole map, are kept as sums of random signs.
LONGEST = 4_096
# t-SNE of so many images takes some ten seconds; the page stays below 3 MB.
MAPPED = 2_000


@dataclass(frozen=True, eq=False)
class _Network:
    """Something that gives features of preprocessed pixels (n, h, w, c)."""

    name: str
    preprocess: Preprocess
    features: Callable[[NDArray[np.uint8]], NDArray[np.float32]] = field(repr=False)


@dataclass(frozen=True, eq=False, slots=True)
class _Image:
    """An image that has not been read yet: a file, or pixels; its class is '' where it is not known."""

    name: str
    label: str
    content: Path | NDArray[np.uint8] = field(repr=False)

    def read(self, preprocess: Preprocess) -> NDArray[np.uint8]:
        """Read it in the size that the network takes, (h, w, c); raises ImageError."""
        pixels = self.content
        if isinstance(pixels, Path):
            pixels = decode(read_bytes(pixels, self.name), self.name, preprocess.depth)
        image: NDArray[np.uint8] = preprocess.resize_to_input([pixels])[0]
        return image


@dataclass(frozen=True, eq=False)
class _Images:
    """Images by number, and what stays the same while they do."""

    count: int
    get: Callable[[int], _Image] = field(repr=False)
    digest: Callable[[], str] = field(repr=False)


class _Computed(NamedTuple):
    """What was computed of images: name, class and error of each ('' for none), features of the others."""

    names: list[str]
    classes: list[str]
    errors: list[str]
    features: NDArray[np.float32]  # (k, d)


@dataclass(frozen=True, eq=False)
class Embedding:
    """The features (n, d) of images, their names and classes ('' where it is not known).

    ``pixels`` reads a row's image again in the network's size, ``(h, w, c)``; ``failures`` say what could
    not be read.
    """

    network: str
    features: NDArray[np.float32] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    pixels: Callable[[int], NDArray[np.uint8]] = field(repr=False)
    failures: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """How many rows there are."""
        return len(self.features)

    @property
    def length(self) -> int:
        """How many features an image has."""
        return int(self.features.shape[1])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Give features, names and classes as arrays, and the network's name."""
        return {
            "features": self.features,
            "names": np.array(self.names),
            "classes": np.array(self.classes),
            "network": np.array(self.network),
        }


@dataclass(frozen=True)
class FeatureTable:
    """A table of features that is written: how many ``images`` could be read, and each one's ``length``.

    ``failures`` are rows too; ``found_done`` images an earlier, interrupted call had gone through.
    """

    file: Path
    network: str
    images: int
    length: int
    failures: tuple[str, ...]
    found_done: int


def embed(
    source: str | Path,
    network: str = "",
    *,
    similar: Sequence[str | Path] = (),
    size: int | None = None,
    weights: str | None = None,
    table: str | Path | None = None,
) -> tuple[Embedding, Embedding | None]:
    """Compute the features of images, some at a time; memory holds the features, not the images.

    Parameters
    ----------
    source : str or Path
        A folder of images, whose folders are taken for their classes; an image; a run, for the images that
        it was trained with; or anything else that `load` takes.
    network : str
        ``efficientnet-lite0``, ``keras:`` and a classifier of ``keras.applications``, or a run. Without it
        the run's own where the source is one, and the first otherwise.
    similar : sequence of str or Path
        Images to compute the same features of.
    size : int, optional
        Height and width in which a network that is no run sees the images; 192 when left out.
    weights : str, optional
        A file of weights for such a network, instead of the published ones.
    table : str or Path, optional
        What `embed_to_table` wrote of the same source with the same network: read, and not computed again.

    Returns
    -------
    Embedding
        Of the source.
    Embedding or None
        Of the images in ``similar``.

    Raises
    ------
    DataError
        If there is no image, or none can be read.
    UsageError
        If there is no such network, or a size or weights are given for a run.

    Examples
    --------
    >>> embedding, _ = embed("digits")  # doctest: +SKIP
    >>> embedding.features.shape  # doctest: +SKIP
    (1437, 1280)
    """
    images, name = _find(source, network)
    chosen = _open_network(name, size, weights)
    asked = None
    if similar:
        files = [Path(one) for one in similar]
        asked = _compute(chosen, _of_files(files, [""] * len(files)))
    if table is not None:
        return _read_table(chosen, images, Path(table)), asked
    _PROGRESS.info("Computing the features of %s images", f"{images.count:,}")
    return _compute(chosen, images), asked


def embed_to_table(
    source: str | Path,
    file: str | Path,
    network: str = "",
    *,
    size: int | None = None,
    weights: str | None = None,
    workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> FeatureTable:
    """Compute the features of many images into a table: a row for each, in order; memory stays flat.

    The columns are ``name``, ``class``, ``features`` (a list of a fixed length) and ``error``: an image that
    cannot be read is a row with its error and without features. An interrupted call with the same arguments
    goes on where it was.

    Parameters
    ----------
    source : str or Path
        As `embed` takes it.
    file : str or Path
        A new file that ends in ``.parquet``.
    network : str
        As `embed` takes it, and so ``size`` and ``weights``.
    size : int, optional
        Height and width in which a network that is no run sees the images; 192 when left out.
    weights : str, optional
        A file of weights for such a network, instead of the published ones.
    workers : int
        Processes that compute, each with its share of the threads; 1 computes in this one. A script that asks
        for several calls this below ``if __name__ == "__main__":``, since each of them loads it again.
    on_progress : callable
        Called with the number of images that are done, and of all.

    Returns
    -------
    FeatureTable

    Raises
    ------
    DataError
        If there is no image, or none can be read.
    UsageError
        If there is no such network, for an impossible number of workers or file, and where parts of another
        call lie.
    RunError
        If a process ends that computes, or another is at this table.

    Examples
    --------
    >>> embed_to_table("photos", "features.csv")
    Traceback (most recent call last):
    ...
    convscope.errors.UsageError: Expected a table that ends in .parquet, got features.csv.
    """
    file = Path(file)
    require_new(file, (".parquet",))
    require_workers(workers)
    images, name = _find(source, network)
    step = part_size(images.count, PART)
    plan = {"network": _digest_of(name, size, weights), "images": images.digest(), "part": step}
    parts = [range(start, min(start + step, images.count)) for start in range(0, images.count, step)]
    failures: list[str] = []

    def tables(contents: Iterable[bytes]) -> Iterator[dict[str, NDArray[Any]]]:
        for part, content in zip(parts, contents, strict=True):
            found = unpack(content)
            failures.extend(str(one) for one in found["errors"] if one)
            yield found
            on_progress(part.stop, images.count)

    with parts_of(file, plan) as folder:
        found_done = sum(
            len(part) for number, part in enumerate(parts) if part_file(folder, number).is_file()
        )
        on_progress(0, images.count)
        jobs = ([images.get(number) for number in part] for part in parts)
        contents = in_parts(jobs, partial(_prepare, name, size, weights), folder, min(workers, len(parts)))
        length, shown = _write_table(folder / "table", tables(contents))
        if length:
            (folder / "table").replace(file)
    if not length:
        raise _nothing(failures)
    return FeatureTable(file, shown, images.count - len(failures), length, tuple(failures), found_done)


def nearest_to(embedding: Embedding, asked: Embedding, count: int) -> Neighbours:
    """Find, for each image asked about, the most similar ones but itself, told by its name."""
    from convscope.inspection import Neighbours, nearest

    found = nearest(embedding.features, asked.features, min(count + 1, len(embedding.names)))
    paths = [Path(name).absolute() for name in embedding.names]
    rows = []
    for name, places, similarities in zip(asked.names, found.indices, found.similarities, strict=True):
        own = Path(name).absolute()
        others = [place for place, index in enumerate(places) if paths[index] != own][:count]
        rows.append((places[others], similarities[others]))
    least = min(len(places) for places, _ in rows)
    indices, similarities = zip(*((places[:least], values[:least]) for places, values in rows), strict=True)
    return Neighbours(np.stack(indices), np.stack(similarities))


def lay_out(embedding: Embedding, method: str, seed: int) -> tuple[EmbeddingMap, NDArray[np.intp]]:
    """Lay images out in a plane, at most 2,000 of them, spread evenly; their numbers come second."""
    from convscope.inspection import embedding_map

    count = len(embedding.names)
    places = np.unique(np.linspace(0, count - 1, min(MAPPED, count)).astype(np.intp))
    _PROGRESS.info("Laying %s images out", f"{len(places):,}")
    return embedding_map(reduce(embedding.features[places]), method, seed), places


def draw_similar(embedding: Embedding, asked: Embedding, found: Neighbours) -> Figure:
    """Draw the images asked about, and beside each the nearest."""
    from convscope.plotting import plot_neighbours

    shown = {int(index): place for place, index in enumerate(np.unique(found.indices))}
    known = np.stack([embedding.pixels(index) for index in shown])
    placed = type(found)(np.vectorize(shown.__getitem__)(found.indices), found.similarities)
    labels = [embedding.classes[index] or Path(embedding.names[index]).name for index in shown]
    queries = np.stack([asked.pixels(row) for row in range(len(asked.names))])
    names = [Path(name).name for name in asked.names]
    return plot_neighbours(queries, known, placed, query_labels=names, known_labels=labels, searched="images")


def _find(source: str | Path, network: str) -> tuple[_Images, str]:
    """Find the images, and name the network that is asked about them."""
    run = _run_at(source)
    return (_of_run(run) if run else _of_path(source)), network or (str(run) if run else DEFAULT)


def _compute(network: _Network, images: _Images) -> Embedding:
    """Compute the features of all images that can be read."""
    return _embedding(network, images, _features_of(network, map(images.get, range(images.count))))


def _features_of(network: _Network, images: Iterable[_Image]) -> _Computed:
    """Compute the features of those images that can be read, some at a time."""
    found, rows = _Computed([], [], [], np.empty((0, 0), np.float32)), []
    waiting = iter(images)
    while some := list(islice(waiting, CHUNK)):
        read = []
        with quiet_pillow():
            for image in some:
                found.names.append(image.name)
                found.classes.append(image.label)
                try:
                    read.append(image.read(network.preprocess))
                    found.errors.append("")
                except ImageError as error:
                    found.errors.append(str(error))
        if read:
            features = network.features(np.stack(read))
            rows.append(reduce(features) if features.shape[1] > LONGEST else features)
    return found._replace(features=np.concatenate(rows)) if rows else found


def _embedding(network: _Network, images: _Images, found: _Computed) -> Embedding:
    """Put together what was computed of images, without those that cannot be read."""
    failures = tuple(error for error in found.errors if error)
    if not len(found.features):
        raise _nothing(failures)
    kept = [number for number, error in enumerate(found.errors) if not error]
    return Embedding(
        network=network.name,
        features=found.features,
        names=tuple(found.names[number] for number in kept),
        classes=tuple(found.classes[number] for number in kept),
        pixels=lambda row: images.get(kept[row]).read(network.preprocess),
        failures=failures,
    )


def _nothing(failures: Sequence[str]) -> DataError:
    """Make the error for images of which none can be read."""
    return DataError(failures[0] if failures else expected_got("images", "none"))


def _prepare(name: str, size: int | None, weights: str | None) -> Callable[[Sequence[_Image]], bytes]:
    """Open the network, once in each process."""
    network = _open_network(name, size, weights)

    def work(images: Sequence[_Image]) -> bytes:
        found = _features_of(network, images)._asdict()
        return pack({"network": np.array(network.name)} | {name: np.array(found[name]) for name in found})

    return work


def _write_table(file: Path, parts: Iterator[dict[str, NDArray[Any]]]) -> tuple[int, str]:
    """Write parts into a table; give the number of features, 0 where no image could be read, and whose."""
    import pyarrow
    from pyarrow import parquet

    def table(part: dict[str, NDArray[Any]], length: int) -> pyarrow.Table:
        bad = part["errors"] != ""
        features = np.zeros((len(bad), length), np.float32)
        features[~bad] = part["features"].reshape(-1, length)
        flat, mask = pyarrow.array(features.reshape(-1)), pyarrow.array(bad)
        texts = {
            name: pyarrow.array([str(one) or None for one in part[name]], pyarrow.string())
            for name in ("names", "classes", "errors")
        }
        columns = {
            "name": texts["names"],
            "class": texts["classes"],
            "features": pyarrow.FixedSizeListArray.from_arrays(flat, length, mask=mask),
            "error": texts["errors"],
        }
        return pyarrow.table(columns).replace_schema_metadata({"network": str(part["network"])})

    unreadable = []  # until the first image that could be read says how many features there are
    for part in parts:
        length = part["features"].shape[1]
        if not length:
            unreadable.append(part)
            continue
        first = table(part, length)
        with parquet.ParquetWriter(file, first.schema) as writer:
            for one in unreadable:
                writer.write_table(table(one, length))
            writer.write_table(first)
            for one in parts:
                writer.write_table(table(one, length))
        return length, str(part["network"])
    return 0, ""


def _read_table(network: _Network, images: _Images, file: Path) -> Embedding:
    """Read what was written of the same images."""
    from pyarrow import parquet

    table = parquet.read_table(file)
    names, classes, errors = (
        [one or "" for one in table[column].to_pylist()] for column in ("name", "class", "error")
    )
    column = table["features"].drop_null().combine_chunks()
    features = column.flatten().to_numpy().reshape(len(column), -1)
    return _embedding(network, images, _Computed(names, classes, errors, features))


def _run_at(source: str | Path) -> Path | None:
    """Take a source for a run where it is one's directory, or may only be one's name."""
    if (Path(source) / RUN_FILE).is_file() or str(source) == "latest":
        return find_run(str(source))
    return None


def _open_network(name: str, size: int | None, weights: str | None) -> _Network:
    """Open a backbone, or the network of a run."""
    from convscope.training.api import predict, predict_with_features

    _PROGRESS.info("Loading %s", name)
    if is_pretrained(name):
        size = size or DEFAULT_SIZE
        model, settings = backbone(name, size, weights), preprocess_for(name, size)
        return _Network(name, settings, lambda pixels: predict(model, pixels, preprocess=settings))
    run = _run_of_network(name, size, weights)
    bundle = load_bundle(run)

    def features(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return predict_with_features(bundle.model, pixels, bundle.preprocess)[1]

    return _Network(f"the run {run.name}", bundle.preprocess, features)


def _run_of_network(name: str, size: int | None, weights: str | None) -> Path:
    """Find the run whose network is meant."""
    if size is not None or weights is not None:
        hint = "A run has a size and weights of its own."
        raise UsageError(expected_got(f"{DEFAULT} or keras:NAME beside a size or weights", repr(name), hint))
    try:
        return find_run(name)
    except RunError as error:
        raise UsageError(expected_got(f"{DEFAULT} or a run as the network", repr(name))) from error


def _digest_of(name: str, size: int | None, weights: str | None) -> list[Any]:
    """Say what tells one network from another."""
    if is_pretrained(name):
        return [name, size or DEFAULT_SIZE, weights, file_stamp(weights) if weights else None]
    return [digest_of_network(_run_of_network(name, size, weights))]


def _of_run(run: Path) -> _Images:
    """Take the training and validation images of a run; its test images stay unseen."""
    dataset = load_again(open_run(run).read_json(RUN_FILE)["data"])
    parts = [dataset.train, *([dataset.validation] if dataset.validation else [])]
    return _of_parts(dataset, parts)


def _of_path(source: str | Path) -> _Images:
    """Take the images at a path: files as they are, without a copy in the cache; else what `load` reads."""
    path = Path(source)
    if path.is_dir():
        found = [Path(one) for one in walk(path).files if Path(one).suffix.lower() in SUFFIXES]
        if found:
            return _of_files([path / one for one in found], [_class_of(one) for one in found])
    elif path.is_file() and path.suffix.lower() in SUFFIXES:
        return _of_files([path], [""])
    dataset = load(str(source))
    parts = [part for part in (dataset.train, dataset.validation, dataset.test) if part]
    return _of_parts(dataset, parts)


def _class_of(file: Path) -> str:
    """Take the outermost folder that is no part of a dataset as an image's class."""
    return next((name for name in file.parent.parts if name.lower() not in SPLIT_NAMES), "")


def _of_files(files: Sequence[Path], classes: Sequence[str]) -> _Images:
    def digest() -> str:
        found = hashlib.sha256()
        for file in files:
            found.update(repr((str(file), file_stamp(file))).encode("utf-8", "backslashreplace"))
        return found.hexdigest()

    return _Images(
        len(files),
        lambda number: _Image(printable(str(files[number])), printable(classes[number]), files[number]),
        digest,
    )


def _of_parts(dataset: Dataset, parts: Sequence[Split]) -> _Images:
    ends = np.cumsum([len(part) for part in parts])

    def get(number: int) -> _Image:
        index = int(np.searchsorted(ends, number, side="right"))
        part, row = parts[index], number - (int(ends[index - 1]) if index else 0)
        label = dataset.class_names[int(part.labels[row])]
        return _Image(str(part.names[row]), label, np.asarray(part.images[row]))

    return _Images(int(ends[-1]), get, lambda: dataset.fingerprint)


def distance(similarity: float) -> float:
    """Give the distance of two vectors of length 1 from their cosine."""
    return math.sqrt(max(2 - 2 * similarity, 0))
