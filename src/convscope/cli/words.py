"""What a person types for a time, a share and an augmentation."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from convscope.errors import UsageError, sentence, unknown_name

if TYPE_CHECKING:
    from convscope.augmentation import Augmentation

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def read_duration(text: str) -> float:
    """Read a time in seconds, minutes or hours.

    Parameters
    ----------
    text : str
        ``60``, ``60s``, ``2m``, ``1.5h`` or ``1h30m``.

    Returns
    -------
    float
        Seconds, above 0.

    Raises
    ------
    UsageError
        When it is something else.

    Examples
    --------
    >>> read_duration("1h30m"), read_duration("45s")
    (5400.0, 45.0)
    """
    plain = text.replace(" ", "").lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)(min|[smh]?)", plain)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != plain or not seconds > 0:
        raise UsageError(sentence("a time such as 60s, 2m or 1h", repr(text)))
    return seconds


def read_share(text: str) -> float:
    """Read a share, in per cent where it says so or is above 1.

    Parameters
    ----------
    text : str
        ``99%``, ``99.5`` or ``0.995``.

    Returns
    -------
    float
        Above 0 to 1.

    Raises
    ------
    UsageError
        When it is something else.

    Examples
    --------
    >>> read_share("99%"), read_share("0.5")
    (0.99, 0.5)
    """
    number = text.strip().removesuffix("%").strip()
    try:
        value = float(number)
    except ValueError as error:
        raise UsageError(sentence("an accuracy such as 99%", repr(text))) from error
    if text.strip().endswith("%") or value > 1:
        value /= 100
    if not 0 < value <= 1:
        raise UsageError(sentence("an accuracy above 0% and up to 100%", repr(text)))
    return value


def read_augmentation(text: str) -> Augmentation:
    """Read a preset, single settings, or a preset with settings of one's own.

    Parameters
    ----------
    text : str
        ``photographs``; ``flip=horizontal,shift=0.1``; ``photographs,mixup=0.2``; ``none``.

    Returns
    -------
    Augmentation
        The settings named last win.

    Raises
    ------
    UsageError
        When an amount is no number, or out of its range.
    UnknownNameError
        When there is no such preset or setting.

    Examples
    --------
    >>> read_augmentation("digits, rotate=0, shift=0.1").zoom
    0.1
    """
    from convscope.augmentation import PRESETS, Augmentation

    values = Augmentation().to_dict()
    for word in filter(None, re.split(r"[,\s]+", text.strip())):
        name, equals, amount = word.partition("=")
        if not equals:
            if name not in PRESETS:
                raise unknown_name("augmentation", name, [*PRESETS, *(f"{setting}=…" for setting in values)])
            values |= PRESETS[name].to_dict()
        elif name not in values:
            raise unknown_name("augmentation setting", name, values)
        else:
            values[name] = amount if name == "flip" else _amount(name, amount)
    return Augmentation.from_dict(values)


def _amount(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(sentence(f"a number as {name}", repr(text))) from error
