"""A folder of images: a folder for each class, with or without ``train``, ``val`` and ``test`` above them."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from convscope.data.dataset import printable
from convscope.data.decode import FORMATS, HEAD, HINTS, SUFFIXES, is_read, sniff
from convscope.data.sources.base import (
    SPLITS,
    Finding,
    Index,
    Signature,
    Source,
    count,
    file_chunks,
    find,
    make_index,
    present,
    require_classes,
    settle_splits,
    split_in_name,
    words_of,
)
from convscope.errors import DataError, DataNotFoundError, expected_got

# What systems and storage boxes leave in folders without asking, in lower case.
CLUTTER = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "picasa.ini", "__macosx", "__pycache__"),
    *("$recycle.bin", "recycler", "recycled", "system volume information", "lost+found", "@eadir"),
    *("#recycle", "@recycle", "@recently-snapshot", "network trash folder", "temporary items"),
}
# Nobody nests folders so deeply; what does is a loop in disguise.
DEEPEST = 32
# Camera formats that are TIFF inside, of which a TIFF reader finds only a thumbnail.
CAMERA_SUFFIXES = {".raw", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2"}
# Drawings and documents lie beside images without being any.
DRAWING_SUFFIXES = {".svg", ".eps", ".pdf", ".psd", ".ico", ".webm"}
# Image formats that are not read; a person who has such files expects them to be used.
FOREIGN_SUFFIXES = {
    *(".jxl", ".tga", ".pcx", ".xcf", ".exr", ".hdr", ".npy", ".dcm", ".nii", ".fits", ".pfm"),
    *CAMERA_SUFFIXES,
    *DRAWING_SUFFIXES,
}
# What nobody calls a class, unlike a train or a training; and a part of a cross-validation or of a download.
_NO_CLASSES = {"test", "testing", "validation", "val", "holdout", "heldout", "evaluation", "eval"}
_NUMBERED_PART = re.compile(r"(fold|split|batch|part|subset)s?[ _-]*\d+", re.IGNORECASE)
# What may stand in the way of a walk through folders: what was found, and what to do.
_OBSTACLES = {
    "symlink_loop": ("leads in a circle", "Remove the link."),
    "repeated_link": ("leads to a folder that is already there", "Remove one of the links."),
    "missing": ("leads to nothing", "Remove the link, or restore what it should lead to."),
    "unreadable": ("cannot be read", "Change its permissions, or copy it again."),
}

_Identity = tuple[int, int]  # device and inode: what a file or folder is, whatever leads to it


def read_folder(root: Path) -> Source:
    """Find the images of a folder, their classes and their splits; only odd files' first bytes are read."""
    listing = walk(root)
    index, files, layout, findings = arrange(listing)
    return Source(
        name=root.resolve().name,
        layout=layout,
        signature=listing.signature,
        index=index,
        chunks=partial(file_chunks, root, files, index.names),
        findings=(*listing.findings, *findings),
    )


# Every file below a folder, whatever links, names and permissions are met on the way


@dataclass
class Listing:
    """Files by their paths, whether on a disk or in an archive, and how each of them begins."""

    where: str  # for messages
    files: list[str]
    head: Callable[[str], bytes]
    empty: list[str] = field(default_factory=list)  # folders
    signature: str = ""
    findings: list[Finding] = field(default_factory=list)  # what was in the way


def walk(root: Path) -> Listing:
    """List every file below a folder in an order that depends on names only.

    Links are followed, except in circles; hidden files and what operating systems leave behind are passed
    over.
    """
    try:
        status = root.stat()
    except OSError as error:
        found = f"no folder at {root}"
        raise DataNotFoundError(expected_got("a folder with images", found, "Check the path.")) from error
    walker = _Walker(root)
    try:
        walker.enter("", [(status.st_dev, status.st_ino)])
    except OSError as error:
        raise DataError(expected_got(f"{root} to be readable", error.strerror or str(error))) from error
    findings = []
    for kind, rows in walker.problems.items():
        words, advice = _OBSTACLES[kind]
        names, details = zip(*rows, strict=True)
        findings.append(
            Finding(kind, "error", f"{count(len(rows), 'entry')}: {words}.", advice, names, details)
        )
    head = partial(_head, root)
    return Listing(str(root), sorted(walker.files), head, walker.empty, str(walker.signature), findings)


def _head(root: Path, file: str) -> bytes:
    """Read how a file begins; nothing if it cannot be read."""
    try:
        with open(os.path.join(root, file), "rb") as stream:  # noqa: PTH118, PTH123  may be no UTF-8
            return stream.read(HEAD)
    except OSError:
        return b""


