"""Training and prediction on a GPU: first whether the numbers are right, then how long they take.

    python benchmarks/gpu.py [--smoke] [--seeds 10] [--rounds 5] [--limit 340]

1. Captured steps against the same steps one operation at a time: the same bits, for each network, in float32
   and in the precision that is chosen; then float32 against Keras (weights, predictions, evaluation: 1e-4).
2. Milliseconds of a step, in turns: Keras on torch, a plain PyTorch loop, one captured as a CUDA graph by
   hand, convscope captured and as it is. Only steps in full swing count, not planning and recording.
3. Seconds of `swift` until MNIST's test set is 99 % right, over seeds; 10,000 predictions; the exercise.

What does not fit into the limit (seconds) is left out, and said to be. `--smoke` goes through everything in
small on whatever machine this is, for a test. Prints tables and writes benchmarks/results/gpu-<device>.json.
It needs torch for the GPU, keras and what it requires, and the packages that convscope requires.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import convscope  # it chooses Keras's back end  # isort: skip
import keras
import numpy as np
import torch
from models import NETWORKS, images_for, keras_model, torch_model

from convscope.environment import describe
from convscope.lowering.devices import current_device, describe_device
from convscope.training.events import Event, Notice, StepEnd, TrainEnd

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-4
FULL_SWING = 24  # steps of a training that are done before the clock starts
TESTED = ("deep", "simple", "resnet")
Timer = Callable[[], float]  # trains some steps and returns seconds for one of them


class Clock:
    """Knows how much time is left."""

    def __init__(self, limit: float) -> None:
        self._end = time.monotonic() + limit

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


def synchronize() -> None:
    """Wait until the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def captured(on: bool) -> Iterator[None]:
    """Let convscope capture steps, or run them as they are."""
    before = os.environ.get("CONVSCOPE_CAPTURE")
    os.environ["CONVSCOPE_CAPTURE"] = "on" if on else "off"
    try:
        yield
    finally:
        os.environ.pop("CONVSCOPE_CAPTURE")
        if before is not None:
            os.environ["CONVSCOPE_CAPTURE"] = before


# 1. The numbers


