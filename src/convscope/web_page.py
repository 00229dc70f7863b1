"""An HTML page that needs nothing but itself: style and script stand in it, sealed by their hashes."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from convscope import __version__


def templates(folder: Path) -> jinja2.Environment:
    """Open a folder of templates: facts are text and no markup, and one that is missing is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def read_joined(files: Iterable[Path]) -> str:
    """Read style sheets or scripts as one."""
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def fill(template: jinja2.Template, style: str, script: str, **facts: Any) -> str:
    """Fill a template with facts, and with the package's own style and script: nothing else runs in it."""
    return template.render(
        style=Markup(style),  # noqa: S704  the package's own files
        script=Markup(script),  # noqa: S704  the package's own files
        style_hash=source_hash(style),
        script_hash=source_hash(script),
        version=__version__,
        **facts,
    )


def source_hash(text: str) -> str:
    """Hash a style sheet or script as a Content-Security-Policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
