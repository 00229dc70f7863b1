"""A path that a user gives → a Dataset, whatever lies there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convscope.data.arrays import find_idx, read_idx_files, read_npz
from convscope.data.catalog import Dataset, Split, fingerprint
from convscope.data.collection import Collection, collect_images
from convscope.data.decode import DEPTH
from convscope.data.findings import UNUSABLE, Finding, count
from convscope.data.folder import read_folder
from convscope.data.names import Names
from convscope.data.parquet import read_parquet
from convscope.data.path_table import read_paths
from convscope.data.pixel_source import PixelSource, collect_pixels
from convscope.data.pixel_table import is_of_pixels, read_pixel_tables
from convscope.data.source import PARTS, ImageSource, part_in_name, settle_parts
from convscope.data.splits import split_indices
from convscope.data.survey import Progress, ReadOptions, no_progress
from convscope.data.table import NoImagesError, Table, look
from convscope.data.walk import is_clutter
from convscope.errors import DataError, DataNotFoundError, sentence

TABLE_SUFFIXES = (".csv", ".tsv")
KINDS = "a folder of images, .csv, .npz, .parquet or IDX files"
# The share of the images that is held back for the test where the data bring no test part.
TEST_SHARE = 0.2
TEST_SEED = 1338

Source = ImageSource | PixelSource


def load_path(
    path: Path,
    options: ReadOptions | None = None,
    *,
    seed: int = TEST_SEED,
    test_share: float = TEST_SHARE,
    progress: Progress = no_progress,
) -> Dataset:
    """Load the images at a path.

    Parameters
    ----------
    path : Path
        A folder of images, a table of paths or of pixels, ``.npz``, Parquet or IDX files.
    options : ReadOptions, optional
        Size, channels, and how images of other sizes are brought there.
    seed : int
        Decides which images become the test part, where the data bring none.
    test_share : float
        The share that becomes the test part, between 0 and 1.
    progress : callable
        Told how many images are done, and of how many.

    Returns
    -------
    Dataset
        Memory-mapped where it is large; its notes say what was assumed and left out.

    Raises
    ------
    DataNotFoundError
        If nothing lies there.
    DataError
        If what lies there cannot be trained on.
    """
    return to_dataset(open_path(path, options, progress), seed, test_share)


def open_path(path: Path, options: ReadOptions | None = None, progress: Progress = no_progress) -> Collection:
    """Read the images at a path into the cache, unless they are there, and open them.

    Parameters
    ----------
    path, options, progress
        As for ``load_path``.

    Returns
    -------
    Collection
        Images, labels, and everything that was noticed.
    """
    options = options or ReadOptions()
    source = find_source(path)
    if isinstance(source, PixelSource):
        return collect_pixels(source, options)
    return collect_images(source, options, progress)


def find_source(path: Path) -> Source:
    """Find out what lies at a path.

    Parameters
    ----------
    path : Path
        A folder or a file.

    Returns
    -------
    ImageSource or PixelSource
        No image has been read.

    Raises
    ------
    DataNotFoundError
        If nothing lies there.
    DataError
        If it is nothing that can be read.
    """
    if path.is_dir():
        return _source_of_folder(path)
    if not path.is_file():
        raise DataNotFoundError(sentence(KINDS, f"nothing at {path}", "Check the path."))
    source = _source_of_files([path], path.stem)
    if source is None and "idx" in path.name.lower() and (files := find_idx(path.parent)):
        return read_idx_files(path.parent, files)
    if source is None:
        hint = "Unpack it first." if path.suffix.lower() in {".zip", ".tar", ".gz", ".tgz", ".7z"} else ""
        raise DataError(sentence(KINDS, str(path), hint))
    return source


def _source_of_folder(folder: Path) -> Source:
    """Find IDX files, else images, else tables."""
    try:
        if numbers := find_idx(folder):
            return read_idx_files(folder, numbers)
        source = read_folder(folder)
    except OSError as error:
        raise DataError(sentence(f"{folder} to be readable", error.strerror or str(error))) from error
    except DataError as problem:
        files = _tables_of(folder)
        try:
            found = _source_of_files(files, folder.resolve().name, folder) if files else None
        except NoImagesError as error:
            raise DataError(f"{problem}\n{error}") from error
        if found is None:
            raise
        return found
    return _labelled_by_tables(source, folder)


def _labelled_by_tables(source: ImageSource, folder: Path) -> ImageSource:
    """Take the labels of tables that name the folder's images, unless they say what the folders say."""
    files = [file for file in _tables_of(folder) if file.suffix.lower() in TABLE_SUFFIXES]
    tables = [file for file in files if not _is_form(file)]
    if not tables:
        return source
    try:
        found = _read_tables(tables, source.name, folder)
        if isinstance(found, PixelSource) or _says_the_same(found, source):
            return source
        if len(set(found.names)) == len(found):
            return found
        reason = f"Expected each image once in {found.layout}, got some several times."
    except NoImagesError:
        return source
    except DataError as error:
        reason = str(error)
    names = tuple(file.name for file in tables)
    message = f"{count(len(names), 'table')} not used, the folders give the labels. {reason}"
    return replace(
        source, findings=(*source.findings, Finding("unused_table", "warning", message, "", names))
    )


