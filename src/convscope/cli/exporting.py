"""``convscope export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.opening import Device, Run
from convscope.cli.output import say, show_json, table

if TYPE_CHECKING:
    from convscope.export.exporting import ExportReport


def export(
    run: Run,
    format: Annotated[
        str,
        typer.Option(help="onnx, keras, torch (a torch.export program) or module (PyTorch source)."),
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The folder to make. [default: beside the run, RUN-FORMAT]")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="For onnx: an 8-bit network too.")] = False,
    data: Annotated[
        str | None, typer.Option(help="Where the run's data are now. [default: where they were]")
    ] = None,
    _device: Device = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Export a run as a folder that can be used elsewhere, checked against the run on its test images.

    Example: convscope export runs/my-run --format onnx --int8
    """
    from convscope.export.exporting import export_run

    report = export_run(run, format, out, int8=int8, data=data)
    if json:
        show_json(report.to_json())
    else:
        _show(report)
    if report.uncounted:
        raise report.uncounted


def _show(report: ExportReport) -> None:
    """Print what an export is worth."""
    rows = [
        [
            one.name,
            _size(one.size),
            "?" if one.accuracy is None else f"{one.accuracy:.2%}",
            f"{one.same_labels:.2%}",
            f"{one.largest_difference:.1e}",
            *(f"{milliseconds:#.3g} ms" for milliseconds in one.milliseconds.values()),
        ]
        for one in report.networks
    ]
    batches = [f"{batch} image{'s' * (batch > 1)}" for batch in report.networks[0].milliseconds]
    columns = ["network", "size", "accuracy", "same labels", "largest difference", *batches]
    table(f"Checked on {report.images}", columns, rows)
    for note in report.notes:
        say(note)
    say(f"Export: {report.path}")


def _size(size: int) -> str:
    return f"{size / 2**20:.2f} MB" if size >= 2**20 else f"{size / 2**10:.0f} kB"
