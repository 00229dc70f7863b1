"""Images with labels and names, their fingerprint; split, seeded and stratified, and put together again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from numpy.typing import NDArray

from convscope.data.cache import join_pixels
from convscope.environment import beside
from convscope.errors import DataError, UsageError, expected_got

FINGERPRINT_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Split:
    """Images, their labels, and a name for each.

    Parameters
    ----------
    images : ndarray of shape (n, h, w, c), uint8
        Pixels, 0 to 255.
    labels : ndarray of shape (n,), int64
        The class of each image, from 0.
    names : sequence of n str
        Where each image comes from: a path, or ``mnist/test/00042``.
    groups : ndarray of shape (n,), int64, optional
        Images with the same number show nearly the same; a split keeps them on one side.
    training_only : ndarray of shape (n,), bool, optional
        Images that are trained on whenever a part is held back at random, as corrections are.

    Raises
    ------
    DataError
        If shapes, types or lengths do not fit together.

    Examples
    --------
    >>> split = Split(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1]), ["a.png", "b.png"])
    >>> len(split)
    2
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: Sequence[str] = field(repr=False)
    groups: NDArray[np.int64] | None = field(default=None, repr=False)
    training_only: NDArray[np.bool_] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            found = f"{self.images.dtype} of shape {self.images.shape}"
            raise DataError(expected_got("images as uint8 of shape (n, height, width, channels)", found))
        lengths = (len(self.images), len(self.labels), len(self.names))
        if len(set(lengths)) != 1:
            raise DataError(
                expected_got("as many labels and names as images", "{}, {} and {}".format(*lengths[::-1]))
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Split)
            and list(self.names) == list(other.names)
            and all(
                np.array_equal(getattr(self, name), getattr(other, name))
                for name in ("labels", "groups", "training_only", "images")
            )
        )

    def __hash__(self) -> int:
        return hash((self.images.shape, self.labels.tobytes()))

    def take(self, indices: NDArray[np.int64]) -> Split:
        """Return the examples at the given positions, in that order.

        Examples
        --------
        >>> split = Split(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1]), ["a.png", "b.png"])
        >>> split.take(np.array([1])).names
        ['b.png']
        """
        groups = None if self.groups is None else self.groups[indices]
        only = None if self.training_only is None else self.training_only[indices]
        return Split(
            self.images[indices], self.labels[indices], take_names(self.names, indices), groups, only
        )


