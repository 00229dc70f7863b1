"""What a user hands over to train on or to predict from, checked, and which rows make which batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
import torch
import torch.utils.data
from numpy.typing import NDArray

from convscope import _keras_internals as internals
from convscope.errors import UsageError, expected_got

if TYPE_CHECKING:
    from convscope.preprocessing import Preprocess

Shuffle = bool | Literal["batch"]
Check = Callable[[Any, str], None]


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Permute the rows of one epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.flags.writeable = False  # the cache hands the same array to everybody
    return order


def first_epoch_of_pass(epoch: int, first_epoch: int, steps: int, steps_per_pass: int) -> int:
    """Name the epoch that begins the pass over the data in which an epoch lies."""
    return epoch - (epoch - first_epoch) % math.ceil(steps_per_pass / steps)


@dataclass(frozen=True)
class BatchPlan:
    """The batches of every epoch over a fixed number of rows.

    Where an epoch is shorter than a pass over the rows (``steps_per_epoch`` was given), epochs follow each
    other through the pass; as in Keras, the one that reaches its end stops there, and the next one begins a
    pass with an order of its own.
    """

    rows: int
    batch_size: int  # the last batch of a pass may be shorter
    shuffle: Shuffle = True  # as in Keras: the order of all rows, none, or only the order inside each batch
    seed: int = 0  # the order is a function of it and of the number of the pass
    steps_per_epoch: int | None = None  # at most; None for one pass
    first_epoch: int = 0  # the absolute epoch that begins the first pass

    @property
    def steps_per_pass(self) -> int:
        """Batches in one pass over the rows."""
        return math.ceil(self.rows / self.batch_size)

    @property
    def steps(self) -> int:
        """Batches in one epoch, at most."""
        return self.steps_per_epoch or self.steps_per_pass

    def steps_of(self, epoch: int) -> int:
        """Count the batches of one epoch: fewer than usual where it reaches the end of a pass."""
        return min(self.steps, self.steps_per_pass - self.offset_of(epoch))

    def offset_of(self, epoch: int) -> int:
        """Say how many batches of its pass lie before an epoch."""
        return (epoch - self._beginning(epoch)) * self.steps

    def _beginning(self, epoch: int) -> int:
        return first_epoch_of_pass(epoch, self.first_epoch, self.steps, self.steps_per_pass)

    def rows_of(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Name the rows of one batch."""
        number, batch = self._beginning(epoch), self.offset_of(epoch) + step
        first = batch * self.batch_size
        last = min(first + self.batch_size, self.rows)
        if self.shuffle == "batch":
            inside = np.random.default_rng([self.seed, number, batch]).permutation(last - first)
            return first + inside
        if self.shuffle:
            return epoch_order(self.seed, number, self.rows)[first:last]
        return np.arange(first, last)


def plan_batches(
    rows: int, batch_size: int | None, steps: int | None, shuffle: Shuffle, seed: int, first_epoch: int = 0
) -> BatchPlan:
    """Plan the batches as Keras's ``fit`` reads its arguments."""
    if rows < 1:
        raise UsageError(expected_got("at least one example", rows))
    for name, value in (("batch_size", batch_size), ("steps_per_epoch", steps)):
        if value is not None and (isinstance(value, bool) or value != int(value) or value < 1):
            raise UsageError(expected_got(f"{name} of at least 1, a whole number", value))
    size = batch_size or (math.ceil(rows / steps) if steps else 32)
    return BatchPlan(rows, int(size), shuffle, seed, steps, first_epoch)


_BATCHES_LOOKED_AT = 2  # by Keras, of a generator


