"""What names of files, folders and classes say, whatever the source is."""

import os

import numpy as np
import pytest

from convscope.cli.inspecting import _find
from convscope.data.loading import load
from convscope.data.sources.base import (
    count,
    encode_labels,
    last_split_in,
    order_classes,
    read_label,
    settle_splits,
    split_in_name,
    words_of,
)
from convscope.errors import DataError, RunError


@pytest.mark.parametrize(
    ("name", "words", "split", "entirely"),
    [
        ("training_set", ["training"], 0, 0),
        ("TestData 20", ["test"], 2, 2),
        ("seg_test", ["seg", "test"], 2, None),
        ("images", [], None, None),
    ],
)
def test_the_split_is_read_off_a_name(name, words, split, entirely):
    assert words_of(name) == words
    assert (split_in_name(name), split_in_name(name, entirely=True)) == (split, entirely)


def test_of_a_files_name_the_last_word_that_says_a_split_counts():
    assert (last_split_in("my_train-00001-of-00002"), last_split_in("cats")) == (0, None)


def test_eval_is_the_validation_split_beside_a_test_split():
    assert settle_splits({"train": 0, "eval": 2, "test": 2}) == {"train": 0, "eval": 1, "test": 2}
    assert settle_splits({"train": 0, "eval": 2}) == {"train": 0, "eval": 2}


def test_labels_become_classes_numbers_by_value():
    assert [read_label(value, "") for value in (3.0, "3.0", " cafe\u0301 ")] == ["3", "3", "café"]
    assert order_classes(["10", "9", "1"]) == ("1", "9", "10")
    labels, names, united = encode_labels(["dog", "cat", "Dog"], str)
    assert (labels.tolist(), names, united) == ([0, 1, 0], ("Dog", "cat"), {"dog": "Dog"})
    with pytest.raises(DataError, match="a whole number or a name"):
        read_label(np.float64(0.5), "here")


def test_numbers_are_written_with_their_nouns():
    assert [count(1, "file"), count(2500, "class"), count(0, "entry")] == [
        "1 file",
        "2,500 classes",
        "0 entries",
    ]


def test_a_slash_makes_a_path_where_a_backslash_separates_folders_too(monkeypatch):
    monkeypatch.setattr(os, "sep", "\\")  # as on Windows
    with pytest.raises(DataError, match="got nothing at nowhere"):
        load("./nowhere")
    with pytest.raises(RunError, match=r"a run directory .*, got \./nowhere"):
        _find("./nowhere")