@dataclass(frozen=True)
class Dataset:
    """Training and test images of one source.

    Parameters
    ----------
    name : str
        As in the catalogue, or the folder's name.
    train, test : Split
        The two parts.
    class_names : tuple of str
        The name of each class, by label.
    fingerprint : str
        SHA-256 over what was read, in hexadecimal.
    validation : Split, optional
        A third part, where the source brings one.
    resize : {"letterbox", "crop", "stretch"}, optional
        How images of another size were brought to this one; ``Preprocess`` must do the same. None where
        none had another size.
    notes : tuple of str
        What a person should know about how the data were read, a sentence each.
    left_out : tuple of (str, str)
        Each file that could not be used, and why.
    depth : int
        How many bits images of more than 8 have in use; ``Preprocess`` must read others likewise.
    test_held_back : bool
        Whether the source had no test part, so that images of it were held back as one at random.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    fingerprint: str
    validation: Split | None = None
    resize: str | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    depth: int = 16
    test_held_back: bool = False

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        _, height, width, channels = self.train.images.shape
        return height, width, channels


def fingerprint(*parts: Split, class_names: Sequence[str]) -> str:
    """Condense images, labels and class names into one SHA-256, in hexadecimal."""
    digest = hashlib.sha256("\0".join(class_names).encode())
    for part in parts:
        digest.update(repr(part.images.shape).encode())
        for start in range(0, len(part), FINGERPRINT_CHUNK):  # the images may be larger than the memory
            chunk = part.images[start : start + FINGERPRINT_CHUNK]
            digest.update(np.ascontiguousarray(chunk).data)
        digest.update(np.ascontiguousarray(part.labels, dtype="<i8").data)
    return digest.hexdigest()


class Names(Sequence[str]):
    """Strings kept as one block of bytes: a million paths take 40 MB instead of 100."""

    def __init__(self, names: Iterable[str]) -> None:
        block = bytearray()
        stops = []
        for name in names:
            block += name.encode("utf-8", "surrogateescape")
            stops.append(len(block))
        self._block = bytes(block)
        self._stops = np.array(stops, np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), self._stops])[: len(self._stops)]

    def take(self, indices: NDArray[np.int64]) -> Names:
        """Choose names by position; the block of bytes is shared."""
        chosen = object.__new__(Names)
        chosen._block = self._block
        chosen._starts, chosen._stops = self._starts[indices], self._stops[indices]
        return chosen

    def __len__(self) -> int:
        return len(self._stops)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: int | slice) -> str | Names:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self._block[self._starts[index] : self._stops[index]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for start, stop in zip(self._starts, self._stops, strict=True):
            yield self._block[start:stop].decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # equal to lists, which have no hash either

    def __repr__(self) -> str:
        return f"Names({len(self)} names)"


def take_names(names: Sequence[str], indices: NDArray[np.int64]) -> Sequence[str]:
    """Choose names by position, in little memory where that is possible."""
    return names.take(indices) if isinstance(names, Names) else [names[i] for i in indices]


def printable(name: str) -> str:
    r"""Show a file name that may hold anything: what cannot be printed becomes an escape."""
    if name.isprintable():
        return name
    return "".join(character if character.isprintable() else _escaped(character) for character in name)


def _escaped(character: str) -> str:
    """Write one character as an escape; a lone surrogate as the byte that it stands for."""
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def split_indices(
    labels: NDArray[np.int64],
    fraction: float,
    seed: int,
    stratify: bool = True,
    groups: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide examples into two groups at random, each class in the same proportion.

    The second group holds a fraction of the examples, between 0 and 1; both are shuffled indices into
    ``labels``, the same for the same seed. Examples with the same number in ``groups`` stay together; the
    first of them decides for all, so that fraction and proportions are met less exactly the larger such
    groups are.
    """
    if groups is not None:
        return _split_groups(labels, fraction, seed, stratify, groups)
    if not 0 < fraction < 1:
        raise UsageError(expected_got("a fraction between 0 and 1 for the split", fraction))
    if stratify:
        counts = np.bincount(labels)
        if (counts[counts > 0] < 2).any():
            lone = int(np.flatnonzero(counts == 1)[0])
            expected = "at least 2 examples of each class for a stratified split"
            raise DataError(
                expected_got(expected, f"1 of class {lone}", "Add examples or leave the class out.")
            )
    try:
        classes = labels if stratify else None
        return beside(_shuffle_and_split, len(labels), fraction, seed, classes, size=labels.nbytes)()
    except ValueError as error:
        message = expected_got("enough examples to split", f"{len(labels)} ({error})", "Add examples.")
        raise DataError(message) from error


