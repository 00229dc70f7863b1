"""``convscope doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from convscope.cli.opening import Device
from convscope.cli.output import fail, say, show_json, table

if TYPE_CHECKING:
    from convscope.doctor import Diagnosis

SELF_TEST_FAILED = 1


def doctor(
    _device: Device = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Show what this machine can do and what convscope makes of it, and test it against Keras in seconds.

    The tables are made to be pasted into a bug report. Exits with 1 if the self-test fails.

    Example: convscope doctor
    """
    from convscope.doctor import examine

    diagnosis = examine()
    if json:
        show_json(diagnosis.to_json())
    else:
        _show(diagnosis)
    if not diagnosis.passed:
        failed = ", ".join(check.name for check in diagnosis.checks if not check.passed)
        fail(f"The self-test failed: {failed}. Please report it with the tables above.")
        raise typer.Exit(SELF_TEST_FAILED)


def _show(diagnosis: Diagnosis) -> None:
    for section, facts in diagnosis.facts.items():
        table(section.capitalize(), ["", "found"], list(facts.items()), left=(0, 1))
    rows = [
        (check.name, "yes" if check.passed else "NO", check.detail, f"{check.seconds:.1f} s")
        for check in diagnosis.checks
    ]
    table("Self-test", ["what", "as Keras", "how close", "time"], rows, left=(0, 1, 2))
    if diagnosis.passed:
        say("The engine computes what Keras computes on this machine.")
