"""Images → the features of a network: to keep, to be laid out in a plane, to find the nearest.

The network is a backbone with published weights, which needs no training, or that of a run.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.dataset import Split, printable
from convscope.data.decode import SUFFIXES, ImageError, decode, quiet_pillow, read_bytes
from convscope.data.loading import load, load_again
from convscope.data.sources.base import SPLIT_NAMES
from convscope.data.sources.folder import walk
from convscope.environment import require_package
from convscope.errors import DataError, RunError, UsageError, expected_got
from convscope.evaluation.novelty import reduce
from convscope.export import load_bundle
from convscope.networks.pretrained import (
    DEFAULT,
    DEFAULT_SIZE,
    backbone,
    is_pretrained,
    preprocess_for,
)
from convscope.preprocessing import Preprocess
from convscope.runs import RUN_FILE, find_run, open_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convscope.inspection import EmbeddingMap, Neighbours

_PROGRESS = logging.getLogger("convscope.progress")
# Images that are decoded before the network is asked.
CHUNK = 64
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


@dataclass(frozen=True, eq=False)
class Images:
    """Images by number, read when they are needed: their names, and their classes ('' where unknown)."""

    names: Sequence[str]
    classes: Sequence[str]
    read: Callable[[int, int], NDArray[np.uint8]] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Embedding:
    """The features of images.

    Attributes
    ----------
    network : str
        Whose features they are.
    features : ndarray of shape (n, d), float32
        A row for each image.
    names : tuple of str
        Where each image is.
    classes : tuple of str
        The class of each, '' where it is not known.
    pixels : callable
        Takes a row's number; reads the image again in the network's size, ``(h, w, c)`` uint8.
    failures : tuple of str
        What could not be read, and why.
    """

    network: str
    features: NDArray[np.float32] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    pixels: Callable[[int], NDArray[np.uint8]] = field(repr=False)
    failures: tuple[str, ...] = ()

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Give features, names and classes as arrays, and the network's name."""
        return {
            "features": self.features,
            "names": np.array(self.names),
            "classes": np.array(self.classes),
            "network": np.array(self.network),
        }

    def to_parquet(self) -> bytes:
        """Give a table with a row for each image: its name, its class and a list of its features."""
        require_package("pyarrow", "parquet")
        import pyarrow
        from pyarrow import parquet

        flat = pyarrow.array(self.features.reshape(-1))
        columns = {
            "name": pyarrow.array(self.names),
            "class": pyarrow.array([one or None for one in self.classes], pyarrow.string()),
            "features": pyarrow.FixedSizeListArray.from_arrays(flat, self.features.shape[1]),
        }
        buffer = io.BytesIO()
        parquet.write_table(pyarrow.table(columns).replace_schema_metadata({"network": self.network}), buffer)
        return buffer.getvalue()


