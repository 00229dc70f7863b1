"""A name or a path → a ``Dataset``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.builtin import CATALOG, load_mnist_like
from convscope.data.corrections import add_corrections
from convscope.data.dataset import Dataset, Split, fingerprint, fold_indices, join, split_indices, take_names
from convscope.data.decode import DEPTH
from convscope.data.ingest import Collection, ReadOptions, no_progress, open_path
from convscope.data.sources.base import SPLITS, count
from convscope.errors import DataError, UsageError, expected_got, unknown_name

_PROGRESS = logging.getLogger("convscope.progress")

# The fraction of the images that is held back for the test where the data bring no test split.
TEST_FRACTION = 0.2
TEST_SEED = 1338
_HELD_BACK = "No test part was found"


def load(
    name: str | Path,
    path: str | Path | None = None,
    download: bool = True,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    resize: str = "letterbox",
    seed: int = 1338,
    fold: Sequence[int] | None = None,
    add: str | Path | tuple[str | Path, int] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Load a dataset by name, or your own images by their path.

    Parameters
    ----------
    name : str or Path
        ``"mnist"``, ``"digits"``; or the path of a folder with a folder for each class, with or without
        ``train``, ``val`` and ``test``; of a CSV file of paths and labels, or of pixels; of ``.npz``,
        ``.npy``, Parquet or IDX files.
    path : str or Path, optional
        For a name: a folder to look in before any other.
    download : bool
        Whether the network may be asked when the files are nowhere.
    size : int or (int, int), optional
        Height and width that your images are brought to, in pixels. Without it: the size that they all
        have, or one that suits most; at most 96 on the longer side.
    channels : {1, 3}, optional
        Grey or RGB; without it grey if all images are.
    resize : {"letterbox", "crop", "stretch"}
        How images of another size are brought to that one; as in ``Preprocess``.
    seed : int
        Decides which of your images are held back as a test part, where there is none.
    fold : sequence of three int, optional
        Number of a fold from 1, how many folds there are, and a seed: the fold is the test part then, and all
        other images are training images. A test part that the source brings is left out of both.
    add : str or Path, optional
        A folder of corrections, as ``convscope serve RUN --keep`` writes them: further training images. A
        pair of it and a number takes the first so many of them.
    workers : int, optional
        Threads that decode your images, 0 for none beside the caller's; the data are the same with any
        number. Without it as many as there are cores, up to 8.
    progress : callable, optional
        Takes how many images are done, and of how many.

    Returns
    -------
    Dataset
        uint8 images of shape ``(n, height, width, channels)``; memory-mapped where they are large.

    Raises
    ------
    UsageError
        If size or channels are asked for of a dataset that has its own.
    UnknownNameError
        If there is no dataset of that name.
    DataNotFoundError
        If its files are nowhere and cannot be downloaded.
    DataError
        If a file is damaged or not what it should be.

    Examples
    --------
    >>> import convscope
    >>> digits = convscope.load("digits")
    >>> digits.train.images.shape, digits.test.images.shape
    ((1437, 28, 28, 1), (360, 28, 28, 1))
    """
    _PROGRESS.info("Reading %s", name)
    if name in CATALOG:
        if size is not None or channels is not None:
            raise UsageError(
                expected_got(f"no size or channels for {name}, which has its own", size or channels)
            )
        dataset = CATALOG[str(name)].loader(Path(path) if path else None, download)
    elif (found := load_mnist_like(Path(name))) is not None:
        dataset = found
    elif isinstance(name, str) and Path(name).name == name and not Path(name).exists():
        raise unknown_name("dataset", name, CATALOG, "There is no file or folder of that name.")
    else:
        options = ReadOptions(size, channels, resize, workers)
        dataset = to_dataset(open_path(Path(name), options, progress or no_progress), seed)
    if fold is not None:
        dataset = take_fold(dataset, *fold)
    if add is not None:
        folder, limit = (add, None) if isinstance(add, (str, Path)) else add
        dataset = add_corrections(dataset, Path(folder), limit, resize)
    return dataset


def take_fold(dataset: Dataset, number: int, folds: int, seed: int) -> Dataset:
    """Make a fold, counted from 1, the test part, and all images that are in other folds the training part.

    A test part that the source brings stays out of both, so that it is still unused when a network has been
    chosen; one that was held back at random takes part, and so do validation images.
    """
    if not 1 <= number <= folds:
        raise UsageError(expected_got(f"a fold from 1 to {folds}", number))
    parts = [dataset.train, dataset.validation, dataset.test if dataset.test_held_back else None]
    pool = join([part for part in parts if part is not None])
    fold = fold_indices(pool.labels, folds, seed, pool.groups)[number - 1]
    train, test = pool.take(np.setdiff1d(np.arange(len(pool)), fold)), pool.take(fold)
    notes = [note for note in dataset.notes if not note.startswith(_HELD_BACK)]
    own = "" if dataset.test_held_back else " The test images of the data are not used."
    notes.append(f"Fold {number} of {folds} (seed {seed}): its images are the test part of this run.{own}")
    return replace(
        dataset, train=train, test=test, validation=None, notes=tuple(notes), test_held_back=False,
        fingerprint=fingerprint(train, test, class_names=dataset.class_names),
    )  # fmt: skip


