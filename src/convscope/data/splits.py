"""Splits: seeded and stratified; pure functions of labels and a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convscope.errors import DataError, UsageError, sentence


def split_indices(
    labels: NDArray[np.int64],
    fraction: float,
    seed: int,
    stratify: bool = True,
    groups: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide examples into two groups at random, each class in the same proportion.

    Parameters
    ----------
    labels : ndarray of shape (n,), int64
        The class of each example.
    fraction : float
        The share of the second group, between 0 and 1.
    seed : int
        The same seed gives the same groups.
    stratify : bool
        Keep the classes' proportions in both groups.
    groups : ndarray of shape (n,), int64, optional
        Examples with the same number stay together; the first of them decides for all, so that the share
        and the proportions are met less exactly the larger such groups are.

    Returns
    -------
    first, second : ndarray of int64
        Indices into ``labels``, shuffled; together they hold each example once.

    Raises
    ------
    UsageError
        If the fraction is not between 0 and 1.
    DataError
        If there are too few examples to divide.

    Examples
    --------
    >>> first, second = split_indices(np.repeat([0, 1], 50), 0.3, seed=1338)
    >>> len(first), len(second), np.bincount(np.repeat([0, 1], 50)[second]).tolist()
    (70, 30, [15, 15])
    """
    if groups is not None:
        return _split_groups(labels, fraction, seed, stratify, groups)
    if not 0 < fraction < 1:
        raise UsageError(sentence("a share between 0 and 1 for the split", fraction))
    # Loading scikit-learn takes a second, which a wrong command should not cost.
    from sklearn.model_selection import train_test_split

    if stratify:
        counts = np.bincount(labels)
        if (counts[counts > 0] < 2).any():
            lone = int(np.flatnonzero(counts == 1)[0])
            expected = "at least 2 examples of each class for a stratified split"
            raise DataError(sentence(expected, f"1 of class {lone}", "Add examples or leave the class out."))
    try:
        first, second = train_test_split(
            np.arange(len(labels)),
            test_size=fraction,
            random_state=seed,
            stratify=labels if stratify else None,
        )
    except ValueError as error:
        message = sentence("enough examples to split", f"{len(labels)} ({error})", "Add examples.")
        raise DataError(message) from error
    return first, second


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
