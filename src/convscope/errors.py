"""What can go wrong, and the one form of sentence that says so.

    ConvscopeError                 exit code 2
    ├── UsageError                 2  a wrong command or argument
    │   ├── UnknownNameError       2  a name that nothing answers to; carries the nearest valid ones
    │   ├── ArchitectureError      2  a network that cannot exist; carries the arithmetic that fails
    │   └── LoweringError          2  a model that the fast engine cannot run
    ├── DataError                  3  data missing, unreadable or wrong
    │   └── DataNotFoundError      3  data that is nowhere and cannot be downloaded
    ├── RunError                   3  a run directory that cannot be read or written
    ├── ExportError                3  an export that cannot be made, or does not do what its source does
    ├── DivergedError              4  training produced NaN or infinity
    └── InterruptedRunError      130  a person stopped the training; what was reached is kept

Every message is one or two lines: what was expected, what was found, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConvscopeError(Exception):
    """Base of every error that a person can cause and cure; the command line shows only its message."""

    exit_code = 2


class UsageError(ConvscopeError, ValueError):
    """A wrong command or argument."""


class UnknownNameError(UsageError):
    """A name that nothing answers to."""


class ArchitectureError(UsageError):
    """A network that cannot exist for the given input."""


class LoweringError(UsageError):
    """A model that the fast engine cannot run; the message names the layer and its settings."""


class DataError(ConvscopeError):
    """Data that is missing, unreadable or wrong."""

    exit_code = 3


class DataNotFoundError(DataError):
    """Data that is neither on this machine nor available over the network."""


class RunError(ConvscopeError):
    """A run directory that cannot be read or written."""

    exit_code = 3


class ExportError(ConvscopeError):
    """An export that cannot be made, or does not do what its source does."""

    exit_code = 3


class DivergedError(ConvscopeError):
    """Training that produced NaN or infinity."""

    exit_code = 4


class InterruptedRunError(ConvscopeError):
    """A training that a person stopped; the run holds what was reached."""

    exit_code = 130


def expected_got(expected: str, got: object, hint: str = "") -> str:
    """Say what was expected, what was found and what to do, in the project's one form."""
    text = f"Expected {expected}, got {got}."
    return f"{text} {hint}" if hint else text


def unknown_name(kind: str, name: str, valid: Iterable[str], hint: str = "") -> UnknownNameError:
    """Make the error for a name that does not exist, with the nearest valid one, or else a hint."""
    options = list(valid)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else hint
    return UnknownNameError(expected_got(f"one of the {kind}s {', '.join(options)}", repr(name), hint))


def reason(error: BaseException) -> str:
    """Say in one short line why a library failed."""
    # Keras wraps an error once for each layer of its own; what happened stands behind the last of these.
    innermost = str(error).rsplit("Exception encountered:", maxsplit=1)[-1]
    lines = [line.strip() for line in innermost.splitlines() if line.strip()]
    text = lines[0].rstrip(".") if lines else type(error).__name__
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= 200 else f"{shown[:199]}…"
