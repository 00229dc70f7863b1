"""Few photographs: training on a pretrained backbone beside training from scratch.

    python benchmarks/photographs.py FOLDER --seeds 1338 1339 1340

runs `convscope train FOLDER` as anybody would, from prompt to prompt with the report, and with an empty
cache. Accuracies with their intervals and the seconds go into benchmarks/results/photographs.json and, as a
table, photographs.md, after each training; what is not measured again keeps its rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from convscope.evaluation import wilson_interval
from convscope.lowering.devices import describe_device

RESULTS = Path(__file__).parent / "results"
WAYS = {
    "chosen by itself": [],
    "within 60 s": ["--within", "60s"],
    "from scratch": ["--network", "normalized"],
}
PARTS = ("validation", "test")


def measure(folder: Path, options: list[str], seed: int) -> dict[str, Any]:
    """Train once, from prompt to prompt."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "convscope", "train", str(folder), "--seed", str(seed), "--json"]
        environment = {**os.environ, "CONVSCOPE_CACHE": f"{scratch}/cache"}
        began = time.perf_counter()
        done = subprocess.run(
            [*command, *options, "--out", f"{scratch}/runs"],
            check=True, capture_output=True, text=True, env=environment,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        run = json.loads(done.stdout)["runs"][0]
        record = json.loads((Path(run["run"]) / "run.json").read_text())
    counts = record["data"]["counts"]
    parts = {}
    for part in PARTS:
        accuracy, images = run[f"{part}_accuracy"], counts.get(part, 0)
        if accuracy is not None and images:
            interval = wilson_interval(round(accuracy * images), images)
            parts[part] = {"accuracy": accuracy, "images": images, "interval": list(interval)}
    return {
        "date": f"{date.today():%Y-%m-%d}",
        "seed": seed,
        "seconds": round(seconds, 1),
        "network": record["network"]["name"],
        "training_images": counts["train"],
        "stages": record.get("stages", []),
        **parts,
    }


def shown(found: dict[str, Any] | None) -> str:
    """Write an accuracy with its interval."""
    if found is None:
        return ""
    low, high = (100 * bound for bound in found["interval"])
    return f"{found['accuracy']:.1%} ({low:.1f} to {high:.1f})".replace("%", " %")


def table(known: dict[str, Any]) -> str:
    """Write everything measured as Markdown, a table for each machine."""
    lines = ["# Few photographs", "", "Written by benchmarks/photographs.py.", ""]
    for processor, folders in known.items():
        lines += [
            f"{processor}, from prompt to prompt with the report, with an empty cache:",
            "",
            "| photographs | training images | way | network | seed | validation | test | time | date |",
            "| --- | --: | --- | --- | --: | --: | --: | --: | --- |",
        ]
        lines += [
            f"| {folder} | {row['training_images']:,} | {way} | {row['network']} | {row['seed']} "
            f"| {' | '.join(shown(row.get(part)) for part in PARTS)} | {row['seconds']:.0f} s "
            f"| {row['date']} |"
            for folder, ways in folders.items()
            for way, rows in ways.items()
            for row in rows
        ]
        lines.append("")
    return "\n".join(lines)


def keep(processor: str, folder: str, way: str, row: dict[str, Any]) -> None:
    """Put a row among those that are known, in place of that of the same seed."""
    file = RESULTS / "photographs.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    ways = known.setdefault(processor, {}).setdefault(folder, {})
    others = [other for other in ways.get(way, []) if other["seed"] != row["seed"]]
    ways[way] = sorted([*others, row], key=lambda one: one["seed"])
    file.write_text(json.dumps(known, indent=1) + "\n")
    file.with_suffix(".md").write_text(table(known))


def main() -> None:
    """Measure each way with each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1338, 1339, 1340])
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    arguments = parser.parse_args()
    device = describe_device(None)
    processor = f"{device['processor']}, as {device['processor_class']}, {device['torch_threads']} threads"
    for way in arguments.ways:
        for seed in arguments.seeds:
            row = measure(arguments.folder, WAYS[way], seed)
            keep(processor, arguments.folder.name, way, row)
            parts = "  ".join(f"{part} {shown(row[part])}" for part in PARTS if part in row)
            print(f"{arguments.folder.name}, {way}, seed {seed}: {parts}  {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
