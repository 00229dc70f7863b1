"""The Program: an immutable list of typed operations, in Keras's own axis order.

Every value has a name, a shape that begins with the batch axis (``None``), and exactly one op that writes it.
Axis order is the Keras model's; how a value lies in memory is decided later, per op (``KernelChoice``).
Weights and state are named by the path of their Keras variable and never stored in the program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from convscope.arithmetic.activations import ACTIVATIONS

Shape = tuple[int | None, ...]
Pair = tuple[int, int]
Precision = Literal["float32", "bfloat16"]
DataFormat = Literal["channels_last", "channels_first"]
Padding = Literal["valid", "same"]


@dataclass(frozen=True)
class Value:
    """A tensor that flows through the program.

    Examples
    --------
    >>> Value("image", (None, 28, 28, 1)).rank
    4
    """

    name: str
    shape: Shape
    dtype: str = "float32"

    @property
    def rank(self) -> int:
        """Return the number of axes, the batch axis included."""
        return len(self.shape)


@dataclass(frozen=True)
class Activation:
    """An element-wise function (or a softmax) by its Keras name, with its settings.

    Examples
    --------
    >>> Activation("relu").is_monotone, Activation("gelu").is_monotone
    (True, False)
    >>> str(Activation("leaky_relu", (("negative_slope", 0.1),)))
    'leaky_relu(negative_slope=0.1)'
    """

    name: str
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the settings as keyword arguments."""
        return dict(self.settings)

    @property
    def is_monotone(self) -> bool:
        """Say whether a larger input never gives a smaller output, so that the function commutes with max."""
        return ACTIVATIONS[self.name].is_increasing(self.arguments)

    @property
    def is_plain_relu(self) -> bool:
        """Say whether this is max(x, 0), whose derivative can be read off its output."""
        given = self.arguments
        return self.name == "relu" and not (
            given.get("negative_slope") or given.get("threshold") or given.get("max_value") is not None
        )

    def __str__(self) -> str:
        """Show the name, with the settings that were given."""
        if not self.settings:
            return self.name
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in self.settings)})"


@dataclass(frozen=True)
class KernelChoice:
    """How a heavy op is computed: an entry of the plan.

    ``precision`` is the type it computes in and writes; ``layout`` the order in which its images lie in
    memory; ``algorithm`` one of the ways that ``emit`` knows for this op.
    """

    precision: Precision = "float32"
    layout: DataFormat = "channels_last"
    algorithm: str = "direct"


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation: reads ``inputs``, writes ``output``; ``layer`` is the path of its Keras layer."""

    name: str
    layer: str
    inputs: tuple[str, ...]
    output: str

    @property
    def kind(self) -> str:
        """Return the name of the operation's type."""
        return type(self).__name__

    @property
    def weights(self) -> tuple[str, ...]:
        """Return the paths of the weights that the op reads."""
        return ()

    @property
    def state(self) -> tuple[str, ...]:
        """Return the paths of the non-trainable variables that the op reads or updates."""
        return ()

    def settings(self) -> dict[str, Any]:
        """Return the fields that make this op differ from others of its type."""
        common = {"name", "layer", "inputs", "output"}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in common}


@dataclass(frozen=True, kw_only=True)
class Conv2D(Op):
    """A convolution; its kernel is ``(k, k, in/groups, out)``, or ``depthwise`` ``(k, k, in, times)``."""

    kernel: str
    kernel_shape: tuple[int, int, int, int]
    bias: str | None = None
    strides: Pair = (1, 1)
    padding: Padding = "valid"
    dilation: Pair = (1, 1)
    groups: int = 1
    depthwise: bool = False
    data_format: DataFormat = "channels_last"
    activation: Activation | None = None
    drop: Dropout | None = None
    folded: BatchNormalization | None = None
    choice: KernelChoice = field(default_factory=KernelChoice)

    @property
    def filters(self) -> int:
        """Return the number of output channels."""
        _, _, inner, outer = self.kernel_shape
        return inner * outer if self.depthwise else outer

    @property
    def weights(self) -> tuple[str, ...]:
        """Return kernel and bias, and those of a folded normalization."""
        own = (self.kernel,) if self.bias is None else (self.kernel, self.bias)
        return own + (self.folded.weights if self.folded else ())

    @property
    def state(self) -> tuple[str, ...]:
        """Return the statistics of a folded normalization."""
        return self.folded.state if self.folded else ()