class _Walker:
    """Goes through folders, deepest first, remembering what it met."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._linked: set[_Identity] = set()
        self.files: list[str] = []
        self.empty: list[str] = []
        self.signature = Signature(root)
        self.problems: dict[str, list[tuple[str, str]]] = {}

    def enter(self, folder: str, ancestors: list[_Identity]) -> None:
        """Go through one folder; the ancestors tell a circle."""
        with os.scandir(self._root / folder) as entries:
            wanted = [entry for entry in entries if not is_clutter(entry.name)]
        if not wanted and folder:
            self.empty.append(folder)
        for entry in sorted(wanted, key=lambda entry: entry.name):
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                self._visit(entry, name, ancestors)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    self._note("symlink_loop", name, "leads to itself")
                elif isinstance(error, FileNotFoundError):
                    self._note("missing", name, "a link to nothing")
                else:
                    self._note("unreadable", name, error.strerror or str(error))

    def _visit(self, entry: os.DirEntry[str], name: str, ancestors: list[_Identity]) -> None:
        """Take in a file; enter a folder, unless that leads in a circle or to where a link has led before."""
        status = entry.stat()
        if stat.S_ISREG(status.st_mode):
            self.files.append(name)
            self.signature.add(name, status)
            return
        if not stat.S_ISDIR(status.st_mode):
            self._note("unreadable", name, "neither a file nor a folder")
            return
        status = os.stat(entry.path)  # noqa: PTH116  on Windows an entry's own has no identity
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors or len(ancestors) > DEEPEST:
            self._note("symlink_loop", name, "leads back to a folder that contains it")
        elif entry.is_symlink() and identity in self._linked:
            self._note("repeated_link", name, "leads to a folder that another link leads to")
        else:
            if entry.is_symlink():
                self._linked.add(identity)
            self.enter(name, [*ancestors, identity])

    def _note(self, kind: str, name: str, detail: str) -> None:
        self.problems.setdefault(kind, []).append((printable(name), detail))
        self.signature.add(name, note=kind)


def is_clutter(name: str) -> bool:
    """Tell what is hidden, or left behind by an operating system."""
    return name.startswith(".") or name.lower() in CLUTTER


# Classes and splits, read off the paths of images


@dataclass(frozen=True)
class _Layout:
    """Where class and split stand in the path of an image.

    Below the folders that merely wrap the rest (``prefix``) lie those of the splits, if there are any: for
    each which split it is, and how many levels below it lie above those of the classes.
    """

    prefix: str
    splits: dict[str, tuple[int, int]]

    def locate(self, file: str) -> tuple[int, str, str] | None:
        """Tell split, class, and folder inside the class of a file; None if it lies in no class's folder."""
        if not file.startswith(self.prefix):
            return None
        steps = file[len(self.prefix) :].split("/")
        split, level = self.splits.get(steps[0], (0, len(steps))) if self.splits else (0, -1)
        folders = steps[level + 1 : -1]
        return (split, folders[0], folders[1] if len(folders) > 1 else "") if folders else None

    def folders(self, file: str) -> list[str]:
        """Name the folders that an image lies in, without those that wrap the rest."""
        return file[len(self.prefix) :].split("/")[:-1] or [""]


@dataclass
class _Placing:
    """Files sorted by what they are good for, and images by the class and split of their folders."""

    files: list[str] = field(default_factory=list)  # those with a class
    classes: list[str] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    inside: dict[str, set[str]] = field(default_factory=dict)  # each class's own folders
    without_class: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)  # images of formats that are not read
    others: list[str] = field(default_factory=list)


def arrange(listing: Listing) -> tuple[Index, list[str], str, list[Finding]]:
    """Find classes and splits by the folders in which files lie.

    Returns the images' index, their paths in the same order, the layout in words, and what was noticed.
    """
    images, placing = _sort_files(listing)
    layout = _find_layout(images)
    for file in images:
        found = layout.locate(file)
        if found is None:
            placing.without_class.append(file)
            continue
        split, name, inside = found
        placing.files.append(file)
        placing.classes.append(name)
        placing.splits.append(split)
        placing.inside.setdefault(name, set()).add(inside)
    _require_images(listing, placing)
    _require_classes_of_images(listing.where, placing, layout)
    _require_no_splits(listing.where, placing, layout)
    _require_known_splits(listing.where, placing, layout)
    index, united = make_index(
        placing.files,
        placing.classes,
        placing.splits,
        lambda position: f"of {printable(placing.files[position])}",
        are_names=True,
    )
    require_classes(index.class_names, listing.where)
    words = (
        f"{present(placing.splits)}: a folder for each class" if layout.splits else "a folder for each class"
    )
    return index, placing.files, words, [*_findings(listing, placing, layout), *united]


