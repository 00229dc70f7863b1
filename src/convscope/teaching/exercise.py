"""The exercise: three growing networks on MNIST, held against the published results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convscope.data.dataset import Dataset
from convscope.data.loading import load
from convscope.errors import DataNotFoundError, unknown_name
from convscope.experiment.config import ExperimentConfig
from convscope.networks import NETWORKS, PUBLISHED
from convscope.runs import write_file

if TYPE_CHECKING:
    from convscope.experiment.running import Result
    from convscope.training.events import Listener


def exercise_data(name: str | None) -> tuple[Dataset, str | None]:
    """Load data by name, or MNIST where it is available, else the digits with a notice for whoever asked."""
    if name is not None:
        return load(name), None
    try:
        return load("mnist"), None
    except DataNotFoundError as error:
        notice = (
            f"MNIST is not available: {error}\nThis run uses scikit-learn's digits instead: 1,797 images."
        )
        return load("digits"), notice


def networks_of(choice: str) -> list[str]:
    """List the networks that a choice means: ``all`` for the three of the exercise."""
    if choice not in (*NETWORKS, "all"):
        raise unknown_name("network", choice, [*NETWORKS, "all"])
    return list(PUBLISHED) if choice == "all" else [choice]


def run_exercise(
    names: Sequence[str],
    config: ExperimentConfig,
    dataset: Dataset,
    out: Path,
    *,
    command: Sequence[str] = (),
    listeners: Sequence[Listener] = (),
    on_begin: Callable[[str], None] = lambda _name: None,
    on_result: Callable[[Result], None] = lambda _result: None,
) -> list[Result]:
    """Run each named network as an experiment in a folder of their own below ``out``, and compare them.

    The configuration's network is replaced by each name in turn; runs that were finished stay.
    """
    # Keras is loaded only once everything that can be checked without it is known to be right.
    from convscope.experiment.several import run_several

    configs = {name: replace(config, network=name) for name in names}
    results = run_several(
        configs, dataset, out, "exercise", command=command, listeners=listeners, on_begin=on_begin,
        on_result=on_result,
    )  # fmt: skip
    content = json.dumps(comparison(results), indent=2).encode()
    write_file(results[0].run.parent / "comparison.json", content)
    return results


def comparison(results: Sequence[Result]) -> list[dict[str, Any]]:
    """List a row for each result, with what was published for its network under ``published``."""
    return [
        {
            "network": result.network,
            "data": result.data,
            "parameters": result.parameters,
            "test_accuracy": result.test.accuracy,
            "test_loss": result.test.loss,
            "seconds": round(result.seconds, 2),
            "run": str(result.run),
            "published": vars(PUBLISHED[result.network]) if result.network in PUBLISHED else None,
        }
        for result in results
    ]
