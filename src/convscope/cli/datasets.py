"""``convscope data list | fetch | info``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from convscope.cli.output import say, show_json, table
from convscope.errors import ConvscopeError

app = typer.Typer(
    help="The datasets: which there are, where they lie, what is in them.", no_args_is_help=True
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command("list")
def list_datasets(json: Json = False) -> None:
    """List the datasets that have a name.

    Example: convscope data list
    """
    from convscope.data.catalog import CATALOG

    rows = [(name, entry.summary, _state(name)) for name, entry in CATALOG.items()]
    if json:
        keys = ("name", "summary", "state")
        show_json({"datasets": [dict(zip(keys, row, strict=True)) for row in rows]})
    else:
        table("Datasets", ["name", "what it is", "state"], rows, left=(0, 1, 2))


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="A dataset's name.")], json: Json = False) -> None:
    """Make sure that a dataset is on this machine, downloading what is missing.

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


def _state(name: str) -> str:
    """Say whether a dataset can be loaded without a network."""
    from convscope.data.catalog import load

    try:
        load(name, download=False)
    except ConvscopeError as error:
        return f"not here: {error}"
    return "ready"


def _show(name: str, json: bool) -> None:
    import numpy as np

    from convscope.data.catalog import load

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
