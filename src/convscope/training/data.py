"""What a network trains on: what a user may hand over, which rows make which batch, batches as tensors."""

from __future__ import annotations

import math
import mmap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
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
    from convscope.augmentation import Augmentation
    from convscope.preprocessing import Preprocess
    from convscope.training.distributed import Group

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

    Examples
    --------
    >>> plan = BatchPlan(rows=5, batch_size=2, shuffle=False, seed=0)
    >>> [plan.rows_of(0, step).tolist() for step in range(plan.steps)]
    [[0, 1], [2, 3], [4]]
    >>> plan = BatchPlan(rows=5, batch_size=2, shuffle=False, seed=0, steps_per_epoch=2)
    >>> [plan.steps_of(epoch) for epoch in range(4)]
    [2, 1, 2, 1]
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
    rows: int,
    batch_size: int | None,
    steps: int | None,
    shuffle: Shuffle,
    seed: int,
    first_epoch: int = 0,
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
            raise UsageError(
                expected_got("the same number of rows in x, y and sample_weight", sorted(counts))
            )

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


def preprocess_stream(batches: Any, preprocess: Preprocess) -> Iterator[Any]:
    """Apply the preprocessing to each batch of an iterable, one after the other."""
    return (preprocess_batch(batch, preprocess) for batch in batches)


def prepare_stream(
    stream: StreamInput, seed: int | None, steps: int | None = None, first_epoch: int = 0
) -> Any:
    """Put preprocessing and order around a stream, in a form that Keras takes."""
    if isinstance(stream.batches, keras.utils.PyDataset):
        return PreparedDataset(stream.batches, stream.preprocess, seed, steps, first_epoch, stream.check)
    batches = stream.from_the_start()
    return batches if stream.preprocess is None else preprocess_stream(batches, stream.preprocess)


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
        names = (
            ", ".join(map(str, sample_weight)) if isinstance(sample_weight, Mapping) else len(sample_weight)
        )
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


Batch = tuple[Any, Any, Any]  # x, y, sample_weight as tensors or structures of them; the last may be None


@dataclass(frozen=True, eq=False)
class PlannedBatch:
    """A batch of which only numbers are there yet; ``make`` computes it from them, as tensors on a device.

    Batches of one feed whose values have the same names and shapes are made by the same operations.
    """

    values: Mapping[str, torch.Tensor]
    make: Callable[[Mapping[str, torch.Tensor]], Batch]

    @staticmethod
    def of(batch: Batch) -> PlannedBatch:
        """Plan a batch that is there already."""
        leaves = [leaf for part in batch for leaf in leaves_of(part)]

        def make(tensors: Mapping[str, torch.Tensor]) -> Batch:
            found = iter(tensors.values())
            x, y, weight = (map_leaves(lambda _: next(found), part) for part in batch)
            return x, y, weight

        return PlannedBatch({f"leaf {number}": leaf for number, leaf in enumerate(leaves)}, make)

    def whole(self, device: torch.device) -> Batch:
        """Make the batch now."""
        # Torch copies what a GPU has not read yet; Apple's mps would read memory that is free again.
        ahead = device.type == "cuda"
        return self.make({name: value.to(device, non_blocking=ahead) for name, value in self.values.items()})


ROWS_BETWEEN_RELEASES = 4096  # each may have brought in 64 KiB around it
LARGE_MAPPING = 1 << 26  # bytes of a mapped file from which giving pages back pays
_OUT_OF_DATA = "The data end before steps_per_epoch steps; the epoch stops there, as in Keras."
_OF_ROWS = {"erased": (slice(None),)}  # the axes before that of the images, in what is drawn for them
_RESIDENT_SHARE = 0.5  # of a GPU's free memory that the training data may take


def planned(batch: Batch | PlannedBatch) -> PlannedBatch:
    """Give the plan of a batch, also of one that is there already."""
    return batch if isinstance(batch, PlannedBatch) else PlannedBatch.of(batch)


