"""Check what is evaluated: probabilities, labels and names, before any number is computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convscope.errors import DataError, UsageError, expected_got

# Rows that come out of a bfloat16 softmax miss 1 by up to about 0.4 %.
ROW_SUM_TOLERANCE = 1e-2
ONE_HOT_RANK = 2


def as_probabilities(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Check a table of predicted probabilities (n, k) and return a copy in float64.

    Raises UsageError for a wrong shape or entries that are no numbers; DataError where an entry is NaN or
    outside [0, 1], or a row does not sum to 1 within 0.01.
    """
    try:
        table = np.array(probabilities, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(expected_got("probabilities as a table of numbers", _short(error))) from error
    _check_probability_shape(table)
    _check_probability_values(table)
    return table


def _check_probability_shape(table: NDArray[np.float64]) -> None:
    if table.ndim == 1 or (table.ndim == ONE_HOT_RANK and table.shape[1] == 1):
        hint = "A single sigmoid output p becomes np.column_stack([1 - p, p])."
        raise UsageError(expected_got("probabilities of shape (images, classes)", table.shape, hint))
    if table.ndim != ONE_HOT_RANK or table.shape[1] == 0:
        raise UsageError(expected_got("probabilities of shape (images, classes)", table.shape))
    if table.shape[0] == 0:
        raise UsageError(expected_got("at least one image to evaluate", "none"))


def _check_probability_values(table: NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if bad.size:
        hint = "Did the training diverge?"
        raise DataError(expected_got("finite probabilities", f"NaN or infinity in {_rows(bad)}", hint))
    bad = np.flatnonzero(((table < 0) | (table > 1 + ROW_SUM_TOLERANCE)).any(axis=1))
    if bad.size:
        found = f"values from {table.min():.4g} to {table.max():.4g} ({_rows(bad)})"
        raise DataError(expected_got("probabilities from 0 to 1", found, "Logits need a softmax first."))
    sums = table.sum(axis=1)
    bad = np.flatnonzero(np.abs(sums - 1) > ROW_SUM_TOLERANCE)
    if bad.size:
        found = f"a sum of {sums[bad[0]]:.4g} ({_rows(bad)})"
        raise DataError(
            expected_got(
                "probabilities that sum to 1 in each row", found, "Does the network end in a softmax?"
            )
        )


def as_labels(labels: ArrayLike, classes: int, images: int | None = None) -> NDArray[np.int64]:
    """Check labels, class indices (n,) or (n, 1) or one-hot (n, classes), and return indices (n,) as a copy.

    Raises UsageError when the shape fits neither form, or the number of labels is not `images`; DataError
    when a label is no whole number from 0 to ``classes - 1``, or a row is not one-hot.

    Examples
    --------
    >>> as_labels([[0, 1, 0], [1, 0, 0]], classes=3)
    array([1, 0])
    """
    table = np.asarray(labels)
    if table.dtype.kind not in "iufb":
        raise UsageError(
            expected_got("labels as class indices or one-hot rows", f"values of type {table.dtype}")
        )
    if table.ndim == ONE_HOT_RANK and table.shape[1] == classes and classes > 1:
        indices = _from_one_hot(table)
    elif table.ndim == 1 or (table.ndim == ONE_HOT_RANK and table.shape[1] == 1):
        indices = _from_indices(table.reshape(-1), classes)  # (n, 1) → (n,)
    else:
        raise UsageError(expected_got(f"labels of shape (n,) or (n, {classes})", table.shape))
    if images is not None and indices.size != images:
        raise UsageError(expected_got(f"{images} labels, one for each image", indices.size))
    return indices


def _from_one_hot(table: NDArray[Any]) -> NDArray[np.int64]:
    bad = np.flatnonzero(((table != 0) & (table != 1)).any(axis=1) | (table.sum(axis=1) != 1))
    if bad.size:
        raise DataError(
            expected_got("one-hot labels with a single 1 in each row", f"{table[bad[0]]} ({_rows(bad)})")
        )
    indices: NDArray[np.int64] = np.argmax(table, axis=1).astype(np.int64)  # (n, k) → (n,)
    return indices


def _from_indices(values: NDArray[Any], classes: int) -> NDArray[np.int64]:
    bad = np.flatnonzero(~((values >= 0) & (values < classes) & (values == np.floor(values))))
    if bad.size:
        expected = f"labels from 0 to {classes - 1}, one of {classes} classes"
        raise DataError(expected_got(expected, f"{values[bad[0]]} ({_rows(bad)})"))
    indices: NDArray[np.int64] = values.astype(np.int64)
    return indices


def as_names(names: Sequence[str] | None, count: int, what: str) -> tuple[str, ...] | None:
    """Check that there is one name for each of `count` things (``what`` says which), and freeze them."""
    if names is None:
        return None
    if isinstance(names, str):
        raise UsageError(expected_got(f"a list of {what} names", f"the text {names!r}"))
    frozen = tuple(str(name) for name in names)
    if len(frozen) != count:
        raise UsageError(expected_got(f"{count} {what} names", len(frozen)))
    return frozen


def _rows(indices: NDArray[np.intp]) -> str:
    """Name the first offending row and say how many there are."""
    return f"row {indices[0]}" if indices.size == 1 else f"row {indices[0]} and {indices.size - 1} more"


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:120]
