"""One training on several processes: the same numbers as in one, whatever their number."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed_cases
import keras
import numpy as np
import pytest
import torch

import convscope
from convscope.errors import DataError
from convscope.experiment import together
from convscope.experiment.config import ExperimentConfig
from convscope.lowering.masks import bits_type, make_mask
from convscope.runs import open_run
from convscope.training import distributed

SIZE = 3
IP = shutil.which("ip") or "ip"


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
            _, errors = process.communicate(timeout=280)
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


def test_processes_of_one_machine_see_each_others_gradients(several: list[dict[str, Any]]) -> None:
    expected = [3.0, 6.0, 9.0] if hasattr(os, "memfd_create") else None
    assert [found["memory"] for found in several] == [expected] * SIZE


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


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.join() is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert distributed.join() is None


def test_other_data_than_the_first_process_has_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Second:
        leads, same = False, staticmethod(lambda _: "0123456789abcdef")

    monkeypatch.setattr(together, "join", Second)
    monkeypatch.setattr(together, "_train_along", lambda *_: None)
    dataset = convscope.load("digits")
    with pytest.raises(DataError, match=r"data, fingerprint 0123456789ab, got digits, "):
        together.train_together(ExperimentConfig("simple", data="digits"), dataset, tmp_path)
    monkeypatch.setattr(Second, "same", staticmethod(lambda own: own))
    assert together.train_together(ExperimentConfig("simple", data="digits"), dataset, tmp_path) is None


_ALONE_AT_THE_PLACE = """
import convscope
from convscope.errors import RunError
from convscope.training import distributed
distributed._SECONDS_TO_MEET = 1
try:
    distributed.join()
except RunError as error:
    print(error)
