"""One training on several processes: the same numbers as in one, whatever their number."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed_cases
import numpy as np
import pytest

SIZE = 3


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of three processes found."""
    file = tmp_path_factory.mktemp("several") / "found"
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(SIZE)}
    environment = {**os.environ, **shared, "LOCAL_WORLD_SIZE": str(SIZE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(distributed_cases.__file__)), str(file)]
    processes = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(SIZE)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [json.loads(Path(f"{file}-{rank}.json").read_text(encoding="utf-8")) for rank in range(SIZE)]


@pytest.mark.parametrize("name", distributed_cases.CASES)
def test_several_processes_train_as_one(name: str, several: list[dict[str, Any]]) -> None:
    alone, together = distributed_cases.train(name), [found["trained"][name] for found in several]
    assert together[0]["engine"] == alone["engine"] == "fast"
    for key, values in alone["history"].items():
        np.testing.assert_allclose(together[0]["history"][key], values, rtol=2e-5, atol=1e-6, err_msg=key)
    for mine, others in zip(alone["weights"], together[0]["weights"], strict=True):
        np.testing.assert_allclose(others, mine, rtol=1e-3, atol=2e-4)
    for other in together[1:]:
        assert other == together[0], "the processes ended with other weights or logs"


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("mixing", "mix"),
        ("keras-layer", "gaussian_noise"),
        ("own-step", "train_step"),
        ("stream", "generator"),
        ("keras-engine", "keras"),
    ],
)
def test_what_several_processes_cannot_train_is_refused_by_each(
    name: str, fact: str, several: list[dict[str, Any]]
) -> None:
    sentences = {found["refused"][name] for found in several}
    assert len(sentences) == 1
    sentence = sentences.pop()
    assert sentence.startswith("UsageError") and fact in sentence and "torchrun" in sentence
