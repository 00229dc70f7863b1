"""Reading what a student's variables hold, and saying of it: right or wrong, why, what to try next."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import expected_got

# Grading reads this type back from a notebook's outputs.
MIME_TYPE = "application/vnd.convscope.verdict+json"

# Okabe and Ito's green and vermilion: told apart with any common colour blindness.
_COLOURS = {"right": "#009E73", "wrong": "#D55E00", "open": "#767676"}
_MARKS = {"right": "✓", "wrong": "✗", "open": "○"}


class CheckFailed(Exception):  # noqa: N818  what is raised is a finding about an answer, not an error of the program
    """Something that is wrong with an answer: what was expected and what was found.

    Hints go from a nudge to nearly the answer; a check gives the next one each time it finds the same
    mistake. ``answered`` is False where there is no answer yet.
    """

    def __init__(self, message: str, hints: Sequence[str] = (), answered: bool = True) -> None:
        super().__init__(message)
        self.message = message
        self.hints = tuple(hints)
        self.answered = answered


def require(condition: Any, message: str, *hints: str) -> None:
    """End the check unless a condition holds; the hints go from a nudge to nearly the answer."""
    if not condition:
        raise CheckFailed(message, hints)


def call_answer(
    function: Callable[..., Any], expected: str, hint: str, *arguments: Any, ending: str = "return …"
) -> Any:
    """Call a student's function; what it raises is a mistake, and an empty body no answer yet."""
    try:
        result = function(*arguments)
    except Exception as error:
        raise CheckFailed(expected_got(expected, f"{type(error).__name__}: {error}"), (hint,)) from error
    if result is None or result is ...:
        raise CheckFailed(expected_got(expected, "None", f"End the function with {ending}"), answered=False)
    return result


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


def as_array(value: Any, name: str) -> NDArray[Any]:
    """Read an answer (NumPy, torch, lists) as an array of numbers."""
    if hasattr(value, "detach"):  # a torch tensor, perhaps one on another device
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise CheckFailed(expected_got(f"`{name}` as an array of numbers", type(value).__name__)) from error
    require(
        array.dtype.kind in "biuf",
        expected_got(f"`{name}` as an array of numbers", type(value).__name__),
    )
    return array


def as_number(value: Any, name: str) -> float:
    """Read an answer as one number."""
    array = as_array(value, name)
    require(array.size == 1, expected_got(f"`{name}` as one number", f"an array of shape {array.shape}"))
    return float(array.reshape(()))


def as_table(value: Any, name: str, keys: Sequence[str]) -> Mapping[str, Any]:
    """Read an answer as a dictionary with an entry for each key, none of them missing or still ``...``."""
    require(
        isinstance(value, Mapping),
        expected_got(f"`{name}` as a dictionary", type(value).__name__),
        "Keep the dictionary as it was given, and put your answers in place of the dots.",
    )
    missing = [key for key in keys if key not in value]
    require(not missing, expected_got(f"an entry {missing[0]!r} in `{name}`" if missing else "", "none"))
    unanswered = [key for key in keys if value[key] is ...]
    if unanswered:
        answered = len(unanswered) < len(keys)
        raise CheckFailed(
            expected_got(f"`{name}[{unanswered[0]!r}]` to be filled in", "the dots"), answered=answered
        )
    return dict(value)


def as_shape(value: Any, name: str) -> tuple[int, ...]:
    """Read an answer as a shape, without the batch axis."""
    if isinstance(value, int | np.integer):
        value = (value,)
    require(
        isinstance(value, Sequence | np.ndarray) and not isinstance(value, str),
        expected_got(f"{name} as a shape such as (26, 26, 32)", repr(value)),
    )
    shape = tuple(value)
    if shape[:1] == (None,):  # Keras writes the batch axis so
        shape = shape[1:]
    require(
        all(isinstance(length, int | np.integer) for length in shape),
        expected_got(f"{name} as a shape of whole numbers", repr(shape)),
    )
    return tuple(int(length) for length in shape)


def row_counts(*arrays: NDArray[Any]) -> Counter[bytes]:
    """Count equal rows, where a row is what stands at the same place in each of the arrays, as bytes."""
    flat = [np.ascontiguousarray(array).reshape(len(array), -1) for array in arrays]
    return Counter(b"".join(row.tobytes() for row in rows) for rows in zip(*flat, strict=True))


def close(first: float, second: float, tolerance: float) -> bool:
    """Say whether two numbers agree within a relative tolerance; around zero within an absolute one."""
    return abs(first - second) <= tolerance * max(abs(second), 1e-6)
