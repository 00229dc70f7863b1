"""``convscope explore``: a run's network, live in the browser."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from convscope.cli.output import say, show_json
from convscope.cli.parsing import DataNow, Device, Json, Run
from convscope.errors import UsageError, expected_got


def explore(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(help="Write this .html file. [default: explorer.html in the run]")
    ] = None,
    data: DataNow = None,
    images: Annotated[int, typer.Option(help="How many test images it carries at most.", min=1)] = 200,
    open: Annotated[
        bool | None, typer.Option("--open/--no-open", help="Show it in a browser. [default: on a terminal]")
    ] = None,
    _device: Device = None,
    json: Json = False,
) -> None:
    """Write a page in which a run's network computes.

    Draw, walk through the network, change it, train it: one file that needs no server and no connection.

    Example: convscope explore latest
    """
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(expected_got("a file that ends in .html for --out", out))
    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(expected_got("a file in an existing folder for --out", out))
    from convscope.explorer import write_page

    written = write_page(run, out, images=images, data=data, consulted_by="convscope explore")
    address = written.file.absolute().as_uri()
    if open if open is not None else sys.stdout.isatty() and not json:
        webbrowser.open(address)
    if json:
        show_json(written.to_json())
        return
    live = written.layers - len(written.shown_only)
    say(f"Explorer: {address} ({written.bytes / 1e6:.1f} MB)", whole=True)
    say(f"{live} of {written.layers} layers compute in the page.")
    if written.shown_only:
        say(f"Shown as recorded: {', '.join(written.shown_only)}.")
    if written.weight_bits < 32:
        say(f"Kernels are rounded to {written.weight_bits} bits, so that the file keeps below 8 MB.")