@dataclass(frozen=True)
class ArrayInput:
    """Arrays, or nested lists and dictionaries of arrays, with a row for each example.

    Memory-mapped arrays stay on disk; ``preprocess`` is applied to each batch, never to the whole set.
    """

    x: Any
    y: Any = None
    sample_weight: Any = None
    preprocess: Preprocess | None = None

    @property
    def rows(self) -> int:
        """Number of examples."""
        return int(first_leaf(self.x).shape[0])

    def require_rows(self) -> None:
        """Refuse images, targets and weights of different numbers."""
        counts = {len(leaf) for part in self._parts() for leaf in leaves_of(part)}
        if len(counts) > 1:
            expected = "the same number of rows in x, y and sample_weight"
            raise UsageError(expected_got(expected, sorted(counts)))

    def split(self, share: float) -> tuple[ArrayInput, ArrayInput]:
        """Set the last rows apart, as Keras does for ``validation_split``."""
        border = math.floor(self.rows * (1.0 - share))
        if not 0 < border < self.rows:
            hint = "Give more data or another share."
            expected = f"a validation_split that leaves rows on both sides of {self.rows}"
            raise UsageError(expected_got(expected, share, hint))
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
    ``check`` raises for a batch that cannot be used; it is told the batch's name too.
    """

    batches: Any
    preprocess: Preprocess | None = None
    first: tuple[Any, ...] = ()
    check: Check | None = None

    def looked_at(self) -> StreamInput:
        """Read the batches from a generator that Keras looks at before it trains, and keep them."""
        if not isinstance(self.batches, GeneratorType):
            return self
        first = tuple(islice(self.batches, _BATCHES_LOOKED_AT))
        if not first:
            raise UsageError(expected_got("a generator of at least one batch", "an empty one"))
        return replace(self, first=first)

    def from_the_start(self) -> Any:
        """Give the batches, those that were looked at included; Keras takes only a generator for one."""
        if self.check is not None and isinstance(self.batches, torch.utils.data.DataLoader):
            return CheckedLoader(self.batches, self.check)
        if not isinstance(self.batches, GeneratorType):
            return self.batches
        return _checked(chain(self.first, self.batches), self.check)


Input = ArrayInput | StreamInput


def _checked(batches: Iterable[Any], check: Check | None) -> Iterator[Any]:
    """Look at each batch before it goes on."""
    for number, batch in enumerate(batches, start=1):
        if check is not None:
            check(batch, f"batch {number}")
        yield batch


class CheckedLoader(torch.utils.data.DataLoader[Any]):
    """A user's loader whose batches are looked at; Keras knows a loader by its class."""

    def __init__(self, loader: torch.utils.data.DataLoader[Any], check: Check) -> None:
        self.__dict__ |= loader.__dict__
        self.__dict__["_own"] = loader, check

    def __len__(self) -> int:
        return len(self.__dict__["_own"][0])

    def __iter__(self) -> Any:
        return _checked(*self.__dict__["_own"])


def read_input(x: Any, y: Any, sample_weight: Any, preprocess: Preprocess | None) -> Input:
    """Sort what the user gave into rows or a stream."""
    leaves = keras.tree.flatten((x, y, sample_weight))
    if x is None or not all(leaf is None or is_array(leaf) for leaf in leaves):
        _require_stream(x, y, sample_weight)
        return StreamInput(x, preprocess)
    x, y, sample_weight = (map_leaves(to_array, part) for part in (x, y, sample_weight))
    data = ArrayInput(x, y, sample_weight, preprocess)
    data.require_rows()
    _require_a_weight_for_each_output(y, sample_weight)
    if preprocess is not None:
        _require_raw_images(x)
    return data


class PreparedDataset(keras.utils.PyDataset):  # type: ignore[misc]  # Keras is untyped
    """A user's PyDataset whose batches come in the training's own order, preprocessed if asked for."""

    def __init__(
        self,
        dataset: keras.utils.PyDataset,
        preprocess: Preprocess | None,
        seed: int | None,
        steps: int | None = None,
        first_epoch: int = 0,
        check: Check | None = None,
    ) -> None:
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self._dataset, self._preprocess, self._seed = dataset, preprocess, seed
        self._steps, self._first_epoch, self._number = steps, first_epoch, first_epoch
        # Another process would need a copy of the model to look at a batch.
        self._check = None if dataset.use_multiprocessing else check

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
        batch = self._dataset[index]
        if self._check is not None:
            self._check(batch, f"{type(self._dataset).__name__}[{index}]")
        return preprocess_batch(batch, self._preprocess)

    def on_epoch_begin(self) -> None:
        """Hand it on to the user's dataset."""
        self._dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        """Hand it on to the user's dataset."""
        self._dataset.on_epoch_end()


def first_batch(dataset: PreparedDataset, class_weight: Mapping[int, float] | None) -> Any:
    """Read the first batch of a dataset at the beginning of an epoch, without starting its workers.

    Keras's own look at the first batch leaves what the workers had read ahead in their queue, and the epoch
    that follows begins with it.
    """
    dataset.on_epoch_begin()
    return internals.standardize_batch(dataset[0], class_weight)


def preprocess_batch(batch: Any, preprocess: Preprocess | None) -> Any:
    """Apply the preprocessing to the images of ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``."""
    if preprocess is None:
        return batch
    x, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
    return (preprocess.apply(as_array(x)), *rest)