class ArrayFeed:
    """Batches gathered from arrays by a plan."""

    def __init__(
        self,
        data: ArrayInput,
        plan: BatchPlan,
        class_weight: Mapping[int, float] | None,
        device: torch.device,
        augment: Augmentation | None = None,
        planned: bool = False,
        group: Group | None = None,
    ) -> None:
        self._plan, self._device, self._planned, self._group = plan, device, planned, group
        self._augment = None if augment is None or augment.is_none else augment
        self._preprocess: Any = data.preprocess
        self._conform = _resizing(data)
        weight = data.sample_weight
        if class_weight is not None:
            weight = class_weights_to_sample_weights(data.y, weight, class_weight)
        parts = [map_leaves(_gatherable, part) for part in (data.x, data.y, weight)]
        # Images that are brought to size batch by batch stay where that is done.
        self._parts = parts if self._conform else _move_if_small(parts, device)
        leaves = [leaf for part in self._parts for leaf in leaves_of(part)]
        self._resident = all(isinstance(leaf, torch.Tensor) and leaf.device == device for leaf in leaves)
        self._tensors = data.preprocess.tensors(device) if data.preprocess is not None else None
        self._mappings = _large_mappings((data.x, data.y, weight))
        self._rows_since_release = 0

    @property
    def steps(self) -> int:
        """Batches in an epoch, at most."""
        return self._plan.steps

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch | PlannedBatch]:
        """Give the batches of one epoch, from one of its steps on."""
        give = self.plan_batch if self._planned else self.batch
        for step in range(first_step, self._plan.steps_of(epoch)):
            yield give(epoch, step, self._group)
        if self._plan.steps_of(epoch) < self.steps:
            warnings.warn(_OUT_OF_DATA, stacklevel=2)

    def look(self) -> Iterator[Any]:
        """Give a batch to learn the shapes from, as Keras's iterator would."""
        yield 0, 0, [self.batch(self._plan.first_epoch, 0)]

    def reset(self) -> None:
        """Begin anew after a look; nothing to do."""

    def batch(self, epoch: int, step: int, group: Group | None = None) -> Batch:
        """Gather one batch; of a group, each process has its own rows of x, and all of the others."""
        return self.plan_batch(epoch, step, group).whole(self._device)

    def plan_batch(self, epoch: int, step: int, group: Group | None = None) -> PlannedBatch:
        """Choose the rows of a batch, cut them out here if they lie here, and draw what augments them."""
        rows = as_tensor(self._plan.rows_of(epoch, step))
        own = slice(None) if group is None else group.rows(len(rows))
        self._release_memory(len(rows))
        # What mixes images needs all of them.
        mixes = self._augment is not None and self._augment.mixes_labels
        early, late = (slice(None), own) if mixes else (own, slice(None))
        if self._resident and self._conform is None:
            parts, values = self._parts, {"rows": rows}
        else:  # as raw pixels, which are a quarter of what is made of them
            wanted = rows[early], rows, rows
            parts = [
                map_leaves(partial(_take, rows=some), part)
                for part, some in zip(self._parts, wanted, strict=True)
            ]
            if self._conform is not None:
                parts[0] = torch.from_numpy(np.ascontiguousarray(self._conform(as_array(parts[0]))))
            values = dict(PlannedBatch.of(tuple(parts)).values)
        if self._augment is not None:
            height, width = parts[0].shape[1:3]
            how = {"seed": self._plan.seed, "epoch": epoch, "step": step}
            drawn = self._augment.draw(len(rows), height, width, **how)
            if not mixes:
                drawn = {name: numbers[(*_OF_ROWS.get(name, ()), early)] for name, numbers in drawn.items()}
            values |= {f"drawn {name}": torch.from_numpy(numbers) for name, numbers in drawn.items()}
        return PlannedBatch(values, partial(self._make, parts, early, late))

    def _make(
        self, parts: list[Any], early: slice, late: slice, tensors: Mapping[str, torch.Tensor]
    ) -> Batch:
        """Compute a batch where its device is: its x of some rows, from the beginning or in the end."""
        if "rows" in tensors:
            rows = tensors["rows"]
            x = map_leaves(lambda leaf: _take(leaf, rows[early]), parts[0])
            y, weight = (map_leaves(lambda leaf: _take(leaf, rows), part) for part in parts[1:])
        else:
            x, y, weight = PlannedBatch.of(tuple(parts)).make(tensors)
        if self._augment is not None:
            self._augment.require_batch(x, y[early])
            named = {name.removeprefix("drawn "): tensor for name, tensor in tensors.items()}
            x, y = self._augment.apply_drawn(x, y, named)
            x = x[late]
        if self._preprocess is not None:
            x = self._preprocess.apply_tensor(x, self._tensors)  # (n, h, w, c) or (n, c, h, w), float32
        return x, y, weight

    def _release_memory(self, rows: int) -> None:
        """Give pages of mapped files back now and then; the system keeps them cached, but not as ours."""
        self._rows_since_release += rows
        if self._mappings and self._rows_since_release >= ROWS_BETWEEN_RELEASES:
            self._rows_since_release = 0
            for mapping in self._mappings:
                mapping.madvise(mmap.MADV_DONTNEED)


