"""``convscope inspect`` and ``doctor``: what is inside a network, and what a machine can do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli.output import answered_all_the_same, fail, say, show_json, table
from convscope.cli.parsing import Device, Json, find_run, read_position, read_shape, require_inputs
from convscope.errors import unknown_name

if TYPE_CHECKING:
    from convscope.doctor import Diagnosis
    from convscope.inspection import NetworkDescription
    from convscope.probes import Probe

_SELF_TEST_FAILED = 1


def inspect(
    target: Annotated[str, typer.Argument(help="A network's name, a run, or a .keras file.")],
    input: Annotated[
        str | None, typer.Option(help="Shape of one image, for a network by name. [default: 28x28x1]")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="For a network by name. [default: 10]")] = None,
    data_format: Annotated[str | None, typer.Option(help="channels_last or channels_first.")] = None,
    program: Annotated[
        bool, typer.Option("--program", help="Show what the fast engine makes of the network.")
    ] = False,
    image: Annotated[
        str | None,
        typer.Option(help="Look inside a run with this test image, counted from 0, or with an image file."),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="The layer to look at. [default: the first convolution]")
    ] = None,
    position: Annotated[
        str | None,
        typer.Option(help="Row and column of one activation, such as 3,4. [default: the strongest]"),
    ] = None,
    channel: Annotated[
        int | None, typer.Option(help="Channel or unit of that activation. [default: the strongest]")
    ] = None,
    map: Annotated[
        bool, typer.Option("--map", help="Draw a map of the test images too; it takes some seconds.")
    ] = False,
    figures: Annotated[
        Path | None, typer.Option(help="Where figures are written. [default: figures/ in the run]")
    ] = None,
    _device: Device = None,
    json: Json = False,
) -> None:
    """Show a network's layers, or what one image does in them.

    With the arithmetic behind each number.

    Example: convscope inspect deep --input 32x32x3 --classes 5
    """
    if image is not None or layer is not None:
        where = read_position(position) if position else None
        _probe(find_run(target), parse_image(image or "0"), layer, where, channel, map, figures, json)
        return
    from convscope.model_files import open_model

    model = open_model(_find(target), read_shape(input) if input else None, classes, data_format)
    from convscope.inspection import describe, explain_kernel_layouts

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


def _find(target: str) -> str:
    """Find the run that was meant, unless a network or a file was."""
    from convscope.networks import NETWORKS, is_file_name, require_network
    from convscope.runs import matching_runs

    if target in NETWORKS or (is_file_name(target) and not Path(target).is_dir()):
        require_network(target)
        return target
    word = Path(target).name == target and target != "latest" and not Path(target).exists()
    if word and not matching_runs(target):
        raise unknown_name("network", target, NETWORKS)
    return str(find_run(target))


def parse_image(text: str) -> int | Path:
    """Read the number of a test image, or the path of a file; one named like a number needs ./ before it."""
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else Path(text)


def _probe(
    run: Path,
    image: int | Path,
    layer: str | None,
    position: tuple[int, int] | None,
    channel: int | None,
    with_map: bool,
    figures: Path | None,
    json: bool,
) -> None:
    """Look inside a run with one image: print the arithmetic, write the figures."""
    if isinstance(image, Path):
        require_inputs([str(image)])
    from convscope.plotting import png_bytes
    from convscope.probes import probe_run
    from convscope.runs import RunDirectory

    probe = probe_run(run, image, layer, position, channel, with_map=with_map)
    folder, written = RunDirectory(figures or run / "figures"), []

    def write() -> None:
        subject = image.stem if isinstance(image, Path) else image
        for name, figure in probe.figures.items():
            file = re.sub(r"[^\w.-]", "_", f"image_{subject}_{name}.png")  # a nested layer has a slash
            folder.write_bytes(file, png_bytes(figure))
            written.append(str(folder.path / file))

    with answered_all_the_same(write, probe.uncounted):
        if json:
            show_json({**probe.to_json(), "figures": written})
        else:
            _show_probe(probe)
            say("Figures:" if written else "Figures: none")
            for file in written:
                say(f"  {file}", whole=True)


def _show_probe(probe: Probe) -> None:
    """Print what was found about one image."""
    true = "" if probe.true is None else f"true {probe.true}, "
    say(f"{probe.image_name}: {true}predicted {probe.predicted} ({probe.probability:.3f})\n")
    found = probe.recomputed
    place = "" if found.position is None else f" at row {found.position[0]}, column {found.position[1]}"
    say(f"{found.layer} ({found.type}){place}, channel {found.channel}:")
    for line in found.lines:
        say(f"  {line}")
    say("")
    _show_attributions(probe)
    _show_similar(probe)
    for made in probe.syntheses:
        before, after = made.scores[0], made.scores[-1]
        if made.gain > 0:
            say(f"An image made for {made.target} raises its score from {before:.3g} to {after:.3g}.")
        else:
            say(f"No image was found that raises the score of {made.target} above {before:.3g}.")


def _show_attributions(probe: Probe) -> None:
    """Print how well each method of attribution stands its checks."""
    from convscope.environment import missing
    from convscope.plotting.inspection import METHOD_NAMES

    rows = [
        [
            METHOD_NAMES[one.method],
            f"{gone.area:.3f}",
            f"{gone.random_area:.3f}",
            f"{come.area:.3f}",
            f"{come.random_area:.3f}",
            "yes" if gone.better_than_chance and come.better_than_chance else "no",
        ]
        for one, gone, come in zip(probe.attributions, probe.deletions, probe.insertions, strict=True)
    ]
    columns = ["method", "deletion", "at random", "insertion", "at random", "beats chance"]
    say(
        "What the network looks at, checked by the probability that is left when what a method marks goes "
        "(deletion: small is good) and comes (insertion: large is good):"
    )
    table("", columns, rows)
    if lacking := missing("captum", "attribution"):
        say(f"Integrated gradients and occlusion were left out: {lacking}")
    for one in probe.attributions:
        if one.completeness is not None:
            whole = one.completeness
            say(
                f"{METHOD_NAMES[one.method]} add up to {whole.total:.4g}; the scores of the image and of the "
                f"baseline differ by {whole.difference:.4g} (error {100 * whole.error:.2f} %)."
            )


def _show_similar(probe: Probe) -> None:
    similar = probe.similar
    rows = [
        [name, class_name, f"{similarity:.3f}"]
        for name, class_name, similarity in zip(
            similar.names, similar.classes, similar.similarities, strict=True
        )
    ]
    say(f"\nMost similar in the last hidden layer, of {similar.searched:,} training images:")
    table("", ["image", "class", "similarity"], rows, left=(0, 1))


def show_description(description: NetworkDescription, title: str, arithmetic: bool = True) -> None:
    """Print a network's layers as a table, and below it the arithmetic of each."""
    from convscope.report.formatting import layer_cells

    columns = ["layer", "type", "input", "output", "weights", "parameters", "multiply-adds", "sees"]
    rows = [list(layer_cells(layer).values()) for layer in description.layers]
    macs = "?" if description.macs is None else f"{description.macs:,}"
    rows.append(["all", "", "", "", "", f"{description.parameters:,}", macs, ""])
    # A layer's input is the output before it; weights and type are in the arithmetic below.
    table(title, columns, rows, left=(0, 1, 2, 3, 4), spare=(4, 2, 1))
    if arithmetic:
        say("\nThe arithmetic (⌊ ⌋ rounds down, ⌈ ⌉ rounds up):")
        for layer in description.layers:
            say(f"  {layer.name} ({layer.type})")
            for line in layer.arithmetic:
                say(f"    {line}")


