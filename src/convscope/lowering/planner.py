"""Choose precision, memory layout and algorithm for each convolution and matrix product.

By measurement: each op alone, on its real shapes, forward and backward where the program is to train. The
fastest wins; a bfloat16 result counts for something, because whatever reads it moves fewer bytes. A candidate
that the processor does not take is not tried, one that raises is none. What was measured stays in the cache,
so that the same op gets the same choice on the same machine. Or by rules, which measure nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from convscope import __version__
from convscope.errors import UsageError, expected_got
from convscope.lowering import layers as ops
from convscope.lowering import processor
from convscope.lowering.cpu import LANES, compiled
from convscope.lowering.ir import DataFormat, KernelChoice, Op, Precision, Program, Shape
from convscope.lowering.layers import ConvOrDense
from convscope.lowering.layers.base import Prepared, Step, Tensor, runner_of

_log = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("convscope.progress")

# Bytes per second at which elementwise ops read and write on a laptop or a small server; only ratios matter.
_BANDWIDTH = 20e9
# How often a training step reads or writes a result again: activation, pooling, and both backward.
_PASSES = 3
_ROUNDS = 5
# bfloat16 this much slower than float32 on a typical convolution is not worth a candidate's time.
_WORTH_TRYING = 0.7
# A candidate this many times slower than the fastest is not timed again.
_HOPELESS = 3.0
# The rule's choice stays unless another is faster by this factor.
_CLEARLY = 1.2
# A dense layer of fewer multiplications is not worth the time to compile the loops for it.
_MUCH_WORK = 1 << 24
_ITEM_SIZE: Mapping[Precision, int] = {"float32": 4, "bfloat16": 2}
# By loops: as Winograd does; or, with a max-pooling behind it, by oneDNN forward and by loops back.
_LOOPS = ("winograd", "pooled")
# The transformed kernel of a convolution with more weights than this leaves a core's own cache, and the sums
# of its gradients take much memory.
_MANY_WEIGHTS = 9 * 128 * 128
# With more channels than this a convolution is a matter of arithmetic, and oneDNN's are faster.
_FEW_CHANNELS = 4


@dataclass(frozen=True)
class PlanContext:
    """What a choice depends on, apart from the op: how the program will be used."""

    training: bool
    deterministic: bool
    precision: str
    batch_size: int
    device: str

    @property
    def measured(self) -> bool:
        """Whether candidates are timed; otherwise fixed rules choose."""
        return self.device.startswith("cpu") and not self.deterministic

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Return the precisions that may be chosen on this machine, the rule's choice first."""
        if self.precision != "auto":
            return ("bfloat16",) if self.precision == "bfloat16" else ("float32",)
        if not processor.takes_bfloat16(self.training, self.device):
            return ("float32",)
        if processor.multiplies_bfloat16(self.device):
            return ("bfloat16", "float32")
        if self.measured and processor.bfloat16_speed(self.training) > _WORTH_TRYING:
            return ("float32", "bfloat16")
        return ("float32",)


def choose(program: Program, context: PlanContext) -> tuple[Program, list[str]]:
    """Choose how each convolution and matrix product computes; return a line for each, too."""
    if context.measured:
        _PROGRESS.info("Finding the fastest way to compute on this machine")
    chosen: list[Op] = []
    lines: list[str] = []
    learned = _values_with_gradient(program)
    for op in program:
        if isinstance(op, ConvOrDense):
            choice, why = _choose_one(op, program, context, op.inputs[0] in learned)
            chosen.append(dataclasses.replace(op, choice=choice))
            lines.append(f"{op.name}: {choice.precision}, {choice.layout}, {choice.algorithm} ({why})")
        else:
            chosen.append(op)
    return program.replace(ops=tuple(chosen)), lines


def plan_of(program: Program) -> dict[str, Any]:
    """Return the choices made for a program, for JSON: op name → precision, layout, algorithm."""
    return {op.name: dataclasses.asdict(op.choice) for op in program if isinstance(op, ConvOrDense)}