def _sort_files(listing: Listing) -> tuple[list[str], _Placing]:
    """Tell images from images of other formats, and from the rest."""
    images, placing = [], _Placing()
    for file in listing.files:
        suffix = PurePosixPath(file).suffix.lower()
        kind = SUFFIXES.get(suffix) or ("" if suffix in CAMERA_SUFFIXES else sniff(listing.head(file)))
        if is_read(kind):
            images.append(file)
        elif suffix in FOREIGN_SUFFIXES or kind in HINTS:
            placing.foreign.append(file)
        else:
            placing.others.append(file)
    return images, placing


def _find_layout(images: list[str]) -> _Layout:
    """Find the folders that wrap the rest, and those that are splits."""
    prefix = _common_folder(images)
    inside: dict[str, list[list[str]]] = {}
    for file in images:
        steps = file[len(prefix) :].split("/")
        inside.setdefault(steps[0], []).append(steps[1:])
    splits = _splits_among(inside)
    return _Layout(
        prefix, {top: (split, _levels_above_classes(top, inside[top])) for top, split in splits.items()}
    )


def _common_folder(images: list[str]) -> str:
    """Name the folders that merely wrap the one with the classes, as unpacked archives have them."""
    prefix = ""
    while True:
        tops = {file[len(prefix) :].partition("/")[0] for file in images}
        top = tops.pop() if len(tops) == 1 else ""
        inside = [file for file in images if file.startswith(f"{prefix}{top}/")]
        deep_enough = inside and all(file.count("/") >= prefix.count("/") + 2 for file in inside)
        if not top or not deep_enough or split_in_name(top, entirely=True) is not None:
            return prefix
        prefix += f"{top}/"


def _splits_among(inside: dict[str, list[list[str]]]) -> dict[str, int]:
    """Tell folders that are splits, such as a ``train`` of classes, from classes, such as one of trains.

    The former hold folders and the latter images. Names with other words in them (``seg_train``) are believed
    if all folders that hold folders have such names.
    """
    nested = {
        top
        for top, paths in inside.items()
        if 2 * sum(len(path) > (2 if path[:1] == [top] else 1) for path in paths) > len(paths)
    }
    for entirely in (True, False):
        splits = {top: split for top in inside if (split := split_in_name(top, entirely)) is not None}
        is_believed = entirely or nested <= set(splits)
        if is_believed and any(split == 0 and top in nested for top, split in splits.items()):
            return settle_splits(splits)
    return {}


def _levels_above_classes(split: str, paths: list[list[str]]) -> int:
    """Count the folders inside a split that are its name once more, or another word for images."""
    level = 0
    while True:
        names = {path[level] for path in paths if len(path) > level + 1}
        name = names.pop() if len(names) == 1 else ""
        says_nothing = name.lower() == split.lower() or split_in_name(name) is not None or not words_of(name)
        if not name or not says_nothing or not all(len(path) > level + 2 for path in paths):
            return level
        level += 1


def _require_images(listing: Listing, placing: _Placing) -> None:
    """Say which of the many ways in which a folder can hold no classes it is."""
    if placing.files:
        return
    expected = f"images in {listing.where}, a folder for each class"
    formats = ", ".join(name.title() if name == "WEBP" else name for name in FORMATS if is_read(name))
    if placing.without_class:
        found = f"{count(len(placing.without_class), 'image')} that lie in no class's folder"
        hint = (
            "Move each class into a folder with its name; if this one is a class, give the folder above it."
        )
        raise DataError(expected_got(expected, found, hint))
    if placing.foreign:
        endings = Counter(PurePosixPath(file).suffix for file in placing.foreign)
        hint = _hint(placing.foreign, f"Save them as {formats}.")
        raise DataError(expected_got(expected, f"only {', '.join(endings)} files", hint))
    found = f"{count(len(listing.files), 'file')}, none of them an image" if listing.files else "no files"
    raise DataError(expected_got(expected, found, f"Formats: {formats}."))


def _require_classes_of_images(where: str, placing: _Placing, layout: _Layout) -> None:
    """Refuse a class of which every image is of a format that is not read: it would vanish."""
    known = set(zip(placing.splits, placing.classes, strict=True))
    for file in placing.foreign:
        found = layout.locate(file)
        suffix = PurePosixPath(file).suffix
        if found is not None and found[:2] not in known and suffix.lower() not in DRAWING_SUFFIXES:
            expected = f"images that can be read in each class's folder in {where}"
            folder = printable(os.path.dirname(file))  # noqa: PTH120  a name may be no UTF-8
            hint = _hint([file], "Save them as PNG, or move the folder away.")
            raise DataError(expected_got(expected, f"only {suffix} files and the like in {folder}", hint))


