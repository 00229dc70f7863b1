"""What a user may hand to ``fit``: arrays, whose rows can be chosen, or a stream of batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from types import GeneratorType
from typing import Any, Protocol

import keras
import numpy as np
import torch
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter
from numpy.typing import NDArray

from convscope.errors import UsageError, sentence
from convscope.training.batches import epoch_order, first_epoch_of_pass

_BATCHES_LOOKED_AT = 2  # by Keras, of a generator


class ImagePreprocess(Protocol):
    """What training asks of :class:`convscope.Preprocess`: raw images in, network input out."""

    def apply(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn raw images into network input."""
        ...

    def apply_tensor(self, images: torch.Tensor) -> torch.Tensor:
        """Turn a tensor of raw images into network input."""
        ...


class ImageAugmentation(Protocol):
    """What training asks of :class:`convscope.augmentation.Augmentation`: other images each time."""

    @property
    def is_none(self) -> bool:
        """Whether it leaves everything as it is."""
        ...

    def apply(
        self, images: torch.Tensor, targets: torch.Tensor, *, seed: int, epoch: int, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Change a batch of raw images and its targets, as a function of seed, epoch and step."""
        ...


@dataclass(frozen=True)
class ArrayInput:
    """Arrays, or nested lists and dictionaries of arrays, with a row for each example.

    Attributes
    ----------
    x, y, sample_weight : arrays or nested structures of arrays
        NumPy arrays (memory-mapped ones stay on disk) or torch tensors; all but ``x`` may be None.
    preprocess : ImagePreprocess or None
        Applied to the images of each batch, never to the whole set.
    """

    x: Any
    y: Any = None
    sample_weight: Any = None
    preprocess: ImagePreprocess | None = None

    @property
    def rows(self) -> int:
        """Number of examples."""
        return int(first_leaf(self.x).shape[0])

    def require_rows(self) -> None:
        """Refuse images, targets and weights of different numbers."""
        leaves = keras.tree.flatten(self._parts())
        counts = {len(leaf) for leaf in leaves if leaf is not None}
        if len(counts) > 1:
            raise UsageError(sentence("the same number of rows in x, y and sample_weight", sorted(counts)))

    def split(self, share: float) -> tuple[ArrayInput, ArrayInput]:
        """Set the last rows apart, as Keras does for ``validation_split``.

        Parameters
        ----------
        share : float
            Share of the rows that goes to validation, between 0 and 1.

        Returns
        -------
        tuple of ArrayInput
            Training and validation rows; views, not copies.

        Raises
        ------
        UsageError
            When one side would be empty.
        """
        border = math.floor(self.rows * (1.0 - share))
        if not 0 < border < self.rows:
            hint = "Give more data or another share."
            expected = f"a validation_split that leaves rows on both sides of {self.rows}"
            raise UsageError(sentence(expected, share, hint))
        first, last = slice(None, border), slice(border, None)
        return self._slice(first), self._slice(last)

    def _parts(self) -> tuple[Any, Any, Any]:
        return self.x, self.y, self.sample_weight

    def _slice(self, rows: slice) -> ArrayInput:
        x, y, weight = (map_leaves(lambda leaf: leaf[rows], part) for part in self._parts())
        return replace(self, x=x, y=y, sample_weight=weight)


@dataclass(frozen=True)
class StreamInput:
    """A PyDataset, generator, DataLoader or other iterable that makes its own batches.

    ``first`` holds the batches that were read from a generator to look at; whoever trains gets them again.
    """

    batches: Any
    preprocess: ImagePreprocess | None = None
    first: tuple[Any, ...] = ()

    def looked_at(self) -> StreamInput:
        """Read the batches from a generator that Keras looks at before it trains, and keep them."""
        if not isinstance(self.batches, GeneratorType):
            return self
        first = tuple(islice(self.batches, _BATCHES_LOOKED_AT))
        if not first:
            raise UsageError(sentence("a generator of at least one batch", "an empty one"))
        return replace(self, first=first)

    def from_the_start(self) -> Any:
        """Give the batches, those that were looked at included."""
        return _chained(self.first, self.batches) if self.first else self.batches


def _chained(first: tuple[Any, ...], rest: Iterator[Any]) -> Iterator[Any]:
    """Chain batches to a generator of them; Keras takes nothing else for one."""
    yield from first
    yield from rest


Input = ArrayInput | StreamInput


def read_input(x: Any, y: Any, sample_weight: Any, preprocess: ImagePreprocess | None) -> Input:
    """Sort what the user gave into rows or a stream.

    Parameters
    ----------
    x, y, sample_weight : as Keras's ``fit`` takes them
        Images, targets and weights; or a stream of batches as ``x`` and None.
    preprocess : ImagePreprocess or None
        To be applied to each batch.

    Returns
    -------
    ArrayInput or StreamInput
        The input.

    Raises
    ------
    UsageError
        When the arrays do not have the same number of rows, something is no array, or ``preprocess`` has no
        raw images to work on.
    """
    leaves = keras.tree.flatten((x, y, sample_weight))
    if x is None or not all(leaf is None or _is_array(leaf) for leaf in leaves):
        _require_stream(x, y, sample_weight)
        return StreamInput(x, preprocess)
    x, y, sample_weight = (map_leaves(_as_array, part) for part in (x, y, sample_weight))
    data = ArrayInput(x, y, sample_weight, preprocess)
    data.require_rows()
    if preprocess is not None:
        _require_raw_images(x)
    return data


class PreparedDataset(keras.utils.PyDataset):  # type: ignore[misc]  # Keras is untyped
    """A user's PyDataset whose batches come in the training's own order, preprocessed if asked for.

    Parameters
    ----------
    dataset : keras.utils.PyDataset
        Where the batches come from.
    preprocess : ImagePreprocess or None
        Applied to the images of each batch.
    seed : int or None
        Shuffle the batches by this seed and the absolute epoch; None leaves their order.
    steps : int or None
        Batches in an epoch; None for one pass.
    first_epoch : int
        The absolute epoch that begins the first pass.
    """

    def __init__(
        self,
        dataset: keras.utils.PyDataset,
        preprocess: ImagePreprocess | None,
        seed: int | None,
        steps: int | None = None,
        first_epoch: int = 0,
    ) -> None:
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self._dataset, self._preprocess, self._seed = dataset, preprocess, seed
        self._steps, self._first_epoch, self._number = steps, first_epoch, first_epoch

    def begin_epoch(self, epoch: int) -> None:
        """Take the order of the pass in which this epoch lies."""
        count = self.num_batches
        self._number = epoch
        if self._steps is not None and count is not None:
            self._number = first_epoch_of_pass(epoch, self._first_epoch, self._steps, count)

    @property
    def num_batches(self) -> int | None:
        """Batches in an epoch, None without end."""
        count = self._dataset.num_batches
        return None if count is None else int(count)

    def __getitem__(self, index: int) -> Any:
        count = self.num_batches
        if self._seed is not None and count is not None:
            index = int(epoch_order(self._seed, self._number, count)[index])
        return preprocess_batch(self._dataset[index], self._preprocess)

    def on_epoch_begin(self) -> None:
        """Tell the user's dataset."""
        self._dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        """Tell the user's dataset."""
        self._dataset.on_epoch_end()


def first_batch(dataset: PreparedDataset, class_weight: Mapping[int, float] | None) -> Any:
    """Read the first batch of a dataset at the beginning of an epoch, without starting its workers.

    Keras's own look at the first batch leaves what the workers had read ahead in their queue, and the epoch
    that follows begins with it.
    """
    dataset.on_epoch_begin()
    return PyDatasetAdapter(keras.utils.PyDataset(), class_weight)._standardize_batch(dataset[0])


def preprocess_batch(batch: Any, preprocess: ImagePreprocess | None) -> Any:
    """Apply the preprocessing to the images of ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``."""
    if preprocess is None:
        return batch
    x, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
    return (preprocess.apply(as_array(x)), *rest)


def preprocess_stream(batches: Any, preprocess: ImagePreprocess) -> Iterator[Any]:
    """Apply the preprocessing to each batch of an iterable, one after the other."""
    for batch in batches:
        yield preprocess_batch(batch, preprocess)


def prepare_stream(
    stream: StreamInput, seed: int | None, steps: int | None = None, first_epoch: int = 0
) -> Any:
    """Put preprocessing and order around a stream, in a form that Keras takes.

    Parameters
    ----------
    stream : StreamInput
        As the user gave it.
    seed : int or None
        For a PyDataset: shuffle its batches by this seed and the epoch.
    steps, first_epoch
        See :class:`PreparedDataset`.

    Returns
    -------
    PyDataset, generator or the stream itself
        What Keras's ``fit`` accepts as ``x``.
    """
    if isinstance(stream.batches, keras.utils.PyDataset):
        return PreparedDataset(stream.batches, stream.preprocess, seed, steps, first_epoch)
    batches = stream.from_the_start()
    return batches if stream.preprocess is None else preprocess_stream(batches, stream.preprocess)


def map_leaves(function: Callable[[Any], Any], structure: Any) -> Any:
    """Apply a function to every array of a nested structure; None stays None."""
    if isinstance(structure, torch.Tensor):  # the usual case, in each step: spare it the search for leaves
        return function(structure)
    return keras.tree.map_structure(lambda leaf: None if leaf is None else function(leaf), structure)


def _require_stream(x: Any, y: Any, sample_weight: Any) -> None:
    """Refuse plain lists of numbers, and targets beside a stream: Keras takes neither."""
    for name, part in (("x", x), ("y", y), ("sample_weight", sample_weight)):
        leaves = [leaf for leaf in keras.tree.flatten(part) if leaf is not None]
        if (name != "x" or keras.tree.is_nested(x)) and not all(_is_array(leaf) for leaf in leaves):
            found = f"a {type(part).__name__} of {type(leaves[0]).__name__}"
            raise UsageError(sentence(f"arrays as {name}", found, "np.asarray makes an array of a list."))
    if y is not None or sample_weight is not None:
        name = "y" if y is not None else "sample_weight"
        hint = "Let each batch hold (x, y) or (x, y, sample_weight)."
        raise UsageError(sentence(f"no {name} beside a stream of batches", type(x).__name__, hint))


def first_leaf(structure: Any) -> Any:
    """Give the first array of a structure, such as that of a network with one output; None where none is."""
    if structure is None or isinstance(structure, (torch.Tensor, np.ndarray)):
        return structure
    return next((leaf for leaf in keras.tree.flatten(structure) if leaf is not None), None)


def as_array(leaf: Any) -> NDArray[Any]:
    """Give the numbers of an array, or of a tensor on any device, to NumPy; copied only where need be."""
    return leaf.detach().cpu().numpy() if isinstance(leaf, torch.Tensor) else np.asarray(leaf)


def _is_array(leaf: Any) -> bool:
    has_rows = len(getattr(leaf, "shape", ())) > 0
    return has_rows and (isinstance(leaf, (np.ndarray, torch.Tensor)) or hasattr(leaf, "__array__"))


def _as_array(leaf: Any) -> NDArray[Any] | torch.Tensor:
    return leaf if isinstance(leaf, (np.ndarray, torch.Tensor)) else np.asarray(leaf)


def _require_raw_images(x: Any) -> None:
    if keras.tree.is_nested(x):
        raise UsageError(sentence("one array of images beside preprocess", f"a {type(x).__name__}"))
    if str(x.dtype).removeprefix("torch.") != "uint8":
        hint = "Leave preprocess out where the images are prepared already."
        raise UsageError(sentence("uint8 images beside preprocess", x.dtype, hint))
