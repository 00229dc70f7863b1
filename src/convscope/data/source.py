"""Where encoded images come from: a folder, a table of paths, a Parquet file; one shape for all of them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convscope.data.decode import read_bytes
from convscope.data.findings import Finding, count
from convscope.data.names import printable
from convscope.errors import DataError, sentence

PARTS = ("train", "validation", "test")
# What people call the three parts.
PART_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), 0),
    **dict.fromkeys(("validation", "valid", "val", "dev", "publictest"), 1),
    **dict.fromkeys(("test", "testing", "tst", "privatetest"), 2),
    **dict.fromkeys(("holdout", "heldout", "evaluation", "eval"), 2),
}
# Images handed to the decoders at a time.
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


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Encoded images with their labels; they are read in order, some at a time.

    Attributes
    ----------
    name, layout : str
        The folder's or file's name, and how it was understood.
    names : sequence of n str
        Printable, relative to the source.
    labels : ndarray of shape (n,), int64
        The class of each image.
    parts : ndarray of shape (n,), int8
        Which of ``PARTS`` each image belongs to.
    class_names : tuple of str
        By label.
    signature : str
        Stays the same while the files do, or empty where that cannot be told.
    chunks : callable
        Iterates over all images, lists of functions that return one image's bytes each; may be called again.
    are_files : bool
        Whether names are file names, whose endings say something.
    is_table : bool
        Whether the order of the images is that of a table's rows.
    findings : tuple of Finding
        What was noticed before any image was opened.
    notes : tuple of str
        What was assumed.
    """

    name: str
    layout: str
    names: Sequence[str] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    parts: NDArray[np.int8] = field(repr=False)
    class_names: tuple[str, ...]
    signature: str
    chunks: Callable[[], Iterator[list[Reader]]] = field(repr=False)
    are_files: bool = True
    is_table: bool = False
    findings: tuple[Finding, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def file_chunks(root: Path, files: Sequence[str], names: Sequence[str]) -> Iterator[list[Reader]]:
    """Iterate over files, some at a time.

    Parameters
    ----------
    root : Path
        What the files are relative to.
    files : sequence of str
        As the operating system names them.
    names : sequence of str
        As they are shown.

    Yields
    ------
    list of callables
        Each reads one file.
    """
    for start in range(0, len(files), CHUNK):
        stop = min(start + CHUNK, len(files))
        yield [partial(read_bytes, os.path.join(root, files[i]), names[i]) for i in range(start, stop)]  # noqa: PTH118  a Path for each of a million files is slow


def order_classes(names: Sequence[str]) -> tuple[str, ...]:
    """Put class names in order: numbers by value, anything else by its letters.

    Examples
    --------
    >>> order_classes(["10", "9", "1"]), order_classes(["dog", "cat"])
    (('1', '9', '10'), ('cat', 'dog'))
    """
    unique = set(names)
    # isdecimal lets only through what int() understands, which isdigit does not: "²".
    if all(name.isdecimal() for name in unique):
        return tuple(sorted(unique, key=lambda name: (int(name), name)))
    return tuple(sorted(unique))


def read_label(value: object, where: str, is_name: bool = False) -> str:
    """Write a label as the name of its class: whole numbers by their digits, words in one Unicode form.

    A fraction may still be a name (``is_name``), as that of a folder is whatever it says.

    Raises
    ------
    DataError
        If it is a fraction, NaN, infinite or empty: a number that is measured, not a class.

    Examples
    --------
    >>> read_label(3.0, ""), read_label("3.0", ""), read_label(" cafe\u0301 ", "")
    ('3', '3', 'café')
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
    raise DataError(sentence(f"a whole number or a name as the label {where}", found, "Mend or remove it."))


def encode_labels(
    values: Sequence[object], where: Callable[[int], str], are_names: bool = False
) -> tuple[NDArray[np.int64], tuple[str, ...], dict[str, str]]:
    """Turn labels into positions in the names of the classes.

    Names that differ only in blanks around them, in their Unicode form, or, where they are longer than a
    letter, in upper and lower case, mean one class.

    Parameters
    ----------
    values : sequence of str or numbers
        The class of each image.
    where : callable
        Takes a position, and says where it stands, for the message: ``"of cat/1.jpg"``.
    are_names : bool
        Whether a fraction among them is a name, too.

    Returns
    -------
    labels : ndarray of int64
        Positions in ``class_names``.
    class_names : tuple of str
        In order.
    united : dict of str to str
        The names that were taken for another, and for which.

    Raises
    ------
    DataError
        If one of them names no class.

    Examples
    --------
    >>> encode_labels(["dog", "cat", "dog"], str)
    (array([1, 0, 1]), ('cat', 'dog'), {})
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
    class_names = order_classes(list(names.values()))
    position_of = {name: label for label, name in enumerate(class_names)}
    united = {printable(value): name for value, name in names.items() if isinstance(value, str)}
    several = Counter(names.values())
    return (
        np.array([position_of[names[value]] for value in values], np.int64),
        class_names,
        {value: name for value, name in united.items() if several[name] > 1 and value != name},
    )


def united_classes(united: Mapping[str, str]) -> list[Finding]:
    """Report names that were taken for another class's name.

    Examples
    --------
    >>> united_classes({"Cat": "cat"})[0].details
    ("taken for 'cat'",)
    """
    if not united:
        return []
    message = f"{count(len(united), 'class name')} unlike another only in case, blanks or Unicode form."
    details = tuple(f"taken for {name!r}" for name in united.values())
    return [
        Finding(
            "united_class", "warning", message, "Rename what is a class of its own.", tuple(united), details
        )
    ]


def part_of(value: str) -> int | None:
    """Tell which part a word means.

    Examples
    --------
    >>> part_of("Validation"), part_of("cats")
    (1, None)
    """
    return PART_NAMES.get(value.strip().lower())


def words_of(name: str) -> list[str]:
    """Split a name into its words, without the number, and without what means the same in any of them.

    Examples
    --------
    >>> words_of("training_set"), words_of("TestData 20"), words_of("seg_train"), words_of("images")
    (['training'], ['test'], ['seg', 'train'], [])
    """
    found = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    # A word that is nothing else disappears, and trainset is train.
    bare = [_ANY_IMAGES.sub("", word.lower()) for word in found]
    return [word for word in bare if word]


def part_in_name(name: str, entirely: bool = False) -> int | None:
    """Tell which part the name of a folder speaks of.

    Parameters
    ----------
    name : str
        As archives call their folders.
    entirely : bool
        It speaks of nothing else.

    Examples
    --------
    >>> part_in_name("seg_test"), part_in_name("seg_test", entirely=True), part_in_name("training_set", True)
    (2, None, 0)
    """
    words = words_of(name)
    if "".join(words) in PART_NAMES:  # hold-out, PublicTest
        words = ["".join(words)]
    parts = {PART_NAMES[word] for word in words if word in PART_NAMES}
    if len(parts) != 1 or (entirely and not all(word in PART_NAMES for word in words)):
        return None
    return parts.pop()


def settle_parts(parts: Mapping[str, int]) -> dict[str, int]:
    """Take ``eval`` for the validation part where another name is the test part, and none is validation.

    Examples
    --------
    >>> settle_parts({"train": 0, "eval": 2, "test": 2}), settle_parts({"train": 0, "eval": 2})
    ({'train': 0, 'eval': 1, 'test': 2}, {'train': 0, 'eval': 2})
    """
    tests = [name for name, part in parts.items() if part == 2]
    evaluations = {name for name in tests if not {"eval", "evaluation"}.isdisjoint(words_of(name))}
    if 1 in parts.values() or len(evaluations) == len(tests):
        return dict(parts)
    return {name: 1 if name in evaluations else part for name, part in parts.items()}


def parts_of_table(parts: NDArray[np.int8]) -> NDArray[np.int8]:
    """Take a table's only part for the training part: it is all there is, even if it is called ``test.csv``.

    Examples
    --------
    >>> parts_of_table(np.array([2, 2])).tolist(), parts_of_table(np.array([0, 2])).tolist()
    ([0, 0], [0, 2])
    """
    return np.zeros_like(parts) if len(np.unique(parts)) == 1 else parts


def require_classes(class_names: Sequence[str], where: object) -> None:
    """Refuse data in which there is nothing to tell apart.

    Parameters
    ----------
    class_names : sequence of str
        Those that have images.
    where : object
        Path, for the message.

    Raises
    ------
    DataError
        If there are fewer than two classes.
    """
    if len(class_names) < 2:
        found = f"only {class_names[0]!r}" if class_names else "none"
        hint = "Give each class a folder of its own."
        raise DataError(sentence(f"at least 2 classes with images in {where}", found, hint))
