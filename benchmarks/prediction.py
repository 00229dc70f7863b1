"""Prediction speed of convscope beside Keras and ONNX Runtime.

    python benchmarks/prediction.py [--network deep] [--images 10000] [--rounds 5]

Many images: in one process, in turns, the same images and weights; the table also says how far the
probabilities are apart. One image: each predictor in a process of its own, as in use, for the threads of
several runtimes wait for work by spinning and get in each other's way; the processes take turns.
Written to benchmarks/results/prediction.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import convscope  # it chooses Keras's back end  # isort: skip
import numpy as np
from models import keras_model

from convscope.environment import describe
from convscope.lowering.devices import describe_device

RESULTS = Path(__file__).parent / "results"
Predictor = Callable[[np.ndarray], np.ndarray]


def onnx_predictor(model: Any) -> Predictor:
    """Export the model to ONNX with Keras's own exporter and run it."""
    import onnxruntime

    model(np.zeros((1, *model.input_shape[1:]), np.float32))  # the exporter wants to have seen an input
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "model.onnx")  # noqa: PTH118  (Keras wants a string)
        model.export(file, format="onnx", verbose=False)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def in_batches(predict: Predictor, batch: int) -> Predictor:
    """Predict many images batch by batch, as one does with a runtime that has no batches of its own."""

    def run(images: np.ndarray) -> np.ndarray:
        return np.concatenate([predict(images[i : i + batch]) for i in range(0, len(images), batch)])

    return run


def take_turns(predictors: dict[str, Predictor], images: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Time each predictor in each round; return seconds."""
    times: dict[str, list[float]] = {name: [] for name in predictors}
    for predict in predictors.values():
        predict(images)
    for _ in range(rounds):
        for name, predict in predictors.items():
            begin = time.perf_counter()
            predict(images)
            times[name].append(time.perf_counter() - begin)
    return times


# Each makes a predictor from a Keras model.
MAKERS: dict[str, Callable[[Any], Predictor]] = {
    "convscope, float32": lambda model: lambda x: convscope.predict(model, x),
    "convscope, precision auto": lambda model: lambda x: convscope.predict(model, x, precision="auto"),
    "Keras predict, batch 32": lambda model: lambda x: model.predict(x, verbose=0),
    "Keras predict, batch 256": lambda model: lambda x: model.predict(x, batch_size=256, verbose=0),
    "ONNX Runtime, float32, batch 256": lambda model: in_batches(onnx_predictor(model), 256),
}


def time_one_image(network: str, name: str, times: int = 200) -> None:
    """Print the median of the seconds that one image takes, after a few that do not count."""
    model = keras_model(network)
    image = np.random.default_rng(0).random((1, *model.input_shape[1:]), np.float32)
    (seconds,) = take_turns({name: MAKERS[name](model)}, image, 10 + times).values()
    print(statistics.median(seconds[10:]))


def alone(network: str, name: str) -> float:
    """Time one image in another process; return the median of its seconds."""
    command = [sys.executable, __file__, "--network", network, "--alone", name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.splitlines()[-1])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="deep")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", choices=MAKERS, help="time one image with this predictor, nothing else")
    arguments = parser.parse_args()
    if arguments.alone:
        time_one_image(arguments.network, arguments.alone)
        return

    model = keras_model(arguments.network)
    shape = model.input_shape[1:]
    images = np.random.default_rng(0).random((arguments.images, *shape), np.float32)
    predictors = {name: make(model) for name, make in MAKERS.items()}
    many = take_turns(predictors, images, arguments.rounds)
    single: dict[str, list[float]] = {name: [] for name in predictors}
    for _ in range(3):
        for name, seconds in single.items():
            seconds.append(alone(arguments.network, name))
    reference = model.predict(images[:1000], verbose=0)
    record: dict[str, Any] = {
        "date": str(date.today()),
        **describe(),
        "device": describe_device(),
        "many": many,
        "single": single,
    }
    machine = record["device"]
    lines = [
        "# Prediction speed",
        "",
        f"{record['date']}, {machine['processor']}, {machine['torch_threads']} threads. "
        f"`{arguments.network}`, {arguments.images:,} images, {arguments.rounds} rounds in turns; "
        "one image 200 times in a process of its own, three processes each in turns.",
        "",
        "| predictor | images/s (median) | times Keras, batch 32 | one image, ms | largest difference |",
        "| --- | --: | --: | --: | --: |",
    ]
    for name, predict in predictors.items():
        rate = arguments.images / statistics.median(many[name])
        pairs = zip(many["Keras predict, batch 32"], many[name], strict=True)
        ratio = statistics.median(keras / own for keras, own in pairs)
        latency = statistics.median(single[name]) * 1000
        apart = float(np.abs(predict(images[:1000]) - reference).max())
        lines.append(f"| {name} | {rate:,.0f} | {ratio:.2f} | {latency:.2f} | {apart:.0e} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "prediction.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "prediction.json").write_text(json.dumps(record, indent=2) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