@dataclass(frozen=True, kw_only=True)
class Dense(Op):
    """A matrix product over the last axis; the kernel is ``(in, out)``.

    ``input_scale`` multiplies the product in training: the scale of a dropout before.
    """

    kernel: str
    kernel_shape: tuple[int, int]
    bias: str | None = None
    input_scale: float = 1.0
    activation: Activation | None = None
    drop: Dropout | None = None
    folded: BatchNormalization | None = None
    choice: KernelChoice = field(default_factory=KernelChoice)

    @property
    def weights(self) -> tuple[str, ...]:
        """Return kernel and bias, and those of a folded normalization."""
        own = (self.kernel,) if self.bias is None else (self.kernel, self.bias)
        return own + (self.folded.weights if self.folded else ())

    @property
    def state(self) -> tuple[str, ...]:
        """Return the statistics of a folded normalization."""
        return self.folded.state if self.folded else ()


@dataclass(frozen=True, kw_only=True)
class BatchNormalization(Op):
    """Normalization by batch statistics (training) or moving statistics (``frozen``, or inference)."""

    axis: int
    moving_mean: str
    moving_variance: str
    gamma: str | None = None
    beta: str | None = None
    momentum: float = 0.99
    epsilon: float = 1e-3
    frozen: bool = False

    @property
    def weights(self) -> tuple[str, ...]:
        """Return scale and offset, where the layer has them."""
        return tuple(path for path in (self.gamma, self.beta) if path is not None)

    @property
    def state(self) -> tuple[str, ...]:
        """Return the moving statistics."""
        return (self.moving_mean, self.moving_variance)


@dataclass(frozen=True, kw_only=True)
class LayerNormalization(Op):
    """Normalization over ``axes`` of each example."""

    axes: tuple[int, ...]
    gamma: str | None = None
    beta: str | None = None
    epsilon: float = 1e-3

    @property
    def weights(self) -> tuple[str, ...]:
        """Return scale and offset, where the layer has them."""
        return tuple(path for path in (self.gamma, self.beta) if path is not None)


@dataclass(frozen=True, kw_only=True)
class Activate(Op):
    """An activation function on its own."""

    activation: Activation


@dataclass(frozen=True, kw_only=True)
class PRelu(Op):
    """max(x, 0) + alpha · min(x, 0), with a learned alpha."""

    alpha: str

    @property
    def weights(self) -> tuple[str, ...]:
        """Return the slope."""
        return (self.alpha,)


@dataclass(frozen=True, kw_only=True)
class Pool2D(Op):
    """Max or average pooling, with what was fused behind it."""

    mode: Literal["max", "average"]
    pool: Pair
    strides: Pair
    padding: Padding = "valid"
    data_format: DataFormat = "channels_last"
    edge: Literal["ignore", "replicate"] = "ignore"
    activation: Activation | None = None
    drop: Dropout | None = None


@dataclass(frozen=True, kw_only=True)
class GlobalPool2D(Op):
    """The mean or maximum of each channel."""

    mode: Literal["max", "average"]
    data_format: DataFormat = "channels_last"
    keepdims: bool = False


@dataclass(frozen=True, kw_only=True)
class Dropout(Op):
    """Sets a share of the elements, or of whole channels (``noise_shape`` with ones), to zero in training.

    ``stream`` numbers the dropouts of a program: masks depend on it, on the seed and on the step alone.
    ``scaled`` says whether what is kept is scaled here, or by the matrix product that follows.
    """

    rate: float
    stream: int
    noise_shape: tuple[int | None, ...] | None = None
    scaled: bool = True


@dataclass(frozen=True, kw_only=True)
class Flatten(Op):
    """All axes but the batch into one; ``channels_first`` images are put in channels_last order before."""

    data_format: DataFormat = "channels_last"


@dataclass(frozen=True, kw_only=True)
class Reshape(Op):
    """Another shape for the axes behind the batch; -1 stands for what is left."""

    target: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ZeroPad2D(Op):
    """Zeros around an image: ``((top, bottom), (left, right))``."""

    amounts: tuple[Pair, Pair]
    data_format: DataFormat = "channels_last"


