"""``convscope inspect``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli.output import say, show_json, table
from convscope.errors import UsageError, sentence

if TYPE_CHECKING:
    from convscope.inspection import NetworkDescription


def inspect(
    target: Annotated[str, typer.Argument(help="A network's name, a run directory, or a .keras file.")],
    input: Annotated[
        str | None, typer.Option(help="Shape of one image, for a network by name. [default: 28x28x1]")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="For a network by name. [default: 10]")] = None,
    data_format: Annotated[str | None, typer.Option(help="channels_last or channels_first.")] = None,
    program: Annotated[bool, typer.Option(help="Show what the fast engine makes of the network.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Show a network's layers: shapes, weights, parameters, costs, and the arithmetic that gives them.

    Example: convscope inspect deep --input 32x32x3 --classes 5
    """
    from convscope.bundle import open_model
    from convscope.inspection import describe, explain_kernel_layouts

    model = open_model(target, parse_shape(input) if input else None, classes, data_format)
    if program:
        _show_program(model, json)
        return
    description = describe(model)
    layouts = explain_kernel_layouts(description)
    if json:
        show_json({**description.to_json(), "kernel_layouts": list(layouts)})
        return
    show_description(description, model.name)
    if layouts:
        say("\nHow kernels are laid out:")
        for line in layouts:
            say(f"  {line}")


def parse_shape(text: str) -> tuple[int, int, int]:
    """Read a shape such as 28x28x1.

    Examples
    --------
    >>> parse_shape("28x28x1")
    (28, 28, 1)
    """
    parts = re.fullmatch(r"([1-9]\d{0,4})[x×,]([1-9]\d{0,4})[x×,]([1-9]\d{0,4})", text)
    if parts is None:
        raise UsageError(sentence("a shape such as 28x28x1", repr(text)))
    first, second, third = map(int, parts.groups())
    return first, second, third


def show_description(description: NetworkDescription, title: str, arithmetic: bool = True) -> None:
    """Print a network's layers as a table, and below it the arithmetic of each."""
    columns = ["layer", "type", "input", "output", "weights", "parameters", "multiply-adds", "sees"]
    rows: list[list[Any]] = [
        [
            layer.name,
            layer.type,
            _shape(layer.input_shape),
            _shape(layer.output_shape),
            ", ".join(_shape(shape) for shape in layer.weight_shapes) or "–",
            f"{layer.parameters:,}",
            "?" if layer.macs is None else f"{layer.macs:,}",
            _shape(layer.receptive_field) if layer.receptive_field else "–",
        ]
        for layer in description.layers
    ]
    macs = "?" if description.macs is None else f"{description.macs:,}"
    rows.append(["all", "", "", "", "", f"{description.parameters:,}", macs, ""])
    table(title, columns, rows, left=(0, 1, 2, 3, 4))
    if arithmetic:
        say("\nThe arithmetic (⌊ ⌋ rounds down, ⌈ ⌉ rounds up):")
        for layer in description.layers:
            say(f"  {layer.name} ({layer.type})")
            for line in layer.arithmetic:
                say(f"    {line}")


def _shape(shape: Any) -> str:
    """Write a shape as 26×26×32, several of them one after the other."""
    if shape and isinstance(shape[0], list | tuple):
        return ", ".join(_shape(one) for one in shape)
    return "×".join("?" if length is None else str(length) for length in shape)


def _show_program(model: Any, json: bool) -> None:
    from convscope.lowering import describe, lower, optimise

    program, reports = optimise(lower(model), training=True, deterministic=True)
    rows = describe(program, reports)
    if json:
        show_json({"program": rows})
        return
    columns = list(rows[0])
    table(
        f"{model.name} as a program", columns, [[row[key] for key in columns] for row in rows], left=range(9)
    )
