"""Steps captured as CUDA graphs: recorded once, then replayed whole, without Python or single launches.

A step is a function of tensors that stay where they are. Before each step the host writes what differs into
them: the rows, the masks' keys, learning rate and bias correction. The first steps of each kind run as they
are (the warm-up that CUDA asks for; they count), then one is recorded, and the device replays it. What cannot
be recorded runs as it is, by the same operations, so that both give the same bits; one line says why.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from convscope._torch_internals import TorchDispatchMode, tree_leaves

Tensors = Mapping[str, torch.Tensor]
Compute = Callable[[Tensors], Any]

WARM_UP = 3  # steps of each kind before one is recorded; libraries choose and load what they need in them
MOST_KINDS = 8  # of steps that are recorded: each holds memory of its own
_ALIGNMENT = 16  # bytes
_SMALL = 1 << 15  # bytes that CUDA takes over at once; what is larger waits in page-locked memory
_SWITCH = "CONVSCOPE_CAPTURE"
_LOG = logging.getLogger(__name__)


class Graphs(Protocol):
    """How a device records what it is asked to do; a test has one for the processor."""

    def warming_up(self) -> Any:
        """Return a context in which a step runs before one is recorded."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what a function asks of the device, without doing it; return what does it."""


class CudaGraphs:
    """CUDA graphs on a stream of their own, which share one pool of memory: they never run side by side."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = torch.cuda.graph_pool_handle()

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Let a step run on the stream of the recording: gradients stay on that of the first step."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record a step; other threads may go on using the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        collects = gc.isenabled()
        gc.disable()  # it might free what CUDA must not be asked about while it records
        try:
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                function()
        finally:
            torch.cuda.set_stream(current)  # after an error, torch stays on the other one
            if collects:
                gc.enable()
        replay: Callable[[], None] = graph.replay
        return replay


RECORDERS: dict[str, Callable[[torch.device], Graphs]] = {"cuda": CudaGraphs}


def suits(device: torch.device) -> bool:
    """Say whether steps on a device are functions of tensors, recorded or not."""
    return device.type in RECORDERS


def graphs_on(device: torch.device) -> Graphs | None:
    """Return what records steps on a device; None where nothing does, or CONVSCOPE_CAPTURE says ``off``."""
    if os.environ.get(_SWITCH, "on").lower() in ("off", "0", "no") or not suits(device):
        return None
    return RECORDERS[device.type](device)


class StepRunner:
    """Runs a step again and again on its own tensors, which lie on a device: as it is, then recorded.

    ``graphs`` records; None runs every step as it is, and ``notify`` is told once, in a sentence, why.
    ``changed`` lists the tensors that a step changes: torch counts changes, but not those of a replay.
    """

    def __init__(
        self,
        device: torch.device,
        graphs: Graphs | None,
        changed: Callable[[], Sequence[torch.Tensor]],
        notify: Callable[[str], None],
    ) -> None:
        self._device, self._graphs = device, graphs
        self._changed, self._notify = changed, notify
        self._kinds: dict[Hashable, _Kind] = {}

    @property
    def captured(self) -> int:
        """How many kinds of steps are recorded."""
        return sum(kind.replay is not None for kind in self._kinds.values())

    def give_up(self, reason: str) -> None:
        """Run every further step as it is."""
        if self._graphs is not None:
            self._graphs = None
            self.forget()
            self._notify(f"Steps are not captured as a CUDA graph: {reason}.")

    def forget(self) -> None:
        """Let steps be recorded anew: something that they were recorded with has changed."""
        if self.captured and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # it may still be replaying them
        self._kinds.clear()

    def __call__(self, key: Hashable, values: Tensors, compute: Compute) -> Any:
        """Do one step; what ``compute`` returns is overwritten by the next one.

        Steps with the same ``key`` and shapes are the same operations on ``values``, on the processor or the
        device, whose names ``compute`` finds again in the tensors that it is given.
        """
        known = (key, *((name, *value.shape, value.dtype, value.device) for name, value in values.items()))
        if known not in self._kinds:
            if len(self._kinds) >= MOST_KINDS:
                self.give_up(f"batches come in more than {MOST_KINDS} shapes")
                self._kinds.clear()
            self._kinds[known] = _Kind(StaticTensors(values, self._device))
        kind = self._kinds[known]
        kind.tensors.write(values)
        if self._graphs is None:
            return compute(kind.tensors.named)
        if kind.replay is None and kind.runs < WARM_UP:
            return self._warm_up(kind, compute, self._graphs)
        if kind.replay is None and not self._record(kind, compute, self._graphs):
            return compute(kind.tensors.named)
        assert kind.replay is not None  # noqa: S101  recorded above, if not before
        kind.replay()
        self._count_changes()
        return kind.result

    def _warm_up(self, kind: _Kind, compute: Compute, graphs: Graphs) -> Any:
        kind.runs += 1
        with graphs.warming_up():
            if kind.runs < WARM_UP:
                return compute(kind.tensors.named)
            inspector = Inspector(self._device)
            with inspector:
                result = compute(kind.tensors.named)
        if inspector.found is not None:
            self.give_up(inspector.found)
        return result

    def _record(self, kind: _Kind, compute: Compute, graphs: Graphs) -> bool:
        """Record a step; say whether that was possible. Nothing has been computed then."""

        def step() -> None:
            kind.result = compute(kind.tensors.named)

        self._count_changes()  # what was derived from weights is derived again, as part of the step
        try:
            kind.replay = graphs.record(step)
        except Exception as error:
            _LOG.info("A step could not be captured.", exc_info=True)
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            self.give_up(f"CUDA refused it ({first.rstrip('.')})")
        finally:
            self._count_changes()  # and what seems to be derived now has not been computed
        return kind.replay is not None

    def _count_changes(self) -> None:
        torch.autograd.graph.increment_version(self._changed())


class _Kind:
    """Steps of the same operations on tensors of the same shapes."""

    def __init__(self, tensors: StaticTensors) -> None:
        self.tensors = tensors
        self.runs = 0
        self.replay: Callable[[], None] | None = None
        self.result: Any = None


class StaticTensors:
    """Named tensors on a device that stay where they are; small ones are written in one copy."""

    def __init__(self, values: Tensors, device: torch.device) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, value in values.items():
            if value.nbytes <= _SMALL and value.device.type == "cpu":
                self._places[name] = (end, end + value.nbytes)
                end = -(-(end + value.nbytes) // _ALIGNMENT) * _ALIGNMENT
        self._length = end
        self._block = torch.zeros(end, dtype=torch.uint8, device=device)
        self.named = {
            name: self._small(name, value) if name in self._places else torch.empty_like(value, device=device)
            for name, value in values.items()
        }
        large = {name: tensor for name, tensor in self.named.items() if name not in self._places}
        staged = {
            name: tensor
            for name, tensor in large.items()
            if device.type == "cuda" and values[name].device.type == "cpu"
        }
        self._stage = _Stage(staged) if staged else None
        self._large = {name: tensor for name, tensor in large.items() if name not in staged}

    def write(self, values: Tensors) -> None:
        """Take over the values of the coming step."""
        if self._places:
            block = torch.empty(self._length, dtype=torch.uint8)
            for name, (begin, end) in self._places.items():
                block[begin:end] = values[name].contiguous().reshape(-1).view(torch.uint8)
            # CUDA has read so few bytes before this returns, and waits for nothing.
            self._block.copy_(block, non_blocking=True)
        if self._stage is not None:
            self._stage.write(values)
        for name, tensor in self._large.items():  # on the device already: in the order of its stream
            tensor.copy_(values[name], non_blocking=True)

    def _small(self, name: str, value: torch.Tensor) -> torch.Tensor:
        begin, end = self._places[name]
        return self._block[begin:end].view(value.dtype).view(value.shape)


class _Stage:
    """Brings large values to a GPU while it computes: a stream, and two page-locked buffers in turn."""

    def __init__(self, targets: Tensors) -> None:
        self._targets = targets
        self._device = next(iter(targets.values())).device
        self._stream: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._slots = [_Slot(targets) for _ in range(2)]
        self._number = 0

    def write(self, values: Tensors) -> None:
        """Copy into the tensors of the coming step, when the device gets there."""
        slot = self._slots[self._number % len(self._slots)]
        self._number += 1
        slot.arrived.synchronize()  # its page-locked memory has been read
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.used)
            for name in self._targets:
                slot.locked[name].copy_(values[name])
                slot.there[name].copy_(slot.locked[name], non_blocking=True)
            slot.arrived.record(self._stream)
        current = torch.cuda.current_stream(self._device)
        current.wait_event(slot.arrived)
        for name, target in self._targets.items():
            target.copy_(slot.there[name], non_blocking=True)
        slot.used.record(current)


class _Slot:
    """One of the buffers of a stage: on both sides, with what says that each was read."""

    def __init__(self, targets: Tensors) -> None:
        self.locked = {name: torch.empty_like(t, device="cpu").pin_memory() for name, t in targets.items()}
        self.there = {name: torch.empty_like(tensor) for name, tensor in targets.items()}
        self.arrived: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.used: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]


class Inspector(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at what a step asks of the device for what cannot be recorded; ``found`` says what it is."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self.found: str | None = None

    def __torch_dispatch__(self, operation: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do an operation."""
        result = operation(*args, **(kwargs or {}))
        if self.found is None:
            self.found = obstacle_of(operation, args, result, self._device)
        return result


