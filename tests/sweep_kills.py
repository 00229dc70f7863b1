"""A sweep whose workers are killed again and again; one warmed process forks them.

Run as a program: ``sweep_kills.py FOLDER WORKERS KILLS TRIALS``; prints one JSON object.
"""

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

import convscope
from convscope.experiment import running
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.space import parse_space
from convscope.experiment.study import Study, SweepPlan
from convscope.experiment.sweep import work
from convscope.runs import open_run

SPACE = """
learning_rate = {low = 1e-3, high = 1e-2, log = true}
batch_size = [256, 512]
"""
RUNNING_OR_WAITING = (0, 4)  # Optuna's numbers for states that are not an end


def plan(folder, trials):
    space = parse_space(SPACE, ("learning_rate", "batch_size"))
    return SweepPlan("kills", folder, space, trials, pruner="NopPruner", sampler="RandomSampler")


def main(folder, workers, kills, trials):
    """Kill until there were enough, and replace who was killed; then let the sweep come to its end."""
    generator = np.random.default_rng(0)
    dataset = convscope.load("digits")
    running.load_again = lambda _: dataset

    def settle(given):
        training = TrainingConfig(epochs=2, deterministic=True, **given)
        return ExperimentConfig("simple", data="digits", training=training), dataset

    def fork():
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(Study(plan(folder, trials)), settle)
                code = 0
            finally:
                os._exit(code)
        return child

    running.run_trial(settle({"batch_size": 256})[0], dataset, folder.parent / "warm")
    team, ended = [fork() for _ in range(workers)], Counter()
    began = time.perf_counter()
    while team:
        time.sleep(generator.uniform(0.1, 0.6))
        for child in list(team):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                team.remove(child)
                code = os.waitstatus_to_exitcode(status)
                ended["killed" if code == -signal.SIGKILL else f"code {code}"] += 1
                if code == -signal.SIGKILL:
                    team.append(fork())
        if team and ended["killed"] < kills:  # whoever was killed before is counted by now
            os.kill(team[generator.integers(len(team))], signal.SIGKILL)
    rows = Study(plan(folder, trials)).rows()
    journal = [json.loads(line) for line in (folder / "journal.log").read_text().splitlines()]
    ends = Counter(
        line["trial_id"]
        for line in journal
        if "state" in line and "trial_id" in line and line["state"] not in RUNNING_OR_WAITING
    )
    # As undisturbed: the same settings trained once more give the same numbers.
    again = []
    for row in rows[:3]:
        trained = running.run_trial(settle(row.settings)[0], dataset, folder.parent / f"again-{row.number}")
        again.append(row.value == trained.validation.accuracy)
    statuses = [open_run(folder / row.name).read_json("run.json")["status"] for row in rows]
    result = {
        "ended": ended,
        "states": Counter(row.state for row in rows),
        "trials": len(rows),
        "ended_once": sum(count == 1 for count in ends.values()),
        "runs": statuses.count("completed"),
        "as_undisturbed": all(again),
        "seconds": time.perf_counter() - began,
        "begun": sum("state" in line and line["state"] == 0 for line in journal),
    }
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
