"""A folder of images: a folder for each class, with or without ``train``, ``val`` and ``test`` above them."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from convscope.data.decode import FORMATS, HEAD, HINTS, SUFFIXES, is_read, sniff
from convscope.data.findings import Finding, count
from convscope.data.names import Names, printable
from convscope.data.source import (
    PARTS,
    SETTLED_SECONDS,
    ImageSource,
    encode_labels,
    file_chunks,
    part_in_name,
    require_classes,
    settle_parts,
    united_classes,
    words_of,
)
from convscope.data.walk import Walk, walk
from convscope.errors import DataError, sentence

# Image formats that are not read; a person who has such files expects them to be used.
FOREIGN_SUFFIXES = {
    *(
        ".jxl",
        ".svg",
        ".eps",
        ".pdf",
        ".psd",
        ".ico",
        ".tga",
        ".webm",
        ".pcx",
        ".xcf",
        ".exr",
        ".hdr",
        ".npy",
    ),
    *(".dcm", ".nii", ".fits", ".pfm"),
    *(".raw", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2"),
}
# Camera formats that are TIFF inside, of which a TIFF reader finds only a thumbnail.
CAMERA_SUFFIXES = {".raw", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2"}
# Drawings and documents lie beside images without being any.
DRAWING_SUFFIXES = {".svg", ".eps", ".pdf", ".psd", ".ico", ".webm"}
# What nobody calls a class, unlike a train or a training; and a part of a cross-validation or of a download.
_NO_CLASSES = {"test", "testing", "validation", "val", "holdout", "heldout", "evaluation", "eval"}
_NUMBERED_PART = re.compile(r"(fold|split|batch|part|subset)s?[ _-]*\d+", re.IGNORECASE)


@dataclass
class _Sorting:
    """Files sorted by what they are good for."""

    images: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Layout:
    """Where class and part stand in the path of an image.

    Attributes
    ----------
    prefix : str
        The folders that merely wrap the rest.
    parts : dict of str to (int, int)
        For each folder that is a part: which, and how many levels below it lie above those of the classes;
        empty if there are no parts.
    """

    prefix: str
    parts: dict[str, tuple[int, int]]

    def locate(self, file: str) -> tuple[int, str, str] | None:
        """Tell part, class, and folder inside the class of a file; None if it lies in no class's folder."""
        if not file.startswith(self.prefix):
            return None
        steps = file[len(self.prefix) :].split("/")
        part, level = self.parts.get(steps[0], (0, len(steps))) if self.parts else (0, -1)
        folders = steps[level + 1 : -1]
        return (part, folders[0], folders[1] if len(folders) > 1 else "") if folders else None


@dataclass
class _Placing:
    """Images with the part and class that their folders give them, and what lies inside each class."""

    files: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    without_class: list[str] = field(default_factory=list)
    inside: dict[str, set[str]] = field(default_factory=dict)


def read_folder(root: Path) -> ImageSource:
    """Find the images of a folder, their classes and their parts.

    The folder holds one folder for each class; or a folder ``train`` that does, with ``val`` and ``test``
    beside it if there are any, whatever other words their names have. A single folder inside the given one
    is entered, and one inside a part that repeats its name. Images may lie deeper inside the folder of their
    class.

    Parameters
    ----------
    root : Path
        The folder.

    Returns
    -------
    ImageSource
        Nothing but names and the first bytes of oddly named files has been read.

    Raises
    ------
    DataError
        If there are no images, fewer than two classes, a class of whose images none is read, or folders
        that are rather parts than classes.
    """
    walked = walk(root)
    sorting = _sort_files(walked)
    layout = _find_layout(sorting.images)
    placing = _place(sorting.images, layout)
    _require_images(root, walked, sorting, placing)
    _require_classes_of_images(root, sorting, placing, layout)
    _require_no_parts(root, placing, layout)
    _require_known_parts(root, placing, layout)
    labels, class_names, united = encode_labels(
        placing.classes, lambda position: f"of {printable(placing.files[position])}", are_names=True
    )
    require_classes(class_names, root)
    names = Names(printable(name) for name in placing.files)
    return ImageSource(
        name=root.resolve().name,
        layout=_in_words(placing, layout),
        names=names,
        labels=labels,
        parts=np.array(placing.parts, np.int8),
        class_names=class_names,
        signature=walked.signature if time.time() - walked.newest > SETTLED_SECONDS else "",
        chunks=partial(file_chunks, root, placing.files, names),
        findings=(*walked.findings, *_findings(walked, sorting, placing, layout), *united_classes(united)),
    )


