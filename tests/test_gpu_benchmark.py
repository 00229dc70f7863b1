"""The benchmark that will be run on a GPU goes through on a machine without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *arguments]
    environment = {**os.environ, "KERAS_TORCH_DEVICE": "cpu"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_benchmark_of_a_gpu_goes_through_in_small(tmp_path):
    done = run("--smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 checks failed" in done.stdout
    (file,) = tmp_path.glob("gpu-*.json")
    record = json.loads(file.read_text())
    assert record["captured simple"]["passed"]
    assert record["keras simple"]["passed"]
    assert record["steps simple"]["failed"] == {}
    assert record["swift"]["seeds"] == 1
