"""What a network makes of images: filters, feature maps, embeddings, and which images it finds alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from convscope.arithmetic import show_shape
from convscope.errors import UsageError, expected_got
from convscope.inspection.forward import (
    FloatArray,
    channels_last,
    fitting_batch,
    one_image,
    run,
    to_batch,
    to_numpy,
)
from convscope.lowering.graph import Call, Graph, read_graph

if TYPE_CHECKING:
    import keras

# Layers whose filters can be read.
FILTERED = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D")


@dataclass(frozen=True)
class Filters:
    """The filters of one convolution: kernels (filters, h, w, c) and biases (filters,), zeros without any."""

    layer: str
    kernels: FloatArray
    biases: FloatArray


@dataclass(frozen=True)
class FeatureMaps:
    """What one layer makes of one image: values (h, w, c) or (units,).

    Channels are last, whatever the network's own order.
    """

    layer: str
    type: str
    values: FloatArray


def filters(model: keras.Model, layer: str | int | None = None) -> Filters:
    """Read the filters of a convolution.

    Parameters
    ----------
    model : keras.Model
        A built model.
    layer : str or int, optional
        The layer's name or number; the first convolution when left out.

    Returns
    -------
    Filters
        Of a SeparableConv2D, those of its depthwise half.

    Raises
    ------
    UsageError
        When the layer is no convolution, or the network has none.

    Examples
    --------
    >>> from convscope.networks import build
    >>> filters(build("deep"), "conv2d_2").kernels.shape
    (64, 3, 3, 32)
    """
    call = _convolution(read_graph(model), layer)
    operation = call.operation
    weights = operation.depthwise_kernel if call.type == "SeparableConv2D" else operation.kernel
    kernel = to_numpy(weights.value)  # (h, w, c, filters)
    if call.type != "Conv2D":
        kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
    biased = operation.bias is not None and call.type != "SeparableConv2D"
    count = kernel.shape[-1]
    biases = to_numpy(operation.bias.value if biased else torch.zeros(count))
    return Filters(call.name, kernel.transpose(3, 0, 1, 2), biases)  # (filters, h, w, c)


def feature_maps(model: keras.Model, image: npt.ArrayLike) -> tuple[FeatureMaps, ...]:
    """Run one image through a network and keep what every layer makes of it.

    Parameters
    ----------
    model : keras.Model
        A built model.
    image : array of shape (height, width, channels), float32
        One preprocessed image, in the network's own order of axes.

    Returns
    -------
    tuple of FeatureMaps
        One for each layer, in order.

    Examples
    --------
    >>> import numpy as np
    >>> from convscope.networks import build
    >>> maps = feature_maps(build("simple"), np.zeros((28, 28, 1)))
    >>> [layer.values.shape for layer in maps]
    [(26, 26, 32), (21632,), (10,)]
    """
    graph = read_graph(model)
    with torch.no_grad():
        values = run(graph, one_image(graph, image))
    return tuple(
        FeatureMaps(call.name, call.type, to_numpy(channels_last(graph, values[call.outputs[0]]))[0])
        for call in graph.calls
    )


def embeddings(model: keras.Model, images: npt.ArrayLike, batch_size: int = 256) -> FloatArray:
    """Take what enters the layer that decides between the classes: the last hidden layer's output.

    Parameters
    ----------
    model : keras.Model
        A built model.
    images : array of shape (n, height, width, channels), float32
        Preprocessed images.
    batch_size : int
        Images that go through the network at a time, at most; fewer where they are large.

    Returns
    -------
    numpy.ndarray of shape (n, features), float32
        One row for each image.

    Examples
    --------
    >>> import numpy as np
    >>> from convscope.networks import build
    >>> embeddings(build("deep"), np.zeros((5, 28, 28, 1))).shape
    (5, 128)
    """
    graph = read_graph(model)
    deciding = _deciding_call(graph)
    entering, rows = deciding.inputs[0], []
    with torch.no_grad():
        for batch in torch.split(to_batch(graph, images), fitting_batch(graph, batch_size)):
            rows.append(run(graph, batch, until=deciding, keep=[entering])[entering].flatten(1))
    return to_numpy(torch.cat(rows))


def _deciding_call(graph: Graph) -> Call:
    """Find the last matrix product or convolution, or else the last layer."""
    weighted = [call for call in graph.calls if getattr(call.operation, "kernel", None) is not None]
    return (weighted or list(graph.calls))[-1]


def _convolution(graph: Graph, layer: str | int | None) -> Call:
    if layer is None:
        found = [call for call in graph.calls if call.type in FILTERED]
        if not found:
            raise UsageError(expected_got("a network with a convolution", "none"))
        return found[0]
    call = graph.call(layer)
    if call.type not in FILTERED:
        raise UsageError(
            expected_got(
                "a convolution", f"{call.name} ({call.type}, output {show_shape(call.output_shapes[0])})"
            )
        )
    return call


@dataclass(frozen=True, eq=False)
class Neighbours:
    """For each image asked about, the images most like it, the most similar first: both (queries, count).

    Similarities are cosines, at most 1.
    """

    indices: npt.NDArray[np.int64]
    similarities: FloatArray


@dataclass(frozen=True)
class EmbeddingMap:
    """Embeddings laid out in a plane by ``"pca"`` or ``"tsne"``: points (n, 2).

    Only distances have a meaning, and for t-SNE only short ones. For PCA, ``explained`` is the share of the
    variance that the plane shows.
    """

    points: FloatArray
    method: str
    seed: int
    explained: float | None = None


def nearest(known: npt.ArrayLike, queries: npt.ArrayLike, count: int = 8) -> Neighbours:
    """Find the most similar embeddings.

    Parameters
    ----------
    known : array of shape (n, features)
        Embeddings to search, usually of the training images; from `embeddings`.
    queries : array of shape (queries, features)
        Embeddings to find neighbours of.
    count : int
        How many.

    Returns
    -------
    Neighbours
        By cosine similarity; equally similar ones in the order of their numbers.

    Raises
    ------
    UsageError
        When shapes do not fit together, or fewer than `count` are known.

    Examples
    --------
    >>> nearest([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[2.0, 0.1]], count=2).indices.tolist()
    [[0, 2]]
    """
    searched, asked = _unit_rows(known), _unit_rows(queries)
    if searched.shape[1] != asked.shape[1]:
        raise UsageError(expected_got(f"queries with {searched.shape[1]} features", asked.shape[1]))
    if not 1 <= count <= len(searched):
        raise UsageError(expected_got(f"a count from 1 to {len(searched)}", count))
    similarities = asked @ searched.T  # (queries, n)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :count]
    return Neighbours(
        order.astype(np.int64), np.take_along_axis(similarities, order, axis=1).astype(np.float32)
    )


def embedding_map(rows: npt.ArrayLike, method: str = "tsne", seed: int = 1338) -> EmbeddingMap:
    """Lay embeddings out in a plane.

    Parameters
    ----------
    rows : array of shape (n, features)
        From `embeddings`; at least 3.
    method : {"tsne", "pca"}
        t-SNE keeps neighbours together; PCA is a flat shadow, faster, and keeps long distances.
    seed : int
        The same seed gives the same map.

    Returns
    -------
    EmbeddingMap
        One point for each row.

    Raises
    ------
    UsageError
        When the method is unknown or there are fewer than 3 rows.

    Notes
    -----
    van der Maaten and Hinton, "Visualizing Data using t-SNE" (2008); computed by scikit-learn, perplexity 30
    or a third of the rows.

    Examples
    --------
    >>> embedding_map([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], method="pca").points.shape
    (3, 2)
    """
    array = np.asarray(rows, dtype=np.float64)
    if array.ndim != 2 or len(array) < 3:
        raise UsageError(expected_got("at least 3 rows of features", show_shape(array.shape)))
    if method not in ("tsne", "pca"):
        raise UsageError(expected_got("method 'tsne' or 'pca'", repr(method)))
    return _pca(array, seed) if method == "pca" else _tsne(array, seed)


def _pca(array: npt.NDArray[np.float64], seed: int) -> EmbeddingMap:
    from sklearn.decomposition import PCA

    wide = array if array.shape[1] > 1 else np.pad(array, ((0, 0), (0, 1)))
    if np.ptp(wide, axis=0).max() == 0:  # all alike: one place, and no variance to explain
        return EmbeddingMap(np.zeros((len(array), 2), np.float32), "pca", seed, 1.0)
    projection = PCA(n_components=2, random_state=seed, svd_solver="full")
    points = projection.fit_transform(wide)
    explained = float(projection.explained_variance_ratio_.sum())
    return EmbeddingMap(points.astype(np.float32), "pca", seed, explained)


def _tsne(array: npt.NDArray[np.float64], seed: int) -> EmbeddingMap:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

    perplexity = min(30.0, (len(array) - 1) / 3)
    start = _pca(array, seed).points.astype(np.float64)
    spread = start[:, 0].std()
    # scikit-learn's own start: PCA, with a standard deviation of 1e-4 along the first axis.
    init = start / spread * 1e-4 if spread else "random"
    projection = TSNE(n_components=2, perplexity=perplexity, init=init, random_state=seed)
    # Its many short parallel sections wait for each other: on a busy machine two threads took 13 times as
    # long as one (1,000 rows: 57 s against 4.4 s).
    with threadpool_limits(1):
        points = projection.fit_transform(array)
    return EmbeddingMap(points.astype(np.float32), "tsne", seed)


def _unit_rows(rows: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.asarray(rows, dtype=np.float64)
    if array.ndim != 2:
        raise UsageError(expected_got("embeddings of shape (n, features)", show_shape(array.shape)))
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    return array / np.where(lengths == 0, 1, lengths)
