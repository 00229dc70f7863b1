"""What a check says: right or wrong, why, and what to try next."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# Grading reads this type back from a notebook's outputs.
MIME_TYPE = "application/vnd.convscope.verdict+json"

# Okabe and Ito's green and vermilion: told apart with any common colour blindness.
_COLOURS = {"right": "#009E73", "wrong": "#D55E00", "open": "#767676"}
_MARKS = {"right": "✓", "wrong": "✗", "open": "○"}


class Flaw(Exception):  # noqa: N818  what is raised is a finding about an answer, not an error of the program
    """Something that is wrong with an answer: what was expected and what was found.

    Hints go from a nudge to nearly the answer; a check gives the next one each time it finds the same flaw.
    ``answered`` is False where there is no answer yet.
    """

    def __init__(self, message: str, hints: Sequence[str] = (), answered: bool = True) -> None:
        super().__init__(message)
        self.message = message
        self.hints = tuple(hints)
        self.answered = answered


def require(condition: Any, message: str, *hints: str) -> None:
    """End the check unless a condition holds; the hints go from a nudge to nearly the answer."""
    if not condition:
        raise Flaw(message, hints)


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check; true when the task is solved. A notebook keeps it for grading."""

    task: str
    title: str
    points: int
    out_of: int
    message: str
    hint: str = ""
    answered: bool = True

    @property
    def state(self) -> str:
        """One of ``right``, ``wrong`` and ``open``."""
        if not self.answered:
            return "open"
        return "right" if self.points == self.out_of else "wrong"

    def __bool__(self) -> bool:
        return self.state == "right"

    def to_json(self) -> dict[str, Any]:
        """Give the verdict as plain numbers and strings."""
        return {**asdict(self), "state": self.state}

    def __str__(self) -> str:
        head = f"{_MARKS[self.state]} Task {self.task}, {self.title}: {self.points} of {self.out_of}"
        lines = [head, self.message, f"Hint: {self.hint}" if self.hint else ""]
        return "\n".join(line for line in lines if line)

    def __repr__(self) -> str:
        return str(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Show the verdict in a notebook, and leave it there for grading."""
        return {"text/plain": str(self), "text/html": self._as_html(), MIME_TYPE: self.to_json()}

    def _as_html(self) -> str:
        text = re.sub("`(.*?)`", r"<code>\1</code>", html.escape(str(self)))
        head, *rest = text.split("\n")
        style = f"border-left:4px solid {_COLOURS[self.state]};padding:2px 12px;margin:4px 0"
        lines = "".join(f"<br>{line}" for line in rest)
        return f'<div style="{style}"><strong>{head}</strong>{lines}</div>'
