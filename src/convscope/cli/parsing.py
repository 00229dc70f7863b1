"""What is typed: options that commands share, and how runs, times, shapes and the like are read.

A wrong one is answered before anything large is loaded.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.errors import DataError, UsageError, expected_got, unknown_name

if TYPE_CHECKING:
    from convscope.augmentation import Augmentation

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
DataNow = Annotated[
    str | None, typer.Option("--data", help="Where the data are now. [default: where the run found them]")
]


def find_run(name: str) -> Path:
    """Find the run that was typed, before anything large is loaded."""
    from convscope.runs import find_run

    return find_run(name)


def find_run_or_export(name: str) -> Path:
    """Find the run that was typed; a folder that ``convscope export`` wrote will do, too."""
    if Path(name).is_file():
        hint = f"To take the newest run: convscope predict latest {shlex.quote(name)}."
        raise UsageError(expected_got("a run before the images", f"the file {name}", hint))
    return Path(name) if (Path(name) / "bundle.json").is_file() else find_run(name)


Run = Annotated[
    Path,
    typer.Argument(
        parser=find_run, help="A run's directory, the beginning of its name, or latest. See `convscope runs`."
    ),
]


def require_inputs(names: Sequence[str]) -> None:
    """Refuse a prediction of which no input is there; one that is, is worth loading the network for."""
    if any(name == "-" or Path(name).exists() for name in names):
        return
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    found = f"no such file{'s' if others else ''}"
    raise DataError(expected_got(f"{names[0]}{others} to be an image", found, "Check its path."))


def _compute_on(context: typer.Context, name: str | None) -> str | None:
    """Compute on the device asked for until the command ends; refuse one that is not there."""
    chosen = name or os.environ.get("KERAS_TORCH_DEVICE", "cpu")
    if name or chosen != "cpu":  # which is always there, so that nothing large need be loaded to see it
        from convscope.lowering.devices import computing_on, require_device

        context.with_resource(computing_on(require_device(chosen)))
    return name


# For every command that computes with a network; the callback does it, so the command need not look.
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        callback=_compute_on,
        help="Where to compute: cpu, cuda or mps. [default: a GPU where torch sees one]",
    ),
]


# Its targets are read by the command, before it reads data.
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        help="Send the run to mlflow, tensorboard or wandb, as NAME or NAME=ADDRESS; repeatable.",
    ),
]


def read_duration(text: str) -> float:
    """Read a time in seconds, minutes or hours."""
    plain = text.replace(" ", "").lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)(min|[smh]?)", plain)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != plain or not seconds > 0:
        raise UsageError(expected_got("a time such as 60s, 2m or 1h", repr(text)))
    return seconds


def read_share(text: str) -> float:
    """Read a share, in per cent where it says so or is above 1."""
    number = text.strip().removesuffix("%").strip()
    try:
        value = float(number)
    except ValueError as error:
        raise UsageError(expected_got("an accuracy such as 99%", repr(text))) from error
    if text.strip().endswith("%") or value > 1:
        value /= 100
    if not 0 < value <= 1:
        raise UsageError(expected_got("an accuracy above 0% and up to 100%", repr(text)))
    return value


def read_augmentation(text: str) -> Augmentation:
    """Read a preset, single settings, or a preset with settings of your own; those named last win."""
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
        raise UsageError(expected_got(f"a number as {name}", repr(text))) from error


def read_position(text: str) -> tuple[int, int]:
    """Read row and column such as 3,4."""
    parts = re.fullmatch(r"(\d{1,5})\s*[,x×]\s*(\d{1,5})", text)
    if parts is None:
        raise UsageError(expected_got("a row and a column such as 3,4", repr(text)))
    return int(parts[1]), int(parts[2])


def read_shape(text: str) -> tuple[int, int, int]:
    """Read a shape such as 28x28x1."""
    parts = re.fullmatch(r"([1-9]\d{0,4})[x×,]([1-9]\d{0,4})[x×,]([1-9]\d{0,4})", text)
    if parts is None:
        raise UsageError(expected_got("a shape such as 28x28x1", repr(text)))
    first, second, third = map(int, parts.groups())
    return first, second, third
