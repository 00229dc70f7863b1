"""What a look at somebody's data brought to light: one row for each kind of thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Attributes
    ----------
    kind : str
        A short name that does not change, such as ``truncated``.
    severity : str
        ``error``: left out, or spoils the result; ``warning``: used, but look at it; ``info``: good to know.
    message : str
        What was found, a sentence.
    advice : str
        What to do about it, a sentence; empty where nothing need be done.
    names : tuple of str
        Every file that it is about.
    details : tuple of str
        What there is to say about each of them; empty, or as many as names.

    Examples
    --------
    >>> Finding("empty", "error", "1 file is empty.", "Copy it again.", ("cat/3.jpg",)).to_json()["names"]
    ['cat/3.jpg']
    """

    kind: str
    severity: str
    message: str
    advice: str = ""
    names: tuple[str, ...] = ()
    details: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Give the finding as JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class DataReport:
    """What is in a folder or file, before an hour is spent on it.

    Attributes
    ----------
    path, layout : str
        What was looked at, and how it was understood.
    files, used : int
        Images that were found, and those that can be trained on.
    size : tuple of int
        Height, width and channels that all images are brought to.
    counts : dict of str to dict of str to int
        For each part (``train``, ``validation``, ``test``) the images of each class.
    findings : tuple of Finding
        Errors first.
    meaningless : str
        Why training would be meaningless; empty if it would not.
    quick : bool
        Whether only the quick part was done.
    """

    path: str
    layout: str
    files: int
    used: int
    size: tuple[int, int, int]
    counts: Mapping[str, Mapping[str, int]]
    findings: tuple[Finding, ...] = field(repr=False)
    meaningless: str = ""
    quick: bool = False

    @property
    def left_out(self) -> tuple[str, ...]:
        """Every file that cannot be used, by name."""
        kinds = (finding for finding in self.findings if finding.kind in UNUSABLE)
        return tuple(name for finding in kinds for name in finding.names)

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
        """Give the report as JSON values.

        Examples
        --------
        >>> DataReport("photos", "folders", 0, 0, (1, 1, 1), {}, (), "no image").to_json()["meaningless"]
        'no image'
        """
        return {
            "path": self.path,
            "layout": self.layout,
            "files": self.files,
            "used": self.used,
            "size": list(self.size),
            "counts": {part: dict(classes) for part, classes in self.counts.items()},
            "findings": [finding.to_json() for finding in self.findings],
            "left_out": list(self.left_out),
            "meaningless": self.meaningless,
            "trainable": not self.meaningless,
            "verdict": self.verdict,
            "quick": self.quick,
        }


# What spoils a result most, in this order; anything else follows by its severity.
FIRST = ("conflicting", "leakage", "missing_class", "no_part", "unused_table", "few_images", "imbalance")
# Kinds whose files are not used.
UNUSABLE = (
    "missing",
    "unreadable",
    "empty",
    "not_an_image",
    "unsupported",
    "truncated",
    "damaged",
    "too_large",
    "symlink_loop",
    "repeated_link",
    "no_class",
    "no_part",
)


def sort_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Put errors first, then warnings; otherwise as they are.

    Examples
    --------
    >>> rows = [Finding("rotated", "info", "a"), Finding("empty", "error", "b")]
    >>> [finding.kind for finding in sort_findings(rows)]
    ['empty', 'rotated']
    """
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def count(number: int, noun: str) -> str:
    """Write a number with its noun.

    Examples
    --------
    >>> count(1, "file"), count(2500, "class"), count(0, "entry")
    ('1 file', '2,500 classes', '0 entries')
    """
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}{'es' if noun.endswith('s') else 's'}"
