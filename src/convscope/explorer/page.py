"""A run → one HTML file: the modules in ``page/`` bundled into one script and one for the Worker."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from convscope import web_page
from convscope.contents import Contents, read_contents
from convscope.evaluation import test_set_log
from convscope.explorer.payload import IMAGES, make_payload
from convscope.runs import RunDirectory

PAGE = Path(__file__).parent / "page"
FILE = "explorer.html"
MAIN, WORKER = "main.js", "worker.js"
COLOURS = PAGE / "colours.css"  # of the report and a server's pages too
STYLES = ("colours.css", "style.css", "walk.css", "train.css")

_IMPORT = re.compile(r'^import\s+\{([^}]*)\}\s+from\s+"\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export\s+((?:async\s+)?(?:function\*?|class|const|let)\s+(\w+))", re.MULTILINE)


@dataclass(frozen=True)
class Written:
    """The page of a run: its file, how many layers it computes, and which it only shows."""

    file: Path
    layers: int
    shown_only: tuple[str, ...]
    weight_bits: int

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return self.file.stat().st_size

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return {
            "explorer": str(self.file),
            "bytes": self.bytes,
            "layers": self.layers,
            "live_layers": self.layers - len(self.shown_only),
            "shown_only": list(self.shown_only),
            "weight_bits": self.weight_bits,
        }


def write_page(
    run: str | Path | Contents,
    out: str | Path | None = None,
    *,
    images: int = IMAGES,
    data: str | Path | None = None,
    consulted_by: str = "",
) -> Written:
    """Write a run's page into its directory, or to a file; whole or not at all.

    `consulted_by` names the command that looks at the test set, which is counted.
    """
    contents = run if isinstance(run, Contents) else read_contents(run, data=data)
    if consulted_by and contents.images is not None:
        test_set_log.log_use(RunDirectory(contents.path), "inspection", by=consulted_by)
    payload = make_payload(contents, images=images)
    file = contents.path / FILE if out is None else Path(out)
    RunDirectory(file.absolute().parent).write_bytes(file.name, fill(payload).encode())
    layers = payload["network"]["layers"]
    shown_only = tuple(layer["name"] for layer in layers if not layer["live"])
    return Written(file, len(layers), shown_only, payload["weights"]["bits"])


def render_page(
    run: str | Path | Contents,
    *,
    images: int = IMAGES,
    data: str | Path | None = None,
    served: bool = False,
) -> str:
    """Make a run's page: HTML that needs nothing but itself; one that is ``served`` may ask its server."""
    return fill(make_payload(run, images=images, data=data), served)


def fill(payload: dict[str, Any], served: bool = False) -> str:
    """Put a payload into the page; style and script are sealed by their hashes: nothing else runs."""
    text = json.dumps(payload, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return web_page.fill(
        web_page.templates(PAGE).get_template("index.html"),
        web_page.read_joined(PAGE / name for name in STYLES),
        bundle(MAIN),
        title=payload["title"],
        served=served,
        worker=Markup(bundle(WORKER)),  # noqa: S704  the package's own files
        payload=Markup(text.replace("<", "\\u003c")),  # noqa: S704  no tag can end it
    )


@cache
def bundle(*entries: str) -> str:
    """Join modules and all that they import into one script: each in a function, imported ones first."""
    modules: dict[str, str] = {}
    for entry in entries:
        _collect(entry, modules, ())
    return '"use strict";\nconst modules = {};\n' + "\n".join(modules.values())


def _collect(name: str, modules: dict[str, str], above: tuple[str, ...]) -> None:
    if name in modules:
        return
    if name in above:
        raise ValueError(f"{' imports '.join((*above, name))}: modules in a circle")
    source = (PAGE / name).read_text(encoding="utf-8")
    for found in _IMPORT.finditer(source):
        _collect(found[2], modules, (*above, name))
    exported = [found[2] for found in _EXPORT.finditer(source)]
    body = _EXPORT.sub(r"\1", _IMPORT.sub(r'const {\1} = modules["\2"];\n', source))
    if left := re.search(r"^(import|export)\b.*", body, re.MULTILINE):
        raise ValueError(f"{name}: expected import {{ a }} from or export in front of a name, got {left[0]}")
    modules[name] = (
        f'modules["{name}"] = (() => {{\n{body.strip()}\nreturn {{ {", ".join(exported)} }};\n}})();'
    )
