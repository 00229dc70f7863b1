"""The catalogue: the name of a dataset → a Dataset.

A file is looked for in this order: a path given by the user; the folder named in ``CONVSCOPE_DATA``; the
user's cache; then a verified download. ``digits`` comes with scikit-learn and needs none of that.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.fetch import fetch, verify
from convscope.data.formats import decompress, read_idx
from convscope.data.names import Names
from convscope.data.splits import split_indices
from convscope.environment import cache_folder
from convscope.errors import DataError, DataNotFoundError, UsageError, sentence, unknown_name

_PROGRESS = logging.getLogger("convscope.progress")

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

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            found = f"{self.images.dtype} of shape {self.images.shape}"
            raise DataError(sentence("images as uint8 of shape (n, height, width, channels)", found))
        lengths = (len(self.images), len(self.labels), len(self.names))
        if len(set(lengths)) != 1:
            raise DataError(
                sentence("as many labels and names as images", "{}, {} and {}".format(*lengths[::-1]))
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Split)
            and list(self.names) == list(other.names)
            and all(
                np.array_equal(getattr(self, name), getattr(other, name))
                for name in ("labels", "groups", "images")
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
        names = self.names
        chosen = names.take(indices) if isinstance(names, Names) else [names[i] for i in indices]
        groups = None if self.groups is None else self.groups[indices]
        return Split(self.images[indices], self.labels[indices], chosen, groups)


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

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        _, height, width, channels = self.train.images.shape
        return height, width, channels


def fingerprint(*parts: Split, class_names: Sequence[str]) -> str:
    """Condense images, labels and class names into one SHA-256.

    Parameters
    ----------
    *parts : Split
        In a fixed order.
    class_names : sequence of str
        The name of each class, by label.

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> split = Split(np.zeros((1, 1, 1, 1), np.uint8), np.array([0]), ["a"])
    >>> len(fingerprint(split, class_names=["zero"]))
    64
    """
    digest = hashlib.sha256("\0".join(class_names).encode())
    for part in parts:
        digest.update(repr(part.images.shape).encode())
        for start in range(0, len(part), FINGERPRINT_CHUNK):  # the images may be larger than the memory
            chunk = part.images[start : start + FINGERPRINT_CHUNK]
            digest.update(np.ascontiguousarray(chunk).data)
        digest.update(np.ascontiguousarray(part.labels, dtype="<i8").data)
    return digest.hexdigest()


def load(
    name: str | Path,
    path: str | Path | None = None,
    download: bool = True,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    resize: str = "letterbox",
    seed: int = 1338,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Load a dataset by name, or your own images by their path.

    Parameters
    ----------
    name : str or Path
        ``"mnist"``, ``"digits"``; or the path of a folder with a folder for each class, with or without
        ``train``, ``val`` and ``test``; of a CSV file of paths and labels, or of pixels; of ``.npz``, Parquet
        or IDX files.
    path : str or Path, optional
        For a name: a folder to look in before any other.
    download : bool
        Whether the network may be asked when the files are nowhere.
    size : int or (int, int), optional
        Height and width that your images are brought to, in pixels. Without it: the size that they all
        have, or one that suits most; at most 96 on the longer side.
    channels : {1, 3}, optional
        Grey or RGB; without it grey if all images are.
    resize : {"letterbox", "crop", "stretch"}
        How images of another size are brought to that one; as in ``Preprocess``.
    seed : int
        Decides which of your images are held back as a test part, where there is none.
    workers : int, optional
        Threads that decode your images, 0 for none beside the caller's; the data are the same with any
        number. Without it as many as there are cores, up to 8.
    progress : callable, optional
        Takes how many images are done, and of how many.

    Returns
    -------
    Dataset
        uint8 images of shape ``(n, height, width, channels)``; memory-mapped where they are large.

    Raises
    ------
    UsageError
        If size or channels are asked for of a dataset that has its own.
    UnknownNameError
        If there is no dataset of that name.
    DataNotFoundError
        If its files are nowhere and cannot be downloaded.
    DataError
        If a file is damaged or not what it should be.

    Examples
    --------
    >>> import convscope
    >>> digits = convscope.load("digits")
    >>> digits.train.images.shape, digits.test.images.shape
    ((1437, 28, 28, 1), (360, 28, 28, 1))
    """
    _PROGRESS.info("Reading %s", name)
    if name in CATALOG:
        if size is not None or channels is not None:
            raise UsageError(sentence(f"no size or channels for {name}, which has its own", size or channels))
        return CATALOG[str(name)].loader(Path(path) if path else None, download)
    location = Path(name)
    if all(_idx_file(location, stem) for stem in MNIST_FILES):
        return _load_idx_folder(location)
    if isinstance(name, str) and os.sep not in name and not location.exists():
        raise unknown_name("dataset", name, CATALOG, "There is no file or folder of that name.")
    from convscope.data.paths import load_path
    from convscope.data.survey import ReadOptions, no_progress

    options = ReadOptions(size, channels, resize, workers)
    return load_path(location, options, seed=seed, progress=progress or no_progress)