class StreamFeed:
    """Batches that a PyDataset, generator or loader makes, through Keras's own adapters."""

    def __init__(
        self,
        stream: StreamInput,
        *,
        steps: int | None,
        class_weight: Mapping[int, float] | None,
        seed: int | None,
        device: torch.device,
        restarts: bool,
        first_epoch: int = 0,
    ) -> None:
        self._device, self._restarts, self._class_weight = device, restarts, class_weight
        self._steps_per_epoch = steps
        self._source = prepare_stream(stream, seed, steps, first_epoch)

    @cached_property
    def _iterator(self) -> Any:
        """Keras's iterator, made when it is needed: it reads from a generator at once."""
        return internals.epoch_iterator(self._source, self._steps_per_epoch, self._class_weight)

    @property
    def steps(self) -> int | None:
        """Batches in an epoch; None where nobody knows before its end."""
        count = self._iterator.num_batches
        return None if count is None else int(count)

    def look(self) -> Iterator[Any]:
        """Give a batch to learn the shapes from, as Keras's iterator would."""
        if isinstance(self._source, PreparedDataset):
            yield 0, 0, [self._unpack(first_batch(self._source, self._class_weight))]
            return
        for _, data in self._read():
            yield 0, 0, [self._unpack(data)]
        raise UsageError(expected_got("at least one batch", "none"))

    def reset(self) -> None:
        """Begin anew after a look, as Keras does: a PyDataset's ``on_epoch_end`` is called."""
        self._iterator.reset()

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Give the batches of one epoch, from one of its steps on."""
        if self._restarts:
            self._iterator.reset()
        if isinstance(self._source, PreparedDataset):
            self._source.begin_epoch(epoch)
        for step, data in self._read():
            if step >= first_step:
                yield self._unpack(data)

    def _read(self) -> Iterator[tuple[int, Any]]:
        """Give each batch with its step, as Keras makes tensors of it: on the CPU, to be narrowed there."""
        batches = iter(self._iterator)
        while True:
            with keras.device("cpu"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch[0], batch[2][0]

    def _unpack(self, data: Any) -> Batch:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        return tuple(
            map_leaves(lambda leaf: _as_float32(as_tensor(leaf)).to(self._device), part)
            for part in (x, y, weight)
        )


def make_feed(
    data: Input,
    plan: BatchPlan | None,
    *,
    steps: int | None,
    device: torch.device,
    class_weight: Mapping[int, float] | None = None,
    seed: int | None = None,
    augment: Augmentation | None = None,
    restarts: bool = False,
    first_epoch: int = 0,
    planned: bool = False,
    group: Group | None = None,
) -> ArrayFeed | StreamFeed:
    """Choose the feed for an input; ``planned`` lets arrays give plans of batches; the rest as for feeds."""
    if isinstance(data, StreamInput):
        if group is not None:
            raise group.refused(expected_got("arrays", type(data.batches).__name__))
        return StreamFeed(
            data,
            steps=steps,
            class_weight=class_weight,
            seed=seed,
            device=device,
            restarts=restarts,
            first_epoch=first_epoch,
        )
    assert plan is not None  # noqa: S101  arrays always have a plan
    return ArrayFeed(data, plan, class_weight, device, augment, planned, group)


def class_weights_to_sample_weights(
    y: Any, sample_weight: Any, class_weight: Mapping[int, float]
) -> NDArray[np.float32]:
    """Give each example the weight of its class, 1 where its class has none."""
    if sample_weight is not None:
        raise UsageError(expected_got("class_weight or sample_weight", "both"))
    if keras.tree.is_nested(y) or y is None:
        raise UsageError(expected_got("one array of targets beside class_weight", type(y).__name__))
    if not isinstance(class_weight, Mapping):
        raise UsageError(expected_got("class_weight as a dict of class numbers", type(class_weight).__name__))
    targets = as_array(y)
    if targets.ndim > 1:
        targets = targets.argmax(axis=-1) if targets.shape[-1] != 1 else targets[..., 0]
    if targets.ndim > 1:
        hint = "Give sample_weight of the shape of the class numbers."
        raise UsageError(expected_got("one class for each example beside class_weight", tuple(y.shape), hint))
    classes, positions = np.unique(np.round(targets).astype(np.int32), return_inverse=True)
    weights = np.array([class_weight.get(int(number), 1.0) for number in classes], np.float32)
    return weights[positions.reshape(targets.shape)]


def as_tensor(leaf: NDArray[Any] | torch.Tensor) -> torch.Tensor:
    """Make a tensor that shares the memory of an array, read-only and memory-mapped ones too."""
    if isinstance(leaf, torch.Tensor):
        return leaf.detach()
    if leaf.dtype.kind not in "fiub":
        raise UsageError(expected_got("numbers as input", f"an array of type {leaf.dtype}"))
    if leaf.dtype.kind == "u" and leaf.dtype.itemsize > 1:  # torch can hardly do anything with these
        leaf = leaf.astype(np.int32 if leaf.dtype.itemsize == 2 else np.int64)
    if not leaf.dtype.isnative:
        leaf = leaf.astype(leaf.dtype.newbyteorder("="))
    if any(stride < 0 for stride in leaf.strides):
        leaf = np.ascontiguousarray(leaf)
    return torch.from_numpy(leaf if leaf.flags.writeable else np.asarray(_SaidToBeWritable(leaf)))


class _SaidToBeWritable:
    """Gives torch the memory of a read-only array without its warning: nobody writes here.

    A filter would have to be set for the whole process, batch after batch, whatever thread trains.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
        self._array = array  # owns the memory


