"""A user's own choice of Keras's back end: training then goes through Keras's own fit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("convscope")


@pytest.mark.backends
@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_the_exercise_trains_on_another_back_end(tmp_path, backend, data_format):
    if backend == "tensorflow" and data_format == "channels_first":
        pytest.skip("TensorFlow has no channels_first convolution on a CPU")
    command = "exercise --network deep --epochs 2 --batch-size 32 --data digits --json"
    done = subprocess.run(
        [PROGRAM, *command.split(), "--data-format", data_format],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"KERAS_BACKEND": backend},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["networks"]["deep"]["test_accuracy"] > 0.85
