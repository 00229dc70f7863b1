"""What people said that images really show: kept while a network is used, learned from later.

A file holds one image as it came, and its label. Its name is a number, in the order in which they came, and
the beginning of a hash of both. To undo the latest one is to move its file into ``undone/``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convscope.data.dataset import Dataset, Split
from convscope.data.decode import ImageError, decode, quiet_pillow
from convscope.data.sources.base import count
from convscope.data.splits import join
from convscope.errors import DataError, expected_got, reason
from convscope.preprocessing import resize_to_input
from convscope.runs import RunDirectory, locked, write_errors_named

VERSION = 1
UNDONE = "undone"
_NAME = re.compile(r"(\d{6,})-[0-9a-f]{16}\.json")
_SECONDS = 10.0


@dataclass(frozen=True)
class Correction:
    """An image file's bytes and the name of the class that they show."""

    name: str
    label: str
    image: bytes = field(repr=False)


class CorrectionStore:
    """Keeps corrections in a folder, which is made with the first one; ``size`` is that of all, in bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.size = sum((folder / name).stat().st_size for name in _names(folder))

    @property
    def count(self) -> int:
        """How many there are now; some may have been taken back."""
        return len(_names(self.folder))

    def keep(self, image: bytes, label: str) -> str:
        """Write a correction, whole or not at all; return its file's name."""
        record = {
            "version": VERSION,
            "label": label,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "image": base64.b64encode(image).decode(),
        }
        digest = hashlib.sha256(label.encode() + b"\0" + image).hexdigest()[:16]
        with locked(self.folder, _SECONDS):
            names = _names(self.folder)
            number = 1 + int(names[-1].partition("-")[0]) if names else 1
            name = f"{number:06d}-{digest}.json"
            RunDirectory(self.folder).write_json(name, record)
        self.size += (self.folder / name).stat().st_size
        return name


def read_corrections(folder: Path, limit: int | None = None) -> list[Correction]:
    """Read the corrections in a folder, the oldest first; no more than ``limit``."""
    names = _names(folder)[:limit]
    if not names:
        hint = "`convscope serve RUN --keep DIR` writes them."
        raise DataError(expected_got(f"corrections in {folder}", "none", hint))
    return [_read(folder / name) for name in names]


def undo_correction(folder: Path) -> tuple[Correction, int]:
    """Move the latest correction aside; return it, and how many are left."""
    if not folder.is_dir():
        raise DataError(expected_got(f"a folder of corrections at {folder}", "none"))
    with locked(folder, _SECONDS), write_errors_named(folder / UNDONE):
        names = _names(folder)
        if not names:
            raise DataError(expected_got(f"a correction in {folder}", "none"))
        latest = _read(folder / names[-1])
        (folder / UNDONE).mkdir(exist_ok=True)
        (folder / latest.name).replace(folder / UNDONE / latest.name)
    return latest, len(names) - 1


def add_corrections(
    dataset: Dataset, folder: Path, limit: int | None = None, resize: str = "letterbox"
) -> Dataset:
    """Let a training learn from corrections: as further training images, or as the label of one that it has.

    Of several corrections of one image the latest counts. One of a test or validation image is left out: what
    a network has learned from cannot test it.
    """
    found = read_corrections(folder, limit)
    images = _decoded(folder, found, dataset, dataset.resize or resize)
    position = {name: label for label, name in enumerate(dataset.class_names)}
    for one in found:
        if one.label not in position:
            expected = f"one of the classes {', '.join(dataset.class_names)} in {folder / one.name}"
            raise DataError(expected_got(expected, repr(one.label), "Move the file away."))
    latest = {image.tobytes(): number for number, image in enumerate(images)}
    held_back = _known(latest, [part for part in (dataset.test, dataset.validation) if part is not None])
    own = _known(latest, [dataset.train])
    labels = dataset.train.labels.copy()
    for content, rows in own.items():
        if content not in held_back:
            labels[rows] = position[found[latest[content]].label]
    new = sorted(
        number for content, number in latest.items() if content not in held_back and content not in own
    )
    train, groups = replace(dataset.train, labels=labels), None
    if train.groups is not None:  # each new image is in one of its own
        groups = np.arange(len(new)) + int(train.groups.max(initial=-1)) + 1
    new_labels = np.array([position[found[number].label] for number in new], np.int64)
    names = [f"{folder.name}/{found[number].name}" for number in new]
    train = join([train, Split(images[new], new_labels, names, groups)])
    digest = hashlib.sha256(dataset.fingerprint.encode())
    for one, image in zip(found, images, strict=True):
        digest.update(one.label.encode() + b"\0" + image.tobytes())
    changed = len([content for content in own if content not in held_back])
    note = f"{count(len(found), 'correction')} from {folder}: {count(len(new), 'further training image')}, "
    note += f"{changed:,} that had another label"
    if held_back:
        note += f"; {len(held_back):,} left out, which the network is to be tested on"
    return replace(dataset, train=train, fingerprint=digest.hexdigest(), notes=(*dataset.notes, f"{note}."))


def _names(folder: Path) -> list[str]:
    """List the files of corrections, in their order."""
    if not folder.is_dir():
        return []
    names = [entry.name for entry in folder.iterdir() if _NAME.fullmatch(entry.name)]
    return sorted(names, key=lambda name: int(name.partition("-")[0]))


def _read(file: Path) -> Correction:
    try:
        record = json.loads(file.read_bytes())
        if record["version"] != VERSION:
            raise ValueError(f"version {record['version']}")
        return Correction(file.name, str(record["label"]), base64.b64decode(record["image"], validate=True))
    except (OSError, ValueError, KeyError, TypeError, binascii.Error) as error:
        raise DataError(expected_got(f"a correction in {file}", reason(error), "Move it away.")) from error


def _decoded(folder: Path, found: Sequence[Correction], dataset: Dataset, resize: str) -> NDArray[np.uint8]:
    """Bring the images to the size of the dataset's: (n, h, w, c)."""
    height, width, channels = dataset.input_shape
    images = np.empty((len(found), height, width, channels), np.uint8)
    with quiet_pillow():
        for place, one in zip(images, found, strict=True):
            try:
                image = decode(one.image, str(folder / one.name), dataset.depth)
            except ImageError as error:
                raise DataError(str(error)) from error
            place[:] = resize_to_input(image, (height, width), channels, resize)
    return images


def _known(wanted: dict[bytes, int], parts: Sequence[Split]) -> dict[bytes, list[int]]:
    """Find the rows of the parts that hold one of some images, pixel for pixel."""
    rows: dict[bytes, list[int]] = {}
    for part in parts:
        for row, image in enumerate(part.images):
            if (content := image.tobytes()) in wanted:
                rows.setdefault(content, []).append(row)
    return rows
