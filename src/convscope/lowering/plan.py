"""Choose precision, memory layout and algorithm for each convolution and matrix product.

By measurement: each op alone, on its real shapes, forward and backward where the program is to train. The
fastest wins; a narrow result counts for something, because whatever reads it moves fewer bytes. Or by rules.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from convscope.errors import LoweringError, sentence
from convscope.lowering import program as ops
from convscope.lowering.compiled import LANES
from convscope.lowering.memory import keep_memory
from convscope.lowering.program import Compute, Precision, Program, Shape
from convscope.lowering.runners import Prepared, Step, Tensor, runner_of

Heavy = ops.Conv2D | ops.Dense

# Bytes per second at which elementwise ops read and write on a laptop or a small server; only ratios matter.
_BANDWIDTH = 20e9
# How often a training step reads or writes a result again: activation, pooling, and both on the way back.
_PASSES = 3
_ROUNDS = 5
# A candidate this many times slower than the fastest is not timed again.
_HOPELESS = 3.0
# The rule's choice stays unless another is faster by this factor.
_CLEARLY = 1.2
_ITEM_SIZE: Mapping[Precision, int] = {"float32": 4, "bfloat16": 2}
# With more channels than this a convolution is a matter of arithmetic, and oneDNN's are faster.
_SHALLOW = 4


@dataclass(frozen=True)
class Situation:
    """What a choice depends on, apart from the op: how the program will be used."""

    training: bool
    deterministic: bool
    precision: str
    batch_size: int
    device: str

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Return the precisions that may be chosen."""
        if self.precision == "auto":
            return ("bfloat16", "float32")
        return ("bfloat16",) if self.precision == "bfloat16" else ("float32",)


def choose(program: Program, situation: Situation) -> tuple[Program, list[str]]:
    """Choose how each heavy op computes.

    Parameters
    ----------
    program : Program
        With the shapes it will run on.
    situation : Situation
        How the program will be used.

    Returns
    -------
    tuple
        The program with its ``Compute`` entries set, and a line for each op.
    """
    if situation.device.startswith("cpu"):
        keep_memory()
    chosen, lines = {}, []
    learned = _values_with_gradient(program)
    for op in program:
        if isinstance(op, Heavy):
            compute, why = _choose_one(op, program, situation, op.inputs[0] in learned)
            chosen[op.name] = dataclasses.asdict(compute)
            lines.append(f"{op.name}: {compute.precision}, {compute.layout}, {compute.algorithm} ({why})")
    return apply_plan(program, chosen), lines


def plan_of(program: Program) -> dict[str, Any]:
    """Return the choices made for a program's heavy ops, for JSON: op name → precision, layout, algorithm."""
    return {op.name: dataclasses.asdict(op.compute) for op in program if isinstance(op, Heavy)}


def apply_plan(program: Program, plan: Mapping[str, Any]) -> Program:
    """Return the program with the choices of a recorded plan.

    Raises
    ------
    LoweringError
        When the plan names other ops than the program has.
    """
    heavy = {op.name for op in program if isinstance(op, Heavy)}
    if heavy != set(plan):
        strange = ", ".join(sorted(heavy.symmetric_difference(plan)))
        raise LoweringError(
            sentence(f"a plan for the ops of {program.name!r}", f"one that differs in {strange}")
        )
    for op in program:
        if isinstance(op, Heavy):
            _require_possible(op, plan[op.name].get("algorithm", "direct"))
    return program.replace(
        ops=tuple(
            dataclasses.replace(op, compute=Compute(**plan[op.name])) if isinstance(op, Heavy) else op
            for op in program
        )
    )


def _require_possible(op: Heavy, algorithm: str) -> None:
    if algorithm != "direct" and not (algorithm == "shallow" and _is_shallow(op)):
        known = "'direct' or 'shallow'" if _is_shallow(op) else "'direct'"
        message = sentence(f"algorithm {known} for {op.name}", f"{algorithm!r}")
        raise LoweringError(f"{message} The plan is from another version of convscope; train without it.")


def _values_with_gradient(program: Program) -> set[str]:
    """Collect the values that depend on some weight, so that a gradient has to reach them."""
    learned: set[str] = set()
    for op in program:
        if op.weights or learned.intersection(op.inputs):
            learned.update(ops.written(op))
    return learned


def _choose_one(
    op: Heavy, program: Program, situation: Situation, wants_gradient: bool
) -> tuple[Compute, str]:
    shape = program.value(op.inputs[0]).shape
    if isinstance(op, ops.Dense) and program.is_output(op.output):
        # Logits are few, and their rounding would go straight into the loss.
        return Compute("float32"), "output"
    if None in shape[1:] or situation.deterministic or not situation.device.startswith("cpu"):
        return _by_rule(op, situation), "rule"
    candidates = _candidates(op, situation)
    if len(candidates) == 1:
        return candidates[0], "only candidate"
    output = program.value(op.output).shape
    times = _measure(op, shape, output, candidates, situation, wants_gradient)
    best = min(times, key=lambda compute: times[compute])
    usual = _by_rule(op, situation)
    if times.get(usual, math.inf) < _CLEARLY * times[best]:
        # Timings on a busy machine are noisy: what is nearly as fast stays the same from run to run.
        best = usual
    others = [
        f"{compute.precision} {compute.algorithm} {1e3 * seconds:.2f}"
        for compute, seconds in times.items()
        if compute != best
    ]
    return best, f"{1e3 * times[best]:.2f} ms; {', '.join(others)}"


