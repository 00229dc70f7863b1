"""A folder of images: a folder for each class, with or without ``train``, ``val`` and ``test`` above them."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from convscope.data.findings import Finding, count
from convscope.data.kinds import FORMATS, HEAD, SUFFIXES, sniff
from convscope.data.names import Names, printable
from convscope.data.source import (
    PART_NAMES,
    PARTS,
    SETTLED_SECONDS,
    ImageSource,
    encode_labels,
    file_chunks,
    part_of,
    require_classes,
    united_classes,
)
from convscope.data.walk import Walk, walk
from convscope.errors import DataError, sentence

# Image formats that are not read; a person who has such files expects them to be used.
FOREIGN_SUFFIXES = {
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".eps", ".pdf", ".psd", ".ico", ".tga", ".webm"),
    *(".raw", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2"),
}
# Camera formats that are TIFF inside, of which a TIFF reader finds only a thumbnail.
CAMERA_SUFFIXES = {".raw", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2"}


@dataclass
class _Sorting:
    """Files sorted by what they are good for."""

    images: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


@dataclass
class _Placing:
    """Images with the part and class that their folders give them."""

    files: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    without_class: list[str] = field(default_factory=list)


def read_folder(root: Path) -> ImageSource:
    """Find the images of a folder, their classes and their parts.

    The folder holds one folder for each class; or a folder ``train`` that does, with ``val`` and ``test``
    beside it if there are any. A single folder inside the given one is entered. Images may lie deeper
    inside the folder of their class.

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
        If there are no images, or fewer than two classes.
    """
    walked = walk(root)
    sorting = _sort_files(walked)
    placing, layout = _place(sorting.images)
    _require_images(root, walked, sorting, placing)
    labels, class_names, united = encode_labels(
        placing.classes, lambda position: f"of {printable(placing.files[position])}"
    )
    require_classes(class_names, root)
    names = Names(printable(name) for name in placing.files)
    return ImageSource(
        name=root.resolve().name,
        layout=layout,
        names=names,
        labels=labels,
        parts=np.array(placing.parts, np.int8),
        class_names=class_names,
        signature=walked.signature if time.time() - walked.newest > SETTLED_SECONDS else "",
        chunks=partial(file_chunks, root, placing.files, names),
        findings=(*walked.findings, *_findings(walked, sorting, placing), *united_classes(united)),
    )


def _sort_files(walked: Walk) -> _Sorting:
    """Sort files into images, images of other formats, and the rest."""
    sorting = _Sorting()
    for file in walked.files:
        suffix = PurePosixPath(file).suffix.lower()
        if suffix in SUFFIXES or _is_image_by_content(walked.root, file, suffix):
            sorting.images.append(file)
        elif suffix in FOREIGN_SUFFIXES:
            sorting.foreign.append(file)
        else:
            sorting.others.append(file)
    return sorting


def _is_image_by_content(root: Path, file: str, suffix: str) -> bool:
    """Tell whether a file without an image's ending is an image all the same."""
    if suffix in CAMERA_SUFFIXES:
        return False
    try:
        with open(os.path.join(root, file), "rb") as stream:  # noqa: PTH118, PTH123  names may be no UTF-8
            return sniff(stream.read(HEAD)) in FORMATS
    except OSError:
        return False


def _place(images: list[str]) -> tuple[_Placing, str]:
    """Read class and part off the folders in which images lie."""
    prefix = _common_folder(images)
    inner = [file[len(prefix) :].split("/") for file in images]
    has_parts = _has_parts(inner)
    placing = _Placing()
    for file, steps in zip(images, inner, strict=True):
        part = part_of(steps[0]) if has_parts else 0
        folders = steps[1:-1] if has_parts else steps[:-1]
        if part is None or not folders:
            placing.without_class.append(file)
        else:
            placing.files.append(file)
            placing.classes.append(folders[0])
            placing.parts.append(part)
    present = [PARTS[part] for part in sorted(set(placing.parts))]
    layout = f"{', '.join(present)}: a folder for each class" if has_parts else "a folder for each class"
    return placing, layout


def _common_folder(images: list[str]) -> str:
    """Name the folders that merely wrap the one with the classes, as unpacked archives have them."""
    prefix = ""
    while True:
        tops = {file[len(prefix) :].partition("/")[0] for file in images}
        top = tops.pop() if len(tops) == 1 else ""
        inside = [file for file in images if file.startswith(f"{prefix}{top}/")]
        deep_enough = inside and all(file.count("/") >= prefix.count("/") + 2 for file in inside)
        if not top or not deep_enough or part_of(top) is not None:
            return prefix
        prefix += f"{top}/"


def _has_parts(inner: list[list[str]]) -> bool:
    """Tell a folder ``train`` of classes from a class of trains.

    The former holds folders and the latter images.
    """
    inside = [steps for steps in inner if PART_NAMES.get(steps[0].lower()) == 0]
    return bool(inside) and 2 * sum(len(steps) > 2 for steps in inside) > len(inside)


def _require_images(root: Path, walked: Walk, sorting: _Sorting, placing: _Placing) -> None:
    """Say which of the many ways in which a folder can hold no classes it is."""
    if placing.files:
        return
    expected = f"images in {root}, a folder for each class"
    formats = ", ".join(name.title() if name == "WEBP" else name for name in FORMATS)
    if placing.without_class:
        found = f"{count(len(placing.without_class), 'image')} that lie in no class's folder"
        raise DataError(sentence(expected, found, "Move each class into a folder with its name."))
    if sorting.foreign:
        endings = Counter(PurePosixPath(file).suffix for file in sorting.foreign)
        raise DataError(sentence(expected, f"only {', '.join(endings)} files", f"Save them as {formats}."))
    found = f"{count(len(walked.files), 'file')}, none of them an image" if walked.files else "no files"
    raise DataError(sentence(expected, found, f"Formats: {formats}."))


def _findings(walked: Walk, sorting: _Sorting, placing: _Placing) -> list[Finding]:
    """Report what was noticed before any image was opened."""
    findings = [
        Finding(
            "unsupported",
            "error",
            f"{count(len(sorting.foreign), 'image')} of a format that is not read.",
            "Save as JPEG or PNG.",
            _shown(sorting.foreign),
            tuple(PurePosixPath(file).suffix.lower() for file in sorting.foreign),
        ),
        Finding(
            "no_class",
            "error",
            f"{count(len(placing.without_class), 'image')} in no class's folder.",
            "Move into the folder of a class.",
            _shown(placing.without_class),
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
            f"{count(len(walked.empty), 'folder')} with nothing inside: no class is made of it.",
            "Fill or remove it.",
            _shown(walked.empty),
        ),
    ]
    odd = [file for file in placing.files if printable(file) != file]
    message = f"{count(len(odd), 'file')} with a name that is no plain text; used, and shown with escapes."
    findings.append(Finding("odd_name", "warning", message, "Rename if other tools refuse it.", _shown(odd)))
    return [finding for finding in findings if finding.names]


def _shown(files: list[str]) -> tuple[str, ...]:
    return tuple(printable(file) for file in files)
