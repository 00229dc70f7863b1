"""The form of a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["good", "note", "warning"]

# Where a threshold is no published one, it is named as ours.
OURS = "convscope's own threshold"


@dataclass(frozen=True)
class Verdict:
    """A judgement in words, with the number that it rests on.

    Parameters
    ----------
    subject : str
        What is judged, e.g. ``"dead units"``.
    level : {"good", "note", "warning"}
        How bad it is.
    text : str
        One or two sentences: what was found, with the number in it, and what to do.
    number : float
        The number found.
    threshold : float
        The number from which on it is no longer good.
    source : str
        Where the threshold comes from.
    """

    subject: str
    level: Level
    text: str
    number: float
    threshold: float
    source: str

    def to_json(self) -> dict[str, Any]:
        """Give the verdict as plain numbers and strings; a number that is not finite as None."""
        return {
            "subject": self.subject,
            "level": self.level,
            "text": self.text,
            "number": self.number if math.isfinite(self.number) else None,
            "threshold": self.threshold,
            "source": self.source,
        }


def level_of(number: float, note: float, warning: float) -> Level:
    """Grade a number by two thresholds; one that is not a number is a warning.

    Examples
    --------
    >>> level_of(0.2, note=0.1, warning=0.4)
    'note'
    """
    if not number <= warning:
        return "warning"
    return "note" if number > note else "good"