def _by_rule(op: Heavy, situation: Situation) -> Compute:
    """Choose without measuring: bfloat16 where it is multiplied in hardware, loops for a single channel."""
    precision = situation.precisions[0]
    if situation.precision == "auto" and not multiplies_bfloat16(situation.device):
        precision = "float32"
    on_cpu = situation.device.startswith("cpu")
    shallow = on_cpu and _is_shallow(op, channels=1)
    return Compute(precision, "channels_last", "shallow" if shallow else "direct")


def multiplies_bfloat16(device: str = "cpu") -> bool:
    """Say whether a device multiplies bfloat16 in hardware.

    Examples
    --------
    >>> isinstance(multiplies_bfloat16(), bool)
    True
    """
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not device.startswith("cpu"):
        return False
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in known)


def _is_shallow(op: Heavy, channels: int = _SHALLOW) -> bool:
    """Say whether the loops for images of so few channels can compute this op."""
    if not isinstance(op, ops.Conv2D) or op.groups != 1 or op.depthwise:
        return False
    return op.kernel_shape[2] <= channels and op.filters % LANES == 0


def _candidates(op: Heavy, situation: Situation) -> list[Compute]:
    layouts: tuple[ops.DataFormat, ...] = ("channels_last",)
    if isinstance(op, ops.Conv2D) and op.data_format == "channels_first":
        layouts = ("channels_last", "channels_first")
    found = []
    for precision in situation.precisions:
        if _is_shallow(op):
            found.append(Compute(precision, "channels_last", "shallow"))
        found += [Compute(precision, layout, "direct") for layout in layouts]
    return found


_measured: dict[tuple[Any, ...], dict[Compute, float]] = {}


def _measure(
    op: Heavy,
    shape: Shape,
    output: Shape,
    candidates: list[Compute],
    situation: Situation,
    wants_gradient: bool,
) -> dict[Compute, float]:
    """Time the candidates on random numbers; equal ops are measured once in a process."""
    described = {
        key: value for key, value in op.settings().items() if key not in ("kernel", "bias", "compute")
    }
    described["bias"] = op.bias is not None
    described["folded"] = op.folded is not None
    key = (op.kind, str(described), shape, str(situation), wants_gradient)
    if key not in _measured:
        seconds = _Bench(op, shape, situation, wants_gradient).seconds(candidates)
        size = math.prod(number or situation.batch_size for number in output)
        traffic = {name: _PASSES * size * item / _BANDWIDTH for name, item in _ITEM_SIZE.items()}
        _measured[key] = {compute: seconds[compute] + traffic[compute.precision] for compute in candidates}
    return _measured[key]


# Other programs on the machine do not count: time on the processor, and no waiting of one thread for another.
_clock = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-5 else time.perf_counter


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


class _Bench:
    """Runs one op on random weights and images."""

    def __init__(self, op: Heavy, shape: Shape, situation: Situation, wants_gradient: bool) -> None:
        self._op, self._training = op, situation.training
        self._wants_gradient = wants_gradient and situation.training
        generator = torch.Generator().manual_seed(0)
        self._x = torch.randn([situation.batch_size, *(size or 1 for size in shape[1:])], generator=generator)

    def seconds(self, candidates: Sequence[Compute]) -> dict[Compute, float]:
        """Return the shortest run of each candidate on one thread; they take turns."""
        with _one_thread():
            return self._seconds(candidates)

    def _seconds(self, candidates: Sequence[Compute]) -> dict[Compute, float]:
        runs = {compute: self._prepare(compute) for compute in candidates}
        for run in runs.values():
            run()
        best = dict.fromkeys(candidates, math.inf)
        for _ in range(_ROUNDS):
            fastest = min(best.values())
            for compute, run in runs.items():
                if best[compute] == math.inf or best[compute] < _HOPELESS * fastest:
                    start = _clock()
                    run()
                    best[compute] = min(best[compute], _clock() - start)
        return best

    def _prepare(self, compute: Compute) -> Callable[[], None]:
        op = dataclasses.replace(self._op, compute=compute)
        host = _RandomWeights(op, self._training)
        runner = runner_of(op, host)
        step = Step(self._training)
        # An op in the middle of the network reads what an op of the same precision wrote.
        x = self._x.to(getattr(torch, compute.precision)) if self._wants_gradient else self._x
        if not self._training:

            def predict() -> None:
                with torch.no_grad():
                    runner(step, x)

            return predict
        x = x.requires_grad_(self._wants_gradient)
        gradient = torch.ones_like(runner(step, x))

        def train() -> None:
            torch.autograd.backward(runner(step, x), gradient)
            x.grad = None
            host.forget_gradients()

        return train


class _RandomWeights:
    """Stands in for a network: random weights of the right shapes."""

    def __init__(self, op: Heavy, training: bool) -> None:
        self._prepared: Prepared | None = None
        generator = torch.Generator().manual_seed(1)
        shapes: dict[str, tuple[int, ...]] = {op.kernel: op.kernel_shape}
        filters = op.filters if isinstance(op, ops.Conv2D) else op.kernel_shape[1]
        for path in (*op.weights, *op.state):
            shapes.setdefault(path, (filters,))
        self._tensors = {
            path: torch.rand(shape, generator=generator).requires_grad_(training)
            for path, shape in shapes.items()
        }

    def tensor(self, path: str) -> Tensor:
        """Return a random weight."""
        return self._tensors[path]

    def on_device(self, constant: Tensor) -> Tensor:
        """Return the constant as it is."""
        return constant

    def prepared(self, op: ops.Op, prepare: Callable[[], Prepared]) -> Prepared:
        """Prepare the weights anew while training, once for prediction."""
        del op
        if torch.is_grad_enabled():
            return prepare()
        if self._prepared is None:
            self._prepared = prepare()
        return self._prepared

    def forget_gradients(self) -> None:
        """Drop what a backward pass has accumulated."""
        for tensor in self._tensors.values():
            tensor.grad = None
