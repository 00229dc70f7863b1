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

from convscope.data.dataset import Dataset, Split, join
from convscope.data.decode import ImageError, decode, quiet_pillow
from convscope.data.similarity import near_copies
from convscope.data.sources.base import count
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

    Of several corrections of one image the latest counts. One of a test or validation image is left out, and
    so is a near-copy where the data have groups of them: what a network has learned from cannot test it. The
    others are for training only: no part held back at random has one of them, or a near-copy of one.
    """
    found = read_corrections(folder, limit)
    images = _decoded(folder, found, dataset, dataset.resize or resize)
    position = {name: label for label, name in enumerate(dataset.class_names)}
    for one in found:
        if one.label not in position:
            expected = f"one of the classes {', '.join(dataset.class_names)} in {folder / one.name}"
            raise DataError(expected_got(expected, repr(one.label), "Move the file away."))
    train, held_parts = dataset.train, [dataset.test]
    held_parts += [dataset.validation] if dataset.validation is not None else []
    latest = {image.tobytes(): number for number, image in enumerate(images)}
    held_back, own = _known(latest, held_parts), _known(latest, [train])
    groups = dict.fromkeys(latest, -1)  # that of a near-copy among the training images
    if train.groups is not None:
        asked = images[list(latest.values())]
        for part in held_parts:
            for content, rows in zip(latest, near_copies(part.images, asked), strict=True):
                if len(rows) and content not in own:
                    held_back[content] = rows.tolist()
        for content, rows in zip(latest, near_copies(train.images, asked), strict=True):
            groups[content] = int(train.groups[rows[0]]) if len(rows) else -1
    labels, only = train.labels.copy(), np.zeros(len(train), np.bool_)
    changed = [content for content in own if content not in held_back]
    for content in changed:
        labels[own[content]], only[own[content]] = position[found[latest[content]].label], True
    added = sorted(latest[content] for content in latest if content not in held_back and content not in own)
    new_groups = None
    if train.groups is not None:  # one of its own for each that is like no other
        new_groups = np.array([groups[images[number].tobytes()] for number in added], np.int64)
        alone = new_groups < 0
        new_groups[alone] = np.arange(alone.sum()) + _largest_group([train, *held_parts]) + 1
    new_labels = np.array([position[found[number].label] for number in added], np.int64)
    names = [f"{folder.name}/{found[number].name}" for number in added]
    new = Split(images[added], new_labels, names, new_groups, np.ones(len(added), np.bool_))
    train = join([replace(train, labels=labels, training_only=only), new])
    digest = hashlib.sha256(dataset.fingerprint.encode())
    for one, image in zip(found, images, strict=True):
        digest.update(one.label.encode() + b"\0" + image.tobytes())
    note = f"{count(len(found), 'correction')} from {folder}: {count(len(added), 'further training image')}, "
    note += f"{len(changed):,} that had another label"
    if held_back:
        note += f"; {len(held_back):,} left out, which the network is to be tested on"
    if added or changed:
        note += ". They are trained on, never validated or tested on"
    return replace(dataset, train=train, fingerprint=digest.hexdigest(), notes=(*dataset.notes, f"{note}."))


def _largest_group(parts: Sequence[Split]) -> int:
    return max(int(part.groups.max(initial=-1)) for part in parts if part.groups is not None)


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
