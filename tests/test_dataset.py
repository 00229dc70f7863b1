"""Split and Dataset: what fits together, what makes two the same; a split loses and doubles nothing."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from convscope.data.dataset import (
    Names,
    Split,
    balanced_class_weights,
    fingerprint,
    fold_indices,
    printable,
    split_indices,
)
from convscope.data.loading import load
from convscope.errors import DataError, UsageError

ROWS = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        pytest.param(np.zeros((2, 4, 4, 1)), [0, 1], ["a", "b"], "as uint8 .* got float64", id="float"),
        pytest.param(np.zeros((2, 4, 4), np.uint8), [0, 1], ["a", "b"], r"got uint8 of shape", id="rank"),
        pytest.param(np.zeros((2, 4, 4, 1), np.uint8), [0], ["a", "b"], "as many labels", id="labels"),
        pytest.param(np.zeros((2, 4, 4, 1), np.uint8), [0, 1], ["a"], "as many labels", id="names"),
    ],
)
def test_a_split_whose_parts_do_not_fit_is_refused(images, labels, names, message):
    with pytest.raises(DataError, match=message):
        Split(images, np.array(labels), names)


def test_the_fingerprint_follows_every_part():
    split = Split(np.zeros((2, 2, 2, 1), np.uint8), np.array([0, 1]), ["a", "b"])
    other_pixel = Split(np.eye(4, dtype=np.uint8)[:2].reshape(2, 2, 2, 1), split.labels, split.names)
    other_label = Split(split.images, np.array([1, 0]), split.names)
    prints = {
        fingerprint(split, class_names=["x", "y"]),
        fingerprint(other_pixel, class_names=["x", "y"]),
        fingerprint(other_label, class_names=["x", "y"]),
        fingerprint(split, class_names=["x", "z"]),
    }
    assert len(prints) == 4


def test_data_are_equal_by_their_content_and_can_be_put_into_a_set():
    first, again = (load("digits") for _ in range(2))
    assert first == again and first.test == again.test and len({first, again, first.train}) == 2
    images = first.test.images.copy()
    images[0, 0, 0] += 1
    assert first.test != replace(first.test, images=images)
    assert first.test != replace(first.test, groups=np.arange(len(first.test)))
    assert first != replace(first, test=first.train) and first.test != first.train


def test_groups_follow_their_images():
    split = Split(ROWS, np.arange(50) % 2, Names(map(str, range(50))), np.arange(50) // 2)
    taken = split.take(np.array([7, 3]))
    assert taken.groups.tolist() == [3, 1]
    assert list(taken.names) == ["7", "3"]


@given(st.lists(st.text("aß/.\udce9\n", max_size=5), max_size=8), st.data())
def test_names_are_a_sequence_of_strings(names, data):
    kept = Names(names)
    assert list(kept) == names
    assert (kept, len(kept), [kept[number] for number in range(len(kept))]) == (names, len(names), names)
    if names:
        indices = np.array(data.draw(st.lists(st.integers(0, len(names) - 1), max_size=9)), np.int64)
        assert list(kept.take(indices)) == [names[number] for number in indices]
    assert kept[1:3] == names[1:3]


def test_names_beyond_the_end_are_refused():
    with pytest.raises(IndexError):
        Names(["a"])[1]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Füße/猫.jpg", "Füße/猫.jpg"),
        ("a\udcff\udc80.jpg", r"a\xff\x80.jpg"),
        ("a\x1b[31m\n.jpg", r"a\x1b[31m\n.jpg"),
        ("a\u202egpj.exe", r"a\u202egpj.exe"),
    ],
    ids=["text", "bytes", "control", "direction"],
)
def test_names_are_shown_without_harm(name, shown):
    assert printable(name) == shown
    assert shown.encode()


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
