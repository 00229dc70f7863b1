"""What Keras callbacks remember, as arrays, so that a resumed training finds them as they were.

A callback keeps its memory in attributes: how long it has waited, the best value, the best weights. Those
that are numbers, words, arrays or lists of them, and are no longer what ``on_train_begin`` left, are its
state; settings never change and are left alone. Whatever else it holds (files, functions) cannot be kept.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import RunError, sentence

Arrays = dict[str, NDArray[Any]]

_NOT_STATE = frozenset({"_model", "model", "params", "_params", "validation_data"})
_VALUES = "values"
_ARRAY, _TUPLE = "<array>", "<tuple>"


class CallbackMemory:
    """Reads and writes the state of a training's callbacks.

    Parameters
    ----------
    callbacks : sequence of keras.callbacks.Callback
        In their order; two of one class are told apart by it.

    Examples
    --------
    >>> class Counting:
    ...     seen = 0
    >>> first, second = Counting(), Counting()
    >>> memory = CallbackMemory([first])
    >>> memory.begin()
    >>> first.seen = 3
    >>> CallbackMemory([second]).begin(memory.read())
    >>> second.seen
    3
    """

    def __init__(self, callbacks: Sequence[Any] = ()) -> None:
        counts: Counter[str] = Counter()
        self._callbacks: dict[str, Any] = {}
        for callback in callbacks:
            kind = type(callback).__name__
            self._callbacks[f"{kind}-{counts[kind]}"] = callback
            counts[kind] += 1
        self._first: dict[str, dict[str, Arrays]] = {}

    def begin(self, saved: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Take note of how the callbacks begin; then give them the state of an earlier session.

        Parameters
        ----------
        saved : mapping of str to ndarray or None
            What :meth:`read` gave.

        Raises
        ------
        RunError
            When a callback that has a state there is missing here.
        """
        self._first = {name: _attributes(callback) for name, callback in self._callbacks.items()}
        states: dict[str, dict[str, Arrays]] = {}
        for key, array in (saved or {}).items():
            name, attribute, rest = key.split("/", 2)
            states.setdefault(name, {}).setdefault(attribute, {})[rest] = array
        missing = [name for name in states if name not in self._callbacks]
        if missing:
            expected = f"the callbacks of the training that is resumed, {', '.join(missing)} among them"
            raise RunError(sentence(expected, ", ".join(self._callbacks) or "none"))
        for name, attributes in states.items():
            for attribute, arrays in attributes.items():
                setattr(self._callbacks[name], attribute, _decode(arrays))

    def read(self) -> Arrays:
        """Copy what the callbacks remember now; one that has an ``on_snapshot`` is told before.

        Returns
        -------
        dict of str to ndarray
            Keys are ``class-number/attribute/part``.
        """
        for callback in self._callbacks.values():
            getattr(callback, "on_snapshot", lambda: None)()
        return {
            f"{name}/{attribute}/{part}": array
            for name, callback in self._callbacks.items()
            for attribute, arrays in _attributes(callback).items()
            if not _same(arrays, self._first.get(name, {}).get(attribute))
            for part, array in arrays.items()
        }


def _attributes(callback: Any) -> dict[str, Arrays]:
    """Encode each attribute that can be."""
    encoded = {name: _encode(value) for name, value in vars(callback).items() if name not in _NOT_STATE}
    return {name: arrays for name, arrays in encoded.items() if arrays is not None}


def _encode(value: Any) -> Arrays | None:
    """Turn a value into a JSON text and the arrays in it; None where that cannot be."""
    arrays: Arrays = {}
    try:
        text = json.dumps(_plain(value, arrays))
    except TypeError:
        return None
    return {_VALUES: np.frombuffer(text.encode(), np.uint8), **arrays}


def _plain(value: Any, arrays: Arrays) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item(), arrays)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        arrays[f"{len(arrays):04d}"] = np.array(value)
        return {_ARRAY: f"{len(arrays) - 1:04d}"}
    if isinstance(value, list):
        return [_plain(item, arrays) for item in value]
    if isinstance(value, tuple):
        return {_TUPLE: [_plain(item, arrays) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, arrays) for key, item in value.items()}
    raise TypeError(type(value).__name__)


def _decode(arrays: Mapping[str, NDArray[Any]]) -> Any:
    def restored(value: dict[str, Any]) -> Any:
        if set(value) == {_ARRAY}:
            return np.array(arrays[value[_ARRAY]])
        return tuple(value[_TUPLE]) if set(value) == {_TUPLE} else value

    return json.loads(arrays[_VALUES].tobytes(), object_hook=restored)


def _same(first: Arrays, second: Arrays | None) -> bool:
    return (
        second is not None
        and first.keys() == second.keys()
        and all(np.array_equal(array, second[name]) for name, array in first.items())
    )
