"""How long until MNIST's test set is right to 99.08 %, the exercise's best: `swift` beside `deep` in Keras.

    python benchmarks/time_to_accuracy.py [--seeds 10] [--keras-epochs 10]

`swift` trains once for each seed; the training time contains everything that `convscope.fit` does, its
planning included. `deep` then trains as the exercise does, for so many epochs through Keras's own fit on
torch. The test set is consulted once for each finished training; no setting was chosen by it.
Written to benchmarks/results/time_to_accuracy.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import convscope
from convscope.environment import describe
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.fitting import train
from convscope.experiment.preparation import build_model, prepare
from convscope.experiment.results import evaluate_parts
from convscope.lowering.devices import describe_device
from convscope.recipes import recipe

RESULTS = Path(__file__).parent / "results"
WANTED = 0.9908


def once(config: ExperimentConfig, dataset: convscope.Dataset) -> tuple[float, float]:
    """Train once; return seconds of training and accuracy on the test set."""
    prepared = prepare(dataset, config)
    model = build_model(config, prepared.preprocess.input_shape, len(prepared.class_names))
    seconds = train(model, prepared, config).seconds
    return seconds, evaluate_parts(model, prepared)["test"].accuracy


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--keras-epochs", type=int, default=10)
    arguments = parser.parse_args()

    dataset = convscope.load("mnist")
    base = recipe("swift")
    swift = []
    for seed in range(1338, 1338 + arguments.seeds):
        swift.append(once(replace(base, training=replace(base.training, seed=seed)), dataset))
        print(f"swift, seed {seed}: {swift[-1][0]:.2f} s, {swift[-1][1]:.2%}", flush=True)
    seconds, accuracies = zip(*swift, strict=True)
    settings = TrainingConfig(epochs=arguments.keras_epochs, engine="keras")
    keras_seconds, keras_accuracy = once(ExperimentConfig("deep", training=settings), dataset)
    record: dict[str, Any] = {
        "date": str(date.today()), **describe(), "device": describe_device(),
        "swift": swift, "keras": [keras_seconds, keras_accuracy],
    }  # fmt: skip
    machine = record["device"]
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    lines = [
        "# Time to accuracy",
        "",
        f"{record['date']}, {machine['processor']}, {machine['torch_threads']} threads, MNIST.",
        "",
        "| training | seeds | mean test accuracy | standard deviation | seconds (median) |",
        "| --- | --: | --: | --: | --: |",
        f"| `swift`, one epoch | {len(swift)} | {statistics.fmean(accuracies):.3%} | {spread:.3%} | "
        f"{statistics.median(seconds):.2f} |",
        f"| `deep`, {arguments.keras_epochs} epochs, Keras on torch | 1 | {keras_accuracy:.2%} | – | "
        f"{keras_seconds:.0f} |",
        "",
        f"Ratio of the times: {keras_seconds / statistics.median(seconds):.0f}. "
        f"Accuracy wanted: {WANTED:.2%}.",
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "time_to_accuracy.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "time_to_accuracy.json").write_text(json.dumps(record, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
