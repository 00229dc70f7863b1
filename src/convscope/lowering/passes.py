"""Rewrites of a program that keep its function: each returns another program, and says what it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from convscope.errors import LoweringError, UsageError, expected_got
from convscope.lowering import layers as ops
from convscope.lowering.ir import Activation, Op, Output, Program, Value, check
from convscope.lowering.masks import keep_probability
from convscope.lowering.planner import PlanContext, choose
from convscope.lowering.processor import require_precision

Rewritten = tuple[Program, list[str]]
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class PassReport:
    """What a pass did: its name, and a line for each change."""

    name: str
    changes: tuple[str, ...] = ()


def optimise(
    program: Program,
    training: bool = True,
    deterministic: bool = False,
    precision: str = "auto",
    batch_size: int = 128,
    device: str = "cpu",
) -> tuple[Program, list[PassReport]]:
    """Rewrite a program so that it computes the same with less work; say what each pass did.

    Only a program for inference has its normalizations folded away. Precision and layout are measured, with
    batches of this size, unless ``deterministic``: then, and on other devices than a CPU, fixed rules choose.
    UsageError for a precision that is unknown, or that this machine refuses.

    Examples
    --------
    >>> import keras
    >>> from convscope.lowering.reader import lower
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3, activation="relu"),
    ...                           keras.layers.MaxPooling2D(), keras.layers.Flatten(), keras.layers.Dense(2)])
    >>> program, reports = optimise(lower(model), precision="float32")
    >>> [op.kind for op in program]
    ['Conv2D', 'Pool2D', 'Flatten', 'Dense']
    """
    if precision not in PRECISIONS:
        raise UsageError(expected_got(f"precision {', '.join(PRECISIONS)}", repr(precision)))
    require_precision(precision, training, str(device))
    reports = []
    context = PlanContext(training, deterministic, precision, batch_size, str(device))
    passes: list[tuple[str, Callable[[Program], Rewritten]]] = [
        ("activation behind max-pooling", move_activations),
        ("normalization folded into weights", lambda program: fold_normalizations(program, training)),
        ("sum behind normalization", lambda program: fuse_sums(program, context)),
        ("activation fused", lambda program: fuse_activations(program, context)),
        ("output activation folded into the loss", fold_outputs),
        ("dropout scale into the matrix product", fold_dropout_scales),
        ("dropout fused behind ReLU", fuse_dropouts),
        ("max-pooling into the convolution", lambda program: fuse_poolings(program, context)),
        ("precision, layout and algorithm", lambda program: choose(program, context)),
    ]
    for name, rewrite in passes:
        program, changes = rewrite(program)
        check(program, after=name)
        reports.append(PassReport(name, tuple(changes)))
    return program, reports


def with_features(program: Program) -> Program:
    """Add a second output: the features, which enter the last convolution or matrix product.

    Without any of these, what enters the last op. For a program of one output, before it is optimised.
    """
    if len(program.outputs) != 1:
        raise LoweringError(expected_got("a network with one output", len(program.outputs)))
    deciding = [op for op in program if isinstance(op, ops.ConvOrDense)] or program.ops
    outputs = (*program.outputs, Output(deciding[-1].inputs[0]))
    return program.replace(outputs=outputs, output_structure=[0, 1])


def move_activations(program: Program) -> Rewritten:
    """Move monotone activations behind the max-pooling that reads them: max(f(x)) = f(max(x))."""
    changes = []
    for op in program:
        if not (isinstance(op, ops.Activate) and op.activation.is_monotone):
            continue
        pool = _only_reader(program, op.output)
        if isinstance(pool, ops.Pool2D) and pool.mode == "max" and pool.activation is None:
            program = _swap(program, op, pool)
            changes.append(f"{op.activation} of {op.name} now follows {pool.name}")
    return program, changes


def _swap(program: Program, first: Op, second: Op) -> Program:
    """Exchange two ops of one input and one output of which the second alone reads the first."""
    between = f"{second.name}:in"
    leading = dataclasses.replace(second, inputs=first.inputs, output=between)
    trailing = dataclasses.replace(first, inputs=(between,), output=second.output)
    exchanged = {first.name: (), second.name: (leading, trailing)}
    rewritten = tuple(new for op in program for new in exchanged.get(op.name, (op,)))
    value = program.value(second.output)
    return program.replace(ops=rewritten, values={**program.values, between: Value(between, value.shape)})


def fold_normalizations(program: Program, training: bool) -> Rewritten:
    """Multiply a normalization by moving statistics into the convolution or matrix product before it."""
    changes = []
    for op in program:
        if not (isinstance(op, ops.BatchNormalization) and (op.frozen or not training)):
            continue
        before = _only_before(program, op)
        if (
            isinstance(before, ops.ConvOrDense)
            and before.activation is None
            and before.folded is None
            and op.axis == _last_written_axis(before, program)
        ):
            program = _absorb(program, before, op, folded=op)
            changes.append(f"{op.name} into {before.name}")
    return program, changes


def _last_written_axis(op: ops.ConvOrDense, program: Program) -> int:
    if isinstance(op, ops.Conv2D):
        return 3 if op.data_format == "channels_last" else 1
    return program.value(op.output).rank - 1


def fuse_sums(program: Program, context: PlanContext) -> Rewritten:
    """Let a normalization by the batch's statistics add a residual to its result, where a ReLU follows."""
    changes: list[str] = []
    if not (context.training and context.device.startswith("cpu")):
        return program, changes
    for op in program:
        if not (
            isinstance(op, ops.Merge) and op.mode == "add" and len(set(op.inputs)) == len(op.inputs) == 2
        ):
            continue
        follows = _only_reader(program, op.output)
        if not (isinstance(follows, ops.Activate) and _is_clipping(follows.activation)):
            continue
        # The last of the two that is computed: by then the other one is there.
        writers = [program.producer(name) for name in op.inputs]
        last = max(program.ops.index(writer) if writer is not None else -1 for writer in writers)
        before = program.ops[last]
        shapes = {program.value(name).shape for name in op.inputs}
        if (
            isinstance(before, ops.BatchNormalization)
            and not before.frozen
            and len(before.inputs) == 1
            and _only_reader(program, before.output) is op
            and len(shapes) == 1
        ):
            residual = next(name for name in op.inputs if name != before.output)
            program = _absorb(program, before, op, inputs=(*before.inputs, residual))
            changes.append(f"{op.name} into {before.name}")
    return program, changes


