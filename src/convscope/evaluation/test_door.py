"""The one door to a run's test set: every consultation is counted, and choices are turned away.

A test set tells how good a network is only as long as nothing was chosen by it: the best of twenty networks
on the test images is the one that happened to suit them (C. Dwork et al., "The reusable holdout: preserving
validity in adaptive data analysis", 2015). So the record says how often and why the test set was looked at,
and asking it for a choice is refused.

The record is a plain dictionary, which a run keeps as JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from convscope.errors import RunError, UsageError, sentence, unknown_name
from convscope.runs import RunDirectory

FORMAT = 1
CONSULTATIONS = "test_consultations.json"

# What the test set may be asked for.
PURPOSES = MappingProxyType(
    {
        "final evaluation": "how good the finished network is",
        "comparison": "whether two finished networks differ",
        "error analysis": "which images the finished network gets wrong",
        "report": "the page that shows a finished run",
        "inspection": "what one of these images does inside the finished network",
        "export": "whether an exported network is as good as its run",
    }
)

# What it may not be asked for, and why each would spoil it.
CHOICES = MappingProxyType(
    {
        "choice of model": "the best of several networks on these images is the one that happens to fit",
        "choice of epoch": "the best epoch on these images is the one that happens to fit",
        "early stopping": "stopping by these images is choosing an epoch by them",
        "hyperparameters": "settings that were tried on these images are fitted to them",
        "calibration": "a temperature fitted on these images cannot be judged by them",
        "threshold": "a threshold set on these images cannot be judged by them",
    }
)


def new_record() -> dict[str, Any]:
    """Make the record of a test set that nobody has looked at.

    Returns
    -------
    dict
        Plain JSON types.

    Examples
    --------
    >>> new_record()
    {'format': 1, 'consultations': []}
    """
    return {"format": FORMAT, "consultations": []}


def consult(
    record: Mapping[str, Any] | None, purpose: str, *, by: str = "", when: datetime | None = None
) -> dict[str, Any]:
    """Count one consultation of the test set; to be called, and its result stored, before looking.

    Parameters
    ----------
    record : mapping, or None
        As it was stored; None for a run that has none yet.
    purpose : str
        One of `PURPOSES`.
    by : str
        The command or function that asks.
    when : datetime, optional
        Now, unless given.

    Returns
    -------
    dict
        A new record with one consultation more.

    Raises
    ------
    UsageError
        When the purpose is a choice; the message says why that is refused and what to use instead.
    UnknownNameError
        When the purpose is none that is known.
    RunError
        When the record is damaged.

    Examples
    --------
    >>> record = consult(None, "final evaluation", by="train")
    >>> count(consult(record, "comparison"))
    2
    """
    refuse_choice(purpose)
    entries = [*_consultations(record), _entry(purpose, by, when or datetime.now(UTC))]
    return {"format": FORMAT, "consultations": entries}


def consult_run(run: RunDirectory, purpose: str, *, by: str) -> dict[str, Any]:
    """Count one consultation of a run's test set in the run, one process at a time.

    Parameters
    ----------
    run : RunDirectory
        Where the record is kept.
    purpose, by : str
        As for ``consult``.

    Returns
    -------
    dict
        The record as it is stored now.

    Raises
    ------
    UsageError
        When the purpose is a choice.
    RunError
        When the record is damaged or cannot be written.
    """
    return run.update_json(CONSULTATIONS, lambda record: consult(record, purpose, by=by))


def refuse_choice(purpose: str) -> None:
    """Refuse to use the test set for a choice.

    Parameters
    ----------
    purpose : str

    Raises
    ------
    UsageError
        When the purpose is one of `CHOICES`.
    UnknownNameError
        When it is no known purpose at all.

    Examples
    --------
    >>> refuse_choice("final evaluation")
    """
    if purpose in CHOICES:
        hint = f"Use the validation data: {CHOICES[purpose]}."
        article = "an" if purpose[0] in "aeiou" else "a"
        raise UsageError(
            sentence("the test set to be asked for a final answer only", f"{article} {purpose}", hint)
        )
    if purpose not in PURPOSES:
        raise unknown_name("purpose", purpose, [*PURPOSES, *CHOICES])


def count(record: Mapping[str, Any] | None) -> int:
    """Count the consultations so far.

    Parameters
    ----------
    record : mapping, or None

    Returns
    -------
    int

    Raises
    ------
    RunError
        When the record is damaged.

    Examples
    --------
    >>> count(None)
    0
    """
    return len(_consultations(record))


def describe(record: Mapping[str, Any] | None) -> str:
    """Say how often and why the test set was consulted.

    Parameters
    ----------
    record : mapping, or None

    Returns
    -------
    str

    Raises
    ------
    RunError
        When the record is damaged.

    Examples
    --------
    >>> describe(consult(None, "final evaluation"))
    'The test set of this run was consulted once: final evaluation.'
    """
    purposes = Counter(str(entry["purpose"]) for entry in _consultations(record))
    total = sum(purposes.values())
    if not total:
        return "The test set of this run has not been consulted."
    times = "once" if total == 1 else "twice" if total == 2 else f"{total} times"
    parts = [purpose if times == "once" else f"{number} × {purpose}" for purpose, number in purposes.items()]
    return f"The test set of this run was consulted {times}: {', '.join(parts)}."


def _entry(purpose: str, by: str, when: datetime) -> dict[str, str]:
    moment = when.astimezone(UTC).isoformat(timespec="seconds")
    return {"purpose": purpose, "by": by, "when": moment}


def _consultations(record: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Take the entries out of a stored record, which a person may have edited."""
    if record is None:
        return []
    entries = record.get("consultations")
    if record.get("format") != FORMAT or not isinstance(entries, list):
        raise RunError(sentence(f"a record of test-set consultations in format {FORMAT}", _shown(record)))
    for entry in entries:
        if not isinstance(entry, Mapping) or entry.get("purpose") not in PURPOSES:
            raise RunError(sentence("a test-set consultation with a known purpose", _shown(entry)))
    return entries


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
