"""Batches as tensors: class weights, resizing, mapped files."""

import mmap

import numpy as np
import pytest
import torch
from keras.src.trainers.data_adapters.data_adapter_utils import class_weight_to_sample_weights

from convscope.errors import UsageError
from convscope.training import feeds
from convscope.training.batches import BatchPlan
from convscope.training.feeds import ArrayFeed, as_tensor, class_weights_to_sample_weights
from convscope.training.inputs import ArrayInput, read_input

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "y",
    [np.array([0, 3, 1, 1, 9]), np.array([[0.0], [3.0], [1.0], [1.0], [9.0]]), np.eye(10)[[0, 3, 1, 1, 9]]],
    ids=["numbers", "column", "one-hot"],
)
def test_class_weights_equal_keras(y):
    weights = {0: 2.0, 1: 0.25, 9: 7.0}
    expected = class_weight_to_sample_weights(y, weights)
    assert class_weights_to_sample_weights(y, None, weights).tolist() == expected.tolist()


def test_class_weights_need_one_array_of_targets():
    with pytest.raises(UsageError, match=r"^Expected one array of targets beside class_weight, got dict.$"):
        class_weights_to_sample_weights({"a": np.zeros(3)}, None, {0: 1.0})


@pytest.fixture
def mapped(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (500, 16), dtype=np.uint8)
    np.save(tmp_path / "x.npy", values)
    return values, tmp_path / "x.npy"


class Mapping:
    def __init__(self):
        self.advice = []

    def madvise(self, advice):
        self.advice.append(advice)


@pytest.mark.parametrize(("mode", "released"), [("r", True), ("r+", True), ("c", False)])
def test_pages_of_large_mapped_files_are_given_back(mapped, monkeypatch, mode, released):
    values, path = mapped
    monkeypatch.setattr(feeds, "LARGE_MAPPING", 1000)
    monkeypatch.setattr(feeds, "ROWS_BETWEEN_RELEASES", 100)
    array = np.load(path, mmap_mode=mode)
    feed = ArrayFeed(ArrayInput(array), BatchPlan(500, 50, True, 1), None, CPU)
    assert len(feed._mappings) == int(released)
    first = [batch[0].numpy() for batch in feed.epoch(0)]
    expected = [values[BatchPlan(500, 50, True, 1).rows_of(0, step)] for step in range(10)]
    assert all(np.array_equal(a, b) for a, b in zip(first, expected, strict=True))
    if released:
        feed._mappings = [Mapping()]
        list(feed.epoch(0))
        assert feed._mappings[0].advice == [mmap.MADV_DONTNEED] * 5


def test_small_files_and_arrays_in_memory_keep_their_pages(mapped):
    values, path = mapped
    for array in (values, np.load(path, mmap_mode="r")):
        assert ArrayFeed(ArrayInput(array), BatchPlan(500, 50), None, CPU)._mappings == []


def test_a_split_of_a_mapped_file_stays_mapped(mapped):
    _, path = mapped
    train, validation = read_input(np.load(path, mmap_mode="r"), None, None, None).split(0.2)
    assert isinstance(train.x, np.memmap)
    assert train.rows == 400
    assert validation.rows == 100


def test_tensors_share_the_memory_of_arrays():
    array = np.arange(6, dtype=np.float32)
    assert as_tensor(array).data_ptr() == array.ctypes.data
    array.flags.writeable = False
    assert as_tensor(array).data_ptr() == array.ctypes.data


def test_text_is_refused():
    with pytest.raises(UsageError, match=r"^Expected numbers as input, got an array of type <U1.$"):
        as_tensor(np.array(["a"]))
