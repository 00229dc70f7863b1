"""What is odd about the files of a collection: those that cannot be used, and those that can all the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from convscope.data.collection import FileRecords
from convscope.data.decode import FLOATING, FORMATS, SUFFIXES, convert_floats
from convscope.data.findings import Finding, count
from convscope.data.similarity import members_of
from convscope.data.source import ImageSource
from convscope.data.survey import Survey

# An image whose sides differ by more loses most of itself, or is mostly border.
LONGEST_ASPECT = 4.0
# Shorter sides hold nothing that a convolution could see.
SHORTEST_SIDE = 8
# If this share of the images has one size, the others are odd.
COMMON_SHARE = 0.8

# For each kind of unusable file: what was found, and what to do.
PROBLEMS = {
    "missing": ("missing", "Restore it, or take it off the table."),
    "unreadable": ("unreadable", "Change its permissions, or copy it again."),
    "empty": ("empty, zero bytes", "Copy or download it again."),
    "not_an_image": ("no image, whatever it is called", "Remove it, or get the image that it should be."),
    "unsupported": ("an image of a kind that is not read", "Save it as JPEG or PNG, 8 bits."),
    "truncated": ("cut short", "Copy or download it again."),
    "damaged": ("damaged", "Copy or download it again."),
    "too_large": ("too large", "Make it smaller."),
}
# For each trait of an image that is used all the same: the kind of the finding, its weight, what is said.
_TRAITS = {
    "animated": ("animated", "warning", "moving: the first frame is used", "Check that it shows the class."),
    "cmyk": ("cmyk", "info", "in the colours of print (CMYK): converted to RGB", ""),
    "sixteen_bit": ("sixteen_bit", "info", "of more than 8 bits: the upper 8 of {depth} are used", ""),
    "rotated": ("rotated", "info", "turned by their EXIF orientation: made upright", ""),
    "transparent": ("transparent", "info", "transparent in part: laid on white", ""),
    "mended": (
        "mended",
        "warning",
        "without its end, or with a damaged text inside; every pixel is there, and it is used",
        "Save it again if other tools refuse it.",
    ),
}


def check_files(source: ImageSource, survey: Survey) -> Iterator[Finding]:
    """Report what is odd about each file.

    Parameters
    ----------
    source : ImageSource
        Gives the names.
    survey : Survey
        What each file says about itself.

    Yields
    ------
    Finding
        Unusable files, odd ones that are used, misnamed ones, odd sizes.
    """
    yield from _problems(source, survey)
    yield from _traits(source, survey)
    yield from _misnamed(source, survey)
    yield from _odd_sizes(source, survey)


def _problems(source: ImageSource, survey: Survey) -> Iterator[Finding]:
    """Report files that cannot be used."""
    for kind in PROBLEMS:
        rows = [(number, found) for number, (k, found, _) in sorted(survey.problems.items()) if k == kind]
        if rows:
            names = tuple(source.names[number] for number, _ in rows)
            yield _problem(kind, names, tuple(found for _, found in rows))


def _problem(kind: str, names: tuple[str, ...], details: tuple[str, ...]) -> Finding:
    """Make the row of one kind of unusable file."""
    words, advice = PROBLEMS[kind]
    ranges = [detail.split()[-3::2] for detail in details if detail.startswith(FLOATING)]  # … from 0 to 1
    if ranges:
        low, high = min(float(low) for low, _ in ranges), max(float(high) for _, high in ranges)
        convert = convert_floats(f"{low:g}", f"{high:g}")
        advice = convert if len(ranges) == len(details) else f"{convert}. The others: {advice}"
    return Finding(kind, "error", f"{count(len(names), 'file')}: {words}.", advice, names, details)


def merge(findings: Iterable[Finding]) -> list[Finding]:
    """Make one row of findings of the same kind: walking a folder and reading its files may meet the same.

    Parameters
    ----------
    findings : iterable of Finding
        Only unusable files may come twice.

    Returns
    -------
    list of Finding
        In order of their first coming.

    Examples
    --------
    >>> once = Finding("missing", "error", "1 entry: leads to nothing.", "", ("a",), ("a link",))
    >>> merge([once, Finding("missing", "error", "1 file: missing.", "", ("b",), ("no such file",))])[0].names
    ('a', 'b')
    """
    merged: dict[str, Finding] = {}
    for finding in findings:
        first = merged.get(finding.kind)
        merged[finding.kind] = (
            finding
            if first is None
            else _problem(finding.kind, first.names + finding.names, first.details + finding.details)
        )
    return list(merged.values())


def _traits(source: ImageSource, survey: Survey) -> Iterator[Finding]:
    """Report odd files that are used."""
    for trait, (kind, severity, words, advice) in _TRAITS.items():
        positions = np.flatnonzero(survey.has_trait(trait) & survey.usable)
        if len(positions):
            message = f"{count(len(positions), 'image')}: {words.format(depth=survey.depth)}."
            yield Finding(kind, severity, message, advice, _names(source, positions))


def _misnamed(source: ImageSource, survey: Survey) -> Iterator[Finding]:
    """Report images whose names end as those of another format do."""
    if not source.are_files:
        return
    formats = list(FORMATS)
    rows = []
    for number in np.flatnonzero(survey.usable).tolist():
        suffix = PurePosixPath(source.names[number]).suffix.lower()
        actual = formats[survey.formats[number]]
        if suffix and SUFFIXES.get(suffix) != actual:
            rows.append((source.names[number], f"{actual} named {suffix}"))
    if rows:
        names, details = zip(*rows, strict=True)
        message = f"{count(len(rows), 'image')} named as another format: used all the same."
        yield Finding("misnamed", "warning", message, "Rename if other tools refuse it.", names, details)


def _odd_sizes(source: ImageSource, survey: Survey) -> Iterator[Finding]:
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
    if counts.max() >= COMMON_SHARE * len(usable):
        odd |= (sizes != usual).any(axis=1)
    if odd.any():
        details = tuple(f"{height}×{width}" for height, width in sizes[odd].tolist())
        message = f"{count(int(odd.sum()), 'image')} of an odd size."
        advice = "Check that it is the whole image and nothing else."
        yield Finding("odd_size", "warning", message, advice, _names(source, usable[odd]), details)


def check_duplicates(
    files: FileRecords | None, names: Sequence[str], groups: NDArray[np.int64], parts: NDArray[np.int8]
) -> Iterator[Finding]:
    """Report images that are there twice inside one part, to the byte or nearly.

    Parameters
    ----------
    files : FileRecords or None
        Tells identical files from images that merely look alike.
    names : sequence of n str
        Of the images.
    groups, parts : ndarray of shape (n,)
        Of each image.

    Yields
    ------
    Finding
        ``duplicate`` and ``near_duplicate``; the first of each group is not named, but said to be the other.
    """
    digests = None if files is None else files.survey.digests[files.kept]
    rows: dict[str, list[tuple[str, str]]] = {"duplicate": [], "near_duplicate": []}
    for members in members_of(groups):
        firsts: dict[int, int] = {}  # in another part it would be worse than a duplicate: leakage
        for number in members:
            first = firsts.setdefault(int(parts[number]), number)
            if first != number:
                same = digests is not None and (digests[number] == digests[first]).all()
                kind = "duplicate" if same else "near_duplicate"
                rows[kind].append((names[number], f"like {names[first]}"))
    for kind, words in (
        ("duplicate", "the same as another"),
        ("near_duplicate", "nearly the same as another"),
    ):
        if rows[kind]:
            shown, details = zip(*rows[kind], strict=True)
            message = f"{count(len(shown), 'image')} {words}."
            yield Finding(kind, "warning", message, "Keep one of them.", shown, details)


def _names(source: ImageSource, positions: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(source.names[int(position)] for position in positions)
