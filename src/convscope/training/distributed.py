"""One training on several processes, as ``torchrun`` starts them: each computes its rows of every batch.

    rows of this process → network (masks by the row in the whole batch, statistics of the whole batch)
                         → outputs of all rows, on every process → loss, metrics
                         → gradients of these rows, summed over all processes → the same update everywhere

Order, masks and augmentation are functions of the seed and of the place in the whole batch, and loss and
metrics see all rows at once; so the number of processes changes nothing but the order of sums. All words
between processes are torch.distributed's: gloo on CPUs, nccl on GPUs.
"""

from __future__ import annotations

import atexit
import mmap
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import keras
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # documented

from convscope.environment import is_one_of_several
from convscope.errors import LoweringError, RunError, UsageError, expected_got
from convscope.lowering import LoweredNetwork
from convscope.lowering.kernels import Shard
from convscope.lowering.layers import KerasCall
from convscope.training.checkpoint import model_variables, optimizer_variables

SECONDS_UNTIL_LOST = 30  # a process that says nothing for so long ends the training
_SECONDS_TO_MEET = 60  # until all machines have begun; some load torch from a slow disk
_SECONDS_OF_PREPARATION = 24 * 3600  # the first one measures, compiles and looks while the others wait
_SECONDS_TO_TELL_WHO = 1.0
_SECONDS_BETWEEN_LOOKS = 0.1
_INTERFACE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915  # netdevice(7)
_FLOATS_OF_A_PART = 1 << 18  # 1 MB, as torch's DistributedDataParallel begins with
_ADDING = 4  # so many processes of one machine add up each other's gradients; more are faster in a ring
_SHARED_BYTES = 1 << 28  # of memory that they see together; larger networks are sent
_TOLERANCE = 1e-3  # of weights on machines that round otherwise; more is a callback's doing
_FILE_WRITERS = ("CSVLogger", "ModelCheckpoint", "ProgbarLogger", "RemoteMonitor", "TensorBoard")

Tensor = torch.Tensor
Value = TypeVar("Value")
_group: Group | None = None
_is_alone = False


def join() -> Group | None:
    """Give the processes that train together; None where this one is alone. The first call waits for all."""
    global _group  # noqa: PLW0603  a process belongs to one group
    if _is_alone or keras.backend.backend() != "torch" or not is_one_of_several():
        return None
    if _group is None:
        _group = Group()
    return _group


@contextmanager
def alone() -> Iterator[None]:
    """Let this process train by itself, whatever others do."""
    global _is_alone  # noqa: PLW0603
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