def load_again(recorded: Mapping[str, Any]) -> Dataset:
    """Load what a run was trained on, as its ``run.json`` records it under ``data``, or refuse other data."""
    dataset = load(recorded.get("source", recorded.get("name", "")), **recorded.get("reading", {}))
    if dataset.fingerprint != recorded["fingerprint"]:
        expected = f"data with the fingerprint {recorded['fingerprint'][:12]}…, as the run saw them"
        raise DataError(expected_got(expected, f"{dataset.fingerprint[:12]}…", "They have changed since."))
    return dataset


def to_dataset(collection: Collection, seed: int = TEST_SEED) -> Dataset:
    """Divide images into their splits; hold a test split back where there is none."""
    name, labels = collection.source.name, collection.labels
    rows = [np.flatnonzero(collection.splits == split) for split in range(len(SPLITS))]
    notes = [*collection.notes, *_size_notes(collection)]
    if collection.survey is not None and collection.depth != DEPTH:
        notes.append(
            f"The images of more than 8 bits have {collection.depth} in use: the upper 8 of these are kept."
        )
    if not len(rows[0]):
        raise DataError(expected_got(f"training images in {name}", "none", "Add a folder 'train'."))
    held_back = not len(rows[2])
    if held_back:
        train = rows[0]
        first, second = split_indices(labels[train], TEST_FRACTION, seed, groups=collection.groups[train])
        rows[0], rows[2] = np.sort(train[first]), np.sort(train[second])
        lacking = sorted(set(labels[train]) - set(labels[rows[2]]))
        names = ", ".join(collection.class_names[label] for label in lacking)
        how = f"none of {names}, too few to be divided; the other classes" if lacking else "the classes"
        notes.append(
            f"{_HELD_BACK}: {len(second):,} images are held back as one, at random, {how} in "
            f"proportion, near-duplicates on one side (seed {seed})."
        )
    trained = set(labels[rows[0]].tolist())
    for split, positions in zip(SPLITS[1:], rows[1:], strict=True):
        if len(positions) and trained.isdisjoint(labels[positions].tolist()):
            expected = f"{split} images of classes that {name} has training images of"
            hint = "Call each class the same in every part."
            raise DataError(expected_got(expected, collection.class_names[labels[positions[0]]], hint))
    train_split, validation, test = [_split(collection, positions) for positions in rows]
    present = [split for split in (train_split, test, validation) if len(split)]
    if left_out := _left_out(collection):
        notes.append(f"{count(len(left_out), 'file')} could not be used: {_enumerate(left_out)}.")
    return Dataset(
        name=name,
        train=train_split,
        test=test,
        class_names=collection.class_names,
        fingerprint=fingerprint(*present, class_names=collection.class_names),
        validation=validation if len(validation) else None,
        resize=collection.resize,
        depth=collection.depth,
        notes=tuple(notes),
        left_out=left_out,
        test_held_back=held_back,
    )


def _split(collection: Collection, positions: NDArray[np.int64]) -> Split:
    """Choose images; a stretch of them is not copied."""
    stretch = len(positions) > 0 and positions[-1] - positions[0] == len(positions) - 1
    rows = slice(int(positions[0]), int(positions[-1]) + 1) if stretch else positions
    names = take_names(collection.names, positions)
    return Split(collection.images[rows], collection.labels[positions], names, collection.groups[positions])


def _size_notes(collection: Collection) -> list[str]:
    """Say what size the images got, where they had others."""
    if collection.survey is None:
        return []
    survey = collection.survey
    heights, widths = survey.heights[survey.usable], survey.widths[survey.usable]
    height, width = collection.images.shape[1:3]
    if (heights == height).all() and (widths == width).all():
        return []
    low, high = np.argmin(heights * widths), np.argmax(heights * widths)
    several = len(np.unique(np.stack([heights, widths]), axis=1).T) > 1
    smallest, largest = f"{heights[low]}×{widths[low]}", f"{heights[high]}×{widths[high]}"
    sizes = f"sizes from {smallest} to {largest}" if several else f"size {smallest}"
    return [f"The images have {sizes}; all are brought to {height}×{width} by {collection.resize}."]


def _left_out(collection: Collection) -> tuple[tuple[str, str], ...]:
    """List the files that could not be used, and why."""
    rows = [
        (name, finding.details[number] if finding.details else finding.kind.replace("_", " "))
        for finding in collection.findings
        if finding.is_unused
        for number, name in enumerate(finding.names)
    ]
    index = collection.source.index
    if collection.survey is not None and index is not None:
        problems = collection.survey.problems
        rows += [(index.names[position], found) for position, (_, found, _) in problems.items()]
    return tuple(sorted(rows))


def _enumerate(rows: Sequence[tuple[str, str]]) -> str:
    """Name the first three."""
    shown = ", ".join(f"{name} ({why})" for name, why in rows[:3])
    return shown if len(rows) <= 3 else f"{shown} and {len(rows) - 3:,} more"