def _require_no_splits(where: str, placing: _Placing, layout: _Layout) -> None:
    """Refuse classes that are rather the parts of a data set: by their names, or since all hold the same."""
    expected = f"a folder for each class in {where}"
    classes = sorted(placing.inside)
    shown = printable(", ".join(classes[:4]) + (" …" if len(classes) > 4 else ""))
    advice = "Name the parts train, val and test, each with a folder for each class"
    if not layout.splits:
        words = {name: words_of(name) for name in classes if split_in_name(name, entirely=True) is not None}
        if any(not _NO_CLASSES.isdisjoint(said) for said in words.values()) or all(
            name in words or _NUMBERED_PART.fullmatch(name) for name in classes
        ):
            raise DataError(expected_got(expected, f"{shown}, which are called like parts", f"{advice}."))
    inside = list(placing.inside.values())
    every = set().union(*inside)
    are_alike = 3 * sum(map(len, inside)) > 2 * len(inside) * len(every)  # one may lack a few of them
    if len(inside) > 1 and "" not in every and min(map(len, inside)) > 1 and are_alike:
        how = "all hold the same" if min(map(len, inside)) == len(every) else "hold nearly the same"
        found = f"{shown}, which {how} folders {printable(', '.join(sorted(every)[:4]))}"
        raise DataError(
            expected_got(expected, found, f"{advice}, or empty the inner folders into the outer.")
        )


def _require_known_splits(where: str, placing: _Placing, layout: _Layout) -> None:
    """Refuse a folder beside the splits that holds their classes, and is called like none of them."""
    known = {name.lower() for name in placing.inside}
    for file in placing.without_class if layout.splits else ():
        top, *folders = layout.folders(file)
        if top not in layout.splits and (shared := [name for name in folders if name.lower() in known]):
            expected = f"the parts of {where} to be called train, val and test"
            found = f"{printable(top)}, which holds the class {printable(shared[0])} as they do"
            raise DataError(
                expected_got(expected, found, "Rename it to the part that it is, or move it away.")
            )


def _findings(listing: Listing, placing: _Placing, layout: _Layout) -> Iterator[Finding]:
    """Report what was noticed before any image was opened."""
    imageless = {
        name
        for file in (*placing.others, *placing.foreign)
        if (found := layout.locate(file)) is not None and (name := found[1]) not in placing.inside
    }
    labelled = {layout.folders(file)[0] for file in placing.files}
    unlabelled, beside, astray = [], [], []
    for file in placing.without_class:
        top, *folders = layout.folders(file)
        if layout.splits and top and top not in labelled and _is_flat(top, folders):
            unlabelled.append(file)  # as those of a contest are
        elif layout.splits and folders and top not in layout.splits:
            beside.append(file)
        else:
            astray.append(file)
    tops = printable(", ".join(sorted({layout.folders(file)[0] for file in beside})))
    odd = [file for file in placing.files if printable(file) != file]
    hint = _hint(placing.foreign, "Save as JPEG or PNG.")
    endings = tuple(PurePosixPath(file).suffix.lower() for file in placing.foreign)
    moved = "Move the classes into one of the parts, or the folder away."
    empty = sorted({*listing.empty, *imageless})
    inside, bare = "Move into the folder of a class.", "with no image inside: no class is made of it."
    plain = "with a name that is no plain text; used, and shown with escapes."
    for kind, severity, files, noun, words, advice in (
        ("unsupported", "error", placing.foreign, "image", "of a format that is not read.", hint),
        ("no_class", "error", sorted(astray), "image", "in no class's folder.", inside),
        ("no_part", "error", beside, "image", f"in {tops}, which is no part.", moved),
        ("unlabelled", "info", unlabelled, "image", "without labels, not used.", ""),
        ("other_file", "info", placing.others, "file", "of another kind, not used.", ""),
        ("empty_folder", "warning", empty, "folder", bare, "Fill or remove it."),
        ("odd_name", "warning", odd, "file", plain, "Rename if other tools refuse it."),
    ):
        details = endings if kind == "unsupported" else ()
        yield from find(kind, severity, _shown(files), noun, words, advice, details)
    for split, name in enumerate(SPLITS):
        several = sorted(top for top, (of, _) in layout.splits.items() if of == split)
        if len(several) > 1:
            message = f"{printable(', '.join(several))} are all taken for the {name} part."
            advice = "Call them otherwise if that is not meant."
            yield Finding("united_part", "info", message, advice, _shown(several))


def _is_flat(top: str, folders: list[str]) -> bool:
    """Tell whether the folders inside one say nothing."""
    return all(name.lower() == top.lower() or not words_of(name) for name in folders)


def _hint(files: list[str], otherwise: str) -> str:
    """Say what to install for the first file of a format that another installation reads."""
    kinds = (SUFFIXES.get(PurePosixPath(file).suffix.lower(), "") for file in files)
    return next((HINTS[kind] for kind in kinds if kind in HINTS), otherwise)


def _shown(files: Iterable[str]) -> tuple[str, ...]:
    return tuple(printable(file) for file in files)
