"""Trainings that are killed: whatever the moment, the run is readable, and in the end as if undisturbed."""

import json
import os
import subprocess
import sys

import crashes
import pytest


@pytest.mark.slow
def test_kills_at_random_moments_and_inside_saves_lose_nothing(tmp_path):
    # A tenth by default; CONVSCOPE_FULL=1 kills two hundred times.
    kills, in_a_save = (200, 50) if os.environ.get("CONVSCOPE_FULL") else (20, 5)
    done = subprocess.run(
        [sys.executable, crashes.__file__, str(tmp_path), str(kills), str(in_a_save)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["moments"] + found["saves"] == kills
    assert found["saves"] >= in_a_save
    assert found["finished"] >= 1
    assert (found["unreadable"], found["different"]) == (0, 0)