def apply_plan(program: Program, plan: Mapping[str, Any]) -> Program:
    """Return the program with the choices of a recorded plan; raise UsageError if it is one for other ops.

    The names of layers that Keras named by itself may have other numbers: it counts them in each process.
    """
    planned = [op.name for op in program if isinstance(op, ConvOrDense)]
    entries = dict(plan)
    if set(planned) != set(entries) and list(map(_unnumbered, planned)) == list(map(_unnumbered, entries)):
        entries = dict(zip(planned, entries.values(), strict=True))
    if set(planned) != set(entries):
        strange = ", ".join(sorted(set(planned).symmetric_difference(entries)))
        found = f"one that differs in {strange}"
        raise UsageError(expected_got(f"a plan for the ops of {program.name!r}", found))
    carried_out = tuple(
        dataclasses.replace(op, choice=_choice_of(op, entries[op.name]))
        if isinstance(op, ConvOrDense)
        else op
        for op in program
    )
    return program.replace(ops=carried_out)


def _unnumbered(name: str) -> str:
    return re.sub(r"(_\d+)?$", "", name)


_KNOWN = {
    "precision": ("float32", "bfloat16"),
    "layout": ("channels_last", "channels_first"),
    "algorithm": ("direct", "shallow", "pooled", "winograd", "tiled"),
}


def _choice_of(op: ConvOrDense, entry: Any) -> KernelChoice:
    """Read an op's entry of a plan."""
    if not isinstance(entry, Mapping) or set(entry) != set(_KNOWN):
        raise UsageError(expected_got(f"{', '.join(_KNOWN)} for {op.name}", repr(entry), _FOREIGN))
    for key, all_values in _KNOWN.items():
        value = entry[key]
        if value not in all_values or not _is_possible(op, value):
            known = " or ".join(repr(other) for other in all_values if _is_possible(op, other))
            raise UsageError(expected_got(f"{key} {known} for {op.name}", repr(entry[key]), _FOREIGN))
    return KernelChoice(**entry)


def _is_possible(op: ConvOrDense, value: str) -> bool:
    """Say whether an op can be computed so on this machine; the loops are loaded for those that need them."""
    if value == "shallow":
        return _has_few_channels(op)
    return value not in _LOOPS or value in _algorithms_in_loops(op)


_FOREIGN = "The plan is from another version of convscope; train without it."


def adapt_plan(
    plan: Mapping[str, Any], training: bool, device: str = "cpu"
) -> tuple[dict[str, Any], list[str]]:
    """Translate a plan of another machine for this one; say in lines what changed."""
    bfloat16 = processor.takes_bfloat16(training, device)
    loops = device.startswith("cpu") and compiled.available()
    adapted = {name: dict(entry) if isinstance(entry, Mapping) else entry for name, entry in plan.items()}
    wide, direct = [], []
    for name, entry in adapted.items():
        if not isinstance(entry, dict):
            continue  # ``apply_plan`` says what is wrong with it
        if entry.get("precision") == "bfloat16" and not bfloat16:
            entry["precision"] = "float32"
            wide.append(name)
        if entry.get("algorithm") in ("shallow", "tiled", *_LOOPS) and not loops:
            entry["algorithm"] = "direct"
            direct.append(name)
    lines = []
    if wide:
        names = ", ".join(wide)
        lines.append(
            f"The recorded plan has bfloat16 for {names}, which this machine refuses: float32 there."
        )
    if direct:
        names = ", ".join(direct)
        lines.append(
            f"The recorded plan has compiled loops for {names}, which this machine lacks: torch's own."
        )
    return adapted, lines


def describe_precision(program: Program, context: PlanContext) -> str:
    """Say in one line which precision was chosen, and why."""
    planned = [op for op in program if isinstance(op, ConvOrDense)]
    in_bfloat16 = [op for op in planned if op.choice.precision == "bfloat16"]
    if context.precision != "auto":
        return f"Precision: {context.precision}, as asked for."
    why = processor.describe_bfloat16(context.training, context.device)
    if not in_bfloat16:
        return f"Precision: float32; {why}."
    how = "by rule" if not context.measured else "where it was measured to be faster"
    return f"Precision: bfloat16 in {len(in_bfloat16)} of {len(planned)} layers with weights, {how}; {why}."


def _values_with_gradient(program: Program) -> set[str]:
    """Collect the values that depend on some weight, so that a gradient has to reach them."""
    learned: set[str] = set()
    for op in program:
        if op.weights or learned.intersection(op.inputs):
            learned.update(op.written)
    return learned