def embed(
    source: str | Path,
    network: str = "",
    *,
    similar: Sequence[str | Path] = (),
    size: int | None = None,
    weights: str | None = None,
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
        A file of weights for such a network, in the place of the published ones.

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
    run = _run_at(source)
    images = _of_run(run) if run else _of_path(source)
    chosen = _open_network(network or (str(run) if run else DEFAULT), size, weights)
    asked = None
    if similar:
        files = [Path(one) for one in similar]
        asked = _compute(chosen, _of_files(files, [str(one) for one in files], [""] * len(files)))
    _PROGRESS.info("Computing the features of %s images", f"{len(images.names):,}")
    return _compute(chosen, images), asked


def nearest_to(embedding: Embedding, asked: Embedding, count: int) -> Neighbours:
    """Find, for each image asked about, the most similar ones; itself is not counted as one.

    An image is itself where its name says so.
    """
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


def _compute(network: _Network, images: Images) -> Embedding:
    """Compute the features of all images that can be read."""
    preprocess, rows, kept, failures = network.preprocess, [], [], []
    for start in range(0, len(images.names), CHUNK):
        read = []
        with quiet_pillow():
            for number in range(start, min(start + CHUNK, len(images.names))):
                try:
                    image = images.read(number, preprocess.depth)
                except ImageError as error:
                    failures.append(str(error))
                else:
                    read.append(preprocess.resize_to_input([image])[0])
                    kept.append(number)
        if read:
            features = network.features(np.stack(read))
            rows.append(reduce(features) if features.shape[1] > LONGEST else features)
    if not rows:
        raise DataError(failures[0] if failures else expected_got("images", "none"))

    def pixels(row: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = preprocess.resize_to_input([images.read(kept[row], preprocess.depth)])[0]
        return image

    return Embedding(
        network=network.name,
        features=np.concatenate(rows),
        names=tuple(images.names[number] for number in kept),
        classes=tuple(images.classes[number] for number in kept),
        pixels=pixels,
        failures=tuple(failures),
    )


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
    if size is not None or weights is not None:
        hint = "A run has a size and weights of its own."
        raise UsageError(expected_got(f"{DEFAULT} or keras:NAME beside a size or weights", repr(name), hint))
    try:
        run = find_run(name)
    except RunError as error:
        raise UsageError(expected_got(f"{DEFAULT} or a run as the network", repr(name))) from error
    bundle = load_bundle(run)

    def features(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return predict_with_features(bundle.model, pixels, bundle.preprocess)[1]

    return _Network(f"the run {run.name}", bundle.preprocess, features)


def _of_run(run: Path) -> Images:
    """Take the training and validation images of a run; its test images stay unseen."""
    dataset = load_again(open_run(run).read_json(RUN_FILE)["data"])
    parts = [dataset.train, *([dataset.validation] if dataset.validation else [])]
    return _of_parts(parts, dataset.class_names)


def _of_path(source: str | Path) -> Images:
    """Take the images at a path: files as they are, without a copy in the cache; else what `load` reads."""
    path = Path(source)
    if path.is_dir():
        found = [Path(one) for one in walk(path).files if Path(one).suffix.lower() in SUFFIXES]
        if found:
            return _of_files(
                [path / one for one in found],
                [str(path / one) for one in found],
                [_class_of(one) for one in found],
            )
    elif path.is_file() and path.suffix.lower() in SUFFIXES:
        return _of_files([path], [str(path)], [""])
    dataset = load(str(source))
    parts = [part for part in (dataset.train, dataset.validation, dataset.test) if part]
    return _of_parts(parts, dataset.class_names)


def _class_of(file: Path) -> str:
    """Take the outermost folder that is no part of a dataset as an image's class."""
    return next((name for name in file.parent.parts if name.lower() not in SPLIT_NAMES), "")


def _of_files(files: Sequence[Path], names: Sequence[str], classes: Sequence[str]) -> Images:
    shown = [printable(name) for name in names]

    def read(number: int, depth: int) -> NDArray[np.uint8]:
        return decode(read_bytes(files[number], shown[number]), shown[number], depth)

    return Images(shown, [printable(one) for one in classes], read)


def _of_parts(parts: Sequence[Split], class_names: Sequence[str]) -> Images:
    ends = np.cumsum([len(part) for part in parts])

    def read(number: int, _depth: int) -> NDArray[np.uint8]:
        part = int(np.searchsorted(ends, number, side="right"))
        before = int(ends[part - 1]) if part else 0
        image: NDArray[np.uint8] = np.asarray(parts[part].images[number - before])
        return image

    names = [str(name) for part in parts for name in part.names]
    return Images(names, [class_names[int(label)] for part in parts for label in part.labels], read)


def distance(similarity: float) -> float:
    """Give the distance of two vectors of length 1 from their cosine.

    Examples
    --------
    >>> distance(1.0), distance(-1.0)
    (0.0, 2.0)
    """
    return math.sqrt(max(2 - 2 * similarity, 0))