def obstacle_of(operation: Any, args: Any, result: Any, device: torch.device) -> str | None:
    """Say why an operation cannot be part of a step that a device records; None where it can."""
    name = operation._schema.name.removeprefix("aten::")
    given = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
    chooses = name.startswith("index") and any(
        isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.bool, torch.uint8)
        for leaf in tree_leaves(args[1] if len(args) > 1 else ())
    )
    tags = operation.tags
    # Torch's attention would draw only where it drops; ours does not.
    if torch.Tag.nondeterministic_seeded in tags and not name.startswith("_scaled_dot_product"):
        return f"a step draws random numbers from torch ({name})"
    sizes = torch.Tag.dynamic_output_shape in tags and not name.startswith("index")
    if torch.Tag.data_dependent_output in tags or sizes or chooses:
        return f"a step waits for a number from the device ({name})"
    made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    if len({leaf.device for leaf in (*given, *made)}) > 1 and name in ("_to_copy", "copy_", "_copy_from"):
        return f"a step moves numbers between devices ({name})"
    arguments = zip(operation._schema.arguments, args, strict=False)
    written = [value for one, value in arguments if one.alias_info is not None and one.alias_info.is_write]
    if any(leaf.device != device for leaf in tree_leaves(written) if isinstance(leaf, torch.Tensor)):
        return f"a step changes what lies elsewhere ({name})"
    return None