def _choose_one(
    op: ConvOrDense, program: Program, context: PlanContext, wants_gradient: bool
) -> tuple[KernelChoice, str]:
    shape = program.value(op.inputs[0]).shape
    if isinstance(op, ops.Dense) and program.is_output(op.output):
        # Logits are few, and their rounding would go straight into the loss.
        context = dataclasses.replace(context, precision="float32")
    if None in shape[1:] or not context.measured:
        return _by_rule(op, context), "rule"
    candidates = _candidates(op, context)
    if len(candidates) == 1:
        return candidates[0], "only candidate"
    output = program.value(op.output).shape
    times = _measure(op, shape, output, candidates, context, wants_gradient)
    if not times:
        if context.precision == "bfloat16":
            raise processor.refused_bfloat16(context.training, context.device)
        return KernelChoice(), "no candidate could be timed"
    best = min(times, key=lambda choice: times[choice])
    usual = _by_rule(op, context)
    if times.get(usual, math.inf) < _CLEARLY * times[best]:
        # Timings on a busy machine are noisy: what is nearly as fast stays the same from run to run.
        best = usual
    others = [
        f"{choice.precision} {choice.algorithm} {1e3 * seconds:.2f}"
        for choice, seconds in times.items()
        if choice != best
    ]
    return best, f"{1e3 * times[best]:.2f} ms; {', '.join(others)}"


def _by_rule(op: ConvOrDense, context: PlanContext) -> KernelChoice:
    """Choose without measuring: bfloat16 where it is multiplied in hardware, loops for a single channel.

    In float32 the loops for a convolution with max-pooling behind it are the rule: they multiply less; and
    those for products of few columns, for which a library reads every input several times.
    """
    on_cpu = context.device.startswith("cpu")
    shallow = on_cpu and _has_few_channels(op, channels=1)
    # On Apple's mps, gradients in the other order fail in one version of torch or another.
    layout: DataFormat = "channels_first" if context.device.startswith("mps") else "channels_last"
    precision = context.precisions[0]
    pooled = on_cpu and precision == "float32" and isinstance(op, ops.Conv2D) and op.pooling is not None
    loops = _algorithms_in_loops(op) if pooled else []
    algorithm = "shallow" if shallow else next(iter(loops), "direct")
    few = isinstance(op, ops.Dense) and op.has_few_columns
    if on_cpu and precision == "float32" and few and _suits_tiles(op, context):
        algorithm = "tiled"
    return KernelChoice(precision, layout, algorithm)


def _has_few_channels(op: ConvOrDense, channels: int = _FEW_CHANNELS) -> bool:
    """Say whether the loops for images of so few channels can compute this op on this machine."""
    if not isinstance(op, ops.Conv2D) or op.groups != 1 or op.depthwise:
        return False
    fits = op.kernel_shape[2] <= channels and op.filters % LANES == 0
    return fits and compiled.available()


def _algorithms_in_loops(op: ConvOrDense) -> list[str]:
    """List what loops can do for a convolution on this machine, alone or with max-pooling, the best first."""
    if not isinstance(op, ops.Conv2D) or not compiled.available():
        return []
    found = ["winograd"] if op.suits_winograd else []
    if op.pooling is not None:
        return [*found, "pooled"]
    return found if math.prod(op.kernel_shape) <= _MANY_WEIGHTS else []


def _suits_tiles(op: ConvOrDense, context: PlanContext) -> bool:
    """Say whether the loops for matrix products pay for this op on this machine.

    Torch's products are MKL's, which is made for the processors of another maker, and for more than a few
    columns.
    """
    if not isinstance(op, ops.Dense) or math.prod(op.kernel_shape) * context.batch_size <= _MUCH_WORK:
        return False
    slow = op.has_few_columns or (context.training and "AMD" in processor.this_processor().name)
    return slow and op.suits_tiles and compiled.available()