@dataclass(frozen=True, kw_only=True)
class Crop2D(Op):
    """An image without its border: ``((top, bottom), (left, right))``."""

    amounts: tuple[Pair, Pair]
    data_format: DataFormat = "channels_last"


@dataclass(frozen=True, kw_only=True)
class UpSample2D(Op):
    """An image enlarged by whole factors."""

    size: Pair
    interpolation: Literal["nearest", "bilinear"] = "nearest"
    data_format: DataFormat = "channels_last"


@dataclass(frozen=True, kw_only=True)
class Merge(Op):
    """An element-wise combination of several values."""

    mode: Literal["add", "subtract", "multiply", "average", "maximum", "minimum"]


@dataclass(frozen=True, kw_only=True)
class Concatenate(Op):
    """Values side by side along one axis."""

    axis: int


@dataclass(frozen=True, kw_only=True)
class Affine(Op):
    """x · scale + offset with constants (Rescaling, Normalization); integers are accepted.

    ``divide`` says that the formula is (x + offset) / scale, as Normalization computes it.
    """

    scale: tuple[float, ...]
    offset: tuple[float, ...]
    constant_shape: tuple[int, ...] = ()
    divide: bool = False


@dataclass(frozen=True, kw_only=True)
class KerasCall(Op):
    """A Keras layer or operation that runs as it is, on its own variables; ``call`` knows how."""

    call: Any
    outputs: tuple[Value, ...]
    stream: int
    trainable: tuple[str, ...] = ()

    @property
    def weights(self) -> tuple[str, ...]:
        """Return the layer's trainable variables."""
        return self.trainable

    def settings(self) -> dict[str, Any]:
        """Return the type of the Keras layer."""
        return {"keras": str(self.call)}


@dataclass(frozen=True, kw_only=True)
class ActivityLoss(Op):
    """Adds the activity regularization of a layer's output to the loss, by Keras's own ``regularizer``."""

    regularizer: Any

    def settings(self) -> dict[str, Any]:
        """Return the type of the regularizer."""
        return {"regularizer": type(self.regularizer).__name__}


@dataclass(frozen=True)
class Output:
    """One output of the network: a value, and the activation behind it that was folded out of the program."""

    value: str
    activation: Activation | None = None


@dataclass(frozen=True)
class Program:
    """What a Keras model computes: inputs, ops in an order in which they can run, outputs.

    Examples
    --------
    >>> image = Value("image", (None, 4))
    >>> double = Affine(name="d", layer="d", inputs=("image",), output="y", scale=(2.0,), offset=(0.0,))
    >>> program = Program("tiny", (image,), (double,), (Output("y"),), {"y": Value("y", (None, 4))})
    >>> [op.kind for op in program], program.value("y").shape
    (['Affine'], (None, 4))
    """

    name: str
    inputs: tuple[Value, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Output, ...]
    values: Mapping[str, Value]
    input_structure: Any = None
    output_structure: Any = None

    def __iter__(self) -> Iterator[Op]:
        """Iterate over the ops in order."""
        return iter(self.ops)

    def value(self, name: str) -> Value:
        """Return the value of that name, an input or an op's output."""
        return self.values[name]

    def producer(self, name: str) -> Op | None:
        """Return the op that writes a value; None for an input."""
        return next((op for op in self.ops if name == op.output or name in written(op)), None)

    def readers(self, name: str) -> tuple[Op, ...]:
        """Return the ops that read a value."""
        return tuple(op for op in self.ops if name in op.inputs)

    def is_output(self, name: str) -> bool:
        """Say whether a value leaves the program."""
        return any(output.value == name for output in self.outputs)

    def replace(self, **changes: Any) -> Program:
        """Return a copy with some fields changed; values that nothing writes any more are dropped."""
        changed = dataclasses.replace(self, **changes)
        live = {value.name for value in changed.inputs}.union(*(written(op) for op in changed.ops))
        kept = {name: value for name, value in changed.values.items() if name in live}
        return dataclasses.replace(changed, values=kept)


def written(op: Op) -> tuple[str, ...]:
    """Return the names of the values that an op writes; an activity loss writes none.

    Examples
    --------
    >>> written(Flatten(name="flatten", layer="flatten", inputs=("x",), output="y"))
    ('y',)
    """
    if isinstance(op, KerasCall):
        return tuple(value.name for value in op.outputs)
    return () if isinstance(op, ActivityLoss) else (op.output,)
