"""How long a step takes on several processes: its parts measured, a model of them, and the truth beside it.

    python benchmarks/scaling.py stages --batch 128 --processes 1 2 4

Each process has one thread. Two of them measure the parts, always both at once: steps of some local batches,
each by itself; an all-reduce of some sizes; and what a step does more where it is shared, with the network's
own gradients and outputs: as here, where gradients may lie in memory that all see, and sent. ``predict`` puts
the parts together for any number of processes and any link; what 1, 2 and 4 processes really take stands
beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from convscope.cli.startup import own_this_process

    own_this_process()

import numpy as np

TIME_SLICE = 4e-3  # seconds until Linux lets another process have a core, with its usual clock of 250 Hz
STEPS = 16  # of which the first ones are left out
WARM_UP = 4
MEASURED_FLOATS = (16, 4096, 65_536, 262_144, 1_048_576)


def predict(
    processes: int,
    batch: int,
    step: tuple[float, float],
    gradient_bytes: int,
    link: tuple[float, float],
    collectives: int = 2,
    cores: int | None = None,
    sharing: float = 0.0,
    spread: Sequence[float] = (1.0,),
) -> float:
    """Predict the seconds of a step.

    Parameters
    ----------
    processes, batch : int
        Of one thread each, and the images that they share.
    step : (float, float)
        Seconds of a step without images, such as the optimizer's, and for each image.
    gradient_bytes : int
        Four for each weight that is trained.
    link : (float, float)
        Seconds until a word is answered, and bytes a second.
    collectives : int
        In a step: outputs, gradients, and two for each batch normalization.
    cores : int or None
        Of one machine, where all processes share it; None where each has its own.
    sharing : float
        Seconds that each process works more in a step that is shared, beside what goes over the link.
    spread : sequence of float
        How long single steps take, the median being 1. A shared step takes as long as the slowest of all
        processes: of *n* draws the largest is, by its median, the quantile 0.5 ** (1 / n) of one.

    Examples
    --------
    >>> gigabit = predict(8, 128, (0.0, 1e-3), 4_800_000, (1e-4, 118e6))
    >>> round(1000 * gigabit)  # 16 ms of images, 71 of gradients
    90
    """
    fixed, each = step
    crowded = 1.0 if cores is None else max(1.0, processes / cores)
    # Of those that share a core, the last one computes alone before each of the two sums of all of them.
    turns = 2 * TIME_SLICE if crowded > 1 else 0.0
    seconds = crowded * (fixed + each * -(-batch // processes))
    if processes == 1:
        return seconds
    seconds = seconds * float(np.quantile(spread, 0.5 ** (1 / processes))) + crowded * sharing
    latency, speed = link
    moved = 2 * (processes - 1) / processes * gradient_bytes  # a ring: there and back, a part at a time
    return seconds + turns + crowded * (collectives * 2 * (processes - 1) * latency + moved / speed)


def _fit(x: list[float], y: list[float]) -> tuple[float, float]:
    """Fit y = a + b·x so that relative errors are small; neither is below zero."""
    weights = 1 / np.array(y)
    matrix = np.stack([np.ones(len(x)), np.array(x)], axis=1) * weights[:, None]
    from scipy.optimize import nnls

    (first, second), _ = nnls(matrix, np.ones(len(x)))
    return float(first), float(second)


def _steps(name: str, batch: int, *, single: bool) -> list[float]:
    """Train a few steps; the seconds of each."""
    from contextlib import nullcontext

    import keras

    import convscope
    from convscope.networks import build
    from convscope.training.distributed import alone
    from convscope.training.events import StepEnd

    keras.utils.set_random_seed(0)
    model = build(name)
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    rng = np.random.default_rng(0)
    x = rng.random((batch * STEPS, 28, 28, 1), np.float32)
    y = np.eye(10, dtype=np.float32)[rng.integers(0, 10, len(x))]
    moments: list[float] = []
    with alone() if single else nullcontext():
        convscope.fit(
            model,
            x,
            y,
            batch,
            verbose=0,
            seed=1,
            deterministic=True,
            listeners=[
                lambda event: moments.append(time.perf_counter()) if isinstance(event, StepEnd) else None
            ],
        )
    return np.diff(moments[WARM_UP:]).tolist()


def _median(seconds: Sequence[float]) -> float:
    return float(np.median(seconds))


def _time(call: Callable[[], object]) -> float:
    """Call something a few times, with the others; the median of its seconds."""
    moments = []
    for _ in range(STEPS):
        call()
        moments.append(time.perf_counter())
    return _median(np.diff(moments[WARM_UP:]))


def _sharing(model: Any, batch: int, group: Any) -> float:
    """Do what a step does more where it is shared: gather outputs, and sum gradients."""
    import torch

    from convscope.training.distributed import GradientSum

    weights = [torch.nn.Parameter(torch.zeros(tuple(v.shape))) for v in model.trainable_variables]
    own = [torch.zeros_like(weight) for weight in weights]
    shard, summed = group.shard(batch), GradientSum(group, weights)
    outputs = torch.zeros((shard.rows, *model.output_shape[1:]))

    def share() -> None:
        group.gather(outputs, shard)
        with summed(shard):
            for weight, gradient in zip(weights, own, strict=True):
                weight.grad = gradient

    return _time(share)


def _measure(name: str, batch: int, size: int) -> dict[str, Any]:
    """Measure in one of the processes; all call it at the same time."""
    import torch
    import torch.distributed as dist

    from convscope.networks import build
    from convscope.training.distributed import join

    torch.set_num_threads(1)
    group = join()
    _steps(name, batch, single=False)  # the first steps of a process wait for memory
    found: dict[str, Any] = {"together": _median(_steps(name, batch, single=False))}
    if size == 2 and group is not None:
        steps = {
            part: _steps(name, part, single=True) for part in (batch // 8, batch // 4, batch // 2, batch)
        }
        both: list[Any] = [None, None]
        dist.all_gather_object(both, steps)
        found["alone"] = {part: _median(both[0][part] + both[1][part]) for part in steps}
        found["spread"] = sorted(
            float(second / found["alone"][part]) for one in both for part in one for second in one[part]
        )
        found["all_reduce"] = {
            floats: _time(partial(dist.all_reduce, torch.zeros(floats))) for floats in MEASURED_FLOATS
        }
        model = build(name)
        found["seen"] = int(group.shared_memory(1) is not None)
        found["shared"] = _sharing(model, batch, group)
        group.shared_memory = lambda _: None  # as between machines
        found["sent"] = _sharing(model, batch, group)
        found["weights"] = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
        kinds = [type(layer).__name__ for layer in model.layers]
        found["collectives"] = 2 + 2 * kinds.count("BatchNormalization")
    return found


def _launch(name: str, batch: int, size: int) -> dict[str, Any]:
    """Start processes of this file; what the first one measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "KERAS_BACKEND": "torch"}
        command = [sys.executable, __file__, name, "--batch", str(batch), "--into", str(file)]
        workers = [
            subprocess.Popen(
                command, env={**os.environ, **shared, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            )
            for rank in range(size)
        ]
        if max(worker.wait() for worker in workers):
            raise SystemExit(1)
        found: dict[str, Any] = json.loads(file.read_text())
        return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _best(found: list[Any]) -> Any:
    """Take of each number the smallest of all rounds: what disturbs only makes a step longer."""
    if isinstance(found[0], dict):
        return {key: _best([one[key] for one in found]) for key in found[0]}
    return min(found, key=lambda one: one[-1] if isinstance(one, list) else one)


def main() -> None:
    """Measure, fit, predict, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("network")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3, help="of each number of processes, in turns")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # of its own processes
    options = parser.parse_args()
    name, batch = options.network, options.batch
    if options.into is not None:  # one of the processes
        found = _measure(name, batch, int(os.environ["WORLD_SIZE"]))
        if os.environ["RANK"] == "0":
            options.into.write_text(json.dumps(found))
        return
    rounds = [{size: _launch(name, batch, size) for size in options.processes} for _ in range(options.rounds)]
    found = {size: _best([one[size] for one in rounds]) for size in options.processes}
    parts = found[2]
    step = _fit([float(part) for part in parts["alone"]], list(parts["alone"].values()))
    wire = _fit([4.0 * float(floats) for floats in parts["all_reduce"]], list(parts["all_reduce"].values()))
    link = wire[0] / 2, 1 / max(wire[1], 1e-15)  # two processes: two words, and all bytes once
    gradients = 4 * parts["weights"]
    # Of the two sums in a step, the gradients' has all the bytes; what is left is work of the process itself.
    moved = 0 if parts["seen"] else gradients
    sharing = max(0.0, parts["shared"] - predict(2, 0, (0.0, 0.0), moved, link))
    sharing_sent = max(0.0, parts["sent"] - predict(2, 0, (0.0, 0.0), gradients, link))
    print(
        f"{name}, batches of {batch}: a step takes {1e3 * step[0]:.1f} ms and {1e3 * step[1]:.3f} an image;"
    )
    print(f"{gradients / 1e6:.1f} MB of gradients; {1e6 * link[0]:.0f} µs, {link[1] / 1e6:.0f} MB/s")
    slower = np.quantile(parts["spread"], 0.5**0.5)
    print(
        f"shared, it takes {1e3 * sharing:.1f} ms more, {1e3 * sharing_sent:.1f} where gradients are sent; "
        f"the slower of two takes {slower:.2f} of a step"
    )
    for size, one in found.items():
        expected = predict(
            size, batch, step, moved, link, parts["collectives"], _cores(), sharing, parts["spread"]
        )
        ratio, faster = one["together"] / expected, found[options.processes[0]]["together"] / one["together"]
        print(
            f"{size} processes: {1e3 * one['together']:7.1f} ms, predicted {1e3 * expected:7.1f} "
            f"({100 * (ratio - 1):+.0f} %), {faster:.2f} times as fast"
        )
    for speed, text in ((118e6, "1 Gbit/s"), (1.18e9, "10 Gbit/s"), (11.8e9, "100 Gbit/s")):
        row = [
            predict(
                size,
                batch,
                step,
                gradients,
                (50e-6, speed),
                parts["collectives"],
                None,
                sharing_sent,
                parts["spread"],
            )
            for size in (1, 2, 4, 8, 16, 32, 64)
        ]
        print(f"{text}: " + ", ".join(f"{row[0] / seconds:.1f}" for seconds in row) + " times as fast")
    print(json.dumps({"step": step, "link": link, "measured": found}))


if __name__ == "__main__":
    main()