def _is_clipping(activation: Activation) -> bool:
    return activation.is_plain_relu or activation.ceiling is not None


def fuse_activations(program: Program, context: PlanContext) -> Rewritten:
    """Let the op before compute the activation on its own result."""
    changes: list[str] = []
    clips = context.training and context.device.startswith("cpu")
    for op in program:
        if not isinstance(op, ops.Activate) or op.activation.name in ("softmax", "log_softmax"):
            continue
        before = _only_before(program, op)
        if isinstance(before, ops.BatchNormalization) and not (clips and _is_clipping(op.activation)):
            continue
        if (
            isinstance(before, ops.ConvOrDense | ops.Pool2D | ops.BatchNormalization)
            and before.activation is None
            and not _is_folded_output(program, op)
        ):
            program = _absorb(program, before, op, activation=op.activation)
            changes.append(f"{op.activation} into {before.name}")
    return program, changes


def _is_folded_output(program: Program, op: ops.Activate) -> bool:
    return op.activation.name == "sigmoid" and program.is_output(op.output) and not program.readers(op.output)


def _absorb(program: Program, keeper: Op, absorbed: Op, **settings: object) -> Program:
    """Give an op's work and output to the op before it."""
    changed = dataclasses.replace(keeper, output=absorbed.output, **settings)  # type: ignore[arg-type]
    rewritten = tuple(changed if op.name == keeper.name else op for op in program if op.name != absorbed.name)
    return program.replace(ops=rewritten)


def fold_outputs(program: Program) -> Rewritten:
    """Take a final softmax or sigmoid out of the program, so that a loss can be computed from logits."""
    changes = []
    outputs = list(program.outputs)
    for index, output in enumerate(outputs):
        op = program.producer(output.value)
        if (
            isinstance(op, ops.Activate)
            and _gives_logits(op, program)
            and not program.readers(op.output)
            and sum(other.value == output.value for other in outputs) == 1
        ):
            outputs[index] = Output(op.inputs[0], op.activation)
            program = program.replace(
                ops=tuple(other for other in program if other.name != op.name), outputs=tuple(outputs)
            )
            changes.append(f"{op.activation} of {op.name}")
    return program, changes


def _gives_logits(op: ops.Activate, program: Program) -> bool:
    if op.activation.name == "sigmoid":
        return True
    last = program.value(op.output).rank - 1
    return op.activation.name == "softmax" and op.activation.arguments.get("axis", -1) in (-1, last)


