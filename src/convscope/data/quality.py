"""A look at somebody's data before an hour is spent on them: ``check_path`` → DataReport.

What is odd about the files, what the images give away (leakage, contradictions, outliers, shortcuts to the
class), and whether training would make sense.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.data.builtin import CATALOG
from convscope.data.decode import FLOATING, FORMATS, SUFFIXES, convert_floats
from convscope.data.ingest import (
    Collection,
    NothingUsableError,
    Progress,
    ReadOptions,
    Survey,
    ingest,
    no_progress,
)
from convscope.data.similarity import BLANK, members_of
from convscope.data.sources import find_source
from convscope.data.sources.base import PROBLEMS, SPLITS, Finding, Index, Source, count, find, index_of
from convscope.errors import DataError, DataNotFoundError

_PROGRESS = logging.getLogger("convscope.progress")

SEVERITIES = ("error", "warning", "info")
# What spoils a result most, in this order; anything else follows by its severity.
FIRST = ("conflicting", "leakage", "missing_class", "no_part", "unused_table", "few_images", "imbalance")
# The largest class may have this many times the images of the smallest.
IMBALANCE = 3.0
# Fewer training images of a class are hardly worth the hour.
FEW = 10
# If so much of the test split was seen in training, its result says nothing.
SEEN = 0.5
# An image whose sides differ by more loses most of itself, or is mostly border.
LONGEST_ASPECT = 4.0
# Shorter sides hold nothing that a convolution could see.
SHORTEST_SIDE = 8
# If this fraction of the images has one size, the others are odd.
COMMON_FRACTION = 0.8
# Median absolute deviations, scaled to standard deviations of a normal distribution: among a million
# normal values none is as far out.
OUTLIER = 6.0
MAD_TO_DEVIATION = 1.4826
# Cohen's kappa above which a few numbers say so much about the class that the network may look no further:
# real photographs reach 0.15, handwritten digits 0.17. Each with what is said.
TELLING = {
    "file": (0.4, "size and format of the file", "Save all images in the same way, then check again."),
    "colour": (0.7, "mean colour and contrast", "Is it the subject that has this colour, or the light?"),
    "border": (0.7, "outermost pixels", "Were the classes photographed before different backgrounds?"),
}
# Enough images to judge, and no more than are quick.
FEWEST, MOST = 60, 5000
_CHUNK = 1024
# For each trait of an image that is used all the same: the weight of the finding, what is said, what to do.
_TRAITS = {
    "animated": ("warning", "moving: the first frame is used", "Check that it shows the class."),
    "cmyk": ("info", "in the colours of print (CMYK): converted to RGB", ""),
    "sixteen_bit": ("info", "of more than 8 bits: the upper 8 of {depth} are used", ""),
    "rotated": ("info", "turned by their EXIF orientation: made upright", ""),
    "transparent": ("info", "transparent in part: laid on white", ""),
    "mended": (
        "warning",
        "without its end, or with a damaged text inside; every pixel is there, and it is used",
        "Save it again if other tools refuse it.",
    ),
}


@dataclass(frozen=True)
class DataReport:
    """What is in a folder or file, before an hour is spent on it."""

    path: str
    layout: str  # how it was understood
    files: int  # images that were found
    used: int  # those that can be trained on
    size: tuple[int, int, int]  # height, width and channels that all images are brought to
    counts: Mapping[str, Mapping[str, int]]  # for each split the images of each class
    findings: tuple[Finding, ...] = field(repr=False)  # errors first
    meaningless: str = ""  # why training would be; empty if it would not
    quick: bool = False  # whether only the quick part was done

    @property
    def left_out(self) -> tuple[str, ...]:
        """Every file that cannot be used, by name."""
        return tuple(name for finding in self.findings if finding.is_unused for name in finding.names)

    @property
    def verdict(self) -> str:
        """Say whether the data can be trained on as they are, and what to do first."""
        if self.meaningless:
            return f"These data cannot be trained on as they are. {self.meaningless}"
        serious = [finding for finding in self.findings if finding.severity != "info"]
        kinds = (*FIRST, *(finding.kind for finding in serious))
        first = min(serious, key=lambda finding: kinds.index(finding.kind), default=None)
        ready = "These data can be trained on as they are"
        if first is None:
            return f"{ready}; nothing needs to be done first."
        return f"{ready}. The most important thing to look at: {first.message} {first.advice}".rstrip()

    def find(self, kind: str) -> Finding | None:
        """Return the finding of that kind, if there is one."""
        return next((finding for finding in self.findings if finding.kind == kind), None)

    def to_json(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        own = {"left_out": self.left_out, "trainable": not self.meaningless, "verdict": self.verdict}
        return {**asdict(self), **own}


def check_path(
    path: Path | str,
    quick: bool = False,
    options: ReadOptions | None = None,
    progress: Progress = no_progress,
) -> tuple[DataReport, Collection | None]:
    """Look at a folder of images, or at any other data that can be loaded by their path.

    Nothing at the path is changed. Images are decoded into the cache, where loading finds them again, and are
    returned too where any can be used. What is quick leaves out brightness, sharpness and what betrays the
    class.
    """
    _PROGRESS.info("Looking at %s", path)
    try:
        source = find_source(Path(path))
    except DataNotFoundError:
        raise
    except DataError as error:
        return DataReport(str(path), "unknown", 0, 0, (0, 0, 0), {}, (), str(error), quick), None
    try:
        collection = ingest(source, options or ReadOptions(), progress)
    except NothingUsableError as error:
        found = (row for row in _file_findings(source, error.survey) if row.severity == "error")
        findings = _sorted(_merged([*source.findings, *found]))
        files = len(index_of(source))
        nothing = DataReport(str(path), source.layout, files, 0, (0, 0, 0), {}, findings, str(error), quick)
        return nothing, None
    return check_collection(collection, str(path), quick), collection


def check_before_training(
    name: str | Path, options: ReadOptions | None = None
) -> tuple[DataReport | None, Collection | None]:
    """Take the quick part of the look at somebody's own images, and open them.

    There is nothing to look at in a dataset of the catalogue, which is known, and where nothing lies.
    """
    if name in CATALOG or not Path(name).exists():
        return None, None
    return check_path(name, quick=True, options=options)


def check_collection(collection: Collection, path: str, quick: bool = False) -> DataReport:
    """Look at images that have been read; findings of the same kind are one row."""
    counts = _counts(collection)
    findings = _merged([*collection.findings, *_all_findings(collection, counts, quick)])
    height, width, channels = collection.images.shape[1:]
    report = DataReport(
        path=path,
        layout=collection.source.layout,
        files=len(collection) if collection.survey is None else len(collection.survey.heights),
        used=len(collection),
        size=(height, width, channels),
        counts={
            name: dict(zip(collection.class_names, counts[split].tolist(), strict=True))
            for split, name in enumerate(SPLITS)
            if counts[split].any()
        },
        findings=_sorted(findings),
        quick=quick,
    )
    return replace(report, meaningless=_why_meaningless(collection, report))


def _all_findings(collection: Collection, counts: NDArray[np.int64], quick: bool) -> Iterator[Finding]:
    """Go through all checks, the quick ones first."""
    if collection.survey is not None:
        yield from _file_findings(collection.source, collection.survey)
    yield from _duplicates(collection)
    yield from _leaks_and_conflicts(collection)
    yield from _classes(collection.class_names, counts)
    yield from _order(collection)
    if not quick:
        statistics = measure(collection.images)
        yield from _outliers(statistics, collection.names)
        yield from _shortcuts(collection, statistics)


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Put errors first, then warnings; otherwise as they are."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def _merged(findings: Iterable[Finding]) -> Iterable[Finding]:
    """Make one row of each kind of unusable file, which walking a folder and reading its files may meet."""
    merged: dict[str | int, Finding] = {}
    for number, finding in enumerate(findings):
        kind = finding.kind
        if kind in merged:
            first = merged[kind]
            merged[kind] = _problem(kind, first.names + finding.names, first.details + finding.details)
        else:
            merged[kind if kind in PROBLEMS else number] = finding
    return merged.values()


def _counts(collection: Collection) -> NDArray[np.int64]:
    """Count the images of each split and class, (3, classes)."""
    classes = len(collection.class_names)
    flat = np.bincount(
        collection.splits.astype(np.int64) * classes + collection.labels, minlength=3 * classes
    )
    return flat.reshape(3, classes)


# Classes and splits


def _classes(class_names: tuple[str, ...], counts: NDArray[np.int64]) -> Iterator[Finding]:
    """Report classes that are missing, small, or much larger than others."""
    missing = [
        (class_names[label], f"not in {name}")
        for split, name in enumerate(SPLITS)
        if counts[split].any()
        for label in np.flatnonzero(counts[split] == 0)
    ]
    advice = "Add images of it there."
    yield from _find("missing_class", "error", missing, "class", "missing from a part.", advice)
    few = [
        (class_names[label], count(int(counts[0][label]), "image"))
        for label in np.flatnonzero((counts[0] > 0) & (counts[0] < FEW))
    ]
    words = f"with fewer than {FEW} training images."
    yield from _find("few_images", "warning", few, "class", words, "Collect more of it.")
    trained = np.flatnonzero(counts[0])
    if len(trained) > 1:
        least, most = trained[counts[0][trained].argmin()], trained[counts[0][trained].argmax()]
        ratio = counts[0][most] / counts[0][least]
        if ratio >= IMBALANCE:
            names = (class_names[most], class_names[least])
            message = f"{names[0]} has {ratio:.1f} times the training images of {names[1]}."
            details = tuple(count(int(counts[0][label]), "image") for label in (most, least))
            advice = "Use balanced class weights, and judge by balanced accuracy."
            yield Finding("imbalance", "warning", message, advice, names, details)


def _order(collection: Collection) -> Iterator[Finding]:
    """Report tables that are sorted by class, of which other tools may hold back the last rows."""
    labels, classes = collection.labels[collection.splits == 0], len(collection.class_names)
    changes = int((np.diff(labels) != 0).sum())
    if collection.source.is_table and len(labels) > 2 * classes > 2 and changes < classes:
        message = "The rows are sorted by class."
        advice = (
            "It does no harm here, where splits are drawn at random; elsewhere, shuffle before splitting."
        )
        yield Finding("sorted_order", "info", message, advice)


def _why_meaningless(collection: Collection, report: DataReport) -> str:
    """Say why training on this would be meaningless; nothing if it would not."""
    trained = report.counts.get("train", {})
    usable = [name for name, number in trained.items() if number]
    if len(usable) < 2:
        return f"Only {count(len(usable), 'class')} with training images: add images of another one."
    lone = [name for name, number in trained.items() if number == 1]
    if lone and "test" not in report.counts:
        return f"{lone[0]} has 1 image: add others, since none can be held back to test on."
    if len(np.unique(collection.groups)) == 1:
        return "All images are the same: get them again."
    for split, classes in report.counts.items():
        tested = [name for name, number in classes.items() if number]
        if not any(trained[name] for name in tested):
            shown = ", ".join(tested[:3])
            return f"No class of {split} has training images ({shown}): is it called otherwise?"
    return _why_worthless(report)


def _why_worthless(report: DataReport) -> str:
    """Say why labels or the test split are worth nothing, if they are not."""
    conflicting = report.find("conflicting")
    if conflicting and len(conflicting.names) > SEEN * report.used:
        found = f"{len(conflicting.names):,} of {report.used:,} images are there under two labels"
        return f"{found}: decide which is right."
    leakage = report.find("leakage")
    to_test = sum(sum(classes.values()) for split, classes in report.counts.items() if split != "train")
    if leakage and len(leakage.names) > SEEN * to_test:
        found = f"{len(leakage.names):,} of {to_test:,} images to test on were seen in training"
        return f"{found}: test on others."
    return ""


# Files


def _file_findings(source: Source, survey: Survey) -> Iterator[Finding]:
    """Report what is odd about each file: unusable, odd but used, misnamed, of an odd size."""
    index = index_of(source)
    for kind in PROBLEMS:
        rows = [(number, found) for number, (k, found, _) in sorted(survey.problems.items()) if k == kind]
        if rows:
            names = tuple(index.names[number] for number, _ in rows)
            yield _problem(kind, names, tuple(found for _, found in rows))
    for trait, (severity, words, advice) in _TRAITS.items():
        rows_with = survey.has_trait(trait) & survey.usable
        if rows_with.any():
            message = f"{count(int(rows_with.sum()), 'image')}: {words.format(depth=survey.depth)}."
            yield Finding(trait, severity, message, advice, _named(index.names, rows_with))
    if source.are_files:
        yield from _misnamed(index, survey)
    yield from _odd_sizes(index, survey)


def _problem(kind: str, names: tuple[str, ...], details: tuple[str, ...]) -> Finding:
    """Make the row of one kind of unusable file."""
    words, advice = PROBLEMS[kind]
    ranges = [detail.split()[-3::2] for detail in details if detail.startswith(FLOATING)]  # … from 0 to 1
    if ranges:
        low, high = min(float(low) for low, _ in ranges), max(float(high) for _, high in ranges)
        convert = convert_floats(f"{low:g}", f"{high:g}")
        advice = convert if len(ranges) == len(details) else f"{convert}. The others: {advice}"
    return Finding(kind, "error", f"{count(len(names), 'file')}: {words}.", advice, names, details)


def _misnamed(index: Index, survey: Survey) -> Iterator[Finding]:
    """Report images whose names end as those of another format do."""
    formats = list(FORMATS)
    rows = []
    for number in np.flatnonzero(survey.usable).tolist():
        suffix = PurePosixPath(index.names[number]).suffix.lower()
        actual = formats[survey.formats[number]]
        if suffix and SUFFIXES.get(suffix) != actual:
            rows.append((index.names[number], f"{actual} named {suffix}"))
    words = "named as another format: used all the same."
    yield from _find("misnamed", "warning", rows, "image", words, "Rename if other tools refuse it.")


def _odd_sizes(index: Index, survey: Survey) -> Iterator[Finding]:
    """Report images that are tiny or very long, and the few that differ from all others in size."""
    usable = np.flatnonzero(survey.usable)
    if not len(usable):
        return
    sizes = np.stack([survey.heights, survey.widths], axis=1)[usable]  # (k, 2)
    extreme = (sizes.min(axis=1) < SHORTEST_SIDE) | (sizes.max(axis=1) > LONGEST_ASPECT * sizes.min(axis=1))
    different, counts = np.unique(sizes, axis=0, return_counts=True)
    usual = different[counts.argmax()]
    # Where all images are tiny, or long, that is what they are.
    odd = extreme & (sizes != usual).any(axis=1)
    if counts.max() >= COMMON_FRACTION * len(usable):
        odd |= (sizes != usual).any(axis=1)
    advice = "Check that it is the whole image and nothing else."
    details = (f"{height}×{width}" for height, width in sizes[odd].tolist())
    names = [index.names[int(position)] for position in usable[odd]]
    yield from find("odd_size", "warning", names, "image", "of an odd size.", advice, details)


def _find(
    kind: str, severity: str, rows: Sequence[tuple[str, str]], noun: str, words: str, advice: str
) -> list[Finding]:
    """Report things with what there is to say about each; nothing where there are none."""
    names, details = [name for name, _ in rows], [detail for _, detail in rows]
    return find(kind, severity, names, noun, words, advice, details)


def _named(names: Sequence[str], chosen: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(names[int(number)] for number in np.flatnonzero(chosen))


# Images that are there twice


def _duplicates(collection: Collection) -> Iterator[Finding]:
    """Report images that are there twice inside one split, to the byte or nearly.

    The first of each group is not named, but said to be the other.
    """
    digests = None if collection.survey is None else collection.survey.digests[collection.kept]
    rows: dict[str, list[tuple[str, str]]] = {"duplicate": [], "near_duplicate": []}
    for members in members_of(collection.groups):
        firsts: dict[int, int] = {}  # in another split it would be worse than a duplicate: leakage
        for number in members:
            first = firsts.setdefault(int(collection.splits[number]), number)
            if first != number:
                same = digests is not None and (digests[number] == digests[first]).all()
                kind = "duplicate" if same else "near_duplicate"
                rows[kind].append((collection.names[number], f"like {collection.names[first]}"))
    for kind, words in (("duplicate", "the same as"), ("near_duplicate", "nearly the same as")):
        yield from _find(kind, "warning", rows[kind], "image", f"{words} another.", "Keep one of them.")


def _leaks_and_conflicts(collection: Collection) -> Iterator[Finding]:
    """Report images of validation and test that training has seen, and images under two labels."""
    leaks, conflicts = [], []
    same = False
    names, labels, images = collection.names, collection.labels, collection.images
    for members in members_of(collection.groups):
        trained = [number for number in members if collection.splits[number] == 0]
        for number in members:
            if collection.splits[number] != 0 and trained:
                leaks.append((names[number], f"like {names[trained[0]]}"))
                same |= bool((images[number] == images[trained[0]]).all())
        if len({int(labels[number]) for number in members}) > 1:
            conflicts += [(names[number], collection.class_names[labels[number]]) for number in members]
    words, severity = (
        "of validation or test that training has seen, or nearly.",
        "error" if same else "warning",
    )
    yield from _find("leakage", severity, leaks, "image", words, "Remove one of each pair.")
    words, advice = "that another label has too.", "Decide which label is right."
    yield from _find("conflicting", "error", conflicts, "image", words, advice)


# Outliers, and what betrays the class


def measure(images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Measure images (n, h, w, c), in memory or not: a few numbers about each, a row for each."""
    chunks = [_measure(images[start : start + _CHUNK]) for start in range(0, len(images), _CHUNK)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _measure(images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Measure images (k, h, w, c) that lie in memory."""
    values = images.astype(np.float32)
    grey = values.mean(axis=3)  # (k, h, w)
    pixels = values.reshape(len(values), -1, values.shape[3])  # (k, h·w, c)
    sides = [values[:, 0], values[:, -1], values[:, :, 0], values[:, :, -1]]
    frame = np.concatenate(sides, axis=1)  # (k, 2h + 2w, c)
    return {
        "brightness": grey.mean(axis=(1, 2)),
        "contrast": grey.std(axis=(1, 2)),
        # Logarithm of one plus the standard deviation of the discrete Laplacian (Pech-Pacheco et al., "Diatom
        # autofocusing in brightfield microscopy", 2000).
        "sharpness": np.log1p(_laplacian(grey).std(axis=(1, 2))),
        # Mean and standard deviation of each channel, (k, 2c); then the same of the outermost pixels.
        "colour": np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1),
        "border": np.concatenate([frame.mean(axis=1), frame.std(axis=1)], axis=1),
    }


def _laplacian(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take four times each inner pixel less its neighbours; an image without inner pixels is flat."""
    if min(grey.shape[1:]) < 3:
        return np.zeros_like(grey)
    neighbours = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    laplacian: NDArray[np.float32] = 4 * grey[:, 1:-1, 1:-1] - neighbours
    return laplacian


def _outliers(statistics: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Iterator[Finding]:
    """Report images that are blank, or far darker, brighter, blurrier or sharper than the rest."""
    blank = statistics["contrast"] < BLANK
    flat, advice = _named(names, blank), "Remove it: there is nothing on it."
    yield from find("blank", "warning", flat, "image", "of one flat colour.", advice)
    for kind, words in (
        ("brightness", ("far darker", "far brighter")),
        ("sharpness", ("far blurrier", "far sharper")),
    ):
        scores = _robust_scores(statistics[kind])
        odd = (np.abs(scores) > OUTLIER) & ~blank
        details, unlike = (words[int(score > 0)] for score in scores[odd]), f"unlike the rest in {kind}."
        yield from find(kind, "warning", _named(names, odd), "image", unlike, "Look at it.", details)


def _robust_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Count how many deviations each value lies from the median (Iglewicz and Hoaglin, 1993, chapter 3)."""
    distances = values - np.median(values)
    deviation = MAD_TO_DEVIATION * np.median(np.abs(distances))
    scores: NDArray[np.float64] = distances / deviation if deviation > 0 else np.zeros_like(distances)
    return scores


def _shortcuts(collection: Collection, statistics: Mapping[str, NDArray[Any]]) -> Iterator[Finding]:
    """Report what betrays the class without a look at what is on the images.

    A small decision tree is given only a few numbers about each image, and tested on images that it has not
    seen. If it names the class nearly always, a network may learn these numbers and nothing else.
    """
    features = {kind: statistics[kind] for kind in ("colour", "border")}
    if (survey := collection.survey) is not None:
        columns = (survey.heights, survey.widths, survey.formats, survey.channels, survey.traits)
        features = {"file": np.stack(columns, axis=1)[collection.kept].astype(np.float64), **features}
    for kind, values in features.items():
        accuracy, kappa = tree_accuracy(values, collection.labels)
        threshold, what, advice = TELLING[kind]
        if kappa > threshold:
            message = f"The {what} alone tell the class of {accuracy:.0%} of the images."
            yield Finding(f"betrayed_by_{kind}", "warning", message, advice)


def tree_accuracy(features: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Cross-validate a small decision tree on features (n, d); return accuracy and Cohen's kappa.

    Both are 0 where there are too few images to say. Kappa ("A coefficient of agreement for nominal scales",
    1960): 0 is guessing by the classes' frequencies, 1 is always right.
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


# Some images of each class, side by side, for a person to look at


@dataclass(frozen=True, eq=False)
class ContactSheet:
    """Images to look at, class by class, with their names; white where a class has fewer than k."""

    images: NDArray[np.uint8]  # (classes, k, h, w, c)
    captions: tuple[tuple[str, ...], ...]
    class_names: tuple[str, ...]


def contact_sheet(collection: Collection, columns: int = 8) -> ContactSheet:
    """Choose some images of each class at random, of 20 classes at most, for ``plot_contact_sheet``."""
    classes = min(20, len(collection.class_names))
    images = np.full((classes, columns, *collection.images.shape[1:]), 255, np.uint8)
    captions = []
    for label in range(classes):
        mine = np.random.default_rng([0, label]).permutation(np.flatnonzero(collection.labels == label))
        chosen = np.sort(mine[:columns])
        if len(chosen):
            images[label, : len(chosen)] = collection.images[chosen]
        names = [collection.names[int(number)] for number in chosen]
        captions.append(tuple(names + [""] * (columns - len(names))))
    return ContactSheet(images, tuple(captions), collection.class_names[:classes])