def prepare_stream(
    stream: StreamInput, seed: int | None, steps: int | None = None, first_epoch: int = 0
) -> Any:
    """Put preprocessing and order around a stream, in a form that Keras takes."""
    if isinstance(stream.batches, keras.utils.PyDataset):
        return PreparedDataset(stream.batches, stream.preprocess, seed, steps, first_epoch, stream.check)
    batches = stream.from_the_start()
    if stream.preprocess is None:
        return batches
    return (preprocess_batch(batch, stream.preprocess) for batch in batches)


def map_leaves(function: Callable[[Any], Any], structure: Any) -> Any:
    """Apply a function to every array of a nested structure; None stays None."""
    # The usual cases, in each step: spare them the search for leaves.
    if structure is None:
        return None
    if isinstance(structure, (torch.Tensor, np.ndarray)):
        return function(structure)
    return keras.tree.map_structure(lambda leaf: None if leaf is None else function(leaf), structure)


def _require_stream(x: Any, y: Any, sample_weight: Any) -> None:
    """Refuse plain lists of numbers, and targets beside a stream: Keras takes neither."""
    for name, part in (("x", x), ("y", y), ("sample_weight", sample_weight)):
        leaves = [leaf for leaf in keras.tree.flatten(part) if leaf is not None]
        if (name != "x" or keras.tree.is_nested(x)) and not all(is_array(leaf) for leaf in leaves):
            found = f"a {type(part).__name__} of {type(leaves[0]).__name__}"
            raise UsageError(expected_got(f"arrays as {name}", found, "np.asarray makes an array of a list."))
    if y is not None or sample_weight is not None:
        name = "y" if y is not None else "sample_weight"
        hint = "Let each batch hold (x, y) or (x, y, sample_weight)."
        raise UsageError(expected_got(f"no {name} beside a stream of batches", type(x).__name__, hint))


def _require_a_weight_for_each_output(y: Any, sample_weight: Any) -> None:
    """Refuse nested weights of another structure than the targets, as Keras does."""
    if not keras.tree.is_nested(sample_weight):
        return
    try:
        keras.tree.assert_same_structure(y, sample_weight)
    except (TypeError, ValueError):
        is_named = isinstance(sample_weight, Mapping)
        names = ", ".join(map(str, sample_weight)) if is_named else len(sample_weight)
        found = f"a {type(sample_weight).__name__} of {names}"
        hint = "Write None for an output without weights."
        raise UsageError(expected_got("sample_weight as one array, or nested as y is", found, hint)) from None


def leaves_of(structure: Any) -> list[Any]:
    """List the arrays of a structure."""
    if structure is None:
        return []
    if isinstance(structure, (torch.Tensor, np.ndarray)):
        return [structure]
    return [leaf for leaf in keras.tree.flatten(structure) if leaf is not None]


def first_leaf(structure: Any) -> Any:
    """Give the first array of a structure, such as that of a network with one output; None where none is."""
    if structure is None or isinstance(structure, (torch.Tensor, np.ndarray)):
        return structure
    return next((leaf for leaf in keras.tree.flatten(structure) if leaf is not None), None)


def as_array(leaf: Any) -> NDArray[Any]:
    """Give the numbers of an array, or of a tensor on any device, to NumPy; copied only where need be."""
    return leaf.detach().cpu().numpy() if isinstance(leaf, torch.Tensor) else np.asarray(leaf)


def is_array(leaf: Any) -> bool:
    """Tell an array with rows, of whatever library, from what is none."""
    has_rows = len(getattr(leaf, "shape", ())) > 0
    return has_rows and (isinstance(leaf, (np.ndarray, torch.Tensor)) or hasattr(leaf, "__array__"))


def to_array(leaf: Any) -> NDArray[Any] | torch.Tensor:
    """Give an array of another library to NumPy; torch's tensors stay."""
    return leaf if isinstance(leaf, (np.ndarray, torch.Tensor)) else np.asarray(leaf)


def _require_raw_images(x: Any) -> None:
    if keras.tree.is_nested(x):
        raise UsageError(expected_got("one array of images beside preprocess", f"a {type(x).__name__}"))
    if str(x.dtype).removeprefix("torch.") != "uint8":
        hint = "Leave preprocess out where the images are prepared already."
        raise UsageError(expected_got("uint8 images beside preprocess", x.dtype, hint))
