"""Few photographs: training on a pretrained backbone beside training from scratch.

    python benchmarks/photographs.py FOLDER --seeds 1338 1339 1340

runs `convscope train FOLDER` as anybody would, from prompt to prompt, and writes accuracies with their
intervals and the seconds into benchmarks/results/photographs.json, beside what is there of other seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from convscope.evaluation import wilson_interval
from convscope.lowering.devices import describe_device

RESULTS = Path(__file__).parent / "results" / "photographs.json"
WAYS = {
    "chosen by itself": [],
    "within 60 s": ["--within", "60s"],
    "from scratch": ["--network", "normalized"],
}


def measure(folder: Path, options: list[str], seed: int) -> dict[str, Any]:
    """Train once, from prompt to prompt."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "convscope", "train", str(folder), "--seed", str(seed)]
        began = time.perf_counter()
        done = subprocess.run(
            [*command, *options, "--out", out, "--json"], check=True, capture_output=True, text=True
        )
        seconds = time.perf_counter() - began
        run = json.loads(done.stdout)["runs"][0]
        record = json.loads((Path(run["run"]) / "run.json").read_text())
    counts = record["data"]["counts"]
    parts = {}
    for part in ("validation", "test"):
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


def main() -> None:
    """Measure each way with each seed, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1338, 1339, 1340])
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    arguments = parser.parse_args()
    device = describe_device(None)
    processor = f"{device['processor']}, as {device['processor_class']}, {device['torch_threads']} threads"
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for way in arguments.ways:
        rows = [measure(arguments.folder, WAYS[way], seed) for seed in arguments.seeds]
        for row in rows:
            shown = "  ".join(
                f"{part} {row[part]['accuracy']:.1%} "
                f"({row[part]['interval'][0]:.1%} to {row[part]['interval'][1]:.1%})"
                for part in ("validation", "test")
                if part in row
            )
            print(f"{arguments.folder.name}, {way}, seed {row['seed']}: {shown}  {row['seconds']:.0f} s")
        ways = known.setdefault(processor, {}).setdefault(arguments.folder.name, {})
        others = [row for row in ways.get(way, []) if row["seed"] not in arguments.seeds]
        ways[way] = sorted(others + rows, key=lambda row: row["seed"])
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
