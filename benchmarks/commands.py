"""What each command costs: wall time, processor time, peak memory, and the time until something is seen.

    python benchmarks/commands.py [--against OTHER/src] [--rounds 5] [--only predict,report]

Every command is a process of its own whose output goes into a pipe, standard error included; what is
measured is the process alone, from its start to its end. With ``--against`` the commands of another checkout
take turns with those of this one, in the same interpreter. Each checkout first does the exercise on the
digits, which makes the runs that its other commands need and compiles what is compiled once on a machine;
that is not counted. A command that a checkout does not have is left out. Of `serve` the time is that until
the first request is answered, sent as soon as it says its address. Medians, written to
benchmarks/results/commands.{md,json}.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
RESULTS = HERE / "results"
THIS = HERE.parent / "src"
KINDS = {"wall": "{:.2f} s", "processor": "{:.2f} s", "memory": "{:,.0f} MB", "first output": "{:.2f} s"}

# What is measured, in this order. {new} is a folder that does not exist yet.
COMMANDS: dict[str, list[str]] = {
    "--help": ["--help"],
    "runs": ["runs", "{runs}"],
    "doctor": ["doctor"],
    "data check, 200 images": ["data", "check", "{photographs}"],
    "train digits, 1 epoch": ["train", "digits", "--epochs", "1", "--network", "simple", "--out", "{new}"],
    "evaluate": ["evaluate", "{run}"],
    "compare": ["compare", "{run}", "{other}"],
    "predict, one image": ["predict", "{run}", "{image}"],
    "predict, 200 images": ["predict", "{run}", "{photographs}"],
    "inspect deep": ["inspect", "deep"],
    "inspect RUN": ["inspect", "{run}"],
    "inspect RUN --image": ["inspect", "{run}", "--image", "3"],
    "report": ["report", "{run}"],
    "explore": ["explore", "{run}", "--out", "{new}.html"],
    "serve, until the first answer": ["serve", "{run}", "--port", "0", "--json"],
    "embed, 200 images": ["embed", "{photographs}", "--network", "{run}", "--out", "{new}.npz"],
    "sweep of the digits, 2 trials of 1 epoch": [
        *("sweep", "digits", "--space", "{space}", "--trials", "2", "--no-report", "--out", "{new}"),
    ],
    "export, keras": ["export", "{run}", "--format", "keras", "--out", "{new}"],
    "export, onnx": ["export", "{run}", "--format", "onnx", "--out", "{new}"],
    "exercise on the digits, 1 epoch": ["exercise", "--data", "digits", "--epochs", "1", "--out", "{new}"],
}


def measure(source: Path, arguments: list[str], environment: dict[str, str]) -> dict[str, float] | None:
    """Run a command once; None where it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "convscope", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "PYTHONPATH": str(source)},
    )
    streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
    first, said, answered = None, b"", None
    with selectors.DefaultSelector() as waiting:
        for stream in streams:
            waiting.register(stream, selectors.EVENT_READ)
        while waiting.get_map():
            for key, _ in waiting.select():
                text = os.read(key.fd, 2**16)
                if not text:
                    waiting.unregister(key.fileobj)
                    continue
                first = first or time.perf_counter() - began
                said += text if key.fileobj is process.stdout else b""
                if arguments[0] == "serve" and answered is None and said.endswith(b"}\n"):
                    ask(json.loads(said)["address"])
                    answered = time.perf_counter() - began
                    process.terminate()
    _, status, used = os.wait4(process.pid, 0)
    wall = answered or time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    for stream in streams:
        stream.close()
    if process.returncode:
        return None
    scale = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
    return {
        "wall": wall,
        "processor": used.ru_utime + used.ru_stime,
        "memory": used.ru_maxrss / scale,
        "first output": wall if first is None else first,
    }


def ask(address: str) -> None:
    """Send one image of 28×28 pixels, and wait for the answer."""
    buffer = io.BytesIO()
    Image.new("L", (28, 28)).save(buffer, "PNG")
    body = json.dumps({"images": [base64.b64encode(buffer.getvalue()).decode()]}).encode()
    head = {"content-type": "application/json"}
    request = urllib.request.Request(f"{address}/predict", body, head)  # noqa: S310  this server's address
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        answer.read()