class Group:
    """The processes of one training; each of them calls the same methods in the same order."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._threads = threads_of(self.local_size)
        on_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= self.local_size
        if on_gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        self.backend = "nccl" if on_gpus else "gloo"
        self._store: TCPStore | None = None
        try:
            with _reachable_by_gloo():
                if not dist.is_initialized():
                    store = PrefixStore(f"attempt-{attempt()}", self.memory)
                    self._meet(store)
                    dist.init_process_group(
                        "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
                        store=store,
                        rank=self.rank,
                        world_size=self.size,
                        timeout=timedelta(seconds=SECONDS_UNTIL_LOST),
                    )
                patient = timedelta(seconds=_SECONDS_OF_PREPARATION)
                self._preparing = dist.new_group(timeout=patient, backend="gloo")
        except RuntimeError as error:
            hint = f"{_INTERFACE} names the network interface by which this machine reaches the others."
            found = str(error).strip().splitlines()[0]
            raise RunError(
                expected_got(f"{self.size} processes that reach one another", found, hint)
            ) from error
        self._places: list[Any] = [None] * self.size
        dist.all_gather_object(self._places, (socket.gethostname(), os.getpid()))
        atexit.register(_leave)
        self.wish: Callable[[], bool] = lambda: False  # to stop, of this process
        self.asked = torch.zeros(1)  # how many wished it at the last step

    def _meet(self, store: PrefixStore) -> None:
        """Wait until all are there, and end at once where one of them cannot be reached."""
        store.set(f"obstacle {self.rank}", _obstacle())
        until = time.monotonic() + _SECONDS_TO_MEET
        while missing := [r for r in range(self.size) if not store.check([f"obstacle {r}"])]:
            if time.monotonic() > until:
                nodes = sorted({f"{rank // self.local_size}" for rank in missing})
                found = f"no word from process {', '.join(map(str, missing))} in {_SECONDS_TO_MEET} s"
                hint = f"Look at what torchrun says on the machine with --node-rank {', '.join(nodes)}."
                raise RunError(expected_got(f"{self.size} processes that begin together", found, hint))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        obstacles = [store.get(f"obstacle {rank}").decode() for rank in range(self.size)]
        found = "; ".join(f"process {rank} {text}" for rank, text in enumerate(obstacles) if text)
        if found:
            raise RunError(expected_got(f"{self.size} processes that reach one another", found))

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    @property
    def memory(self) -> TCPStore:
        """What the launcher remembers for all processes, from one restart of theirs to the next."""
        if self._store is None:
            # Not torch's own way here: it reads what an earlier attempt has left, and connects to nobody.
            hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            wait = timedelta(seconds=_SECONDS_TO_MEET)
            self._store = TCPStore(host, port, is_master=self.leads and not hosted, timeout=wait)
        return self._store

    def same(self, value: Value | None) -> Value:
        """Give everybody the first process's value; it may take its time."""
        box = [value]
        self._call(dist.broadcast_object_list, box, src=0, group=self._preparing)
        return box[0]  # type: ignore[return-value]  # the first one has it

    def rows(self, total: int) -> slice:
        """Say which rows of a batch are this process's: all, where there are fewer than processes."""
        if total < self.size:
            return slice(0, total)
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def shard(self, total: int) -> Shard | None:
        """Describe this process's rows of a batch; None where each computes them all."""
        if total < self.size:
            return None
        mine = self.rows(total)
        return Shard(mine.start, mine.stop - mine.start, total, self.sum_up)

    def sum_up(self, numbers: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        self._call(dist.all_reduce, numbers)
        return numbers

    def begin_sum(self, numbers: Tensor) -> Callable[[], None]:
        """Begin to add up a tensor over all processes, in place; what is given waits for it."""
        work = self._call(dist.all_reduce, numbers, async_op=True)
        return lambda: self._call(work.wait)

    def gather(self, outputs: Tensor, shard: Shard | None) -> Tensor:
        """Put together what all processes computed for their rows: the whole batch's, everywhere."""
        if shard is None:
            return outputs
        if outputs.dim() == 0 or len(outputs) != shard.rows:
            found = f"outputs of shape {tuple(outputs.shape)} for {shard.rows} rows"
            raise UsageError(expected_got("an output for each row, on several processes", found, _ALONE))
        gathered: Tensor = _Gather.apply(outputs, shard)  # type: ignore[no-untyped-call]
        return gathered

    def shared_memory(self, floats: int) -> Tensor | None:
        """Give float32 memory that all processes see, (2, processes, floats); None where they cannot."""
        hosts, size = {host for host, _ in self._places}, 8 * self.size * floats
        possible = self.backend == "gloo" and len(hosts) == 1 and hasattr(os, "memfd_create")
        if not possible or self.size > _ADDING or size > _SHARED_BYTES:
            return None
        memory = file = None
        with suppress(OSError):
            if self.leads:
                file = os.memfd_create("convscope-gradients")  # it is gone when the last process is
                os.truncate(file, size)
        pid, number, expected = self.same((os.getpid(), file, _identity(file)))
        with suppress(OSError, ValueError), Path(f"/proc/{pid}/fd/{number}").open("r+b") as seen:
            if _identity(seen.fileno()) == expected:  # another container's process may have this number
                memory = torch.frombuffer(mmap.mmap(seen.fileno(), size), dtype=torch.float32)
        missing = self.sum_up(torch.tensor(float(memory is None)))
        if file is not None:
            os.close(file)
        return None if memory is None or missing else memory.view(2, self.size, floats)

    def stop_together(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        """Turn a wish to stop, which may come at any time, into one that all hear after the same step."""
        self.wish, self.asked = asked, torch.zeros(1)
        return lambda: bool(self.asked.item() > 0)

    def begin_alike(self, model: keras.Model) -> None:
        """Give everybody the weights and the optimizer's state of the first process."""
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        variables = [*model_variables(model), *optimizer_variables(model.optimizer)]
        own = [keras.ops.convert_to_numpy(variable.value) for variable in variables]
        for variable, value in zip(variables, self.same(own), strict=True):
            if not self.leads:
                variable.assign(value)

    def stay_alike(self, model: keras.Model) -> None:
        """Refuse weights that have become others than the first process's; take away what rounding did."""
        values = [variable.value.detach() for variable in model_variables(model)]
        if not values:
            return
        # As integers, so that each machine adds them up alike.
        sums = [value.float().contiguous().view(torch.int32).sum(dtype=torch.int64) for value in values]
        own = torch.stack([*sums, torch.tensor(int(model.stop_training)).to(sums[0])])
        first = own.clone()
        self._call(dist.broadcast, first, src=0)
        if not int(self.sum_up((own != first).any().long())):
            return
        for value in values:
            expected = value.clone()
            self._call(dist.broadcast, expected, src=0)
            far = (value - expected).abs().max() > _TOLERANCE * (expected.abs().max() + _TOLERANCE)
            if int(self.sum_up(far.long())) or int(own[-1] != first[-1]):
                found = "a callback or a listener that changed them, or stopped, on some"
                raise UsageError(expected_got("the same weights on all processes", found))
            value.copy_(expected)
            torch.autograd.graph.increment_version([value])

    def callbacks(self, callbacks: Sequence[keras.callbacks.Callback]) -> list[keras.callbacks.Callback]:
        """Leave those callbacks of Keras's that write to the first process."""
        for callback in callbacks:
            if type(callback) is keras.callbacks.BackupAndRestore:
                hint = "`convscope train` keeps checkpoints and goes on from them."
                raise UsageError(expected_got("no BackupAndRestore on several processes", "one", hint))
        writers = tuple(getattr(keras.callbacks, name) for name in _FILE_WRITERS)
        return [callback for callback in callbacks if self.leads or not isinstance(callback, writers)]

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Compute on this process's share of the machine's cores.

        Where together they use all of them, each stays on its own: no step then waits for one that moved.
        """
        before, threads = torch.get_num_threads(), self._threads
        torch.set_num_threads(threads)
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        place = os.environ.get("LOCAL_RANK", "")
        own = place.isdigit() and len(cores) == threads * self.local_size
        first = threads * int(place) if own else 0
        try:
            with suppress(OSError):  # a container may forbid it
                if own:
                    os.sched_setaffinity(0, cores[first : first + threads])
            yield
        finally:
            torch.set_num_threads(before)
            with suppress(OSError):
                if own:
                    os.sched_setaffinity(0, cores)

    def refused(self, reason: Exception | str) -> UsageError:
        """Make the error for what several processes cannot train."""
        return UsageError(f"Several processes train by the fast engine alone. {reason} {_ALONE}")

    def describe(self) -> str:
        """Say in a sentence who trains."""
        each = "1 thread" if self._threads == 1 else f"{self._threads} threads"
        return f"{self.size} processes share each batch, over {self.backend}, with {each} each."

    def _call(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        """Speak with the others; where one is lost, end with a sentence that names it."""
        try:
            return function(*arguments, **settings)
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> RunError:
        time.sleep(_SECONDS_TO_TELL_WHO)  # until a process that was killed is gone
        ended = [
            f"process {rank} (pid {pid})"
            for rank, (host, pid) in enumerate(self._places)
            if host == socket.gethostname() and pid != os.getpid() and not _is_there(pid)
        ]
        found = f"{' and '.join(ended)} to have ended" if ended else str(error).strip().splitlines()[0]
        hint = "`torchrun --max-restarts 3` starts all anew and goes on from the last checkpoint."
        return RunError(expected_got(f"{self.size} processes to train to the end", found, hint))


class GradientSum:
    """Sums the gradients of weights over all processes.

    They lie in one float32 buffer, the last layers' first, since the backward pass begins there, and behind
    them who wants to stop. Where all processes see each other's buffers, each adds these up, in the same
    order. Otherwise a part of it is sent as soon as it is whole: mostly the large dense layers, before the
    convolutions take their time. Parts and their order are the same on all processes.
    """

    def __init__(self, group: Group, weights: Sequence[Tensor]) -> None:
        self._group, self._weights = group, list(reversed(weights))
        self._sizes = [weight.numel() for weight in self._weights]
        floats, device = sum(self._sizes), weights[0].device if weights else torch.device("cpu")
        flat = torch.zeros(floats + 1, dtype=torch.float32, device=device)
        self._asked, self._sum, self._sums = flat[-1:], flat[:-1], self._views(flat)
        self._shared: list[Tensor] = []  # everybody's buffers (processes, floats), by turns
        self._own: list[list[Tensor]] = []  # where this process's gradients go, by turns
        self._parts: list[tuple[int, Tensor]] = []  # how many weights are in the buffer by then, and the part
        begin = end = 0
        for number, size in enumerate(self._sizes, 1):
            end += size
            if end - begin >= _FLOATS_OF_A_PART:
                self._parts.append((number, flat[begin:end]))
                begin = end
        self._rest = flat[begin:]

    def _views(self, flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat[: sum(self._sizes)], self._sizes)
        return [part.view(weight.shape) for part, weight in zip(parts, self._weights, strict=True)]

    def _share(self) -> None:
        """Find out at the first step, when all are there, whether they see each other's buffers."""
        memory = self._group.shared_memory(len(self._sum))
        self._own = [self._sums]
        if memory is not None:  # two, since one process may be a step ahead of another that still reads
            self._shared = list(memory)
            self._own = [self._views(buffers[self._group.rank]) for buffers in memory]
            self._parts, self._rest = [], self._asked

    @contextmanager
    def __call__(self, shard: Shard | None) -> Iterator[None]:
        """Replace each gradient by the sum; where each process computed all rows, by the first one's."""
        if not self._own:
            self._share()
        counts, views = shard is not None or self._group.leads, self._own[0]
        waits: list[Callable[[], None]] = []
        arrived: set[int] = set()

        @torch.no_grad()
        def arrive(number: int, weight: Tensor) -> None:
            if counts and weight.grad is not None:
                views[number].copy_(weight.grad)
            else:
                views[number].zero_()
            arrived.add(number)
            while len(waits) < len(self._parts) and arrived.issuperset(range(self._parts[len(waits)][0])):
                waits.append(self._group.begin_sum(self._parts[len(waits)][1]))

        hooks = [
            weight.register_post_accumulate_grad_hook(partial(arrive, number))  # type: ignore[no-untyped-call]
            for number, weight in enumerate(self._weights)
            if weight.requires_grad
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for number, weight in enumerate(self._weights):
            if number not in arrived:
                arrive(number, weight)
        self._asked.fill_(float(self._group.wish()))
        for wait in [*waits, self._group.begin_sum(self._rest)]:
            wait()
        if self._shared:  # all are there now
            first, second, *others = self._shared[0]
            torch.add(first, second, out=self._sum)
            for other in others:
                self._sum.add_(other)
            self._shared.reverse()
            self._own.reverse()
        for weight, view in zip(self._weights, self._sums, strict=True):
            if weight.grad is not None:
                weight.grad = view
        self._group.asked = self._asked


class _Gather(torch.autograd.Function):
    """The whole batch's outputs of each process's rows; backwards each takes the gradient of its own."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        whole = outputs.new_zeros((shard.total, *outputs.shape[1:]))
        whole[shard.first : shard.first + shard.rows] = outputs
        return shard.sum_up(whole)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return gradient[ctx.shard.first : ctx.shard.first + ctx.shard.rows], None


@contextmanager
def _reachable_by_gloo() -> Iterator[None]:
    """Let gloo take the interface by which the first machine is reached, unless its variable names one.

    By itself it takes the address of this machine's own name, which on many systems is 127.0.1.1.
    """
    name = None if _INTERFACE in os.environ else _interface_to(os.environ["MASTER_ADDR"])
    if name is not None:
        os.environ[_INTERFACE] = name
    try:
        yield
    finally:
        if name is not None:
            del os.environ[_INTERFACE]


def _interface_to(host: str) -> str | None:
    """Name the interface by which another machine is reached; None within this one, or if nobody knows."""
    if sys.platform != "linux":
        return None
    import fcntl

    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        own = probe.getsockname()[0]
        for _, name in [] if own.startswith("127.") else socket.if_nameindex():
            with suppress(OSError):  # one without an address
                found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(found[20:24]) == own:
                    return name
    return None


def _obstacle() -> str:
    """Say why no other machine can reach this one; nothing if none is known."""
    names = os.environ.get(_INTERFACE)
    if names is None or sys.platform != "linux":
        return ""
    known = [name for _, name in socket.if_nameindex()]
    if set(names.split(",")) <= set(known):
        return ""
    return f"on {socket.gethostname()}, where {_INTERFACE} is {names!r} and not one of {', '.join(known)}"


def attempt() -> int:
    """Say how often the launcher has restarted these processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _leave() -> None:
    """End what connects this process with the others before what gloo's threads use is gone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def threads_of(local_size: int) -> int:
    """Choose a process's threads: its share of the cores, unless OMP_NUM_THREADS says otherwise.

    1 is what ``torchrun`` sets where nobody has said anything.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 1:
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // local_size)


_ALONE = "Train it in one process, without torchrun."


def require_apart(network: LoweredNetwork) -> None:
    """Refuse a network in which one row may depend on another, but by batch normalization."""
    for op in network.program:
        if isinstance(op, KerasCall) or op.kind == "ActivityLoss":
            kind = "adds to the loss" if op.kind == "ActivityLoss" else "runs as Keras's own"
            raise LoweringError(
                expected_got(
                    "layers that compute each row by itself, on several processes",
                    f"{op.layer!r}, which {kind} and may look at the whole batch",
                )
            )
    if any(op.kind == "Operation" for op in network.program):
        _require_independent_rows(network)


def _require_independent_rows(network: LoweredNetwork) -> None:
    """Compute four rows at once and two by two: the same has to come out."""
    generator = torch.Generator().manual_seed(0)
    x = [
        torch.rand([4, *(size or 8 for size in value.shape[1:])], generator=generator)
        for value in network.program.inputs
    ]
    with torch.no_grad():
        whole, *halves = (
            keras.tree.flatten(network([part[rows] for part in x]))
            for rows in (slice(0, 4), slice(0, 2), slice(2, 4))
        )
    for one, first, second in zip(whole, *halves, strict=True):
        apart = torch.cat([first, second])
        if one.shape != apart.shape or not torch.allclose(one, apart, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise LoweringError(
                expected_got("rows that are computed apart, on several processes", "rows that mix")
            )


def _identity(file: int | None) -> tuple[int, int] | None:
    """Tell an open file from all others of this machine."""
    return None if file is None else (os.fstat(file).st_dev, os.fstat(file).st_ino)


def _is_there(pid: int) -> bool:
    if sys.platform == "win32":  # nobody can be asked: 0 is the number of Ctrl-C there, and it would be sent
        return True
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
