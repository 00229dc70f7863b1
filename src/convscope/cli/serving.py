"""A network in the browser: ``convscope explore`` and ``convscope serve``."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from convscope.cli.output import say, show_json, warn
from convscope.cli.parsing import DataNow, Device, Json, Run, find_run_or_export
from convscope.errors import ConvscopeError, UsageError, expected_got

SHORTEST_TOKEN = 16


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


def _find(name: str) -> Path:
    if Path(name).is_file():
        raise UsageError(expected_got("a run, or a folder that export wrote", f"the file {name}"))
    return find_run_or_export(name)


def serve(
    run: Annotated[Path, typer.Argument(parser=_find, help="A run, or a folder that export wrote.")],
    host: Annotated[
        str, typer.Option(help="Where to listen: 0.0.0.0 for all that reach this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="CONVSCOPE_TOKEN",
            help="What others have to send. [default: none on 127.0.0.1; elsewhere one is made]",
        ),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep corrected labels with their images in this folder.")
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="A further name under which others reach this machine, such as models.example.org."
        ),
    ] = None,
    _device: Device = None,
    json: Json = False,
) -> None:
    """Serve a network: a page, predictions, corrections.

    Until Ctrl-C or SIGTERM; what was accepted by then is answered. The interface is described at /docs.

    Example: convscope serve runs/my-run --keep corrections
    """
    from convscope.environment import require_package

    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        require_package(package, "serve")
    if token is not None and len(token) < SHORTEST_TOKEN:
        hint = "Leave it out where one is to be made."
        raise UsageError(
            expected_got(f"a token of at least {SHORTEST_TOKEN} characters", f"{len(token)}", hint)
        )
    if token is not None and not (token.isascii() and token.isprintable() and token == token.strip()):
        hint = "A header carries nothing else for certain."
        raise UsageError(expected_got("a token of ASCII characters, no space at its ends", "another", hint))
    if keep is not None and keep.exists() and not keep.is_dir():
        raise UsageError(expected_got("a folder for --keep", f"the file {keep}"))
    from convscope.serving.server import address_of, is_loopback, open_socket

    with open_socket(host, port) as opened:  # before the network is loaded, which takes longer
        local = is_loopback(opened)
        made = token is None and not local
        token = secrets.token_urlsafe(32) if made else token
        from convscope.data.corrections import CorrectionStore
        from convscope.export import load_bundle
        from convscope.serving import create_app, serve
        from convscope.serving.guard import LOOPBACK, Gate

        everywhere = ipaddress.ip_address(opened.getsockname()[0]).is_unspecified
        shown = socket.gethostname() if everywhere else host
        names = {*LOOPBACK, shown.lower(), *(one.lower() for one in name or [])}
        gate = Gate(tuple(names), opened.getsockname()[1] if local and not name else None, not local, token)
        app = create_app(
            load_bundle(run),
            page=_page(run),
            title=run.resolve().name,
            gate=gate,
            corrections=CorrectionStore(keep) if keep else None,
        )
        address = address_of(opened, shown)

        def ready() -> None:
            if json:
                show_json({"run": str(run), "address": address, "token": token if made else None})
                return
            say(f"Serving {run} at {address} (Ctrl-C ends it)", whole=True)
            if made:
                say(
                    f"Token, to be sent as a header or typed where a browser asks for a password: {token}",
                    whole=True,
                )

        serve(app, opened, ready)


def _page(run: Path) -> str | None:
    """Make the explorer of a run; an export, and a run that cannot be explored, has a smaller page."""
    if (run / "bundle.json").is_file():
        return None
    from convscope.explorer import render_page

    try:
        return render_page(run, served=True)
    except ConvscopeError as error:
        warn(f"The page is a small one: {error}")
        return None
