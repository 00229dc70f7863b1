"""The space file of a sweep: which settings of ``train`` are fixed, and how others are searched."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convscope.errors import DataError, UsageError, expected_got, unknown_name

# Groups of settings: the file may hold a table of them, or `augment.shift` for a single one.
GROUPS = ("augment", "optimizer_settings")
# These decide which images are held back: trials that differ in them could not be compared.
FIXED_ONLY = ("seed", "validation_share")
# Tables of arguments for Optuna's sampler and pruner.
ARGUMENTS = ("sampler", "pruner")
_LARGEST = 1e300
_RANGE = ("low", "high", "step", "log")


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included: whole ones where all three are, in steps or not."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether these are whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    @property
    def ends(self) -> tuple[float, ...]:
        """What stands for all its values where they are checked."""
        return (self.low, self.high)

    def grid(self) -> list[float] | None:
        """List its values; None where there is no end of them."""
        step = self.step or (1 if self.whole else None)
        if step is None or self.log:
            return None
        return [self.low + number * step for number in range(round((self.high - self.low) / step) + 1)]

    def __str__(self) -> str:
        step = f" in steps of {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{step}{' (log)' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[str | float | bool, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """What stands for all its values where they are checked."""
        return self.values

    def grid(self) -> list[Any]:
        """List its values."""
        return list(self.values)

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Space:
    """What a space file says; ``sampler`` and ``pruner`` are arguments for Optuna's."""

    fixed: Mapping[str, Any]
    searched: Mapping[str, Range | Choice]
    sampler: Mapping[str, Any]
    pruner: Mapping[str, Any]

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Give the settings of one trial as ``train`` takes them; groups are put together."""
        groups: dict[str, dict[str, Any]] = {}
        settings: dict[str, Any] = {}
        for name, value in {**self.fixed, **values}.items():
            group, dot, inner = name.partition(".")
            if dot:
                groups.setdefault(group, {})[inner] = value
            else:
                settings[name] = value
        for group, inside in groups.items():
            text = ",".join(f"{name}={value}" for name, value in inside.items())
            settings[group] = text if group == "augment" else inside
        return settings

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON values, by which two sweeps are known to be the same."""
        searched = {
            name: list(one.values) if isinstance(one, Choice) else asdict(one)
            for name, one in self.searched.items()
        }
        own = {"sampler": dict(self.sampler), "pruner": dict(self.pruner)}
        return {"fixed": dict(self.fixed), "searched": searched, **own}


def read_space(path: Path, known: Collection[str]) -> Space:
    """Read a space file; ``known`` are the settings that there are."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or "a file that is no text"
        raise DataError(expected_got(f"a TOML file of settings at {path}", found)) from error
    return parse_space(text, known, str(path))


def parse_space(text: str, known: Collection[str], where: str = "the space file") -> Space:
    r"""Parse a space file; whatever is wrong in it is a UsageError of one line."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(expected_got(f"{where} to be TOML", " ".join(str(error).split()))) from error
    arguments = {name: _arguments(table.pop(name, {}), name, where) for name in ARGUMENTS}
    fixed: dict[str, Any] = {}
    searched: dict[str, Range | Choice] = {}
    for name, value in _entries(table, known):
        try:
            read = _read(value)
        except UsageError as error:
            raise UsageError(f"{where}, {name}: {error}") from error
        if not isinstance(read, Range | Choice):
            fixed[name] = read
        elif name in FIXED_ONLY:
            hint = "It decides by which images trials are compared."
            raise UsageError(f"{where}, {name}: {expected_got('one value', str(read), hint)}")
        else:
            searched[name] = read
    if not searched:
        hint = "Such as: learning_rate = {low = 1e-4, high = 1e-1, log = true}."
        raise UsageError(expected_got(f"{where} to name at least one setting to search", "none", hint))
    return Space(fixed, searched, **arguments)


def _entries(table: Mapping[str, Any], known: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Name every entry, those of a group behind its name."""
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            raise unknown_name("setting", key, known)
        if name in GROUPS and isinstance(value, dict):
            odd = [inner for inner in value if not inner.isidentifier()]
            if odd or not value:
                found = repr(odd[0]) if odd else "none"
                raise UsageError(expected_got(f"names of settings in the table {name}", found))
            yield from ((f"{name}.{inner}", inside) for inner, inside in value.items())
        else:
            yield name, value


def _arguments(value: object, name: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        hint = f"Its name is the option --{name}."
        raise UsageError(expected_got(f"{name} in {where} to be a table of arguments", repr(value), hint))
    return value


def _read(value: object) -> Any:
    """Read an entry: a value, a list of values, or a range."""
    if isinstance(value, dict):
        for key in value:
            if key not in _RANGE:
                raise unknown_name("key of a range", key, _RANGE)
        return _range(**value)
    if isinstance(value, list):
        if not value or not all(isinstance(one, str | int | float) for one in value):
            raise UsageError(expected_got("a list of words or numbers", value))
        if any(isinstance(one, float) and not math.isfinite(one) for one in value):
            raise UsageError(expected_got("finite numbers", value))
        if len({(isinstance(one, bool), one) for one in value}) < len(value):
            raise UsageError(expected_got("a list of different values", value))
        return Choice(tuple(value)) if len(value) > 1 else value[0]
    if not isinstance(value, str | int | float):
        found = f"{type(value).__name__} {value}"
        raise UsageError(expected_got("a word, a number, a list or a range", found))
    return value


def _range(low: Any = None, high: Any = None, step: Any = None, log: Any = False) -> Range:
    """Refuse a range that has no values, or none between its ends."""
    numbers = [low, high] if step is None else [low, high, step]
    if not all(_is_number(one) for one in numbers):
        found = f"low = {low}, high = {high}" + (f", step = {step}" if step is not None else "")
        raise UsageError(expected_got("a range of numbers, low and high", found))
    if not isinstance(log, bool):
        raise UsageError(expected_got("log = true or false", repr(log)))
    if not low < high:
        raise UsageError(expected_got("low to be below high", f"{low} and {high}"))
    if log and step is not None:
        raise UsageError(expected_got("log or step", "both", "Leave out one of the two."))
    if log and low <= 0:
        raise UsageError(expected_got("low above 0 where log = true", low))
    if step is not None:
        steps = (high - low) / step if step > 0 else 0
        if round(steps) < 1 or abs(steps - round(steps)) > 1e-6:
            found = f"a step of {step} from {low} to {high}"
            raise UsageError(expected_got("a range that is a whole number of steps", found))
    if not isinstance(low, int) or not isinstance(high, int) or not isinstance(step or 1, int):
        low, high, step = float(low), float(high), None if step is None else float(step)
    return Range(low, high, step, log)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
