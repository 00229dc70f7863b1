"""The exercise: three growing networks on MNIST, held against the published results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convscope.data.catalog import Dataset, load
from convscope.errors import DataNotFoundError
from convscope.experiment.config import ExperimentConfig
from convscope.networks import NETWORKS, PUBLISHED
from convscope.runs import RunDirectory, new_folder

if TYPE_CHECKING:
    from convscope.experiment import Result
    from convscope.training.events import Listener


def exercise_data(name: str | None) -> tuple[Dataset, str | None]:
    """Load the exercise's data: MNIST where it can be had, else the digits, loudly.

    Parameters
    ----------
    name : str or None
        A dataset asked for by name is loaded or fails; None asks for MNIST with the digits to fall back on.

    Returns
    -------
    dataset : Dataset
        What will be used.
    notice : str or None
        What a person must be told about it.

    Raises
    ------
    DataError
        If what was asked for cannot be had, or is damaged.

    Examples
    --------
    >>> exercise_data("digits")[0].name
    'digits'
    """
    if name is not None:
        return load(name), None
    try:
        return load("mnist"), None
    except DataNotFoundError as error:
        notice = (
            f"MNIST is not to be had: {error}\nThis run uses scikit-learn's digits instead: 1,797 images."
        )
        return load("digits"), notice


def networks_of(choice: str) -> list[str]:
    """List the networks that a choice means: ``all`` for the three of the exercise.

    Examples
    --------
    >>> networks_of("all")
    ['simple', 'dense', 'deep']
    >>> networks_of("stages")
    ['stages']
    """
    return list(PUBLISHED) if choice == "all" else [choice]


def choices() -> list[str]:
    """List what may be asked for as a network."""
    return [*NETWORKS, "all"]


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
    """Run each network as an experiment, in a folder of their own below ``out``.

    Parameters
    ----------
    names : sequence of str
        Networks by name.
    config : ExperimentConfig
        Its network is replaced by each name in turn.
    dataset : Dataset
        The same for all.
    out : Path
        The folder of all runs.
    command : sequence of str
        The command line that led here, for the record.
    listeners : sequence of callables
        Each receives every training event.
    on_begin, on_result : callables
        Called with the name before, and with the Result after each network.

    Returns
    -------
    list of Result
        In the order of the names.

    Raises
    ------
    ConvscopeError
        As ``run_experiment``; runs that were finished before stay.
    """
    configs = {name: replace(config, network=name) for name in names}
    results = run_several(
        configs, dataset, out, "exercise", command=command, listeners=listeners, on_begin=on_begin,
        on_result=on_result,
    )  # fmt: skip
    folder = RunDirectory(results[0].run.parent)
    folder.write_bytes("comparison.json", json.dumps(comparison(results), indent=2).encode())
    return results


def run_several(
    configs: Mapping[str, ExperimentConfig],
    dataset: Dataset,
    out: Path,
    kind: str,
    *,
    command: Sequence[str] = (),
    listeners: Sequence[Listener] = (),
    on_begin: Callable[[str], None] = lambda _name: None,
    on_result: Callable[[Result], None] = lambda _result: None,
    with_report: bool = True,
    began: float | None = None,
) -> list[Result]:
    """Run experiments one after the other, in a folder of their own below ``out``.

    Parameters
    ----------
    configs : mapping of str to ExperimentConfig
        Each experiment by the name of its run directory.
    dataset : Dataset
        The same for all.
    out : Path
        The folder of all runs.
    kind : str
        Stands in the folder's name, between its time and the dataset.
    command, listeners, on_begin, on_result
        As for ``run_exercise``; ``on_begin`` receives the run's name.
    with_report : bool
        Write each run's ``report.html``.
    began : float, optional
        When the first run's deadline began to count, by ``time.perf_counter``; unless given, each run's own
        begins with it.

    Returns
    -------
    list of Result
        In the order of the configurations.

    Raises
    ------
    ConvscopeError
        As ``run_experiment``; runs that were finished before stay.
    """
    # Keras is loaded only once everything that can be checked without it is known to be right.
    from convscope.experiment import run_experiment

    results = []
    with new_folder(out, f"{datetime.now():%Y%m%d-%H%M%S}-{kind}-{dataset.name}") as folder:
        for name, config in configs.items():
            on_begin(name)
            result = run_experiment(
                config, dataset, folder / name, listeners, command, with_report=with_report, began=began
            )
            began = None
            results.append(result)
            on_result(results[-1])
    return results


def spread(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Condense the results of several seeds.

    Parameters
    ----------
    results : sequence of Result
        At least one.

    Returns
    -------
    dict of str to dict
        For ``test_accuracy``, ``test_loss`` and ``seconds``: ``mean``, ``deviation`` (of the sample, with
        n − 1; 0 for a single result), ``minimum``, ``maximum``.
    """
    quantities = {
        "test_accuracy": [result.test.accuracy for result in results],
        "test_loss": [result.test.loss for result in results],
        "seconds": [result.seconds for result in results],
    }
    return {
        name: {
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
            "minimum": min(values),
            "maximum": max(values),
        }
        for name, values in quantities.items()
    }


def comparison(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Put results beside the published ones.

    Parameters
    ----------
    results : sequence of Result
        Of one exercise.

    Returns
    -------
    list of dict
        ``network``, ``data``, ``parameters``, ``test_accuracy``, ``test_loss``, ``seconds``, ``run``, and
        under ``published`` the same from the exercise's solution, where it has them.
    """
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
