"""Training and prediction speed of convscope beside its peers, in one run.

    python benchmarks/throughput.py [--networks deep simple …] [--rounds 5] [--peers …]

Each peer trains in a process of its own; they take turns, so that a machine whose speed drifts is fair.
What counts is the ratio within a round: the table shows the median over the rounds, with the lowest and the
highest. It is written to benchmarks/results/ with the machine and the versions; a network that is not
measured again keeps its rows, on the same machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from models import NETWORKS
from peer import BEFORE, PEERS

HERE = Path(__file__).parent


class Peer:
    """A process that trains on demand."""

    def __init__(self, name: str, network: str, steps: int, before: Path | None) -> None:
        self.name = name
        sources = {"PYTHONPATH": str(before / "src")} if before and name == BEFORE else {}
        self.process = subprocess.Popen(
            [sys.executable, HERE / "peer.py", name, network, str(steps)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=HERE,
            env={**os.environ, **sources},
        )  # fmt: skip
        self._expect("ready")

    def train(self, steps: int) -> float:
        """Train some steps; return milliseconds per step."""
        assert self.process.stdin
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return float(self._read()) / steps * 1000

    def _read(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        if not line:
            raise RuntimeError(
                f"{self.name} stopped; run `python benchmarks/peer.py {self.name} deep 10` to see why"
            )
        return line

    def _expect(self, word: str) -> None:
        while self._read() != word:
            pass

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def measure(
    network: str, names: list[str], rounds: int, steps: int, before: Path | None = None
) -> dict[str, list[float]]:
    """Let the peers take turns; return milliseconds per step of each round."""
    peers: list[Peer] = []
    try:
        for name in names:
            try:
                peers.append(Peer(name, network, steps, before))
                peers[-1].train(steps)  # compiles, measures, warms up
                print(f"  {network}: {name} is ready", file=sys.stderr, flush=True)
            except RuntimeError as error:
                print(f"  {network}: {error}", file=sys.stderr, flush=True)
                peers.pop().close() if peers and peers[-1].name == name else None
        return _take_turns(peers, steps, rounds)
    finally:
        for peer in peers:
            peer.close()


def _take_turns(peers: list[Peer], steps: int, rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            times[peer.name].append(peer.train(steps))
    return times


def table(times: dict[str, list[float]]) -> list[str]:
    """Write one network's table: milliseconds per step, and how often convscope goes into it."""
    ours = times["convscope"]
    lines = [
        "| peer | ms per step (median) | lowest … highest | times convscope's (median of rounds) |",
        "| --- | --: | --: | --: |",
    ]
    for name, values in times.items():
        ratio = statistics.median(theirs / own for theirs, own in zip(values, ours, strict=True))
        spread = f"{min(values):.1f} … {max(values):.1f}"
        lines.append(f"| {PEERS[name]} | {statistics.median(values):.1f} | {spread} | {ratio:.2f} |")
    return lines


def available(names: list[str]) -> list[str]:
    """Leave out peers whose library is not installed."""
    needs = {"keras-jax": "jax", "keras-tensorflow": "tensorflow"}
    missing = [prefix for prefix, module in needs.items() if importlib.util.find_spec(module) is None]
    return [name for name in names if not any(name.startswith(prefix) for prefix in missing)]


def page(record: dict[str, Any]) -> str:
    """Write the tables of all networks that were measured on this machine."""
    machine = record["device"]
    lines = [
        "# Training speed",
        "",
        f"{machine['processor']}, {machine['torch_threads']} threads, torch on {machine['torch_device']}. "
        "Rounds in turns after a warm-up; `python benchmarks/throughput.py` repeats it.",
    ]
    for network, measured in record["networks"].items():
        shape, _, batch, _ = NETWORKS[network]
        times = measured["milliseconds_per_step"]
        rounds = len(times["convscope"])
        size = "×".join(map(str, shape))
        heading = f"## {network}, {size}, batch {batch}"
        said = f"{measured['date']}, {rounds} rounds of {measured['steps']} steps."
        lines += ["", heading, "", said, "", *table(times)]
    return "\n".join(lines) + "\n"


def known_networks(file: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """Read what was measured before, if that was on the same machine."""
    if not file.exists():
        return {}
    record = json.loads(file.read_text(encoding="utf-8"))
    same = record["device"] == machine
    return dict(record["networks"]) if same else {}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, help="steps of one measurement; set for each network when left out"
    )
    parser.add_argument("--before", type=Path, help="checkout of an earlier commit: a peer, in float32")
    parser.add_argument("--name", default="throughput", help="the name of the files in benchmarks/results/")
    arguments = parser.parse_args()

    from convscope.environment import describe
    from convscope.lowering.devices import describe_device

    results = HERE / "results"
    results.mkdir(exist_ok=True)
    file = results / f"{arguments.name}.json"
    names = ["convscope", *(name for name in available(arguments.peers) if name != "convscope")]
    names = [name for name in names if name != BEFORE] + [BEFORE] * bool(arguments.before)
    record: dict[str, Any] = {**describe(), "device": describe_device()}
    record["networks"] = known_networks(file, record["device"])
    for network in arguments.networks:
        leave_out = {"pytorch", "pytorch-bfloat16"} if network == "mobilenet" else set()
        steps = arguments.steps or NETWORKS[network][3]
        peers = [name for name in names if name not in leave_out]
        times = measure(network, peers, arguments.rounds, steps, arguments.before)
        record["networks"][network] = {
            "date": str(date.today()), "steps": steps, "milliseconds_per_step": times,
        }  # fmt: skip
        print("\n".join([f"## {network}", "", *table(times)]), flush=True)
        file.write_text(json.dumps(record, indent=2) + "\n")
        file.with_suffix(".md").write_text(page(record))


if __name__ == "__main__":
    main()