def trained(network: str, on: bool, precision: str, steps: int) -> tuple[list[np.ndarray], list[str]]:
    """Train two epochs with a short last batch; return weights, optimizer and history, and what was said."""
    batch = NETWORKS[network][2]
    images, targets = images_for(network, steps)
    images, targets = images[: -batch // 2], targets[: -batch // 2]
    model, said = keras_model(network), []

    def listen(event: Event) -> None:
        if isinstance(event, Notice) and "captured" in event.text:
            said.append(event.text)

    with captured(on):
        history = convscope.fit(
            model, images, targets, batch_size=batch, epochs=2, seed=7, verbose=0, engine="fast",
            deterministic=True, precision=precision, listeners=[listen],
            validation_data=(images[: 2 * batch + 3], targets[: 2 * batch + 3]),
        ).history  # fmt: skip
    slots = [keras.ops.convert_to_numpy(variable.value) for variable in model.optimizer.variables]
    return [*model.get_weights(), *slots, *map(np.asarray, history.values())], said


def largest_difference(one: list[Any], other: list[Any]) -> float:
    """Compare lists of arrays."""
    pairs = zip(one, other, strict=True)
    return max(float(np.max(np.abs(np.asarray(a, float) - np.asarray(b, float)))) for a, b in pairs)


def capture_is_exact(network: str, steps: int) -> dict[str, Any]:
    """Hold captured steps against uncaptured ones, bit for bit."""
    found = {}
    for precision in ("float32", "auto"):
        (ours, said), (theirs, _) = (trained(network, on, precision, steps) for on in (True, False))
        same = all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        found[precision] = {"same_bits": same, "largest": largest_difference(ours, theirs), "said": said}
    return {"passed": all(one["same_bits"] and not one["said"] for one in found.values()), **found}


def agrees_with_keras(network: str, steps: int) -> dict[str, Any]:
    """Hold float32 training without dropout, predictions and evaluation against Keras's own."""
    batch = NETWORKS[network][2]
    images, targets = images_for(network, steps)
    models = [keras_model(network) for _ in range(2)]
    for model in models:
        model.set_weights(models[0].get_weights())
        for layer in model.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
        model.compile(keras.optimizers.SGD(0.01), "categorical_crossentropy", metrics=["accuracy"])
    ours, theirs = models
    how: dict[str, Any] = {"batch_size": batch, "epochs": 1, "shuffle": False, "verbose": 0}
    convscope.fit(ours, images, targets, engine="fast", precision="float32", **how)
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        theirs.fit(images, targets, **how)
        weights = largest_difference(ours.get_weights(), theirs.get_weights())
        theirs.set_weights(ours.get_weights())
        some = images[: 2 * batch + 3]
        predicted = [convscope.predict(ours, some, engine="fast") for _ in range(6)]  # runs, then replays
        expected = theirs.predict(some, verbose=0)
        predictions = max(float(np.abs(one - expected).max()) for one in predicted)
        evaluated = theirs.evaluate(some, targets[: len(some)], verbose=0, return_dict=True)
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    ours.optimizer.learning_rate = 0.0
    history = convscope.fit(
        ours, some, targets[: len(some)], validation_data=(some, targets[: len(some)]),
        engine="fast", precision="float32", **how,
    ).history  # fmt: skip
    # An epoch at a rate of 0 still moves the statistics of batch normalization.
    still = not any(isinstance(layer, keras.layers.BatchNormalization) for layer in ours.layers)
    evaluation = abs(history["val_loss"][-1] - evaluated["loss"]) if still else 0.0
    differences = {"weights": weights, "predictions": predictions, "evaluation": evaluation}
    return {"passed": max(differences.values()) <= TOLERANCE, **differences}


# 2. Steps


def keras_timer(network: str, steps: int) -> Timer:
    """Time Keras's own fit: a long call less a short one."""
    batch = NETWORKS[network][2]
    images, targets = images_for(network, 2 * steps)
    model = keras_model(network)

    def call(count: int) -> float:
        begin = time.perf_counter()
        rows = slice(0, count * batch)
        model.fit(images[rows], targets[rows], batch_size=batch, epochs=1, verbose=0)
        synchronize()
        return time.perf_counter() - begin

    return lambda: (call(2 * steps) - call(steps)) / steps


def our_timer(network: str, steps: int, on: bool, precision: str) -> Timer:
    """Time the steps of one ``convscope.fit`` that follow the first ones."""
    batch = NETWORKS[network][2]
    images, targets = images_for(network, FULL_SWING + steps)
    model = keras_model(network)

    def time_steps() -> float:
        moments: list[float] = []

        def listen(event: Event) -> None:
            if (isinstance(event, StepEnd) and event.step == FULL_SWING - 1) or isinstance(event, TrainEnd):
                synchronize()
                moments.append(time.perf_counter())

        with captured(on):
            convscope.fit(
                model, images, targets, batch_size=batch, epochs=1, verbose=0, engine="fast",
                precision=precision, listeners=[listen],
            )  # fmt: skip
        return (moments[1] - moments[0]) / steps

    return time_steps


def torch_timer(network: str, steps: int, bfloat16: bool, graph: bool) -> Timer:
    """Time a PyTorch loop as one writes it, or with its step captured as torch's documentation says."""
    batch = NETWORKS[network][2]
    device = current_device()
    images, targets = (torch.from_numpy(array).to(device) for array in images_for(network, steps))
    images = images.permute(0, 3, 1, 2).contiguous()  # (n, c, h, w)
    torch.manual_seed(0)
    model = torch_model(network).to(device).train()
    if bfloat16:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.Adam(
        model.parameters(), lr=0.001, capturable=on_gpu and graph, fused=on_gpu and graph
    )
    loss_of = torch.nn.CrossEntropyLoss()
    rows = torch.arange(batch, device=device)
    total = torch.zeros((), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = loss_of(model(images[rows]), targets[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total.add_(loss.detach())

    run: Callable[[], Any] = step
    if graph and on_gpu:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        recorded = torch.cuda.CUDAGraph()
        optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(recorded, stream=stream):
            step()
        run = recorded.replay

    def time_steps() -> float:
        order = torch.randperm(steps * batch, device=device)
        synchronize()
        begin = time.perf_counter()
        for some in order.split(batch):
            rows.copy_(some)
            run()
        total.item()
        return (time.perf_counter() - begin) / steps

    return time_steps


PEERS: dict[str, Callable[[str, int], Timer]] = {
    "convscope, captured": lambda network, steps: our_timer(network, steps, True, "auto"),
    "convscope, as it is": lambda network, steps: our_timer(network, steps, False, "auto"),
    "convscope, captured, float32": lambda network, steps: our_timer(network, steps, True, "float32"),
    "PyTorch captured, bfloat16": lambda network, steps: torch_timer(network, steps, True, True),
    "PyTorch captured, float32": lambda network, steps: torch_timer(network, steps, False, True),
    "PyTorch loop, bfloat16": lambda network, steps: torch_timer(network, steps, True, False),
    "PyTorch loop, float32": lambda network, steps: torch_timer(network, steps, False, False),
    "Keras on torch": lambda network, steps: keras_timer(network, max(2, steps // 5)),
}


def time_steps(network: str, steps: int, rounds: int, clock: Clock) -> dict[str, Any]:
    """Let the peers take turns; milliseconds per step of each round, and what failed."""
    timers: dict[str, Timer] = {}
    failed: dict[str, str] = {}
    for name, make in PEERS.items():
        try:
            timers[name] = make(network, steps)
            timers[name]()
        except Exception as error:  # a peer that cannot run is no reason to measure nothing
            failed[name] = f"{type(error).__name__}: {error}"
            timers.pop(name, None)
    times: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(rounds):
        if number and clock.left < 0:
            break
        for name, timer in timers.items():
            times[name].append(1000 * timer())
    return {"milliseconds_per_step": times, "failed": failed}


def steps_table(network: str, measured: dict[str, Any]) -> list[str]:
    """Write one network's table."""
    times = measured["milliseconds_per_step"]
    ours = times.get("convscope, captured", [])
    lines = [
        f"## A step of {network}", "",
        "| peer | ms per step (median) | lowest … highest | times ours (median of rounds) |",
        "| --- | --: | --: | --: |",
    ]  # fmt: skip
    for name, values in times.items():
        ratios = [theirs / own for theirs, own in zip(values, ours, strict=False)]
        ratio = f"{statistics.median(ratios):.2f}" if ratios else "–"
        spread = f"{min(values):.3f} … {max(values):.3f}"
        lines.append(f"| {name} | {statistics.median(values):.3f} | {spread} | {ratio} |")
    return [*lines, *(f"{name} failed: {error}" for name, error in measured["failed"].items())]


# 3. Whole tasks


def time_swift(seeds: int, clock: Clock, smoke: bool) -> dict[str, Any]:
    """Train the recipe once for each seed: seconds of training, and accuracy on the test set."""
    from dataclasses import replace

    from time_to_accuracy import once

    from convscope.recipes import recipe

    dataset = convscope.load("digits" if smoke else "mnist")
    base, found = recipe("swift"), []
    for seed in range(1338, 1338 + seeds):
        if found and clock.left < 0:
            break
        found.append(once(replace(base, training=replace(base.training, seed=seed)), dataset))
    seconds, accuracies = (list(column) for column in zip(*found, strict=True))
    return {
        "seeds": len(found), "seconds": seconds, "accuracies": accuracies,
        "median_seconds": statistics.median(seconds), "mean_accuracy": statistics.fmean(accuracies),
    }  # fmt: skip


def time_predictions(images: int, rounds: int) -> dict[str, Any]:
    """Predict many images again and again; milliseconds of each call once warm."""
    model = keras_model("deep")
    x = np.random.default_rng(0).random((images, *model.input_shape[1:]), np.float32)
    predictors: dict[str, Callable[[], Any]] = {
        "convscope, float32": lambda: convscope.predict(model, x, engine="fast"),
        "convscope, auto": lambda: convscope.predict(model, x, engine="fast", precision="auto"),
        "Keras predict, batch 1024": lambda: model.predict(x, batch_size=1024, verbose=0),
    }
    found: dict[str, list[float]] = {name: [] for name in predictors}
    for number in range(4 + rounds):
        for name, predict in predictors.items():
            begin = time.perf_counter()
            predict()
            if number >= 4:
                found[name].append(1000 * (time.perf_counter() - begin))
    return {"images": images, "milliseconds": found}


def time_exercise(smoke: bool) -> dict[str, Any]:
    """Run the whole exercise in a process of its own, from command to prompt."""
    with tempfile.TemporaryDirectory() as folder:
        small = ["--data", "digits", "--epochs", "1"] if smoke else []
        which = "simple" if smoke else "all"
        command = [sys.executable, "-m", "convscope", "exercise", "--network", which, "--out", folder, *small]
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, "exit_code": done.returncode, "error": done.stderr[-500:]}


# All of it


def attempt(record: dict[str, Any], name: str, clock: Clock, function: Callable[[], Any]) -> Any:
    """Do one part, and write down what came of it, or why nothing did."""
    if clock.left < 0:
        print(f"{name}: left out, no time", flush=True)
        record[name] = {"left_out": True}
        return None
    begin = time.monotonic()
    try:
        record[name] = function()
    except Exception as error:
        record[name] = {"passed": False, "error": f"{type(error).__name__}: {error}"}
        traceback.print_exc()
    record[name]["took_seconds"] = round(time.monotonic() - begin, 1)
    return record[name]


def main() -> int:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="everything in small, on any device")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=340, help="seconds in all")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    smoke, clock = arguments.smoke, Clock(arguments.limit)
    if current_device().type != "cuda" and not smoke:
        parser.error("torch sees no CUDA device here; --smoke goes through everything in small without one")
    steps, rounds = (3, 1) if smoke else (200, arguments.rounds)
    machine = describe_device(current_device())
    name = re.sub(r"[^a-z0-9]+", "-", machine["torch_device"].lower()).strip("-")
    record: dict[str, Any] = {"date": str(date.today()), **describe(), "device": machine, "smoke": smoke}
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"gpu-{name}.json"

    def written(key: str, function: Callable[[], Any]) -> Any:
        found = attempt(record, key, clock, function)
        file.write_text(json.dumps(record, indent=2) + "\n")
        return found

    tested = TESTED[1:2] if smoke else TESTED
    for network in tested:
        exact = written(f"captured {network}", lambda: capture_is_exact(network, 4 if smoke else 12))  # noqa: B023
        print(f"captured as uncaptured, {network}: {exact}", flush=True)
        parity = written(f"keras {network}", lambda: agrees_with_keras(network, 3 if smoke else 8))  # noqa: B023
        print(f"as Keras in float32, {network}: {parity}", flush=True)
    for network in tested:
        measured = written(f"steps {network}", lambda: time_steps(network, steps, rounds, clock))  # noqa: B023
        if measured and "milliseconds_per_step" in measured:
            print("\n".join(["", *steps_table(network, measured)]), flush=True)
    predictions = written("predictions", lambda: time_predictions(300 if smoke else 10_000, rounds))
    for peer, values in ((predictions or {}).get("milliseconds") or {}).items():
        print(
            f"{predictions['images']:,} predictions, {peer}: {statistics.median(values):.1f} ms", flush=True
        )
    swift = written("swift", lambda: time_swift(1 if smoke else arguments.seeds, clock, smoke))
    print(f"swift: {swift}", flush=True)
    if not smoke:
        print(f"exercise: {written('exercise', lambda: time_exercise(smoke))}", flush=True)
    record["took_seconds"] = round(arguments.limit - clock.left, 1)
    file.write_text(json.dumps(record, indent=2) + "\n")
    parts = [part for part in record.values() if isinstance(part, dict)]
    wrong = [part for part in parts if part.get("passed") is False]
    print(f"\n{len(wrong)} checks failed; {record['took_seconds']} s in all; written to {file}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