def _large_mappings(parts: Any) -> list[mmap.mmap]:
    """Find the mapped files from which pages may be dropped without losing anything written to them."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return []
    leaves = [leaf for leaf in keras.tree.flatten(parts) if isinstance(leaf, np.memmap)]
    return [_mapping_of(leaf) for leaf in leaves if leaf.nbytes >= LARGE_MAPPING and leaf.mode in ("r", "r+")]


def _mapping_of(array: Any) -> Any:
    """Follow an array, which may be a view, down to the mapping that holds its bytes."""
    while isinstance(array, np.ndarray):
        array = array.base
    return array


def _resizing(data: ArrayInput) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None:
    """Give the preprocessing's way to bring images to its size; None where they have it already."""
    if data.preprocess is None:
        return None
    first = as_array(data.x[:1])
    resize = data.preprocess.resize_to_input
    return None if resize(first).shape == first.shape else resize


def _gatherable(leaf: NDArray[Any] | torch.Tensor) -> NDArray[Any] | torch.Tensor:
    """Leave mapped files to choose their rows themselves: a PixelStore reads them past the mapping."""
    return leaf if isinstance(leaf, np.memmap) and leaf.dtype.kind in "fiub" else as_tensor(leaf)


def _take(leaf: NDArray[Any] | torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    if isinstance(leaf, torch.Tensor):
        taken = leaf.index_select(0, rows.to(leaf.device, non_blocking=leaf.is_cuda))
    else:
        taken = as_tensor(np.asarray(leaf[rows.numpy()]))
    return _as_float32(taken)


def _as_float32(leaf: torch.Tensor) -> torch.Tensor:
    """Narrow float64, which some devices do not have, and truth values; leave other types."""
    return leaf.float() if leaf.dtype in (torch.float64, torch.bool) else leaf


def _move_if_small(parts: list[Any], device: torch.device) -> list[Any]:
    """Bring the data to a GPU as a whole where they leave it room to work."""
    free_and_all = getattr(torch.get_device_module(device), "mem_get_info", None)
    if free_and_all is None:  # a CPU, or a GPU that has no memory of its own
        return parts
    leaves = [leaf for leaf in keras.tree.flatten(parts) if leaf is not None]
    free, _ = free_and_all(device)
    if math.fsum(leaf.nbytes for leaf in leaves) > free * _RESIDENT_SHARE:
        return parts
    return [map_leaves(lambda leaf: _as_float32(as_tensor(leaf)).to(device), part) for part in parts]
