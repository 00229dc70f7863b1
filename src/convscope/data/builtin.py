"""The datasets that have a name, MNIST and scikit-learn's digits, and the only outbound network.

A file is looked for in this order: a path given by the user; the folder named in ``CONVSCOPE_DATA``; the
user's cache; then a download. A download goes into a temporary folder inside the cache, its decompressed
content is held against a SHA-256, and only then it is renamed into place, so that several processes may fetch
at once and a broken download is never mistaken for the data.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convscope.data.cache import disk_errors_named, scratch_folder
from convscope.data.dataset import Dataset, Split, fingerprint, split_indices
from convscope.data.sources.arrays import read_decompressed, read_idx
from convscope.environment import cache_folder
from convscope.errors import DataError, DataNotFoundError, expected_got

# SHA-256 of the decompressed files.
MNIST_FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# scikit-learn's digits have no test set of their own; every run must hold back the same one.
DIGITS_TEST_FRACTION = 0.2
DIGITS_SEED = 1338
CONNECT_AND_READ_SECONDS = (5, 60)


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue: what loads it, given a path and whether to download, and what it is."""

    loader: Callable[[Path | None, bool], Dataset]
    summary: str


def mnist_folders() -> list[Path]:
    """List the folders in which MNIST is looked for, first the user's own."""
    own = os.environ.get("CONVSCOPE_DATA")
    return [*([Path(own) / "mnist"] if own else []), cache_folder() / "mnist"]


def load_mnist_like(folder: Path) -> Dataset | None:
    """Load four IDX files named as MNIST's, whatever their content, if they are there."""
    files = {stem: _idx_file(folder, stem) for stem in MNIST_FILES}
    if None in files.values():
        return None
    return _assemble(folder.name, {stem: read_decompressed(file) for stem, file in files.items() if file})


def _load_mnist(path: Path | None, download: bool) -> Dataset:
    """Load MNIST, every file verified."""
    contents = {
        stem: verify(read_decompressed(_find_mnist(stem, path, download)), digest, stem)
        for stem, digest in MNIST_FILES.items()
    }
    return _assemble("mnist", contents)


def _find_mnist(stem: str, path: Path | None, download: bool) -> Path:
    """Find one file of MNIST in the order that the module's docstring names."""
    folders = [path, path / "mnist"] if path else mnist_folders()
    for folder in folders:
        if found := _idx_file(folder, stem):
            return found
    if path or not download:
        looked = ", ".join(str(folder) for folder in folders)
        hint = "Set CONVSCOPE_DATA, or run `convscope data fetch mnist`."
        raise DataNotFoundError(expected_got(f"{stem}.gz in {looked}", "no such file", hint))
    return fetch(f"{stem}.gz", MNIST_MIRRORS, MNIST_FILES[stem], cache_folder() / "mnist")


def _idx_file(folder: Path, stem: str) -> Path | None:
    """Return the file of that stem, compressed or plain, if it is there."""
    candidates = (folder / f"{stem}.gz", folder / stem)
    return next((file for file in candidates if file.is_file()), None)


def _assemble(name: str, contents: dict[str, bytes]) -> Dataset:
    """Make a Dataset of the contents of the four files."""
    splits = []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images_file, labels_file = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        images = read_idx(contents[images_file], images_file, dimensions=3)
        if images.dtype != np.uint8:
            expected = f"{images_file} to hold unsigned bytes (IDX type 08)"
            raise DataError(expected_got(expected, str(images.dtype)))
        labels = read_idx(contents[labels_file], labels_file, dimensions=1).astype(np.int64)
        names = [f"{name}/{split}/{number:05d}" for number in range(len(labels))]
        splits.append(Split(images.astype(np.uint8, copy=False)[..., None], labels, names))  # (n, h, w, 1)
    classes = int(max(split.labels.max() for split in splits)) + 1
    train, test = splits
    return _dataset(name, train, test, tuple(str(label) for label in range(classes)))


def _load_digits(_path: Path | None, _download: bool) -> Dataset:
    """Load scikit-learn's digits, enlarged to 28×28 so that they fit every network of the exercise."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # values 0 … 16 → 0 … 255
    enlarged = pixels.repeat(3, axis=1).repeat(3, axis=2)  # (n, 24, 24)
    images = np.pad(enlarged, ((0, 0), (2, 2), (2, 2)))[..., None]  # (n, 28, 28, 1)
    labels = bunch.target.astype(np.int64)
    everything = Split(images, labels, [f"digits/{number:04d}" for number in range(len(labels))])
    train, test = split_indices(labels, DIGITS_TEST_FRACTION, DIGITS_SEED)
    return _dataset("digits", everything.take(train), everything.take(test), tuple("0123456789"))


def _dataset(name: str, train: Split, test: Split, class_names: tuple[str, ...]) -> Dataset:
    """Make a Dataset with its fingerprint."""
    return Dataset(name, train, test, class_names, fingerprint(train, test, class_names=class_names))


CATALOG = {
    "mnist": Entry(_load_mnist, "60,000 + 10,000 handwritten digits, 28×28 grey (LeCun, Cortes & Burges)"),
    "digits": Entry(_load_digits, "1,797 handwritten digits, 8×8 grey, enlarged to 28×28 (scikit-learn)"),
}


# Downloads


def verify(content: bytes, sha256: str, source: str) -> bytes:
    """Return the decompressed content of a file if it has the expected digest, in hexadecimal."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        expected = f"{source} to have the SHA-256 {sha256[:12]}…"
        hint = "The file is damaged or another one; get it again."
        raise DataError(expected_got(expected, f"{found[:12]}…", hint))
    return content


def fetch(filename: str, mirrors: Sequence[str], sha256: str, folder: Path) -> Path:
    """Download a file into a folder, from the first mirror that serves the expected content."""
    import requests  # here, because most commands never download

    failures = []
    with disk_errors_named(), scratch_folder() as scratch:
        folder.mkdir(parents=True, exist_ok=True)
        for mirror in mirrors:
            try:
                return _fetch_once(mirror + filename, sha256, scratch, folder / filename)
            except requests.ConnectionError:
                failures.append(f"{mirror}: no connection")
            except requests.Timeout:
                failures.append(f"{mirror}: no answer in time")
            except (requests.RequestException, DataError) as error:
                failures.append(f"{mirror}: {str(error).splitlines()[0]}")
    expected = f"{filename} from one of {len(mirrors)} mirrors"
    raise DataNotFoundError(expected_got(expected, "; ".join(failures), "Is there a network?"))


def _fetch_once(url: str, sha256: str, scratch: Path, target: Path) -> Path:
    """Download, verify, and rename into place."""
    with warnings.catch_warnings():
        # In a notebook without widgets, pooch's progress bar complains as it loads; it is never shown.
        warnings.filterwarnings("ignore", message="IProgress not found")
        import pooch

    pooch.get_logger().setLevel("ERROR")  # progress and failures are told by our own messages
    downloader = pooch.HTTPDownloader(timeout=CONNECT_AND_READ_SECONDS)
    # The hash is that of the content, which the compressed bytes do not determine: it is checked below.
    arrived = Path(
        pooch.retrieve(url, known_hash=None, fname=target.name, path=scratch, downloader=downloader)
    )
    try:
        verify(read_decompressed(arrived), sha256, target.name)
        arrived.replace(target)
    finally:
        arrived.unlink(missing_ok=True)
    return target
