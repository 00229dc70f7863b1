"""What a command looks at before it loads anything large, so that a wrong one is answered at once.

And what it does where it has an answer and no place to write.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from convscope.errors import DataError, RunError, sentence

STANDARD_INPUT = "-"


def find_run(name: str) -> Path:
    """Find the run that was typed, before anything large is loaded."""
    from convscope.runs import find_run

    return find_run(name)


def find_run_or_export(name: str) -> Path:
    """Find the run that was typed; a folder that ``convscope export`` wrote will do, too."""
    return Path(name) if (Path(name) / "bundle.json").is_file() else find_run(name)


Run = Annotated[
    Path,
    typer.Argument(
        parser=find_run, help="A run's directory, the beginning of its name, or latest. See `convscope runs`."
    ),
]


def require_inputs(names: Sequence[str]) -> None:
    """Refuse a prediction of which no input is there.

    Parameters
    ----------
    names : sequence of str
        Files and folders, as they were typed; ``-`` is standard input.

    Raises
    ------
    DataError
        If none of them exists; one that does is worth loading the network for.
    """
    if any(name == STANDARD_INPUT or Path(name).exists() for name in names):
        return
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    found = f"no such file{'s' if others else ''}"
    raise DataError(sentence(f"{names[0]}{others} to be an image", found, "Check its path."))


@contextmanager
def answered_all_the_same(
    write: Callable[[], object], refused_before: RunError | None = None
) -> Iterator[None]:
    """Write something, then let the block show the answer; a disk that refuses is told behind it.

    Parameters
    ----------
    write : callable
        Called first.
    refused_before : RunError, optional
        What the disk has refused already, to be told too.

    Raises
    ------
    RunError
        After the block, if the disk refused; before it, whatever else is wrong with what is written.
    """
    refusals = [refused_before] if refused_before else []
    try:
        write()
    except RunError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        refusals.append(error)
    yield
    if refusals:
        raise RunError("\n".join(map(str, refusals))) from refusals[-1]


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