def _says_the_same(table: ImageSource, folders: ImageSource) -> bool:
    """Tell whether a table gives its images the parts and, under any names, the classes of their folders."""
    known = {name: i for i, name in enumerate(folders.names)}
    pairs = set()
    for name, label, part in zip(table.names, table.labels.tolist(), table.parts.tolist(), strict=True):
        position = known.get(name)
        if position is None or folders.parts[position] != part:
            return False
        pairs.add((label, int(folders.labels[position])))
    return len(pairs) == len({label for label, _ in pairs}) == len({label for _, label in pairs})


def _tables_of(folder: Path) -> list[Path]:
    """List the files in a folder that may hold images: all Parquet files, else one ``.npz``, else tables."""
    parquet = sorted(file for file in folder.rglob("*.parquet") if file.is_file())
    entries = sorted(entry for entry in folder.iterdir() if not is_clutter(entry.name))
    while len(entries) == 1 and entries[0].is_dir():  # a folder that merely wraps the rest
        entries = sorted(entry for entry in entries[0].iterdir() if not is_clutter(entry.name))
    files = [entry for entry in entries if entry.is_file()]
    archives = [file for file in files if file.suffix.lower() == ".npz"]
    parts = [
        entry for entry in entries if entry.is_dir() and part_in_name(entry.name, entirely=True) is not None
    ]
    inside = [file for part in parts for file in sorted(part.iterdir()) if file.is_file()]
    tables, deeper = (
        [file for file in some if file.suffix.lower() in TABLE_SUFFIXES] for some in (files, inside)
    )
    return parquet or archives[:1] or tables or deeper


def _source_of_files(files: Sequence[Path], name: str, root: Path | None = None) -> Source | None:
    """Read files by their ending; None if it says nothing."""
    suffix = files[0].suffix.lower()
    if suffix == ".parquet":
        return read_parquet(files, name)
    if suffix == ".npz":
        return read_npz(files[0])
    return _read_tables(files, name, root) if suffix in TABLE_SUFFIXES else None


def _read_tables(files: Sequence[Path], name: str, root: Path | None = None) -> Source:
    """Read tables of pixels, else of paths, but none that only shows the form of an answer."""
    forms = [file for file in files if len(files) > 1 and _is_form(file)]
    if len(forms) == len(files):
        found = f"only {', '.join(file.name for file in forms)}, whose labels are invented"
        raise DataError(sentence(f"a table of images and labels in {name}", found))
    tables = _named_after_parts(_look_at([file for file in files if file not in forms]))
    of_pixels = [table for table in tables if is_of_pixels(table)]
    source = read_pixel_tables(of_pixels, name) if of_pixels else read_paths(tables, name, root)
    if not forms:
        return source
    message = f"{count(len(forms), 'table')} that only shows the form of an answer: not used."
    finding = Finding("submission", "info", message, "", tuple(file.name for file in forms))
    return replace(source, findings=(*source.findings, finding))


def _is_form(file: Path) -> bool:
    """Tell a table that only shows the form of an answer."""
    return "submission" in file.stem.lower()


def _look_at(files: Sequence[Path]) -> list[Table]:
    """Look at tables; one that is empty is passed over, if there are others."""
    tables, problem = [], None
    for file in files:
        try:
            tables.append(look(file))
        except NoImagesError as error:
            problem = error
    if not tables and problem is not None:
        raise problem
    return tables


