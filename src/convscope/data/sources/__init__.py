"""Where images come from: a path that a user gives → a ``Source``, whatever lies there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from convscope.data.decode import SUFFIXES
from convscope.data.sources.archive import SUFFIXES_OF_ARCHIVES, look_into
from convscope.data.sources.arrays import NPY, are_paired, find_idx, read_npy, read_npz
from convscope.data.sources.base import Finding, Index, Source, find, index_of, split_in_name
from convscope.data.sources.folder import is_clutter, read_folder
from convscope.data.sources.parquet import read_parquet
from convscope.data.sources.table import SUFFIXES_OF_TABLES, NoImagesError, is_form, read_tables
from convscope.errors import DataError, DataNotFoundError, expected_got

KINDS = "a folder of images, .zip, .tar, .csv, .npz, .npy, .parquet or IDX files"
# The ending of a file → what reads files with it: it takes the files, a name, and what names are relative to.
READERS: dict[str, Callable[[Sequence[Path], str, Path | None], Source]] = {
    **dict.fromkeys(SUFFIXES_OF_TABLES, read_tables),
    **dict.fromkeys(SUFFIXES_OF_ARCHIVES, lambda files, _name, _root: _source_of_archive(files[0])),
    ".npz": lambda files, _name, _root: read_npz(files[0]),
    NPY: lambda files, _name, _root: read_npy(files[0]),
    ".parquet": lambda files, name, _root: read_parquet(files, name),
}


def find_source(path: Path) -> Source:
    """Find out what lies at a path; no image is read."""
    if path.is_dir():
        return _source_of_folder(path)
    if not path.is_file():
        raise DataNotFoundError(expected_got(KINDS, f"nothing at {path}", "Check the path."))
    for ending, reader in READERS.items():
        if path.name.lower().endswith(ending):
            return reader([path], path.stem, None)
    if "idx" in path.name.lower() and (source := find_idx(path.parent)):
        return source
    hint = "Unpack it first." if path.suffix.lower() in {".gz", ".bz2", ".xz", ".7z", ".rar"} else ""
    if path.suffix.lower() in SUFFIXES:
        hint = "Give the folder that holds a folder of images for each class."
    raise DataError(expected_got(KINDS, str(path), hint))


def _source_of_folder(folder: Path) -> Source:
    """Find IDX files, else folders of classes with what tables say of them, else other files."""
    try:
        if numbers := find_idx(folder):
            return numbers
        source = read_folder(folder)
    except OSError as error:
        raise DataError(expected_got(f"{folder} to be readable", error.strerror or str(error))) from error
    except DataError as problem:
        files = _files_with_images(folder)
        if not files and (archives := _files_of(folder, SUFFIXES_OF_ARCHIVES)):
            hint = f"An archive is read by its own path: {archives[0]}; or unpack it."
            raise DataError(f"{problem}\n{hint}") from problem
        if not files:
            raise
        try:
            return READERS[files[0].suffix.lower()](files, folder.resolve().name, folder)
        except NoImagesError as error:
            raise DataError(f"{problem}\n{error}") from error
    files = [file for file in _tables_of(folder) if not is_form(file)]
    return _labelled_by_tables(
        source, files, lambda: read_tables(files, source.name, folder, only_paths=True)
    )


def _source_of_archive(path: Path) -> Source:
    """Find folders of classes in an archive with what tables inside say of them, else such tables alone."""
    archive = look_into(path, tuple(READERS))
    with TemporaryDirectory() as place:
        folder = Path(place)
        archive.unpack_tables(folder)
        files = [file for file in _tables_of(folder) if not is_form(file)]

        def is_there(file: Path) -> bool:
            return os.path.relpath(file, folder).replace(os.sep, "/") in archive.places

        def read() -> Source:
            try:
                found = read_tables(files, archive.name, folder, only_paths=True, is_there=is_there)
                return archive.by_table(found)
            except DataError as error:  # in which the archive is the folder
                raise type(error)(str(error).replace(place, str(path))) from error

        try:
            source = archive.by_folders()
        except DataError as problem:
            if not files:
                raise
            try:
                return read()
            except NoImagesError as error:
                hint = "Tables of pixels are read unpacked."
                raise DataError(f"{problem}\n{error} {hint}") from error
        return _labelled_by_tables(source, files, read)


def _files_with_images(folder: Path) -> list[Path]:
    """List the files in a folder that may hold images: Parquet, one ``.npz``, ``.npy`` pairs or tables."""
    parquet = sorted(file for file in folder.rglob("*.parquet") if file.is_file())
    npz = _files_of(folder, (".npz",))
    if not parquet and len(npz) > 1:
        found = ", ".join(file.name for file in npz)
        hint = "Give the path of one of them, or save the arrays of all in one."
        raise DataError(expected_got(f"one .npz file in {folder}", found, hint))
    npy = _files_of(folder, (NPY,))
    return parquet or npz or (npy if are_paired(npy) else _tables_of(folder))


def _tables_of(folder: Path) -> list[Path]:
    """List the tables of a folder, else those in the folders of its splits: ``train/metadata.csv``."""
    if tables := _files_of(folder, SUFFIXES_OF_TABLES):
        return tables
    splits = [
        entry
        for entry in _entries(folder)
        if entry.is_dir() and split_in_name(entry.name, entirely=True) is not None
    ]
    return [file for split in splits for file in _files_of(split, SUFFIXES_OF_TABLES)]


def _files_of(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """List the files of a folder with one of these endings."""
    return [entry for entry in _entries(folder) if entry.name.lower().endswith(suffixes) and entry.is_file()]


def _entries(folder: Path) -> list[Path]:
    """List what is in a folder; one that merely wraps another is entered."""
    entries = sorted(entry for entry in folder.iterdir() if not is_clutter(entry.name))
    return _entries(entries[0]) if len(entries) == 1 and entries[0].is_dir() else entries


def _labelled_by_tables(source: Source, files: Sequence[Path], read: Callable[[], Source]) -> Source:
    """Take the labels of tables that name the source's images, unless they say what the folders say."""
    if not files:
        return source
    try:
        found = read()
        index = index_of(found)
        if _says_the_same(index, index_of(source)):
            return source
        if len(set(index.names)) == len(index):
            return replace(found, findings=(*found.findings, *_not_in_table(index, index_of(source))))
        reason = f"Expected each image once in {found.layout}, got some several times."
    except NoImagesError:
        return source
    except DataError as error:
        reason = str(error)
    words = f"not used, the folders give the labels. {reason}"
    unused = find("unused_table", "warning", [file.name for file in files], "table", words)
    return replace(source, findings=(*source.findings, *unused))


def _not_in_table(table: Index, folders: Index) -> list[Finding]:
    """Report images of which the tables that give the labels do not speak."""
    known = set(table.names)
    names = [name for name in folders.names if name not in known]
    advice = "Add a row for each; or take the table away if the folders are the classes."
    return find("not_in_table", "warning", names, "image", "in no table: not used.", advice)


def _says_the_same(table: Index, folders: Index) -> bool:
    """Tell whether a table gives its images the splits and, under any names, the classes of their folders."""
    known = {name: i for i, name in enumerate(folders.names)}
    pairs = set()
    for name, label, split in zip(table.names, table.labels.tolist(), table.splits.tolist(), strict=True):
        position = known.get(name)
        if position is None or folders.splits[position] != split:
            return False
        pairs.add((label, int(folders.labels[position])))
    return len(pairs) == len({label for label, _ in pairs}) == len({label for _, label in pairs})
