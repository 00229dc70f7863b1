"""A set that is larger than what a training may keep in memory."""

import os
import subprocess
import sys
from pathlib import Path

import big
import pytest


@pytest.mark.slow
def test_many_images_are_trained_on_in_little_memory(tmp_path):
    # The full million only with CONVSCOPE_FULL=1: it writes 12 GB and takes minutes.
    count = 1_000_000 if os.environ.get("CONVSCOPE_FULL") else 150_000
    big.write_npz(tmp_path / "many.npz", count)
    done = subprocess.run(
        [sys.executable, big.__file__, str(tmp_path / "many.npz"), "40"],
        env=os.environ | {"CONVSCOPE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    trained, imported, *_, peak = map(int, done.stdout.split())
    assert trained == count * 0.8 * 0.9
    assert peak < 1_500_000  # kB
    assert peak - imported < 450_000  # 290 in all; the images take 3 kB each: 460 MB more, or 3 GB