def _sort_files(walked: Walk) -> _Sorting:
    """Sort files into images, images of other formats, and the rest."""
    sorting = _Sorting()
    for file in walked.files:
        suffix = PurePosixPath(file).suffix.lower()
        kind = SUFFIXES.get(suffix) or _kind_by_content(walked.root, file, suffix)
        if is_read(kind):
            sorting.images.append(file)
        elif suffix in FOREIGN_SUFFIXES or kind in HINTS:
            sorting.foreign.append(file)
        else:
            sorting.others.append(file)
    return sorting


def _kind_by_content(root: Path, file: str, suffix: str) -> str:
    """Tell what a file without an image's ending is."""
    if suffix in CAMERA_SUFFIXES:
        return ""
    try:
        with open(os.path.join(root, file), "rb") as stream:  # noqa: PTH118, PTH123  names may be no UTF-8
            return sniff(stream.read(HEAD))
    except OSError:
        return ""


def _find_layout(images: list[str]) -> _Layout:
    """Find the folders that wrap the rest, and those that are parts."""
    prefix = _common_folder(images)
    inside: dict[str, list[list[str]]] = {}
    for file in images:
        steps = file[len(prefix) :].split("/")
        inside.setdefault(steps[0], []).append(steps[1:])
    parts = _parts_among(inside)
    levels = {top: (part, _levels_above_classes(top, inside[top])) for top, part in parts.items()}
    return _Layout(prefix, levels)


def _place(images: list[str], layout: _Layout) -> _Placing:
    """Read class and part off the folders in which images lie."""
    placing = _Placing()
    for file in images:
        found = layout.locate(file)
        if found is None:
            placing.without_class.append(file)
            continue
        part, name, inside = found
        placing.files.append(file)
        placing.classes.append(name)
        placing.parts.append(part)
        placing.inside.setdefault(name, set()).add(inside)
    return placing


def _in_words(placing: _Placing, layout: _Layout) -> str:
    """Say how the folder was understood."""
    present = ", ".join(PARTS[part] for part in sorted(set(placing.parts)))
    return f"{present}: a folder for each class" if layout.parts else "a folder for each class"


def _common_folder(images: list[str]) -> str:
    """Name the folders that merely wrap the one with the classes, as unpacked archives have them."""
    prefix = ""
    while True:
        tops = {file[len(prefix) :].partition("/")[0] for file in images}
        top = tops.pop() if len(tops) == 1 else ""
        inside = [file for file in images if file.startswith(f"{prefix}{top}/")]
        deep_enough = inside and all(file.count("/") >= prefix.count("/") + 2 for file in inside)
        if not top or not deep_enough or part_in_name(top, entirely=True) is not None:
            return prefix
        prefix += f"{top}/"


def _parts_among(inside: dict[str, list[list[str]]]) -> dict[str, int]:
    """Tell folders that are parts, such as a ``train`` of classes, from classes, such as one of trains.

    The former hold folders and the latter images. Names with other words in them (``seg_train``) are believed
    if all folders that hold folders have such names.
    """
    nested = {
        top
        for top, paths in inside.items()
        if 2 * sum(len(path) > (2 if path[:1] == [top] else 1) for path in paths) > len(paths)
    }
    for entirely in (True, False):
        parts = {top: part for top in inside if (part := part_in_name(top, entirely)) is not None}
        is_believed = entirely or nested <= set(parts)
        if is_believed and any(part == 0 and top in nested for top, part in parts.items()):
            return settle_parts(parts)
    return {}