def _candidates(op: ConvOrDense, context: PlanContext) -> list[KernelChoice]:
    layouts: tuple[DataFormat, ...] = ("channels_last",)
    if isinstance(op, ops.Conv2D) and op.data_format == "channels_first":
        layouts = ("channels_last", "channels_first")
    found = []
    for precision in context.precisions:
        if _has_few_channels(op):
            found.append(KernelChoice(precision, "channels_last", "shallow"))
        if precision == "float32":
            found += [KernelChoice(precision, "channels_last", name) for name in _algorithms_in_loops(op)]
            if _suits_tiles(op, context):
                found.append(KernelChoice(precision, "channels_last", "tiled"))
        found += [KernelChoice(precision, layout, "direct") for layout in layouts]
    return found


def _measure(
    op: ConvOrDense,
    shape: Shape,
    output: Shape,
    candidates: list[KernelChoice],
    context: PlanContext,
    wants_gradient: bool,
) -> dict[KernelChoice, float]:
    """Time the candidates on random numbers; equal ops are measured once on a machine."""
    described = {
        key: value for key, value in op.settings().items() if key not in ("kernel", "bias", "choice")
    }
    described["bias"] = op.bias is not None
    described["folded"] = op.folded is not None
    described["drop"] = _described_drop(op.drop)
    if isinstance(op, ops.Conv2D) and op.pooling is not None:
        described["pooling"] = (str(op.pooling.activation), _described_drop(op.pooling.drop))
    question = (
        __version__, op.kind, sorted(described.items()), shape, context, wants_gradient,
        [dataclasses.astuple(choice) for choice in candidates],
    )  # fmt: skip

    def find() -> list[float | None]:
        seconds = _Bench(op, shape, context, wants_gradient).seconds(candidates)
        return [seconds.get(choice) for choice in candidates]

    size = math.prod(number or context.batch_size for number in output)
    traffic = {name: _PASSES * size * item / _BANDWIDTH for name, item in _ITEM_SIZE.items()}
    seconds = processor.remembered("choices", repr(question), find)
    if not isinstance(seconds, list) or len(seconds) != len(candidates):  # somebody has changed the file
        seconds = find()
    return {
        choice: time + traffic[choice.precision]
        for choice, time in zip(candidates, seconds, strict=True)
        if time is not None
    }


def _described_drop(drop: ops.Dropout | None) -> tuple[Any, ...] | None:
    return None if drop is None else (drop.rate, drop.noise_shape, drop.scaled)


class _Bench:
    """Runs one op on random weights and images."""

    def __init__(self, op: ConvOrDense, shape: Shape, context: PlanContext, wants_gradient: bool) -> None:
        self._op, self._training = op, context.training
        self._wants_gradient = wants_gradient and context.training
        generator = torch.Generator().manual_seed(0)
        self._x = torch.randn([context.batch_size, *(size or 1 for size in shape[1:])], generator=generator)

    @processor.one_thread()
    def seconds(self, candidates: Sequence[KernelChoice]) -> dict[KernelChoice, float]:
        """Return the shortest run of each candidate on one thread, in turns; one that raises is left out."""
        runs = {}
        for choice in candidates:
            try:
                run = self._prepare(choice)
                run()
            except Exception:  # whatever a processor or a library refuses: it is no candidate
                _log.info("%s cannot be computed as %s", self._op.name, choice, exc_info=True)
            else:
                runs[choice] = run
        best = dict.fromkeys(runs, math.inf)
        for _ in range(_ROUNDS):
            fastest = min(best.values(), default=math.inf)
            for choice, run in runs.items():
                if best[choice] == math.inf or best[choice] < _HOPELESS * fastest:
                    start = processor.clock()
                    run()
                    best[choice] = min(best[choice], processor.clock() - start)
        return best

    def _prepare(self, choice: KernelChoice) -> Callable[[], None]:
        op = dataclasses.replace(self._op, choice=choice)
        host = _RandomWeights(op, self._training)
        runner = runner_of(op, host)
        step = Step(self._training)
        # An op in the middle of the network reads what an op of the same precision wrote.
        x = self._x.to(getattr(torch, choice.precision)) if self._wants_gradient else self._x
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

    def __init__(self, op: ConvOrDense, training: bool) -> None:
        self._prepared: Prepared | None = None
        generator = torch.Generator().manual_seed(1)
        shapes: dict[str, tuple[int, ...]] = {op.kernel: op.kernel_shape}
        for path in (*op.weights, *op.state):
            shapes.setdefault(path, (op.filters,))
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

    def prepared(self, op: Op, prepare: Callable[[], Prepared]) -> Prepared:
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