class Side:
    """A checkout with a folder of its own: its cache, its runs."""

    def __init__(self, name: str, source: Path, folder: Path) -> None:
        self.name, self._source, self._folder, self._new = name, source, folder, 0
        self._environment = {**os.environ, "CONVSCOPE_CACHE": str(folder / "cache")}
        self._photographs, runs = make_photographs(folder / "photographs"), folder / "runs"
        self._space = folder / "space.toml"
        self._space.write_text('network = "simple"\nepochs = 1\nbatch_size = [64, 128]\n', encoding="utf-8")
        print(f"{name}: preparing runs with {source}", flush=True)
        prepared = ["exercise", "--data", "digits", "--epochs", "1", "--out", str(runs)]
        if measure(source, prepared, self._environment) is None:
            sys.exit(f"The exercise failed with {source}.")
        self._exercise = next(runs.iterdir())
        for warm in ("predict, one image", "report"):
            self.measure(COMMANDS[warm])

    def measure(self, command: list[str]) -> dict[str, float] | None:
        """Run a command once, with this side's own paths."""
        self._new += 1
        places = {
            "runs": self._exercise,
            "run": self._exercise / "deep",
            "other": self._exercise / "simple",
            "photographs": self._photographs,
            "image": next(self._photographs.rglob("*.png")),
            "space": self._space,
            "new": self._folder / f"new-{self._new}",
        }
        return measure(self._source, [part.format(**places) for part in command], self._environment)


def make_photographs(folder: Path) -> Path:
    """Write 200 noisy pictures of two classes."""
    generator = np.random.default_rng(0)
    for number in range(200):
        name = ("dark", "bright")[number % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 128, (64, 64, 3), np.uint8) + np.uint8(120 * (number % 2))
        Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder


def summarise(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Take the median of each measure."""
    return {kind: statistics.median(one[kind] for one in rounds) for kind in KINDS}


def as_table(measured: dict[str, dict[str, Any]], sides: list[str]) -> str:
    """Lay the medians out in Markdown; before and after stand beside each other."""
    columns = [f"{kind}, {side}" if len(sides) > 1 else kind for kind in KINDS for side in sides]
    lines = ["| " + " | ".join(["command", *columns]) + " |", "| --- |" + " --: |" * len(columns)]
    for command, by_side in measured.items():
        cells = [
            KINDS[kind].format(by_side[side][kind]) if side in by_side else "–"
            for kind in KINDS
            for side in sides
        ]
        lines.append("| " + " | ".join([f"`{command}`" if command == "--help" else command, *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="the src folder of another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="parts of the names of commands, with commas between")
    options = parser.parse_args()
    wanted = options.only.split(",")
    commands = {name: one for name, one in COMMANDS.items() if any(part in name for part in wanted)}
    with tempfile.TemporaryDirectory() as scratch:
        sources = {
            **({"before": options.against.resolve()} if options.against else {}),
            "now": THIS.resolve(),
        }
        sides = [Side(name, source, Path(scratch) / name) for name, source in sources.items()]
        rounds: dict[str, dict[str, list[dict[str, float]]]] = {}
        for number in range(options.rounds):
            for name, command in commands.items():
                for side in sides:
                    print(f"\r\x1b[K{number + 1}/{options.rounds} {name}, {side.name}", end="", flush=True)
                    found = side.measure(command)
                    if found is not None:
                        rounds.setdefault(name, {}).setdefault(side.name, []).append(found)
    print("\r\x1b[K", end="")
    measured = {
        name: {side: summarise(all_of_it) for side, all_of_it in by_side.items()}
        for name, by_side in rounds.items()
    }
    text = as_table(measured, list(sources))
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "commands.md").write_text(text, encoding="utf-8")
    record = {
        "date": str(date.today()),
        "rounds": options.rounds,
        "python": sys.version,
        "cores": os.cpu_count(),
    }
    (RESULTS / "commands.json").write_text(
        json.dumps({**record, "medians": measured, "rounds of each": rounds}, indent=2) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
