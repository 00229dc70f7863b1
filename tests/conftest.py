"""What every test needs."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Small arrays gain nothing from a second thread, and threads that wait for one another lose much where other
# programs run too. Set before torch is loaded; programs that a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import convscope  # it chooses Keras's back end, before a test imports Keras

# A busy machine takes longer for an example than the 200 ms that hypothesis allows; that is no failure.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")


@pytest.fixture(scope="session")
def real_mnist():
    """MNIST, where CONVSCOPE_DATA has it; a damaged file there is a failure, not a reason to skip."""
    folder = os.environ.get("CONVSCOPE_DATA")
    if not folder or not (Path(folder) / "mnist").is_dir():
        pytest.skip("CONVSCOPE_DATA names no folder with mnist")
    return convscope.load("mnist")


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A run of a small network on the digits; copy it before changing it."""
    from bundle_cases import train_small_run

    return train_small_run(tmp_path_factory.mktemp("runs") / "small")
