"""What the images of a collection give away: leakage, contradictions, outliers, shortcuts to the class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.collection import Collection
from convscope.data.findings import Finding, count
from convscope.data.similarity import BLANK, members_of

# Median absolute deviations, scaled to standard deviations of a normal distribution: among a million
# normal values none is as far out.
OUTLIER = 6.0
MAD_TO_DEVIATION = 1.4826
# Cohen's kappa above which a few numbers say so much about the class that the network may look no further:
# real photographs reach 0.15, handwritten digits 0.17.
TELLING = {"file": 0.4, "colour": 0.7, "border": 0.7}
# Enough images to judge, and no more than are quick.
FEWEST, MOST = 60, 5000
_CHUNK = 1024


def check_groups(collection: Collection) -> Iterator[Finding]:
    """Report images that lie on both sides of a split, or under two labels.

    Parameters
    ----------
    collection : Collection
        Near-duplicates share a group.

    Yields
    ------
    Finding
        ``leakage`` names the images of validation and test, ``conflicting`` every image concerned.
    """
    leaks, conflicts = [], []
    same = False
    for members in members_of(collection.groups):
        trained = [number for number in members if collection.parts[number] == 0]
        for number in members:
            if collection.parts[number] != 0 and trained:
                leaks.append((collection.names[number], f"like {collection.names[trained[0]]}"))
                same |= bool((collection.images[number] == collection.images[trained[0]]).all())
        if len({int(collection.labels[number]) for number in members}) > 1:
            conflicts += [(collection.names[number], _class_of(collection, number)) for number in members]
    if leaks:
        names, details = zip(*leaks, strict=True)
        message = f"{count(len(leaks), 'image')} of validation or test that training has seen, or nearly."
        severity = "error" if same else "warning"
        yield Finding("leakage", severity, message, "Remove one of each pair.", names, details)
    if conflicts:
        names, details = zip(*conflicts, strict=True)
        message = f"{count(len(conflicts), 'image')} that another label has too."
        yield Finding("conflicting", "error", message, "Decide which label is right.", names, details)


def _class_of(collection: Collection, number: int) -> str:
    return collection.class_names[int(collection.labels[number])]


@dataclass(frozen=True, eq=False)
class PixelStatistics:
    """A few numbers about each image.

    Attributes
    ----------
    brightness : ndarray of shape (n,)
        Mean grey level, 0 to 255.
    contrast : ndarray of shape (n,)
        Standard deviation of the grey levels.
    sharpness : ndarray of shape (n,)
        Logarithm of one plus the standard deviation of the discrete Laplacian (Pech-Pacheco et al.,
        "Diatom autofocusing in brightfield microscopy", 2000).
    colour, border : ndarray of shape (n, 2c)
        Mean and standard deviation of each channel: of the image, and of its outermost pixels.
    """

    brightness: NDArray[np.float64]
    contrast: NDArray[np.float64]
    sharpness: NDArray[np.float64]
    colour: NDArray[np.float64]
    border: NDArray[np.float64]


def measure(images: NDArray[np.uint8]) -> PixelStatistics:
    """Measure brightness, contrast, sharpness and colours of each image.

    Parameters
    ----------
    images : ndarray of shape (n, h, w, c), uint8
        In memory or not.

    Returns
    -------
    PixelStatistics
        A row for each image.

    Examples
    --------
    >>> measure(np.full((1, 8, 8, 1), 100, np.uint8)).brightness.tolist()
    [100.0]
    """
    chunks = [_measure(images[start : start + _CHUNK]) for start in range(0, len(images), _CHUNK)]
    return PixelStatistics(*(np.concatenate(columns) for columns in zip(*chunks, strict=True)))


def _measure(images: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
    """Measure some images."""
    values = images.astype(np.float32)
    grey = values.mean(axis=3)  # (k, h, w)
    pixels = values.reshape(len(values), -1, values.shape[3])  # (k, h·w, c)
    sides = [values[:, 0], values[:, -1], values[:, :, 0], values[:, :, -1]]
    frame = np.concatenate(sides, axis=1)  # (k, 2h + 2w, c)
    return (
        grey.mean(axis=(1, 2)),
        grey.std(axis=(1, 2)),
        np.log1p(_laplacian(grey).std(axis=(1, 2))),
        np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1),
        np.concatenate([frame.mean(axis=1), frame.std(axis=1)], axis=1),
    )


def _laplacian(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take four times each inner pixel less its neighbours; an image without inner pixels is flat."""
    if min(grey.shape[1:]) < 3:
        return np.zeros_like(grey)
    neighbours = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    laplacian: NDArray[np.float32] = 4 * grey[:, 1:-1, 1:-1] - neighbours
    return laplacian