def fold_dropout_scales(program: Program) -> Rewritten:
    """Let a matrix product scale its few results in place of the dropout before scaling its many inputs."""
    changes = []
    for op in program:
        if not (isinstance(op, ops.Dropout) and op.scaled and 0 < op.rate < 1):
            continue
        reader = _only_reader(program, op.output)
        while isinstance(reader, ops.Flatten | ops.Reshape):
            reader = _only_reader(program, reader.output)
        if isinstance(reader, ops.Dense) and reader.input_scale == 1.0:
            scale = 1.0 / keep_probability(op.rate)
            program = _replace_ops(
                program,
                dataclasses.replace(op, scaled=False),
                dataclasses.replace(reader, input_scale=scale),
            )
            changes.append(f"× {scale:.4g} of {op.name} into {reader.name}")
    return program, changes


def fuse_dropouts(program: Program) -> Rewritten:
    """Let the op that computes a ReLU drop elements of its result too: both stop the same gradient."""
    changes = []
    for op in program:
        if not (isinstance(op, ops.Dropout) and op.noise_shape is None and 0 < op.rate < 1):
            continue
        before = _only_before(program, op)
        if (
            isinstance(before, ops.ConvOrDense | ops.Pool2D)
            and before.activation is not None
            and before.activation.is_plain_relu
            and before.drop is None
        ):
            program = _absorb(program, before, op, drop=op)
            changes.append(f"{op.name} into {before.name}")
    return program, changes


def fuse_poolings(program: Program, context: PlanContext) -> Rewritten:
    """Let a convolution pool its result, where that spares multiplications: forward, or back."""
    changes: list[str] = []
    if not context.device.startswith("cpu"):
        return program, changes
    for op in program:
        if not (isinstance(op, ops.Conv2D) and op.listed_gradients):
            continue
        if not (context.training or op.suits_winograd):
            continue
        pooling = _only_reader(program, op.output)
        if isinstance(pooling, ops.Pool2D) and pooling.is_tiled and pooling.padding == "valid":
            program = _absorb(program, op, pooling, pooling=pooling)
            changes.append(f"{pooling.name} into {op.name}")
    return program, changes


def _replace_ops(program: Program, *changed: Op) -> Program:
    by_name = {op.name: op for op in changed}
    return program.replace(ops=tuple(by_name.get(op.name, op) for op in program))


def _only_reader(program: Program, name: str) -> Op | None:
    """Return the op that alone reads a value which is no output; None where there are others, or none."""
    readers = program.readers(name)
    return readers[0] if len(readers) == 1 and not program.is_output(name) else None


def _only_before(program: Program, op: Op) -> Op | None:
    """Return the op whose result this one alone reads, as its first input; None where there is none."""
    before = program.producer(op.inputs[0])
    return before if before is not None and _only_reader(program, op.inputs[0]) is op else None


def describe(program: Program, reports: Sequence[PassReport] = ()) -> list[dict[str, Any]]:
    """Describe each op of a program (``keras``: Keras's own layer runs there), then what each pass did.

    Examples
    --------
    >>> import keras
    >>> from convscope.lowering import lower
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
    >>> row = describe(lower(model))[0]
    >>> row["op"], row["kind"], row["input_shapes"], row["output_shapes"], row["keras"]
    ('d', 'Dense', [[None, 4]], [[None, 2]], False)
    """
    rows = [_row(op, program) for op in program]
    return rows + [{"pass": report.name, "changes": list(report.changes)} for report in reports]


def _row(op: Op, program: Program) -> dict[str, Any]:
    choice = getattr(op, "choice", None)
    return {
        "op": op.name,
        "kind": op.kind,
        "layer": op.layer,
        "input_shapes": [list(program.value(name).shape) for name in op.inputs],
        "output_shapes": [list(program.value(name).shape) for name in op.written],
        "precision": choice.precision if choice else "as its input",
        "layout": choice.layout if isinstance(op, ops.Conv2D) and choice else None,
        "algorithm": choice.algorithm if choice else None,
        "settings": _shown(op),
        "keras": isinstance(op, ops.KerasCall),
    }


def _shown(op: Op) -> dict[str, Any]:
    hidden = {
        "choice",
        "kernel",
        "bias",
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
        "alpha",
        "stream",
    }
    shown: dict[str, Any] = {}
    for key, value in op.settings().items():
        if key in hidden or value is None or (key in ("scale", "offset") and len(value) > 4):
            continue
        if isinstance(value, ops.Pool2D):
            behind = [str(value.activation)] if value.activation else []
            shown[key] = ", ".join([value.name, *behind, *([value.drop.name] if value.drop else [])])
        elif isinstance(value, Op):
            shown[key] = value.name
        elif isinstance(value, Activation):
            shown[key] = str(value)
        else:
            shown[key] = list(value) if isinstance(value, tuple) else value
    return shown
