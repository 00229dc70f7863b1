"""What every source of images is, and what they share: splits, labels, findings, the signature of files.

A source is found by looking at names and labels; no image has been read. ``Source.chunks`` then gives the
images, either as functions that return the bytes of one image file each, or as ``Pixels``; ``ingest`` decodes
and keeps them. To add one, see "To add an image source" in ``docs/architecture.md``.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.dataset import Names, printable
from convscope.data.decode import read_bytes
from convscope.errors import DataError, expected_got
from convscope.parts import part_size

SPLITS = ("train", "validation", "test")
# What people call the three splits.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), 0),
    **dict.fromkeys(("validation", "valid", "val", "dev", "publictest"), 1),
    **dict.fromkeys(("test", "testing", "tst", "privatetest"), 2),
    **dict.fromkeys(("holdout", "heldout", "evaluation", "eval"), 2),
}
# For each kind of file that is no usable image, as ``ImageError`` calls it: what was found, and what to do.
PROBLEMS = {
    "missing": ("missing", "Restore it, or take it off the table."),
    "unreadable": ("unreadable", "Change its permissions, or copy it again."),
    "empty": ("empty, zero bytes", "Copy or download it again."),
    "not_an_image": ("no image, whatever it is called", "Remove it, or get the image that it should be."),
    "unsupported": ("an image of a kind that is not read", "Save it as JPEG or PNG, 8 bits."),
    "truncated": ("cut short", "Copy or download it again."),
    "damaged": ("damaged", "Copy or download it again."),
    "too_large": ("too large", "Make it smaller."),
}
# What else keeps a file from being used.
_OUT_OF_PLACE = ("symlink_loop", "repeated_link", "no_class", "no_part", "astray", "link", "not_in_table")
# Images handed to the decoders at a time, at most.
CHUNK = 512
# A file changed so lately may change again without its time telling.
SETTLED_SECONDS = 2.0
# Beyond it a float64 no longer tells a whole number from the next.
LARGEST_LABEL = 2**53
# What folders of images are called whatever is on them.
_ANY_IMAGES = re.compile(r"((data|image|img|photo|picture|folder|sub)s?)?(sets?)?$")
_WHOLE_NUMBER = re.compile(r"([+-]?\d+)(?:\.0+|,00?)")
# Half of the world writes 0,5.
_FRACTION = re.compile(r"[+-]?\d*[.,]\d+(e[+-]?\d+)?", re.IGNORECASE)

Reader = Callable[[], bytes]


@dataclass(frozen=True)
class Finding:
    """One kind of thing that a look at somebody's data brought to light."""

    kind: str  # a short name that does not change, such as "truncated"
    severity: str  # "error": left out, or spoils the result; "warning": used, but look at it; or "info"
    message: str
    advice: str = ""  # none where nothing need be done
    names: tuple[str, ...] = ()  # of every file that it is about
    details: tuple[str, ...] = ()  # what there is to say about each, or nothing

    @property
    def is_unused(self) -> bool:
        """Whether the files that it is about are left out."""
        return self.kind in PROBLEMS or self.kind in _OUT_OF_PLACE


@dataclass(frozen=True, eq=False)
class Index:
    """Names, relative to the source and printable, labels and splits of images, a row for each."""

    names: Sequence[str] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)  # (n,), positions in the class names
    splits: NDArray[np.int8] = field(repr=False)  # (n,), positions in SPLITS
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Pixels:
    """Some images of one split that come as numbers: (k, h, w, c), with whole numbers or names as labels."""

    split: int
    images: NDArray[np.uint8]
    labels: NDArray[Any]
    note: str  # what was assumed about the numbers
    depth: int = 8  # how many bits the numbers took


Chunk = list[Reader] | Pixels


@dataclass(frozen=True, eq=False)
class Source:
    """Images with their labels, as a folder, a file or several files bring them."""

    name: str
    layout: str  # how it was understood
    chunks: Callable[[], Iterator[Chunk]] = field(repr=False)  # over all images; may be called again
    signature: str = ""  # stays the same while the files do; empty where that cannot be told
    index: Index | None = None  # of image files; that of pixels comes with them
    files: tuple[Path, ...] = ()  # what pixels are read from
    class_names: tuple[str, ...] | None = None  # of pixels whose labels are positions in it
    are_files: bool = True  # whether the index's names are those of files, whose endings say something
    is_table: bool = False  # whether the order of the images is that of a table's rows
    findings: tuple[Finding, ...] = field(default=(), repr=False)  # from before any image was opened


