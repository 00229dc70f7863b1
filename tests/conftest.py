"""What every test needs."""

import os
from pathlib import Path

import pytest

import convscope  # it chooses Keras's back end, before a test imports Keras


@pytest.fixture(scope="session")
def real_mnist():
    """MNIST, where CONVSCOPE_DATA has it; a damaged file there is a failure, not a reason to skip."""
    folder = os.environ.get("CONVSCOPE_DATA")
    if not folder or not (Path(folder) / "mnist").is_dir():
        pytest.skip("CONVSCOPE_DATA names no folder with mnist")
    return convscope.load("mnist")