def _levels_above_classes(part: str, paths: list[list[str]]) -> int:
    """Count the folders inside a part that are its name once more, or nothing but another word for images."""
    level = 0
    while True:
        names = {path[level] for path in paths if len(path) > level + 1}
        name = names.pop() if len(names) == 1 else ""
        says_nothing = name.lower() == part.lower() or part_in_name(name) is not None or not words_of(name)
        if not name or not says_nothing or not all(len(path) > level + 2 for path in paths):
            return level
        level += 1


def _require_classes_of_images(root: Path, sorting: _Sorting, placing: _Placing, layout: _Layout) -> None:
    """Refuse a class of which every image is of a format that is not read: it would vanish."""
    present = set(zip(placing.parts, placing.classes, strict=True))
    for file in sorting.foreign:
        found = layout.locate(file)
        suffix = PurePosixPath(file).suffix
        if found is not None and found[:2] not in present and suffix.lower() not in DRAWING_SUFFIXES:
            expected = f"images that can be read in each class's folder in {root}"
            where = printable(os.path.dirname(file))  # noqa: PTH120  a name may be no UTF-8
            hint = _hint([file], "Save them as PNG, or move the folder away.")
            raise DataError(sentence(expected, f"only {suffix} files and the like in {where}", hint))


def _require_no_parts(root: Path, placing: _Placing, layout: _Layout) -> None:
    """Refuse classes that are rather the parts of a data set: by their names, or since all hold the same."""
    expected = f"a folder for each class in {root}"
    classes = sorted(placing.inside)
    shown = printable(", ".join(classes[:4]) + (" …" if len(classes) > 4 else ""))
    advice = "Name the parts train, val and test, each with a folder for each class"
    if not layout.parts:
        words = {name: words_of(name) for name in classes if part_in_name(name, entirely=True) is not None}
        if any(not _NO_CLASSES.isdisjoint(said) for said in words.values()) or all(
            name in words or _NUMBERED_PART.fullmatch(name) for name in classes
        ):
            raise DataError(sentence(expected, f"{shown}, which are called like parts", f"{advice}."))
    inside = list(placing.inside.values())
    every = set().union(*inside)
    are_alike = 3 * sum(map(len, inside)) > 2 * len(inside) * len(every)  # one may lack a few of them
    if len(inside) > 1 and "" not in every and min(map(len, inside)) > 1 and are_alike:
        how = "all hold the same" if min(map(len, inside)) == len(every) else "hold nearly the same"
        found = f"{shown}, which {how} folders {printable(', '.join(sorted(every)[:4]))}"
        raise DataError(sentence(expected, found, f"{advice}, or empty the inner folders into the outer."))


def _require_known_parts(root: Path, placing: _Placing, layout: _Layout) -> None:
    """Refuse a folder beside the parts that holds their classes, and is called like none of them."""
    if not layout.parts:
        return
    known = {name.lower() for name in placing.inside}
    for file in placing.without_class:
        top, *folders = file[len(layout.prefix) :].split("/")[:-1] or [""]
        if top not in layout.parts and (shared := [name for name in folders if name.lower() in known]):
            expected = f"the parts of {root} to be called train, val and test"
            found = f"{printable(top)}, which holds the class {printable(shared[0])} as they do"
            raise DataError(sentence(expected, found, "Rename it to the part that it is, or move it away."))


def _require_images(root: Path, walked: Walk, sorting: _Sorting, placing: _Placing) -> None:
    """Say which of the many ways in which a folder can hold no classes it is."""
    if placing.files:
        return
    expected = f"images in {root}, a folder for each class"
    formats = ", ".join(name.title() if name == "WEBP" else name for name in FORMATS if is_read(name))
    if placing.without_class:
        found = f"{count(len(placing.without_class), 'image')} that lie in no class's folder"
        raise DataError(sentence(expected, found, "Move each class into a folder with its name."))
    if sorting.foreign:
        endings = Counter(PurePosixPath(file).suffix for file in sorting.foreign)
        hint = _hint(sorting.foreign, f"Save them as {formats}.")
        raise DataError(sentence(expected, f"only {', '.join(endings)} files", hint))
    found = f"{count(len(walked.files), 'file')}, none of them an image" if walked.files else "no files"
    raise DataError(sentence(expected, found, f"Formats: {formats}."))


