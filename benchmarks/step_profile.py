"""Where the time of a training step goes, beside the floor: what is left to gain, and where.

    python benchmarks/step_profile.py [--network deep] [--steps 100]

Torch's profiler adds up the time inside each operation; the floor (convolutions and matrix products alone) is
measured in turns with it. Written to benchmarks/results/step_profile.md.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import convscope  # it chooses Keras's back end  # isort: skip
import torch
from floor import floor_trainer
from models import NETWORKS, images_for, keras_model
from torch.profiler import ProfilerActivity, profile, record_function

from convscope.lowering.cpu import compiled
from convscope.lowering.devices import describe_device

RESULTS = Path(__file__).parent / "results"
KINDS = {
    "convolutions and matrix products": (
        "aten::convolution", "mkldnn", "aten::mm", "aten::addmm", "aten::bmm", "aten::linear",
        "loop::few_channel",
    ),
    "max-pooling with ReLU and dropout, forward and back": ("loop::tile_max", "max_pool"),
    "ReLU elsewhere, forward and back": ("relu", "clamp_min", "threshold"),
    "Adam": ("_fused_adam", "hardshrink", "loop::adam"),
    "batches cut out": ("index", "gather"),
    "copies and changes of precision": ("copy_", "fill_", "zero_", "empty", "to_copy"),
    "random words and other masks": ("loop::hash", "loop::drop", "bitwise", "shift", "aten::ge", "aten::lt"),
    "loss and metrics": ("softmax", "nll", "argmax", "sum", "mean", "aten::div"),
}  # fmt: skip


def kind_of(operation: str) -> str:
    """Sort an operation of torch into one of the kinds; the first that fits counts."""
    for kind, parts in KINDS.items():
        if any(part in operation for part in parts):
            return kind
    return "products with scales" if "aten::mul" in operation else "everything else: Python, autograd, views"


def fitter(network: str, steps: int) -> Any:
    """Return a function that trains a network for some steps of its usual batch."""
    images, targets = images_for(network, steps)
    model, batch = keras_model(network), NETWORKS[network][2]

    def train() -> None:
        convscope.fit(model, images, targets, batch_size=batch, epochs=1, verbose=0, engine="fast")

    return train


def in_turns(works: list[Any], rounds: int = 5) -> list[float]:
    """Time several pieces of work in turns; return the median of each, in milliseconds."""
    times: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    for _ in range(rounds):
        for own, work in zip(times, works, strict=True):
            begin = time.perf_counter()
            work()
            own.append((time.perf_counter() - begin) * 1000)
    return [statistics.median(own) for own in times]


@contextlib.contextmanager
def loops_recorded() -> Iterator[None]:
    """Show torch's profiler the compiled loops, which it would not see."""
    run = compiled._run

    def recorded(loop: Any, *arguments: int, **work: int) -> None:
        with record_function(f"loop::{loop.__name__}"):
            run(loop, *arguments, **work)

    compiled._run = recorded
    try:
        yield
    finally:
        compiled._run = run


def shares(train: Any, steps: int) -> Counter[str]:
    """Add up the milliseconds of a step by kind of operation."""
    with loops_recorded(), profile(activities=[ProfilerActivity.CPU]) as record:
        train()
    total: Counter[str] = Counter()
    for entry in record.key_averages():
        total[kind_of(entry.key)] += entry.self_cpu_time_total / 1000 / steps
    return total


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=NETWORKS, default="deep")
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()

    train = fitter(arguments.network, arguments.steps)
    floor = floor_trainer(arguments.network)
    step, least = (
        milliseconds / arguments.steps for milliseconds in in_turns([train, lambda: floor(arguments.steps)])
    )
    by_kind = shares(train, arguments.steps)
    whole = sum(by_kind.values())
    machine = describe_device()
    lines = [
        f"# A training step of {arguments.network}",
        "",
        f"{date.today()}, {machine['processor']}, {torch.get_num_threads()} threads, "
        f"batch {NETWORKS[arguments.network][2]}.",
        "",
        f"A step takes {step:.1f} ms, the floor {least:.1f} ms: {step / least:.2f} times the floor.",
        "",
        "| what | share of the profiled time | of a step, ms |",
        "| --- | --: | --: |",
        *(
            f"| {kind} | {value / whole:.0%} | {value / whole * step:.1f} |"
            for kind, value in by_kind.most_common()
        ),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "step_profile.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