def index_of(source: Source) -> Index:
    """Return the index of a source of image files."""
    if source.index is None:
        raise TypeError(f"{source.name} has pixels, not files")
    return source.index


class Signature:
    """A SHA-256 over names, sizes and times of files: while it stays the same, they have not changed."""

    def __init__(self, root: Path) -> None:
        self._digest = hashlib.sha256(os.fsencode(root.resolve()))
        self._newest = 0.0

    def add(self, name: str, status: os.stat_result | None = None, note: str = "") -> None:
        """Take in a file, or something that is none, and why."""
        self._digest.update(os.fsencode(name) + note.encode())
        if status is not None:
            self._newest = max(self._newest, status.st_ctime, status.st_mtime)
            times = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            self._digest.update(repr(times).encode())

    def __str__(self) -> str:
        """Give it in hexadecimal; empty where a file has just been changed, and may be again unnoticed."""
        return self._digest.hexdigest() if time.time() - self._newest > SETTLED_SECONDS else ""


def sign(root: Path, files: Iterable[str | Path]) -> str:
    """Give the signature of files, relative to a folder or not."""
    signature = Signature(root)
    for file in files:
        try:
            # A Path for each of a million files is slow.
            signature.add(str(file), os.stat(os.path.join(root, file)))  # noqa: PTH116, PTH118
        except (OSError, ValueError):
            signature.add(str(file), note="missing")
    return str(signature)


def file_chunks(root: Path, files: Sequence[str], names: Sequence[str]) -> Iterator[list[Reader]]:
    """Iterate over files as the operating system names them, some at a time; ``names`` are for messages."""
    step = part_size(len(files), CHUNK)
    for start in range(0, len(files), step):
        stop = min(start + step, len(files))
        yield [partial(read_bytes, os.path.join(root, files[i]), names[i]) for i in range(start, stop)]  # noqa: PTH118  as in sign


def make_index(
    names: Iterable[str],
    values: Sequence[object],
    splits: Sequence[int] | NDArray[np.int8],
    where: Callable[[int], str],
    *,
    are_names: bool = False,
) -> tuple[Index, list[Finding]]:
    """Make the index of images from what their labels are called; ``where`` and ``are_names`` as below."""
    labels, class_names, united = encode_labels(values, where, are_names)
    shown = Names(printable(name) for name in names)
    return Index(shown, labels, np.array(splits, np.int8), class_names), united_classes(united)