def _findings(walked: Walk, sorting: _Sorting, placing: _Placing, layout: _Layout) -> list[Finding]:
    """Report what was noticed before any image was opened."""
    imageless = {
        name
        for file in (*sorting.others, *sorting.foreign)
        if (found := layout.locate(file)) is not None and (name := found[1]) not in placing.inside
    }
    empty = sorted({*walked.empty, *imageless})
    unlabelled = _unlabelled(placing, layout)
    beside = [
        file for file in placing.without_class if file not in set(unlabelled) and _is_beside(file, layout)
    ]
    astray = sorted(set(placing.without_class) - {*unlabelled, *beside})
    tops = sorted({file[len(layout.prefix) :].split("/")[0] for file in beside})
    findings = [
        Finding(
            "unsupported",
            "error",
            f"{count(len(sorting.foreign), 'image')} of a format that is not read.",
            _hint(sorting.foreign, "Save as JPEG or PNG."),
            _shown(sorting.foreign),
            tuple(PurePosixPath(file).suffix.lower() for file in sorting.foreign),
        ),
        Finding(
            "no_class",
            "error",
            f"{count(len(astray), 'image')} in no class's folder.",
            "Move into the folder of a class.",
            _shown(astray),
        ),
        Finding(
            "no_part",
            "error",
            f"{count(len(beside), 'image')} in {printable(', '.join(tops))}, which is no part.",
            "Move the classes into one of the parts, or the folder away.",
            _shown(beside),
        ),
        Finding(
            "unlabelled",
            "info",
            f"{count(len(unlabelled), 'image')} without labels, not used.",
            "",
            _shown(unlabelled),
        ),
        Finding(
            "other_file",
            "info",
            f"{count(len(sorting.others), 'file')} of another kind, not used.",
            "",
            _shown(sorting.others),
        ),
        Finding(
            "empty_folder",
            "warning",
            f"{count(len(empty), 'folder')} with no image inside: no class is made of it.",
            "Fill or remove it.",
            _shown(empty),
        ),
    ]
    for part, name in enumerate(PARTS):
        several = sorted(top for top, (of, _) in layout.parts.items() if of == part)
        message = f"{printable(', '.join(several))} are all taken for the {name} part."
        advice = "Call them otherwise if that is not meant."
        findings.append(
            Finding("united_part", "info", message, advice, _shown(several if several[1:] else []))
        )
    odd = [file for file in placing.files if printable(file) != file]
    message = f"{count(len(odd), 'file')} with a name that is no plain text; used, and shown with escapes."
    findings.append(Finding("odd_name", "warning", message, "Rename if other tools refuse it.", _shown(odd)))
    return [finding for finding in findings if finding.names]


def _unlabelled(placing: _Placing, layout: _Layout) -> list[str]:
    """List the images that lie flat in a folder beside the training part, as those of a contest do."""
    start = len(layout.prefix)
    labelled = {file[start:].split("/")[0] for file in placing.files}
    found = []
    for file in placing.without_class if layout.parts else ():
        top, *folders = file[start:].split("/")[:-1] or [""]
        is_flat = all(name.lower() == top.lower() or not words_of(name) for name in folders)
        if top and top not in labelled and is_flat:
            found.append(file)
    return found


def _is_beside(file: str, layout: _Layout) -> bool:
    """Tell whether a file lies in a folder of a folder that stands beside the parts."""
    top, *folders = file[len(layout.prefix) :].split("/")[:-1] or [""]
    return bool(layout.parts and folders and file.startswith(layout.prefix)) and top not in layout.parts


def _hint(files: list[str], otherwise: str) -> str:
    """Say what to install for the first file of a format that another installation reads."""
    kinds = (SUFFIXES.get(PurePosixPath(file).suffix.lower(), "") for file in files)
    return next((HINTS[kind] for kind in kinds if kind in HINTS), otherwise)


def _shown(files: list[str]) -> tuple[str, ...]:
    return tuple(printable(file) for file in files)