"""


def test_processes_that_do_not_come_are_named() -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "KERAS_BACKEND": "torch"}
    first_of_four = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}  # on two machines
    said = subprocess.run(
        [sys.executable, "-c", _ALONE_AT_THE_PLACE],
        env={**os.environ, **place, **first_of_four},
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
    ).stdout
    assert "no word from process 1, 2, 3 in 1 s" in said
    assert "--node-rank 0, 1" in said


@pytest.mark.parametrize(
    ("asked", "local_size", "expected"),
    [("4", 2, 4), ("1", 10_000, 1), ("", 10_000, 1)],
    ids=["said", "torchrun", "more than cores"],
)
def test_threads_are_a_share_of_the_cores(
    asked: str, local_size: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert distributed.threads_of(local_size) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity of threads")
@pytest.mark.parametrize(
    ("processes", "place", "expected"),
    [(2, "1", {6, 7}), (1, "0", {2, 3, 6, 7}), (2, None, {2, 3, 6, 7})],
    ids=["all cores in use", "cores to spare", "no launcher"],
)
def test_each_process_stays_on_its_cores_where_they_use_all(monkeypatch, processes, place, expected):
    """Else two on one machine would all be bound to the first core."""
    cores = {2, 3, 6, 7}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, chosen: bound.append(set(chosen)))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if place is not None:
        monkeypatch.setenv("LOCAL_RANK", place)
    bound: list[set[int]] = []
    group = object.__new__(distributed.Group)
    group.local_size, group._threads = processes, 2
    before = torch.get_num_threads()
    with group.threads():
        assert torch.get_num_threads() == 2
        assert (bound or [cores])[-1] == expected
    assert (bound or [cores])[-1] == cores
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("rate", [0.5, 0.25, 0.3, 1 / 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_part_of_a_mask_is_that_of_the_whole(rate: float, dtype: torch.dtype) -> None:
    whole = make_mask(rate, (13, 5, 7, 16), 12345, bits_type(dtype), torch.device("cpu"))
    for first, last in ((0, 4), (4, 8), (8, 13)):
        shape = (last - first, 5, 7, 16)
        part = whole.part(first * 560, last * 560, shape)
        torch.testing.assert_close(part.unpack(), whole.unpack()[first:last])
        x = torch.rand(shape, dtype=dtype)
        torch.testing.assert_close(part.apply(x), x * whole.unpack()[first:last])


class Pair:
    """A group of two, of which the other one has the same gradients."""

    leads, wish = True, staticmethod(lambda: False)
    shared_memory = staticmethod(lambda _floats: None)

    def __init__(self) -> None:
        self.events: list[Any] = []

    def begin_sum(self, numbers: torch.Tensor) -> Callable[[], None]:
        self.events.append(numbers.numel())
        numbers.mul_(2.0)  # at once: what comes into the part afterwards is not summed
        return lambda: self.events.append("waited")


def test_the_last_layers_gradients_are_sent_while_the_first_ones_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "_FLOATS_OF_A_PART", 100)
    group, generator = Pair(), torch.Generator().manual_seed(0)
    sizes = ((9, 30), (30,), (30, 4), (4,), (4, 40))  # a layer with a bias, one, and a last one
    weights = [torch.rand(size, generator=generator).requires_grad_() for size in sizes]
    kernel, bias, second, third, last = weights
    x = torch.rand((5, 9), generator=generator, requires_grad=True)
    x.register_hook(lambda _: group.events.append("first layer"))
    loss = ((((x @ kernel + bias) @ second + third) @ last) ** 2).sum()
    expected = torch.autograd.grad(loss, weights, retain_graph=True)
    group.events.clear()
    summed = distributed.GradientSum(group, weights)  # type: ignore[arg-type]
    with summed(None):
        loss.backward()
    # Parts from the last layer on; behind the last one stands who wants to stop.
    assert [one for one in group.events if one != "first layer"] == [160, 124, 300, 1, *["waited"] * 4]
    assert group.events.index("first layer") >= 2
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, 2 * gradient)
        assert not weight._post_accumulate_grad_hooks


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_training_whose_processes_are_killed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    # Two kills by default; CONVSCOPE_FULL=1 kills thirty times, every other time whenever it may be.
    kills, epochs = (30, 400) if os.environ.get("CONVSCOPE_FULL") else (2, 6)
    rng = np.random.default_rng(0)

    def launch(out: Path) -> subprocess.Popen[bytes]:
        own = [*_TORCHRUN, "--max-restarts", str(kills + 1), "-m", "convscope", "train", "digits"]
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(
                [*own, *_SETTINGS, "--epochs", str(epochs), "--out", str(out)],
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    undisturbed = launch(tmp_path / "undisturbed")
    assert undisturbed.wait(timeout=600) == 0
    disturbed = launch(tmp_path / "disturbed")
    killed: set[int] = set()

    def are_anew() -> bool:
        return len(_children(disturbed.pid)) == 2 and killed.isdisjoint(_children(disturbed.pid))

    for number in range(kills):
        if kills == 2 or number % 2:
            wanted = _epochs_in(tmp_path / "disturbed") + 1
            _wait_for(lambda wanted=wanted: _epochs_in(tmp_path / "disturbed") >= wanted)
        else:
            time.sleep(rng.uniform(0, 15))
        _wait_for(are_anew)
        processes = _children(disturbed.pid)
        os.kill(processes[(number + 1) % 2], signal.SIGKILL)
        killed.update(processes)  # both end
    assert disturbed.wait(timeout=600) == 0
    assert len(killed) == 2 * kills
    assert "process 1" in (tmp_path / "log").read_text("utf-8"), "nobody said which process has ended"
    (one,), (other,) = ((tmp_path / name).glob("*/simple") for name in ("undisturbed", "disturbed"))
    for name in ("weights.safetensors", "history.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[list[str]]]:
    """What begins a command on each of two machines: namespaces with a cable between them.

    As on many systems, each finds its own name at an address that no other can reach.
    """
    names = [f"convscope-{os.getpid()}-{number}" for number in (0, 1)]

    def ip(*arguments: str) -> int:
        return subprocess.run([IP, *arguments], capture_output=True, check=False).returncode

    if any(ip("netns", "add", name) for name in names):
        pytest.skip("network namespaces are root's")
    try:
        ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "cable1", "netns", names[1])
        for number, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.99.0.{number + 1}/24", "dev", f"cable{number}")
            ip("-n", name, "link", "set", f"cable{number}", "up")
            ip("-n", name, "link", "set", "lo", "up")
            hosts = f"127.0.0.1 localhost\n127.0.1.1 host{number}\n"
            (tmp_path / f"hosts{number}").write_text(hosts, encoding="utf-8")
        own = 'hostname "$0"; mount --bind "$1" /etc/hosts; shift; exec "$@"'
        yield [
            [
                *("ip", "netns", "exec", name, "unshare", "--uts", "--mount"),
                *("sh", "-c", own, f"host{number}", str(tmp_path / f"hosts{number}")),
            ]
            for number, name in enumerate(names)
        ]
    finally:
        for name in names:
            ip("netns", "delete", name)


def _train_on(machines: list[list[str]], out: Path, *second: str) -> tuple[list[int], list[str]]:
    """Train on two machines, the second with these variables: exit codes, and what they said."""
    first = ["--nnodes", "2", "--master-addr", "10.99.0.1", "--master-port", "29400"]
    launcher = [sys.executable, "-m", "torch.distributed.run", *first, "--nproc-per-node", "1"]
    training = ["-m", "convscope", "train", "digits", *_SETTINGS, "--epochs", "2"]
    processes = [
        subprocess.Popen(
            [
                *machine,
                "env",
                *settings,
                *launcher,
                "--node-rank",
                str(rank),
                *training,
                "--out",
                str(out / str(rank)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, (machine, settings) in enumerate(zip(machines, [(), second], strict=True))
    ]
    try:
        errors = [process.communicate(timeout=180)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


_NEEDS_NAMESPACES = pytest.mark.skipif(
    not all(map(shutil.which, ("ip", "unshare"))), reason="needs ip and unshare"
)


@pytest.mark.slow
@_NEEDS_NAMESPACES
def test_a_machine_that_cannot_be_reached_ends_both_and_is_named(
    machines: list[list[str]], tmp_path: Path
) -> None:
    began = time.monotonic()
    codes, errors = _train_on(machines, tmp_path, "GLOO_SOCKET_IFNAME=nonsense")
    seconds = time.monotonic() - began
    assert 0 not in codes
    for said in errors:
        assert "process 1 on host1, where GLOO_SOCKET_IFNAME is 'nonsense' and not one of lo, cable1" in said
    assert seconds < 60, f"it took {seconds:.0f} s"


@pytest.mark.slow
@_NEEDS_NAMESPACES
def test_two_machines_train_as_one_and_the_first_writes(machines: list[list[str]], tmp_path: Path) -> None:
    codes, errors = _train_on(machines, tmp_path)
    assert codes == [0, 0], errors
    [run] = (tmp_path / "0").glob("*/simple")
    assert not (tmp_path / "1").exists()
    history = open_run(run).read_table("history.csv")
    dataset = convscope.load("digits")
    assert len(history["loss"]) == 2 and history["accuracy"][-1] > 1 / len(dataset.class_names)


_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
_SETTINGS = ["--network", "simple", "--deterministic", "--precision", "float32"]
_SETTINGS += ["--batch-size", "32", "--no-report", "--no-preflight"]


def _wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until, "it did not come so far"
        time.sleep(0.05)


def _epochs_in(out: Path) -> int:
    """The epochs of the newest checkpoint."""
    return max((int(path.name[:6]) for path in out.glob("*/*/checkpoint/0*")), default=0)


def _children(pid: int) -> list[int]:
    """The processes that a launcher has started, the first first."""
    command = ["ps", "-o", "pid=", "--ppid", str(pid)]  # it fails where there are none
    return sorted(map(int, subprocess.run(command, capture_output=True, check=False).stdout.split()))


def test_what_keras_distributes_is_left_to_keras() -> None:
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=["cpu:0"]))
    try:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy")
        x, y = np.zeros((8, 4), np.float32), np.arange(8) % 2
        with pytest.warns(UserWarning, match=r"keras\.distribution is active"):
            history = convscope.fit(model, x, y, verbose=0)
        assert history.engine == "keras"
        assert "DataParallel" in history.reason
    finally:
        keras.distribution.set_distribution(None)


def test_windows_is_not_asked_by_what_is_ctrl_c_there(monkeypatch):
    monkeypatch.setattr(distributed.sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("sends Ctrl-C on Windows"))
    assert distributed._is_there(1)


@pytest.mark.slow
def test_the_benchmark_of_several_processes_runs():
    script = Path(__file__).parents[1] / "benchmarks" / "scaling.py"
    command = [sys.executable, script, "simple", "--batch", "32", "--processes", "1", "2", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    parts = json.loads(done.stdout.splitlines()[-1])["measured"]["2"]
    assert parts["shared"] > 0 < parts["sent"]
    assert "2 processes:" in done.stdout