def order_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Put class names in order: numbers by value, anything else by its letters."""
    unique = set(names)
    # isdecimal lets only through what int() understands, which isdigit does not: "²".
    if all(name.isdecimal() for name in unique):
        return tuple(sorted(unique, key=lambda name: (int(name), name)))
    return tuple(sorted(unique))


def read_label(value: object, where: str, is_name: bool = False) -> str:
    """Write a label as the name of its class: whole numbers by their digits, words in one Unicode form.

    A fraction, NaN or nothing is a number that is measured, not a class; but a name (``is_name``), as that of
    a folder, may look like a fraction.
    """
    if isinstance(value, str):
        name = printable(unicodedata.normalize("NFC", value).strip())
        if name and name not in {"nan", "NaN"}:  # as NumPy and pandas write what is missing
            whole = _WHOLE_NUMBER.fullmatch(name)
            if whole or is_name or not _FRACTION.fullmatch(name):
                return whole[1] if whole else name
    elif isinstance(value, int) or (
        isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST_LABEL
    ):
        return str(value if isinstance(value, int) else int(value))
    found = repr(value) if isinstance(value, str) else value
    raise DataError(
        expected_got(f"a whole number or a name as the label {where}", found, "Mend or remove it.")
    )


def encode_labels(
    values: Sequence[object], where: Callable[[int], str], are_names: bool = False
) -> tuple[NDArray[np.int64], tuple[str, ...], dict[str, str]]:
    """Turn labels into positions in the names of the classes; say which names were taken for another.

    Names that differ only in blanks around them, in their Unicode form, or, where they are longer than a
    letter, in upper and lower case, mean one class. ``where`` takes a position and says where it stands, for
    messages.
    """
    read: dict[object, str] = {}
    for position, value in enumerate(values):
        if value not in read:
            read[value] = read_label(value, where(position), are_names)
    # Letters are told apart by their case alone; words are not.
    same: dict[str, str] = {}
    for name in sorted(set(read.values())):
        same.setdefault(name.lower() if len(name) > 1 else name, name)
    names = {value: same[name.lower() if len(name) > 1 else name] for value, name in read.items()}
    class_names = order_classes(names.values())
    position_of = {name: label for label, name in enumerate(class_names)}
    united = {printable(value): name for value, name in names.items() if isinstance(value, str)}
    several = Counter(names.values())
    return (
        np.array([position_of[names[value]] for value in values], np.int64),
        class_names,
        {value: name for value, name in united.items() if several[name] > 1 and value != name},
    )


def find(
    kind: str,
    severity: str,
    names: Collection[str],
    noun: str,
    words: str,
    advice: str = "",
    details: Iterable[str] = (),
) -> list[Finding]:
    """Report things by their number, a noun and what is said of them; nothing where there are none."""
    message = f"{count(len(names), noun)} {words}"
    return [Finding(kind, severity, message, advice, tuple(names), tuple(details))] if names else []


def united_classes(united: Mapping[str, str]) -> list[Finding]:
    """Report names that were taken for another class's name."""
    words = "unlike another only in case, blanks or Unicode form."
    advice = "Rename what is a class of its own."
    details = (f"taken for {name!r}" for name in united.values())
    return find("united_class", "warning", united, "class name", words, advice, details)


def require_classes(class_names: Sequence[str], where: object) -> None:
    """Refuse data in which there is nothing to tell apart."""
    if len(class_names) < 2:
        found = f"only {class_names[0]!r}" if class_names else "none"
        hint = "Give each class a folder of its own."
        raise DataError(expected_got(f"at least 2 classes with images in {where}", found, hint))


def words_of(name: str) -> list[str]:
    """Split a name into its words, without the number, and without what means the same in any of them."""
    found = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    # A word that is nothing else disappears, and trainset is train.
    bare = [_ANY_IMAGES.sub("", word.lower()) for word in found]
    return [word for word in bare if word]


def split_in_name(name: str, entirely: bool = False) -> int | None:
    """Tell which split a name speaks of; with ``entirely``, only if it speaks of nothing else."""
    words = words_of(name)
    if "".join(words) in SPLIT_NAMES:  # hold-out, PublicTest
        words = ["".join(words)]
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    if len(splits) != 1 or (entirely and not all(word in SPLIT_NAMES for word in words)):
        return None
    return splits.pop()


def last_split_in(text: str) -> int | None:
    """Tell which split the last word of a file's name that says one means."""
    words = re.split(r"[^a-z0-9]+", text.lower())
    return next((SPLIT_NAMES[word] for word in reversed(words) if word in SPLIT_NAMES), None)


def settle_splits(splits: Mapping[str, int]) -> dict[str, int]:
    """Take ``eval`` for the validation split where another name is the test split, and none is validation."""
    tests = [name for name, split in splits.items() if split == 2]
    evaluations = {name for name in tests if not {"eval", "evaluation"}.isdisjoint(words_of(name))}
    if 1 in splits.values() or len(evaluations) == len(tests):
        return dict(splits)
    return {name: 1 if name in evaluations else split for name, split in splits.items()}


def splits_of_table(splits: NDArray[np.int8]) -> NDArray[np.int8]:
    """Take a table's only split for the training split: it is all there is, even if called ``test.csv``."""
    return np.zeros_like(splits) if len(np.unique(splits)) == 1 else splits


def present(splits: Iterable[int]) -> str:
    """Name the splits that are there."""
    return ", ".join(SPLITS[split] for split in sorted(set(splits)))


def without_labels(names: Sequence[str], noun: str, advice: str) -> list[Finding]:
    """Report tables or files of images that are not used because nothing can be learned from them."""
    return find("no_labels", "warning", names, noun, "without labels: not used.", advice)


def count(number: int, noun: str) -> str:
    """Write a number with its noun."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}{'es' if noun.endswith('s') else 's'}"
