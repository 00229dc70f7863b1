"""Split and Dataset: what fits together, what makes two of them the same; names in little memory."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convscope.data.dataset import Names, Split, fingerprint, printable
from convscope.data.loading import load
from convscope.errors import DataError

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