def _shuffle_and_split(
    count: int, fraction: float, seed: int, classes: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # Loading scikit-learn takes a second, which a wrong command should not cost.
    from sklearn.model_selection import train_test_split

    first, second = train_test_split(
        np.arange(count), test_size=fraction, random_state=seed, stratify=classes
    )
    return first, second


def hold_back(
    train: Split, fraction: float, seed: int, stratify: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide training images into those trained on and a fraction held back, at random as ``split_indices``.

    Whatever is for training only, and all that shares a group with it, is trained on.
    """
    labels, groups = train.labels, train.groups
    if train.training_only is None or not train.training_only.any():
        return split_indices(labels, fraction, seed, stratify, groups)
    fixed = train.training_only
    if groups is not None:
        fixed = np.isin(groups, groups[fixed])
    if stratify:  # of a class with one image left, none can be held back
        fixed = fixed | (np.bincount(labels[~fixed], minlength=int(labels.max()) + 1) == 1)[labels]
    free = np.flatnonzero(~fixed)
    if not len(free):
        hint = "Add images, or train with --validation-share 0."
        raise DataError(expected_got("images that can be held back", "corrections alone", hint))
    members = None if groups is None else groups[free]
    first, second = split_indices(labels[free], fraction, seed, stratify, members)
    kept = np.concatenate([free[first], np.flatnonzero(fixed)])
    return np.random.default_rng(seed).permutation(kept), free[second]


def fold_indices(
    labels: NDArray[np.int64], folds: int, seed: int, groups: NDArray[np.int64] | None = None
) -> list[NDArray[np.int64]]:
    """Divide examples into folds at random: each example is in one, and each class in the same proportion.

    Each fold is an array of increasing indices into ``labels``. Examples with the same number in ``groups``
    stay together, as in ``split_indices``.
    """
    if folds < 2:
        raise UsageError(expected_got("at least 2 folds", folds))
    members = np.arange(len(labels)) if groups is None else _dividable(groups, labels)
    least = min(len(np.unique(members[labels == label])) for label in np.unique(labels))
    if least < folds:
        expected = f"at least {folds} different images of each class for {folds} folds"
        raise DataError(expected_got(expected, f"{least} of one class", "Take fewer folds, or add images."))
    from sklearn.model_selection import StratifiedGroupKFold

    cutter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return [fold.astype(np.int64) for _, fold in cutter.split(np.zeros(len(labels)), labels, members)]


def _split_groups(
    labels: NDArray[np.int64], fraction: float, seed: int, stratify: bool, groups: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide the first example of each group; the others follow it."""
    _, leaders, member_of = np.unique(_dividable(groups, labels), return_index=True, return_inverse=True)
    if len(leaders) == len(labels):
        return split_indices(labels, fraction, seed, stratify)
    _, chosen = split_indices(labels[leaders], fraction, seed, stratify)
    side = np.isin(member_of, chosen)
    order = np.random.default_rng(seed).permutation(len(labels))
    return order[~side[order]], order[side[order]]


def _dividable(groups: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Dissolve the groups of a class that has only one: it could not be on both sides otherwise."""
    _, leaders, member_of = np.unique(groups, return_index=True, return_inverse=True)
    alone = np.bincount(labels[leaders], minlength=int(labels.max(initial=0)) + 1) == 1
    dissolved = alone[labels[leaders]][member_of]
    return np.where(dissolved, groups.max(initial=0) + 1 + np.arange(len(groups)), groups)


def join(parts: Sequence[Split]) -> Split:
    """Put splits together, and the numbers of their groups where all have some; many images on the disk."""
    parts = [part for part in parts if len(part)]
    if len(parts) == 1:
        return parts[0]
    groups = [part.groups for part in parts if part.groups is not None]
    only = [
        np.zeros(len(part), np.bool_) if part.training_only is None else part.training_only for part in parts
    ]
    return Split(
        join_pixels([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        Names(name for part in parts for name in part.names),
        np.concatenate(groups) if len(groups) == len(parts) else None,
        np.concatenate(only) if any(part.training_only is not None for part in parts) else None,
    )


def balanced_class_weights(labels: NDArray[np.int64], classes: int) -> dict[int, float]:
    """Weigh each class so that all of them matter alike, however many images they have.

    The weight is n / (classes present · images of the class), scikit-learn's ``balanced`` (King and Zeng,
    "Logistic Regression in Rare Events Data", 2001); a class without images gets 1.
    """
    from sklearn.utils.class_weight import compute_class_weight

    if not len(labels):
        raise DataError(expected_got("training images to weigh classes by", "none"))
    present = np.unique(labels)
    weights = compute_class_weight("balanced", classes=present, y=labels)
    return dict.fromkeys(range(classes), 1.0) | dict(zip(present.tolist(), weights.tolist(), strict=True))
