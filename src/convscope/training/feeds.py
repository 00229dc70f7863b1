"""Batches as tensors: gathered from arrays by a plan, or taken from a stream through Keras's own adapters."""

from __future__ import annotations

import math
import mmap
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import torch
from numpy.typing import NDArray

from convscope import _keras_internals as internals
from convscope.errors import UsageError, expected_got
from convscope.training.inputs import (
    ArrayInput,
    BatchPlan,
    Input,
    PreparedDataset,
    StreamInput,
    as_array,
    first_batch,
    leaves_of,
    map_leaves,
    prepare_stream,
)

if TYPE_CHECKING:
    from convscope.augmentation import Augmentation
    from convscope.training.distributed import Group

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