def load_again(recorded: Mapping[str, Any]) -> Dataset:
    """Load what a run was trained on, as its ``run.json`` records it under ``data``.

    Parameters
    ----------
    recorded : mapping
        With ``source`` (a name or a path), ``fingerprint``, and under ``reading`` the arguments of ``load``.

    Returns
    -------
    Dataset
        With the recorded fingerprint.

    Raises
    ------
    DataError
        If the data are no longer there, or no longer the same.

    Examples
    --------
    >>> digits = load("digits")
    >>> load_again({"source": "digits", "fingerprint": digits.fingerprint}).name
    'digits'
    """
    dataset = load(recorded.get("source", recorded.get("name", "")), **recorded.get("reading", {}))
    if dataset.fingerprint != recorded["fingerprint"]:
        expected = f"data with the fingerprint {recorded['fingerprint'][:12]}…, as the run saw them"
        raise DataError(sentence(expected, f"{dataset.fingerprint[:12]}…", "They have changed since."))
    return dataset


def _load_mnist(path: Path | None, download: bool) -> Dataset:
    """Load MNIST, every file verified."""
    contents = {
        stem: verify(_read(_find_mnist(stem, path, download)), digest, stem)
        for stem, digest in MNIST_FILES.items()
    }
    return _assemble_idx("mnist", contents)


def _read(file: Path) -> bytes:
    """Read a file, gzip undone."""
    try:
        return decompress(file.read_bytes(), str(file))
    except OSError as error:
        raise DataError(sentence(f"{file} to be readable", error.strerror)) from error


def _find_mnist(stem: str, path: Path | None, download: bool) -> Path:
    """Find one file of MNIST in the order that the module's docstring names."""
    folders = [path, path / "mnist"] if path else mnist_folders()
    for folder in folders:
        if found := _idx_file(folder, stem):
            return found
    looked = ", ".join(str(folder) for folder in folders)
    if path or not download:
        hint = "Set CONVSCOPE_DATA, or run `convscope data fetch mnist`."
        raise DataNotFoundError(sentence(f"{stem}.gz in {looked}", "no such file", hint))
    return fetch(f"{stem}.gz", MNIST_MIRRORS, MNIST_FILES[stem], cache_folder() / "mnist")


def mnist_folders() -> list[Path]:
    """List the folders in which MNIST is looked for, first the user's own.

    Examples
    --------
    >>> mnist_folders()[-1].name
    'mnist'
    """
    own = os.environ.get("CONVSCOPE_DATA")
    return [*([Path(own) / "mnist"] if own else []), cache_folder() / "mnist"]


def _idx_file(folder: Path, stem: str) -> Path | None:
    """Return the file of that stem, compressed or plain, if it is there."""
    candidates = (folder / f"{stem}.gz", folder / stem)
    return next((file for file in candidates if file.is_file()), None)


def _load_idx_folder(folder: Path) -> Dataset:
    """Load four IDX files named as MNIST's, whatever their content."""
    files = {stem: _idx_file(folder, stem) for stem in MNIST_FILES}
    missing = [stem for stem, file in files.items() if file is None]
    if missing:
        raise DataError(sentence(f"{missing[0]}[.gz] in {folder}", "no such file"))
    return _assemble_idx(folder.name, {stem: _read(file) for stem, file in files.items() if file})


def _assemble_idx(name: str, contents: dict[str, bytes]) -> Dataset:
    """Make a Dataset of the contents of the four files."""
    parts = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(
            contents[f"{prefix}-images-idx3-ubyte"], f"{prefix}-images-idx3-ubyte", dimensions=3
        )
        if images.dtype != np.uint8:
            expected = f"{prefix}-images-idx3-ubyte to hold unsigned bytes (IDX type 08)"
            raise DataError(sentence(expected, str(images.dtype)))
        labels = read_idx(
            contents[f"{prefix}-labels-idx1-ubyte"], f"{prefix}-labels-idx1-ubyte", dimensions=1
        )
        names = [f"{name}/{part}/{number:05d}" for number in range(len(labels))]
        parts[part] = Split(
            images.astype(np.uint8, copy=False)[..., None], labels.astype(np.int64), names
        )  # (n, h, w, 1)
    classes = int(max(part.labels.max() for part in parts.values())) + 1
    return _dataset(name, parts["train"], parts["test"], tuple(str(label) for label in range(classes)))


def _load_digits() -> Dataset:
    """Load scikit-learn's digits, enlarged to 28×28 so that they fit every network of the exercise."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # values 0 … 16 → 0 … 255
    enlarged = pixels.repeat(3, axis=1).repeat(3, axis=2)  # (n, 24, 24)
    images = np.pad(enlarged, ((0, 0), (2, 2), (2, 2)))[..., None]  # (n, 28, 28, 1)
    labels = bunch.target.astype(np.int64)
    names = [f"digits/{number:04d}" for number in range(len(labels))]
    everything = Split(images, labels, names)
    train, test = split_indices(labels, DIGITS_TEST_FRACTION, DIGITS_SEED)
    return _dataset("digits", everything.take(train), everything.take(test), tuple("0123456789"))


def _dataset(name: str, train: Split, test: Split, class_names: tuple[str, ...]) -> Dataset:
    """Make a Dataset with its fingerprint."""
    return Dataset(name, train, test, class_names, fingerprint(train, test, class_names=class_names))


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue."""

    loader: Callable[[Path | None, bool], Dataset]
    summary: str


CATALOG = {
    "mnist": Entry(_load_mnist, "60,000 + 10,000 handwritten digits, 28×28 grey (LeCun, Cortes & Burges)"),
    "digits": Entry(
        lambda _path, _download: _load_digits(),
        "1,797 handwritten digits, 8×8 grey, enlarged to 28×28 (scikit-learn)",
    ),
}
