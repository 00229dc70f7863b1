"""Images that a network finds alike: nearest neighbours and a map of its last hidden layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convscope.arithmetic import show_shape
from convscope.errors import UsageError, sentence
from convscope.inspection.running import FloatArray


@dataclass(frozen=True, eq=False)
class Neighbours:
    """For each image asked about, the images most like it.

    Parameters
    ----------
    indices : numpy.ndarray of shape (queries, count), int64
        Numbers of the images, the most similar first.
    similarities : numpy.ndarray of shape (queries, count), float32
        Cosine similarity, at most 1.
    """

    indices: npt.NDArray[np.int64]
    similarities: FloatArray


@dataclass(frozen=True)
class EmbeddingMap:
    """Embeddings laid out in a plane.

    Parameters
    ----------
    points : numpy.ndarray of shape (n, 2), float32
        A place for each image; only distances have a meaning, and for t-SNE only short ones.
    method : {"pca", "tsne"}
        How they were laid out.
    seed : int
        The seed used.
    explained : float or None
        For PCA, the share of the variance that the plane shows.
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
        raise UsageError(sentence(f"queries with {searched.shape[1]} features", asked.shape[1]))
    if not 1 <= count <= len(searched):
        raise UsageError(sentence(f"a count from 1 to {len(searched)}", count))
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
        raise UsageError(sentence("at least 3 rows of features", show_shape(array.shape)))
    if method not in ("tsne", "pca"):
        raise UsageError(sentence("method 'tsne' or 'pca'", repr(method)))
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
        raise UsageError(sentence("embeddings of shape (n, features)", show_shape(array.shape)))
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    return array / np.where(lengths == 0, 1, lengths)