def _show_program(model: Any, json: bool) -> None:
    from convscope.lowering import describe, lower, optimise
    from convscope.lowering.devices import current_device, device_of
    from convscope.report.formatting import shape

    device = str(device_of(model) or current_device())
    program, reports = optimise(lower(model), training=True, deterministic=True, device=device)
    rows = describe(program, reports)
    if json:
        show_json({"program": rows})
        return
    steps = [row for row in rows if "op" in row]
    columns = ["op", "kind", "input", "output", "precision", "algorithm", "runs as"]
    table(
        f"{model.name} as a program, precision and algorithms by fixed rules (training measures them)",
        columns,
        [
            [
                row["op"],
                row["kind"],
                ", ".join(map(shape, row["input_shapes"])),
                ", ".join(map(shape, row["output_shapes"])),
                row["precision"] or "–",
                row["algorithm"] or "–",
                "the Keras layer" if row["keras"] else "torch",
            ]
            for row in steps
        ],
        left=range(len(columns)),
        spare=(2, 1, 6),
    )
    say("\nWhat each pass did:")
    for row in rows:
        if "pass" in row:
            say(f"  {row['pass']}: {'; '.join(row['changes']) or 'nothing to do'}")


def doctor(
    _device: Device = None,
    json: Json = False,
) -> None:
    """Show what this machine can do, and test it against Keras.

    It takes seconds.

    The tables are made to be pasted into a bug report. Exits with 1 if the self-test fails.

    Example: convscope doctor
    """
    from convscope.doctor import examine

    diagnosis = examine()
    if json:
        show_json(diagnosis.to_json())
    else:
        _show_diagnosis(diagnosis)
    if not diagnosis.passed:
        failed = ", ".join(check.name for check in diagnosis.checks if not check.passed)
        fail(f"The self-test failed: {failed}. Please report it with the tables above.")
        raise typer.Exit(_SELF_TEST_FAILED)


def _show_diagnosis(diagnosis: Diagnosis) -> None:
    for section, facts in diagnosis.facts.items():
        table(section.capitalize(), ["", "found"], list(facts.items()), left=(0, 1))
    rows = [
        (check.name, "yes" if check.passed else "NO", check.detail, f"{check.seconds:.1f} s")
        for check in diagnosis.checks
    ]
    table("Self-test", ["what", "as Keras", "how close", "time"], rows, left=(0, 1, 2))
    if diagnosis.passed:
        say("The engine computes what Keras computes on this machine.")
