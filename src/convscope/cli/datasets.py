"""``convscope data list | fetch | info | check | undo``."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli import waiting
from convscope.cli.output import explain, say, show_help, show_json, table
from convscope.cli.parsing import Json
from convscope.errors import ConvscopeError, DataError, expected_got

if TYPE_CHECKING:
    from convscope.data.dataset import Dataset
    from convscope.data.quality import DataReport
    from convscope.data.sources.base import Finding

# How many files of a finding a person is shown.
SHOWN = 20

app = typer.Typer(
    help="The datasets: which there are, where they lie, what is in them.", invoke_without_command=True
)
app.callback()(show_help)


@app.command("list")
def list_datasets(json: Json = False) -> None:
    """List the datasets that have a name.

    Example: convscope data list
    """
    from convscope.data.builtin import CATALOG

    rows = [(name, entry.summary, _state(name)) for name, entry in CATALOG.items()]
    if json:
        keys = ("name", "summary", "state")
        show_json({"datasets": [dict(zip(keys, row, strict=True)) for row in rows]})
    else:
        table("Datasets", ["name", "what it is", "state"], rows, left=(0, 1, 2))


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="A dataset's name.")], json: Json = False) -> None:
    """Download what is missing of a dataset.

    Example: convscope data fetch mnist
    """
    _show(name, json)


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="A dataset's name, or a folder of IDX files.")],
    json: Json = False,
) -> None:
    """Show what is in a dataset: counts, shapes, classes, fingerprint.

    Example: convscope data info digits
    """
    _show(name, json)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="A folder of images, or any file that can be trained on.")],
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what takes long.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet of the images to this PNG file.")
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Processes that read the images; the report is the same with any number.")
    ] = 1,
    json: Json = False,
) -> None:
    """Look for what is wrong with your images; changes nothing.

    Of many images, what was read until it is stopped is not read again.

    Example: convscope data check photos/ --sheet photos.png
    """
    from convscope.data.ingest import ReadOptions
    from convscope.data.quality import check_path

    with waiting.counting("Reading images", json) as progress:
        report = check_path(path, quick, ReadOptions(processes=workers), progress)[0]
    if sheet is not None:
        _write_sheet(path, sheet)
    if json:
        show_json(report.to_json())
    else:
        _show_report(report)
        if not report.meaningless:  # else the error that follows says so
            say(f"Verdict: {report.verdict}")
    _refuse_meaningless(report)


@app.command()
def undo(
    folder: Annotated[Path, typer.Argument(help="What `convscope serve RUN --keep` was given.")],
    json: Json = False,
) -> None:
    """Take back the latest corrected label.

    Its file is moved into undone/.

    Example: convscope data undo corrections
    """
    from convscope.data.corrections import UNDONE, undo_correction

    undone, left = undo_correction(folder)
    if json:
        show_json({"file": undone.name, "label": undone.label, "left": left})
    else:
        say(f"Taken back: {undone.label!r}, now in {folder / UNDONE / undone.name}. {left:,} left.")


def check_first(name: str, reading: dict[str, Any], quiet: bool) -> Dataset | None:
    """Look quickly at somebody's images before they are trained on; say what is left out, file by file.

    Image files are given back as a dataset, so that they need not be looked for and read again. ``reading``
    are the arguments that ``load`` will be given. Data that teach nothing are refused, also where ``quiet``.
    """
    from convscope.data.ingest import ReadOptions
    from convscope.data.loading import to_dataset
    from convscope.data.quality import check_before_training

    report, collection = check_before_training(name, ReadOptions(**reading))
    if report is None:
        return None
    if not quiet:
        _show_findings(finding for finding in report.findings if finding.severity != "info")
        if report.left_out:
            say(f"Left out: {len(report.left_out):,} files, named above. "
                f"`convscope data check {shlex.quote(name)}` looks closer.")  # fmt: skip
    _refuse_meaningless(report)
    return None if collection is None or collection.survey is None else to_dataset(collection)


def _refuse_meaningless(report: DataReport) -> None:
    if not report.meaningless:
        return
    if report.meaningless.startswith("Expected"):  # an error on the way to the images, a sentence already
        raise DataError(report.meaningless)
    raise DataError(expected_got("data that a network can learn from", "none", report.meaningless))


def _show_report(report: DataReport) -> None:
    if not report.files:  # nothing was read, and the error that follows says why
        return
    height, width, channels = report.size
    say(f"{report.path}: {report.layout}, {report.used:,} of {report.files:,} images can be used, "
        f"brought to {height}×{width}×{channels}")  # fmt: skip
    parts = list(report.counts)
    classes = sorted({name for counts in report.counts.values() for name in counts})
    rows = [[name, *(f"{report.counts[part].get(name, 0):,}" for part in parts)] for name in classes]
    if rows:
        table("Images of each class", ["class", *parts], rows)
    _show_findings(report.findings)


def _show_findings(findings: Iterable[Finding]) -> None:
    for finding in findings:
        say(f"{finding.severity}: {finding.message} {finding.advice}".rstrip())
        details = finding.details or ("",) * len(finding.names)
        for name, detail in zip(finding.names[:SHOWN], details, strict=False):
            say(f"    {name}{': ' if detail else ''}{detail}")
        if len(finding.names) > SHOWN:
            say(f"    … and {len(finding.names) - SHOWN} more; --json lists all")


def _write_sheet(path: Path, target: Path) -> None:
    """Draw a contact sheet of the images that can be used."""
    from convscope.data.ingest import open_path
    from convscope.data.quality import contact_sheet
    from convscope.plotting import plot_contact_sheet, save_figure

    save_figure(plot_contact_sheet(contact_sheet(open_path(path))), target)


def _state(name: str) -> str:
    """Say whether a dataset can be loaded without a network."""
    from convscope.data.loading import load

    try:
        load(name, download=False)
    except ConvscopeError as error:
        return f"not here: {error}"
    return "ready"


def _show(name: str, json: bool) -> None:
    import numpy as np

    from convscope.data.loading import load

    dataset = load(name)
    counts: dict[str, Any] = {
        part: np.bincount(split.labels, minlength=len(dataset.class_names)).tolist()
        for part, split in (("train", dataset.train), ("test", dataset.test))
    }
    if json:
        show_json(
            {
                "name": dataset.name,
                "fingerprint": dataset.fingerprint,
                "input_shape": list(dataset.input_shape),
                "class_names": list(dataset.class_names),
                "counts": {part: sum(values) for part, values in counts.items()},
                "per_class": counts,
            }
        )
        return
    rows = list(zip(dataset.class_names, counts["train"], counts["test"], strict=True))
    rows.append(("all", len(dataset.train), len(dataset.test)))
    height, width, channels = dataset.input_shape
    table(f"{dataset.name}: images of {height}×{width}×{channels}", ["class", "training", "test"], rows)
    say(f"Fingerprint: {dataset.fingerprint}")
    explain("fingerprint")
