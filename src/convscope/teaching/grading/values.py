"""Reading what a student's variables hold, and the requirements that all tasks share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import sentence
from convscope.teaching.grading.verdict import Flaw, require


def as_array(value: Any, name: str) -> NDArray[Any]:
    """Read an answer (NumPy, torch, lists) as an array of numbers."""
    if hasattr(value, "detach"):  # a torch tensor, perhaps one on another device
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise Flaw(sentence(f"`{name}` as an array of numbers", type(value).__name__)) from error
    require(
        array.dtype.kind in "biuf",
        sentence(f"`{name}` as an array of numbers", type(value).__name__),
    )
    return array


def as_number(value: Any, name: str) -> float:
    """Read an answer as one number."""
    array = as_array(value, name)
    require(array.size == 1, sentence(f"`{name}` as one number", f"an array of shape {array.shape}"))
    return float(array.reshape(()))


def as_table(value: Any, name: str, keys: Sequence[str]) -> Mapping[str, Any]:
    """Read an answer as a dictionary with an entry for each key, none of them missing or still ``...``."""
    require(
        isinstance(value, Mapping),
        sentence(f"`{name}` as a dictionary", type(value).__name__),
        "Keep the dictionary as it was given, and put your answers in the place of the dots.",
    )
    missing = [key for key in keys if key not in value]
    require(not missing, sentence(f"an entry {missing[0]!r} in `{name}`" if missing else "", "none"))
    unanswered = [key for key in keys if value[key] is ...]
    if unanswered:
        answered = len(unanswered) < len(keys)
        raise Flaw(sentence(f"`{name}[{unanswered[0]!r}]` to be filled in", "the dots"), answered=answered)
    return dict(value)


def as_shape(value: Any, name: str) -> tuple[int, ...]:
    """Read an answer as a shape, without the batch axis."""
    if isinstance(value, int | np.integer):
        value = (value,)
    require(
        isinstance(value, Sequence | np.ndarray) and not isinstance(value, str),
        sentence(f"{name} as a shape such as (26, 26, 32)", repr(value)),
    )
    shape = tuple(value)
    if shape[:1] == (None,):  # Keras writes the batch axis so
        shape = shape[1:]
    require(
        all(isinstance(length, int | np.integer) for length in shape),
        sentence(f"{name} as a shape of whole numbers", repr(shape)),
    )
    return tuple(int(length) for length in shape)


def row_counts(*arrays: NDArray[Any]) -> Counter[bytes]:
    """Count equal rows, where a row is what stands at the same place in each of the arrays, as bytes."""
    flat = [np.ascontiguousarray(array).reshape(len(array), -1) for array in arrays]
    return Counter(b"".join(row.tobytes() for row in rows) for rows in zip(*flat, strict=True))


def close(first: float, second: float, tolerance: float) -> bool:
    """Say whether two numbers agree within a relative tolerance; around zero within an absolute one."""
    return abs(first - second) <= tolerance * max(abs(second), 1e-6)