def check_outliers(statistics: PixelStatistics, names: Sequence[str]) -> Iterator[Finding]:
    """Report images that are blank, or far darker, brighter, blurrier or sharper than the rest.

    Parameters
    ----------
    statistics : PixelStatistics
        A row for each image.
    names : sequence of n str
        Of the images.

    Yields
    ------
    Finding
        ``blank``, ``brightness`` and ``sharpness``.
    """
    blank = statistics.contrast < BLANK
    if blank.any():
        message = f"{count(int(blank.sum()), 'image')} of one flat colour."
        yield Finding("blank", "warning", message, "Remove it: there is nothing on it.", _named(names, blank))
    for kind, values, words in (
        ("brightness", statistics.brightness, ("far darker", "far brighter")),
        ("sharpness", statistics.sharpness, ("far blurrier", "far sharper")),
    ):
        scores = _robust_scores(values)
        odd = (np.abs(scores) > OUTLIER) & ~blank
        if odd.any():
            message = f"{count(int(odd.sum()), 'image')} unlike the rest in {kind}."
            details = tuple(words[int(score > 0)] for score in scores[odd])
            yield Finding(kind, "warning", message, "Look at it.", _named(names, odd), details)


def _robust_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Count how many deviations each value lies from the median (Iglewicz and Hoaglin, 1993, chapter 3)."""
    distances = values - np.median(values)
    deviation = MAD_TO_DEVIATION * np.median(np.abs(distances))
    scores: NDArray[np.float64] = distances / deviation if deviation > 0 else np.zeros_like(distances)
    return scores


def _named(names: Sequence[str], chosen: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(names[int(number)] for number in np.flatnonzero(chosen))


def check_shortcuts(collection: Collection, statistics: PixelStatistics) -> Iterator[Finding]:
    """Report what betrays the class without a look at what is on the images.

    A small decision tree is given only a few numbers about each image, and tested on images that it has not
    seen. If it names the class nearly always, a network may learn these numbers and nothing else.

    Parameters
    ----------
    collection : Collection
        Labels, and the files' sizes and formats.
    statistics : PixelStatistics
        A row for each image.

    Yields
    ------
    Finding
        ``betrayed_by_file``, ``betrayed_by_colour`` and ``betrayed_by_border``.
    """
    features = {"colour": statistics.colour, "border": statistics.border}
    if collection.files is not None:
        survey, kept = collection.files.survey, collection.files.kept
        columns = (survey.heights, survey.widths, survey.formats, survey.channels, survey.traits)
        features = {"file": np.stack(columns, axis=1)[kept].astype(np.float64), **features}
    words = {
        "file": ("size and format of the file", "Save all images in the same way, then check again."),
        "colour": ("mean colour and contrast", "Is it the subject that has this colour, or the light?"),
        "border": ("outermost pixels", "Were the classes photographed before different backgrounds?"),
    }
    for kind, values in features.items():
        accuracy, kappa = tree_accuracy(values, collection.labels)
        if kappa > TELLING[kind]:
            what, advice = words[kind]
            message = f"The {what} alone tell the class of {accuracy:.0%} of the images."
            yield Finding(f"betrayed_by_{kind}", "warning", message, advice)


def tree_accuracy(features: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Cross-validate a small decision tree.

    Parameters
    ----------
    features : ndarray of shape (n, d)
        A few numbers about each image.
    labels : ndarray of shape (n,), int64
        Classes.

    Returns
    -------
    accuracy, kappa : float
        Both 0 where there are too few images to say. Kappa is Cohen's, "A coefficient of agreement for
        nominal scales", 1960: 0 is guessing by the classes' shares, 1 is always right.

    Examples
    --------
    >>> labels = np.arange(100) % 2
    >>> tree_accuracy(labels[:, None] * 1.0, labels)
    (1.0, 1.0)
    """
    from sklearn.metrics import cohen_kappa_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    counts = np.bincount(labels)
    enough = counts[labels] >= 3  # one for each fold
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(enough))[:MOST]
    chosen = chosen[np.bincount(labels[chosen], minlength=len(counts))[labels[chosen]] >= 3]
    if len(chosen) < FEWEST or len(np.unique(labels[chosen])) < 2:
        return 0.0, 0.0
    tree = DecisionTreeClassifier(max_depth=8, min_samples_leaf=5, random_state=0)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    guesses = cross_val_predict(tree, features[chosen], labels[chosen], cv=folds)
    accuracy = float((guesses == labels[chosen]).mean())
    return accuracy, float(cohen_kappa_score(labels[chosen], guesses))
