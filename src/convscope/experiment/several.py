"""Several experiments on the same data, in one folder; what several seeds have in common."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from convscope.data.catalog import Dataset
from convscope.experiment.config import ExperimentConfig
from convscope.runs import new_folder

if TYPE_CHECKING:
    from convscope.experiment.running import Result
    from convscope.training.events import Listener


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
    """Run experiments, by the names of their runs, one after the other in a new folder below ``out``.

    ``kind`` stands in the folder's name. ``began`` (``time.perf_counter``) is when the first run's deadline
    began to count; each run's own begins with it otherwise. Runs that were finished before an error stay.
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
    """Condense the results of several seeds; the deviation is that of the sample, 0 for a single one."""
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
