"""A look at somebody's data before an hour is spent on them: ``check_folder`` → DataReport."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convscope.data.catalog import CATALOG, Dataset
from convscope.data.collection import Collection, collect_images
from convscope.data.content_checks import check_groups, check_outliers, check_shortcuts, measure
from convscope.data.file_checks import check_duplicates, check_files, merge
from convscope.data.findings import DataReport, Finding, count, sort_findings
from convscope.data.paths import find_source
from convscope.data.pixel_source import PixelSource, collect_pixels
from convscope.data.source import PARTS, ImageSource
from convscope.data.survey import NothingUsableError, Progress, ReadOptions, Survey, no_progress
from convscope.errors import DataError, DataNotFoundError

_PROGRESS = logging.getLogger("convscope.progress")

# The largest class may have this many times the images of the smallest.
IMBALANCE = 3.0
# Fewer training images of a class are hardly worth the hour.
FEW = 10
# If so much of the test part was seen in training, its result says nothing.
SEEN = 0.5


def check_folder(
    path: Path | str,
    quick: bool = False,
    options: ReadOptions | None = None,
    progress: Progress = no_progress,
) -> DataReport:
    """Look at a folder of images, or at any other data that can be loaded by their path.

    Nothing at the path is changed. Images are decoded into the cache, where loading finds them again.

    Parameters
    ----------
    path : path
        As for ``convscope.load``.
    quick : bool
        Leave out brightness, sharpness and what betrays the class.
    options : ReadOptions, optional
        As they will be used for training.
    progress : callable
        Told how many images are done, and of how many.

    Returns
    -------
    DataReport
        ``meaningless`` says why training would be, if it would.

    Raises
    ------
    DataNotFoundError
        If nothing lies there.
    """
    _PROGRESS.info("Looking at %s", path)
    location, options = Path(path), options or ReadOptions()
    try:
        source = find_source(location)
    except DataNotFoundError:
        raise
    except DataError as error:
        return DataReport(str(path), "unknown", 0, 0, (0, 0, 0), {}, (), str(error), quick)
    if isinstance(source, PixelSource):
        return check_collection(collect_pixels(source, options), str(path), quick)
    try:
        collection = collect_images(source, options, progress)
    except NothingUsableError as error:
        return _report_of_nothing(source, error.survey, str(path), str(error), quick)
    return check_collection(collection, str(path), quick)


def check_before_training(
    name: str | Path, options: ReadOptions | None = None, progress: Progress = no_progress
) -> DataReport | None:
    """Take the quick part of the look at somebody's own images; ``load`` then finds them decoded.

    Parameters
    ----------
    name : str or Path
        As for ``convscope.load``.
    options : ReadOptions, optional
        As they will be loaded.
    progress : callable
        Told how many images are done, and of how many.

    Returns
    -------
    DataReport or None
        None for a dataset of the catalogue, which is known, and where nothing lies at the path.

    Examples
    --------
    >>> check_before_training("digits") is None
    True
    """
    if name in CATALOG or not Path(name).exists():
        return None
    return check_folder(name, quick=True, options=options, progress=progress)


def _report_of_nothing(
    source: ImageSource, survey: Survey, path: str, reason: str, quick: bool
) -> DataReport:
    """Report data of which no image can be used."""
    rows = [*source.findings, *(row for row in check_files(source, survey) if row.severity == "error")]
    return DataReport(
        path, source.layout, len(source), 0, (0, 0, 0), {}, sort_findings(merge(rows)), reason, quick
    )


def check_dataset(dataset: Dataset, quick: bool = False) -> DataReport:
    """Look at a dataset that has been loaded, such as one of the catalogue.

    Parameters
    ----------
    dataset : Dataset
        Its parts are looked at as they are.
    quick : bool
        As for ``check_folder``.

    Returns
    -------
    DataReport
        Without anything about files.

    Examples
    --------
    >>> import convscope
    >>> check_dataset(convscope.load("digits"), quick=True).used
    1797
    """
    from convscope.data.similarity import near_duplicates, perceptual_hash, thumbnail

    splits = [split for split in (dataset.train, dataset.validation, dataset.test) if split is not None]
    numbers = [0, 1, 2] if dataset.validation is not None else [0, 2]
    images = np.concatenate([split.images for split in splits])
    hashes = perceptual_hash(np.stack([thumbnail(image) for image in images]))
    collection = Collection(
        name=dataset.name,
        layout="a dataset",
        images=images,
        labels=np.concatenate([split.labels for split in splits]),
        parts=np.repeat(np.array(numbers, np.int8), [len(split) for split in splits]),
        names=[name for split in splits for name in split.names],
        groups=near_duplicates(images, hashes),
        class_names=dataset.class_names,
    )
    return check_collection(collection, dataset.name, quick)


def check_collection(collection: Collection, path: str, quick: bool = False) -> DataReport:
    """Look at images that have been read.

    Parameters
    ----------
    collection : Collection
        As ``open_path`` gives it.
    path : str
        For the report.
    quick : bool
        As for ``check_folder``.

    Returns
    -------
    DataReport
        Findings of the same kind are one row.
    """
    counts = _counts(collection)
    findings = merge([*collection.findings, *_all_findings(collection, counts, quick)])
    height, width, channels = collection.images.shape[1:]
    known = [part for part in range(len(PARTS)) if counts[part].any()]
    report = DataReport(
        path=path,
        layout=collection.layout,
        files=len(collection.labels) if collection.files is None else len(collection.files.source),
        used=len(collection.labels),
        size=(height, width, channels),
        counts={
            PARTS[part]: dict(zip(collection.class_names, counts[part].tolist(), strict=True))
            for part in known
        },
        findings=sort_findings(findings),
        quick=quick,
    )
    return replace(report, meaningless=_why_meaningless(collection, report))


def _all_findings(collection: Collection, counts: NDArray[np.int64], quick: bool) -> Iterator[Finding]:
    """Go through all checks, the quick ones first."""
    if collection.files is not None:
        yield from check_files(collection.files.source, collection.files.survey)
    yield from check_duplicates(collection.files, collection.names, collection.groups, collection.parts)
    yield from check_groups(collection)
    yield from _check_classes(collection.class_names, counts)
    yield from _check_order(collection)
    if not quick:
        statistics = measure(collection.images)
        yield from check_outliers(statistics, collection.names)
        yield from check_shortcuts(collection, statistics)


def _counts(collection: Collection) -> NDArray[np.int64]:
    """Count the images of each part and class, (3, classes)."""
    classes = len(collection.class_names)
    flat = np.bincount(collection.parts.astype(np.int64) * classes + collection.labels, minlength=3 * classes)
    return flat.reshape(3, classes)


def _check_classes(class_names: tuple[str, ...], counts: NDArray[np.int64]) -> Iterator[Finding]:
    """Report classes that are missing, small, or much larger than others."""
    present = [part for part in range(len(PARTS)) if counts[part].any()]
    missing = [
        (class_names[label], f"not in {PARTS[part]}")
        for part in present
        for label in np.flatnonzero(counts[part] == 0)
    ]
    if missing:
        names, details = zip(*missing, strict=True)
        message = f"{count(len(missing), 'class')} missing from a part."
        yield Finding("missing_class", "error", message, "Add images of it there.", names, details)
    few = np.flatnonzero((counts[0] > 0) & (counts[0] < FEW))
    if len(few):
        message = f"{count(len(few), 'class')} with fewer than {FEW} training images."
        details = tuple(count(int(counts[0][label]), "image") for label in few)
        names = tuple(class_names[label] for label in few)
        yield Finding("few_images", "warning", message, "Collect more of it.", names, details)
    trained = np.flatnonzero(counts[0])
    if len(trained) > 1:
        least, most = trained[counts[0][trained].argmin()], trained[counts[0][trained].argmax()]
        ratio = counts[0][most] / counts[0][least]
        if ratio >= IMBALANCE:
            message = (
                f"{class_names[most]} has {ratio:.1f} times the training images of {class_names[least]}."
            )
            names = (class_names[most], class_names[least])
            details = tuple(count(int(counts[0][label]), "image") for label in (most, least))
            advice = "Use balanced class weights, and judge by balanced accuracy."
            yield Finding("imbalance", "warning", message, advice, names, details)


def _check_order(collection: Collection) -> Iterator[Finding]:
    """Report tables that are sorted by class, of which other tools may hold back the last rows."""
    labels = collection.labels[collection.parts == 0]
    changes = int((np.diff(labels) != 0).sum())
    if (
        collection.is_table
        and len(labels) > 2 * len(collection.class_names) > 2
        and changes < len(collection.class_names)
    ):
        message = "The rows are sorted by class."
        advice = (
            "It does no harm here, where splits are drawn at random; elsewhere, shuffle before splitting."
        )
        yield Finding("sorted_order", "info", message, advice)


def _why_meaningless(collection: Collection, report: DataReport) -> str:
    """Say why training on this would be meaningless; nothing if it would not."""
    trained = report.counts.get("train", {})
    usable = [name for name, number in trained.items() if number]
    if len(usable) < 2:
        return f"Only {count(len(usable), 'class')} with training images: add images of another one."
    lone = [name for name, number in trained.items() if number == 1]
    if lone and "test" not in report.counts:
        return f"{lone[0]} has 1 image: add others, since none can be held back to test on."
    if len(np.unique(collection.groups)) == 1:
        return "All images are the same: get them again."
    for part, classes in report.counts.items():
        tested = [name for name, number in classes.items() if number]
        if not any(trained[name] for name in tested):
            return (
                f"No class of {part} has training images ({', '.join(tested[:3])}): is it called otherwise?"
            )
    conflicting = report.find("conflicting")
    if conflicting and len(conflicting.names) > SEEN * report.used:
        found = f"{len(conflicting.names):,} of {report.used:,} images are there under two labels"
        return f"{found}: decide which is right."
    return _why_test_is_worthless(report)


def _why_test_is_worthless(report: DataReport) -> str:
    """Say why the result on the test part would say nothing, if it would not."""
    leakage = report.find("leakage")
    tested = sum(sum(classes.values()) for part, classes in report.counts.items() if part != "train")
    if leakage and len(leakage.names) > SEEN * tested:
        return (
            f"{len(leakage.names):,} of {tested:,} images to test on were seen in training: test on others."
        )
    return ""