def _named_after_parts(tables: Sequence[Table]) -> list[Table]:
    """Give tables the parts that their names, or else the names of the folders that they are in, say."""
    of_folders = len({table.file.parent for table in tables}) > 1
    parts = {}
    for table in tables:
        of_folder = part_in_name(table.file.parent.name, entirely=True) if of_folders else None
        parts[f"{table.file.parent.name}/{table.file.stem}"] = table.part or of_folder or 0
    return [
        replace(table, part=part) for table, part in zip(tables, settle_parts(parts).values(), strict=True)
    ]


def to_dataset(collection: Collection, seed: int = TEST_SEED, test_share: float = TEST_SHARE) -> Dataset:
    """Divide a collection into its parts; hold a test part back where there is none.

    Parameters
    ----------
    collection : Collection
        As ``open_path`` gives it.
    seed, test_share
        As for ``load_path``.

    Returns
    -------
    Dataset
        With notes on what was assumed and left out.

    Raises
    ------
    DataError
        If there are no training images, or too few to hold any back.
    """
    chosen = [np.flatnonzero(collection.parts == part) for part in range(len(PARTS))]
    notes = [*collection.notes, *_size_notes(collection)]
    if collection.files is not None and collection.depth != DEPTH:
        notes.append(
            f"The images of more than 8 bits have {collection.depth} in use: the upper 8 of these are kept."
        )
    if not len(chosen[0]):
        raise DataError(sentence(f"training images in {collection.name}", "none", "Add a folder 'train'."))
    if not len(chosen[2]):
        train = chosen[0]
        groups = collection.groups[train]
        first, second = split_indices(collection.labels[train], test_share, seed, groups=groups)
        chosen[0], chosen[2] = np.sort(train[first]), np.sort(train[second])
        lacking = sorted(set(collection.labels[train]) - set(collection.labels[chosen[2]]))
        names = ", ".join(collection.class_names[label] for label in lacking)
        how = f"none of {names}, too few to be divided; the other classes" if lacking else "the classes"
        notes.append(
            f"No test part was found: {len(second):,} images are held back as one, at random, {how} in "
            f"proportion, near-duplicates on one side (seed {seed})."
        )
    trained = set(collection.labels[chosen[0]].tolist())
    for part, positions in zip(PARTS[1:], chosen[1:], strict=True):
        if len(positions) and trained.isdisjoint(collection.labels[positions].tolist()):
            expected = f"{part} images of classes that {collection.name} has training images of"
            hint = "Call each class the same in every part."
            raise DataError(sentence(expected, collection.class_names[collection.labels[positions[0]]], hint))
    train_part, validation, test = [_split(collection, positions) for positions in chosen]
    present = [part for part in (train_part, test, validation) if len(part)]
    left_out = _left_out(collection)
    if left_out:
        notes.append(f"{count(len(left_out), 'file')} could not be used: {_enumerate(left_out)}.")
    return Dataset(
        name=collection.name,
        train=train_part,
        test=test,
        class_names=collection.class_names,
        fingerprint=fingerprint(*present, class_names=collection.class_names),
        validation=validation if len(validation) else None,
        resize=collection.resize,
        depth=collection.depth,
        notes=tuple(notes),
        left_out=left_out,
    )


def _split(collection: Collection, positions: NDArray[np.int64]) -> Split:
    """Choose images; a stretch of them is not copied."""
    names = collection.names
    chosen = names.take(positions) if isinstance(names, Names) else [names[i] for i in positions]
    stretch = len(positions) > 0 and positions[-1] - positions[0] == len(positions) - 1
    rows = slice(int(positions[0]), int(positions[-1]) + 1) if stretch else positions
    images, groups = collection.images[rows], collection.groups[positions]
    return Split(images, collection.labels[positions], chosen, groups)


def _size_notes(collection: Collection) -> list[str]:
    """Say what size the images got, where they had others."""
    if collection.files is None:
        return []
    survey = collection.files.survey
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
        if finding.kind in UNUSABLE
        for number, name in enumerate(finding.names)
    ]
    if collection.files is not None:
        names, problems = collection.files.source.names, collection.files.survey.problems
        rows += [(names[position], found) for position, (_, found, _) in sorted(problems.items())]
    return tuple(sorted(rows))


def _enumerate(rows: Sequence[tuple[str, str]], most: int = 3) -> str:
    """Name the first few."""
    shown = ", ".join(f"{name} ({why})" for name, why in rows[:most])
    return shown if len(rows) <= most else f"{shown} and {len(rows) - most:,} more"
