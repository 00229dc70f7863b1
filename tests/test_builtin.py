"""Datasets by name: where they are looked for, and what is refused."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests
from test_arrays import idx

from convscope.data import builtin
from convscope.data.loading import load
from convscope.errors import DataError, DataNotFoundError, UnknownNameError


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A stand-in for MNIST: four small files whose digests the catalogue is told to expect."""
    generator = np.random.default_rng(0)
    contents = {}
    for prefix, count in (("train", 20), ("t10k", 10)):
        images = generator.integers(0, 256, (count, 28, 28), np.uint8)
        contents[f"{prefix}-images-idx3-ubyte"] = idx(images)
        contents[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    digests = {stem: hashlib.sha256(content).hexdigest() for stem, content in contents.items()}
    monkeypatch.setattr(builtin, "MNIST_FILES", digests)
    monkeypatch.setenv("CONVSCOPE_DATA", str(tmp_path / "own"))
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path / "cache"))
    return contents


def put(folder, contents, compress=True):
    folder.mkdir(parents=True)
    for stem, content in contents.items():
        if compress:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / stem).write_bytes(content)


@pytest.mark.parametrize("compress", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("place", ["own/mnist", "cache/mnist"])
def test_mnist_is_found_in_the_environments_folder_and_in_the_cache(tmp_path, tiny_mnist, place, compress):
    put(tmp_path / place, tiny_mnist, compress)
    dataset = load("mnist", download=False)
    assert dataset.train.images.shape == (20, 28, 28, 1)
    assert dataset.test.labels.tolist() == list(range(10))
    assert dataset.test.names[9] == "mnist/test/00009"


def test_a_given_path_comes_first(tmp_path, tiny_mnist):
    put(tmp_path / "given", tiny_mnist)
    put(tmp_path / "own/mnist", dict.fromkeys(tiny_mnist, b"damaged"))
    assert len(load("mnist", path=tmp_path / "given").train) == 20


def test_the_users_folder_comes_before_the_cache(tmp_path, tiny_mnist):
    put(tmp_path / "own/mnist", tiny_mnist)
    put(tmp_path / "cache/mnist", dict.fromkeys(tiny_mnist, b"damaged"))
    assert len(load("mnist").train) == 20


def test_one_flipped_bit_in_a_plain_file_is_noticed(tmp_path, tiny_mnist):
    stem = "t10k-images-idx3-ubyte"
    content = bytearray(tiny_mnist[stem])
    content[-1] ^= 1
    put(tmp_path / "own/mnist", tiny_mnist | {stem: bytes(content)}, compress=False)
    with pytest.raises(DataError, match=f"{stem} to have the SHA-256"):
        load("mnist")


def test_images_of_another_type_are_refused(tmp_path, tiny_mnist):
    stem = "t10k-images-idx3-ubyte"
    contents = tiny_mnist
    signed = bytearray(contents[stem])
    signed[2] = 0x09
    put(tmp_path / "mine", contents | {stem: bytes(signed)})
    with pytest.raises(DataError, match=r"to hold unsigned bytes \(IDX type 08\), got int8"):
        load(str(tmp_path / "mine"))


def test_mnist_that_is_nowhere_is_a_kind_of_its_own(tiny_mnist):
    with pytest.raises(DataNotFoundError, match="convscope data fetch mnist"):
        load("mnist", download=False)


class Mirrors:
    """Stands in for the network: addresses → bytes, or nothing."""

    def __init__(self, served):
        self.served = served
        self.asked = []

    def __call__(self, url, output_file, _pooch):
        self.asked.append(url)
        if url not in self.served:
            raise requests.ConnectionError("unreachable")
        Path(output_file).write_bytes(self.served[url])


@pytest.fixture
def mirrors(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("CONVSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))

    def install(served):
        network = Mirrors(served)
        monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: network)
        return network

    return install


GOOD = gzip.compress(b"content")
DIGEST = hashlib.sha256(b"content").hexdigest()


def test_the_second_mirror_is_asked_when_the_first_fails(tmp_path, mirrors):
    network = mirrors({"https://b/x.gz": GOOD})
    file = builtin.fetch("x.gz", ["https://a/", "https://b/"], DIGEST, tmp_path)
    assert file.read_bytes() == GOOD
    assert network.asked == ["https://a/x.gz", "https://b/x.gz"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.gz"]


def test_a_cache_that_cannot_be_written_is_said_and_nothing_is_asked(tmp_path, mirrors):
    network = mirrors({"https://a/x.gz": GOOD})
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(DataError, match=r"to write into the cache .* Set CONVSCOPE_CACHE"):
        builtin.fetch("x.gz", ["https://a/"], DIGEST, tmp_path / "file" / "mnist")
    assert network.asked == []


def test_wrong_content_is_never_put_in_place(tmp_path, mirrors):
    mirrors({"https://a/x.gz": gzip.compress(b"something else"), "https://b/x.gz": GOOD[:-4]})
    with pytest.raises(DataNotFoundError, match=r"https://a/: Expected x\.gz to have the SHA-256"):
        builtin.fetch("x.gz", ["https://a/", "https://b/"], DIGEST, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_said_in_one_line(tmp_path, mirrors):
    mirrors({})
    with pytest.raises(DataNotFoundError) as raised:
        builtin.fetch("x.gz", ["https://a/", "https://b/"], DIGEST, tmp_path)
    assert str(raised.value) == (
        "Expected x.gz from one of 2 mirrors, got https://a/: no connection; https://b/: no connection. "
        "Is there a network?"
    )


def test_digits_need_no_file_and_always_hold_back_the_same_test_images():
    first, second = load("digits"), load("digits")
    assert first.fingerprint == second.fingerprint
    assert first.train.images.shape == (1437, 28, 28, 1)
    assert first.train.images.dtype == np.uint8
    assert (first.train.images.min(), first.train.images.max()) == (0, 255)
    assert np.bincount(first.test.labels).min() >= 34
    assert not set(first.train.names) & set(first.test.names)
    border = np.concatenate([first.train.images[:, :2].ravel(), first.train.images[:, :, -2:].ravel()])
    assert not border.any()


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(UnknownNameError, match="Did you mean 'mnist'"):
        load("mnits")


def test_real_mnist_where_it_is_at_hand(real_mnist):
    assert real_mnist.train.images.shape == (60_000, 28, 28, 1)
    assert real_mnist.test.images.shape == (10_000, 28, 28, 1)
    assert np.bincount(real_mnist.test.labels).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]  # the support that the exercise's classification report shows
