"""The log of a run's test set: every use is counted, and choices are turned away.

A test set tells how good a network is only as long as nothing was chosen by it: the best of twenty networks
on the test images is the one that happened to suit them (C. Dwork et al., "The reusable holdout: preserving
validity in adaptive data analysis", 2015). So the log says how often and why the test set was used, and
asking it for a choice is refused. It is a plain dictionary, which a run keeps as JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from convscope.errors import RunError, UsageError, expected_got, unknown_name
from convscope.runs import RunDirectory

FORMAT = 1
TEST_SET_LOG = "test_consultations.json"

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


def add_use(
    log: Mapping[str, Any] | None, purpose: str, *, by: str = "", when: datetime | None = None
) -> dict[str, Any]:
    """Count one use of the test set: give a new log, of plain JSON types (None: the run has none yet).

    UsageError for a choice, with the reason and what to use instead; UnknownNameError for a purpose that is
    none of `PURPOSES`; RunError for a damaged log.
    """
    if purpose in CHOICES:
        hint = f"Use the validation data: {CHOICES[purpose]}."
        article = "an" if purpose[0] in "aeiou" else "a"
        raise UsageError(
            expected_got("the test set to be asked for a final answer only", f"{article} {purpose}", hint)
        )
    if purpose not in PURPOSES:
        raise unknown_name("purpose", purpose, [*PURPOSES, *CHOICES])
    moment = (when or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
    return {"format": FORMAT, "consultations": [*_uses(log), {"purpose": purpose, "by": by, "when": moment}]}


def log_use(run: RunDirectory, purpose: str, *, by: str) -> dict[str, Any]:
    """Count one use in the run, one process at a time, before anything is shown; return the log.

    Raises what `add_use` does, and RunError where the log cannot be written.
    """
    return run.update_json(TEST_SET_LOG, lambda log: add_use(log, purpose, by=by))


def try_to_log_use(run: RunDirectory, purpose: str, *, by: str) -> RunError | None:
    """Count one use like `log_use`; return what a disk refuses, to be raised behind the answer."""
    try:
        log_use(run, purpose, by=by)
    except RunError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        return RunError(f"{error} The answer is complete; only this use of the test set was not counted.")
    return None


def count(log: Mapping[str, Any] | None) -> int:
    """Count the uses so far; RunError for a damaged log."""
    return len(_uses(log))


def describe(log: Mapping[str, Any] | None) -> str:
    """Say how often and why the test set was used; RunError for a damaged log."""
    purposes = Counter(str(entry["purpose"]) for entry in _uses(log))
    total = sum(purposes.values())
    if not total:
        return "The test set of this run has not been used."
    times = "once" if total == 1 else "twice" if total == 2 else f"{total} times"
    parts = [purpose if total == 1 else f"{number} × {purpose}" for purpose, number in purposes.items()]
    return f"The test set of this run was used {times}: {', '.join(parts)}."


def _uses(log: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Take the entries out of a stored log, which a person may have edited."""
    if log is None:
        return []
    entries = log.get("consultations")
    if log.get("format") != FORMAT or not isinstance(entries, list):
        raise RunError(expected_got(f"a log of the test set's uses in format {FORMAT}", _shown(log)))
    for entry in entries:
        if not isinstance(entry, Mapping) or entry.get("purpose") not in PURPOSES:
            raise RunError(expected_got("a use of the test set with a known purpose", _shown(entry)))
    return entries


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
