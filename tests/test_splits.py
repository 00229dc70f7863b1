"""Splits, seeded and stratified, nothing lost and nothing twice; class weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from convscope.data.splits import balanced_class_weights, fold_indices, split_indices
from convscope.errors import DataError, UsageError


@given(
    counts=st.lists(st.integers(4, 40), min_size=2, max_size=6),
    fraction=st.floats(0.3, 0.7),
    seed=st.integers(0, 2**31),
)
def test_every_example_is_in_one_part_and_classes_keep_their_share(counts, fraction, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    first, second = split_indices(labels, fraction, seed)
    assert sorted([*first, *second]) == list(range(len(labels)))
    found = np.bincount(labels[second], minlength=len(counts))
    # Rounding up the whole part moves a class by less than one example, rounding the class by one more.
    assert np.abs(found - np.array(counts) * fraction).max() < 2


def test_the_exercises_split_has_its_sizes_and_follows_the_seed():
    labels = np.arange(60_000) % 10
    train, validation = split_indices(labels, 0.3, seed=1338)
    assert (len(train), len(validation)) == (42_000, 18_000)
    again, _ = split_indices(labels, 0.3, seed=1338)
    other, _ = split_indices(labels, 0.3, seed=1339)
    np.testing.assert_array_equal(train, again)
    assert not np.array_equal(train, other)


def test_the_second_part_is_not_the_last_rows():
    _, second = split_indices(np.arange(100) % 2, 0.3, seed=0)
    assert set(second) != set(range(70, 100))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_an_impossible_fraction_is_refused(fraction):
    with pytest.raises(UsageError, match="a fraction between 0 and 1 for the split, got"):
        split_indices(np.array([0, 1]), fraction, 0)


def test_a_lone_example_of_a_class_is_named():
    with pytest.raises(DataError, match=r"at least 2 examples of each class .* got 1 of class 2"):
        split_indices(np.array([0, 0, 1, 1, 2]), 0.5, 0)


def test_too_few_examples_are_refused():
    with pytest.raises(DataError, match="enough examples to split, got 4"):
        split_indices(np.array([0, 0, 1, 1]), 0.1, 0)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=50))
def test_balanced_weights_are_scikit_learns_and_average_one(values):
    labels = np.array(values)
    weights = balanced_class_weights(labels, 7)
    present = np.unique(labels)
    theirs = compute_class_weight("balanced", classes=present, y=labels)
    assert [weights[label] for label in present.tolist()] == pytest.approx(theirs.tolist())
    assert np.mean([weights[label] for label in values]) == pytest.approx(1)
    assert weights[6] == 1
    assert len(weights) == 7


def test_without_images_there_is_nothing_to_weigh():
    with pytest.raises(DataError, match="training images to weigh classes by, got none"):
        balanced_class_weights(np.array([], np.int64), 2)


def test_groups_stay_together_and_a_class_of_one_group_is_divided():
    labels = np.repeat([0, 1], [20, 8])
    groups = np.concatenate([np.arange(20) // 2, np.full(8, 10)])
    first, second = split_indices(labels, 0.3, 0, groups=groups)
    assert sorted([*first, *second]) == list(range(28))
    of_class_0 = [set(groups[part[labels[part] == 0]]) for part in (first, second)]
    assert not of_class_0[0] & of_class_0[1]
    assert all(1 in labels[part] for part in (first, second))
    folds = fold_indices(labels, 4, 0, groups)
    assert all(1 in labels[fold] for fold in folds)
