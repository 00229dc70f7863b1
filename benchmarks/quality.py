"""Test accuracy of the exercise's networks under the fast engine and under Keras's own fit, seed by seed.

    python benchmarks/quality.py [--seeds 5] [--epochs 10] [--engines fast keras] [--networks simple deep]

The fast engine computes in another precision and another order; this shows whether that costs accuracy. A
difference is judged against the spread of the seeds. Keras trains on the back end that KERAS_BACKEND names.
Written to benchmarks/results/quality.{md,json} after each seed; a second call measures only the seeds that
are missing, so that a long run may be broken off, and engines may be measured one after the other.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import convscope
from convscope.environment import versions
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.fitting import train
from convscope.experiment.preparation import build_model, prepare
from convscope.lowering.devices import describe_device
from convscope.training.api import predict

RESULTS = Path(__file__).parent / "results"
FIRST_SEED = 1338


def accuracy_of(network: str, engine: str, seed: int, epochs: int, dataset: convscope.Dataset) -> float:
    """Train one network and return its accuracy on the test set."""
    training = TrainingConfig(epochs=epochs, seed=seed, engine=engine)
    config = ExperimentConfig(network, training=training)
    # Validation is not wanted here; without it both engines are faster and train on the same 42,000 images.
    prepared = replace(prepare(dataset, config), validation=None)
    model = build_model(config, prepared.preprocess.input_shape, len(prepared.class_names))
    train(model, prepared, config)
    probabilities = predict(model, prepared.test.images, preprocess=prepared.preprocess)
    return float((probabilities.argmax(axis=1) == prepared.test.labels).mean())


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Put the engines side by side."""
    lines = [
        "| network | engine | seeds | mean test accuracy | standard deviation | on |",
        "| --- | --- | --: | --: | --: | --- |",
    ]
    for key in sorted(rows):
        network, engine = key.split("/")
        values = rows[key]["accuracies"]
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        machine = f"{rows[key]['backend']}, {rows[key]['machine']}"
        mean = statistics.fmean(values)
        lines.append(f"| {network} | {engine} | {len(values)} | {mean:.3%} | {spread:.3%} | {machine} |")
    return lines


def differences(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Hold the difference of the means against the seeds' own spread."""
    lines = []
    for network in sorted({key.split("/")[0] for key in rows}):
        pair = [rows.get(f"{network}/{engine}") for engine in ("fast", "keras")]
        if all(pair):
            fast, keras = (one["accuracies"] for one in pair if one)
            gap = statistics.fmean(fast) - statistics.fmean(keras)
            spread = math.sqrt((statistics.variance(fast) + statistics.variance(keras)) / 2)
            verdict = "within" if abs(gap) <= spread else "beyond"
            end = f"{verdict} the seeds' standard deviation of {spread:.3%}"
            lines.append(f"- {network}: fast − Keras = {gap:+.3%}, {end}")
    return lines


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", nargs="+", default=["fast", "keras"])
    parser.add_argument("--networks", nargs="+", default=["simple", "dense", "deep"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    import keras

    dataset = convscope.load("mnist")
    arguments.results.mkdir(parents=True, exist_ok=True)
    file = arguments.results / "quality.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else {}
    machine = describe_device()
    where = machine["processor"] if machine["torch_device"] == "cpu" else machine["torch_device"]
    for network in arguments.networks:
        for engine in arguments.engines:
            row = rows.setdefault(f"{network}/{engine}", {"accuracies": []})
            row |= {"machine": where, "backend": keras.backend.backend(), "date": str(date.today())}
            known = len(row["accuracies"])
            for seed in range(FIRST_SEED + known, FIRST_SEED + arguments.seeds):
                row["accuracies"].append(accuracy_of(network, engine, seed, arguments.epochs, dataset))
                print(network, engine, seed, row["accuracies"][-1], flush=True)
                file.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=2) + "\n")
    heading = f"# Accuracy of both engines\n\nMNIST, {arguments.epochs} epochs on 42,000 images, batch 128.\n"
    lines = [heading, *table(rows), "", *differences(rows)]
    (arguments.results / "quality.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
