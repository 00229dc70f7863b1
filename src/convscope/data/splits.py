"""Splits, seeded and stratified, and put together again; class weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.cache import map_pixels
from convscope.data.dataset import Names, Split
from convscope.errors import DataError, UsageError, expected_got


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
    # Loading scikit-learn takes a second, which a wrong command should not cost.
    from sklearn.model_selection import train_test_split

    if stratify:
        counts = np.bincount(labels)
        if (counts[counts > 0] < 2).any():
            lone = int(np.flatnonzero(counts == 1)[0])
            expected = "at least 2 examples of each class for a stratified split"
            raise DataError(
                expected_got(expected, f"1 of class {lone}", "Add examples or leave the class out.")
            )
    try:
        first, second = train_test_split(
            np.arange(len(labels)),
            test_size=fraction,
            random_state=seed,
            stratify=labels if stratify else None,
        )
    except ValueError as error:
        message = expected_got("enough examples to split", f"{len(labels)} ({error})", "Add examples.")
        raise DataError(message) from error
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
    images: Any = _Rows([part.images for part in parts])
    groups = [part.groups for part in parts if part.groups is not None]
    only = [
        np.zeros(len(part), np.bool_) if part.training_only is None else part.training_only for part in parts
    ]
    return Split(
        map_pixels(images, lambda image: image, parts[0].images.shape[1:]),
        np.concatenate([part.labels for part in parts]),
        Names(name for part in parts for name in part.names),
        np.concatenate(groups) if len(groups) == len(parts) else None,
        np.concatenate(only) if any(part.training_only is not None for part in parts) else None,
    )


class _Rows:
    """The rows of several arrays, one's behind the other's, without a copy of any."""

    def __init__(self, arrays: Sequence[NDArray[np.uint8]]) -> None:
        self._arrays = arrays

    def __len__(self) -> int:
        return sum(map(len, self._arrays))

    def __getitem__(self, rows: slice) -> list[NDArray[np.uint8]]:
        start, stop, _ = rows.indices(len(self))
        found: list[NDArray[np.uint8]] = []
        for array in self._arrays:
            found.extend(array[max(start, 0) : max(stop, 0)])
            start, stop = start - len(array), stop - len(array)
        return found


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
