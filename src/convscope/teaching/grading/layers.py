"""What layers do: shapes and counts predicted; dropout, pooling and a convolution done by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.arithmetic import LayerArithmetic, Shape, analyse
from convscope.errors import expected_got
from convscope.teaching.grading.verdict import (
    CheckFailed,
    as_array,
    as_number,
    as_shape,
    as_table,
    call_answer,
    close,
    require,
)

Array = NDArray[Any]

ACTIVATION_TOLERANCE = 1e-5
SHARE_TOLERANCE = 0.02
TRY_IT = "Try the function on that input yourself."

# A layer's settings and the shape of its input: what a student predicts from.
Question = tuple[Mapping[str, Any], Shape]

SHAPE_RULE = (
    "Along each axis: padding same gives ⌈length/stride⌉; valid gives ⌊(length − reach)/stride⌋ + 1, "
    "where a kernel of k reaches over dilation·(k − 1) + 1 pixels."
)
COUNT_RULE = "A kernel of k·k weights for each pair of input channel and filter, and a bias for each filter."


def judge_conv_shapes(questions: Mapping[str, Question], shapes: Any) -> str:
    """Judge the predicted output shapes of single convolutions."""
    table = as_table(shapes, "shapes", list(questions))
    for key, (settings, input_shape) in questions.items():
        found = as_shape(table[key], f"shapes[{key!r}]")
        worked_out = _convolution(settings, input_shape)
        if found != worked_out.output_shape:
            raise CheckFailed(*_explain_shape(key, found, settings, input_shape, worked_out))
    return f"All {len(questions)} shapes are what Keras gives."


def _convolution(settings: Mapping[str, Any], input_shape: Shape) -> LayerArithmetic:
    worked_out = analyse("Conv2D", settings, [input_shape])
    if worked_out is None:
        raise LookupError("Conv2D")  # the arithmetic knows convolutions
    return worked_out


def _explain_shape(
    key: str,
    found: Shape,
    settings: Mapping[str, Any],
    input_shape: Shape,
    worked_out: LayerArithmetic,
) -> tuple[str, tuple[str, ...]]:
    """Find the mistake that gives the shape found."""
    arithmetic = f"{key}: {worked_out.lines[0]}, and as many channels as filters."
    if len(found) != len(worked_out.output_shape):
        message = expected_got(f"the output shape of {key} as (height, width, channels)", found)
        return message, ("The output of a convolution is an image again, with a channel for each filter.",)
    expected = f"the output shape of {key}"
    for mistake, hint, shape in _mistaken_shapes(settings, input_shape, worked_out.output_shape):
        if found == shape != worked_out.output_shape:
            return expected_got(expected, f"{found}, which {mistake} would give"), (
                hint,
                SHAPE_RULE,
                arithmetic,
            )
    if found[:2] == worked_out.output_shape[:2]:
        hint = "Each filter makes one channel of the output, whatever the number of channels that come in."
        return expected_got(f"another number of channels for {key}", found[2]), (hint, arithmetic)
    return expected_got(expected, found), (SHAPE_RULE, arithmetic)


def _mistaken_shapes(
    settings: Mapping[str, Any], input_shape: Shape, output_shape: Shape
) -> Iterable[tuple[str, str, Shape]]:
    """List typical mistakes: what was done, what to say about it, and the shape that comes of it."""

    def altered(**changes: Any) -> Shape:
        return _convolution({**settings, **changes}, input_shape).output_shape

    if settings.get("padding", "valid") == "valid":
        hint = "Without padding the kernel must fit inside the image, so height and width shrink."
        yield 'padding="same"', hint, altered(padding="same")
    else:
        hint = 'padding="same" adds zeros around the image: only the stride makes the output smaller.'
        yield 'padding="valid"', hint, altered(padding="valid")
    hint = "A kernel that moves s pixels at a time fits only at every s-th place."
    yield "a stride of 1", hint, altered(strides=1)
    hint = "A dilated kernel has gaps between its weights, so that it reaches further."
    yield "no dilation", hint, altered(dilation_rate=1)
    height, width, channels = output_shape
    if height is not None and width is not None:
        hint = "At the last place the whole kernel must still fit: round down."
        yield "rounding up", hint, (height + 1, width + 1, channels)
        hint = "Count the places, not the steps between them: one more."
        yield "forgetting the + 1", hint, (height - 1, width - 1, channels)


def judge_conv_parameters(questions: Mapping[str, Question], parameters: Any) -> str:
    """Judge the predicted parameter counts of single convolutions."""
    table = as_table(parameters, "parameters", list(questions))
    for key, (settings, input_shape) in questions.items():
        found = as_number(table[key], f"parameters[{key!r}]")
        worked_out = _convolution(settings, input_shape)
        if found != worked_out.parameters:
            raise CheckFailed(*_explain_count(key, found, worked_out, input_shape, settings))
    return f"All {len(questions)} counts are what Keras gives."


def _explain_count(
    key: str,
    found: float,
    worked_out: LayerArithmetic,
    input_shape: Shape,
    settings: Mapping[str, Any],
) -> tuple[str, tuple[str, ...]]:
    filters, right = int(settings["filters"]), worked_out.parameters
    channels = input_shape[-1] or 1
    biased = settings.get("use_bias", True)
    weights = right - filters if biased else right
    height, width, _ = worked_out.output_shape
    mistakes = {
        weights: ("leaving out the biases", "Every filter adds one number of its own to its sum."),
        weights + filters: ("counting biases", "With use_bias=False there is nothing to add."),
        weights // channels + (filters if biased else 0): (
            "a kernel over one input channel only",
            "A filter looks at all input channels at once: one k·k kernel for each of them.",
        ),
        right * (height or 1) * (width or 1): (
            "weights of their own at each place",
            "The same kernel is used at every place of the image: that is what a convolution is.",
        ),
    }
    mistakes.pop(right, None)
    lines = (COUNT_RULE, f"{key}: {_count_line(worked_out)}")
    if int(found) in mistakes and found == int(found):
        mistake, hint = mistakes[int(found)]
        found_text = f"{found:,.0f}, which comes of {mistake}"
        return expected_got(f"the number of parameters of {key}", found_text), (hint, *lines)
    return expected_got(f"the number of parameters of {key}", f"{found:,g}"), lines


def _count_line(worked_out: LayerArithmetic) -> str:
    """Pick the line of the arithmetic that counts the weights."""
    return next((line for line in worked_out.lines if line.startswith("parameters")), worked_out.lines[-1])


def judge_layer_shapes(layers: Any, shapes: Any) -> str:
    """Judge the predicted output shape of every layer (of ``convscope.describe``) of a network."""
    table = as_table(shapes, "shapes", [layer.name for layer in layers])
    for layer in layers:
        found = as_shape(table[layer.name], f"shapes[{layer.name!r}]")
        if found != tuple(layer.output_shape):
            message = expected_got(
                f"another output shape of {layer.name} behind {tuple(layer.input_shape)}", found
            )
            raise CheckFailed(message, (_layer_rule(layer.type), layer.arithmetic[0]))
    return f"All {len(layers)} output shapes are right."


def judge_layer_parameters(layers: Any, parameters: Any) -> str:
    """Judge the predicted parameter count of every layer of a network."""
    table = as_table(parameters, "parameters", [layer.name for layer in layers])
    for layer in layers:
        found = as_number(table[layer.name], f"parameters[{layer.name!r}]")
        if found != layer.parameters:
            raise CheckFailed(*_explain_layer_count(layer, found))
    total = sum(layer.parameters for layer in layers)
    return f"All right, and together {total:,}."


def _explain_layer_count(layer: Any, found: float) -> tuple[str, tuple[str, ...]]:
    expected = f"another number of parameters of {layer.name}"
    arithmetic = next((line for line in layer.arithmetic if line.startswith("parameters")), "")
    if not layer.parameters:
        hint = f"{layer.type} learns nothing: it has no weights at all."
        return expected_got(f"no parameters of {layer.name}", f"{found:,g}"), (hint,)
    bias = layer.weight_shapes[1][0] if len(layer.weight_shapes) > 1 else 0
    if bias and found == layer.parameters - bias:
        hint = "Each filter and each unit of a dense layer has a bias as well."
        return expected_got(expected, f"{found:,g}, which leaves out the biases"), (hint, arithmetic)
    if layer.type == "Conv2D":
        kernel_height, kernel_width, channels, filters = layer.weight_shapes[0]
        if found == kernel_height * kernel_width * filters + bias and channels > 1:
            hint = f"{channels} channels come in, and a filter has a kernel for each of them."
            return expected_got(expected, f"{found:,g}, which counts one input channel"), (hint, arithmetic)
        if not bias and found == layer.parameters + filters:
            hint = "With use_bias=False there is nothing to add."
            return expected_got(expected, f"{found:,g}, which counts biases"), (hint, arithmetic)
        return expected_got(expected, f"{found:,g}"), (COUNT_RULE, arithmetic)
    hint = "A dense layer has a weight for each pair of input and unit, and a bias for each unit."
    return expected_got(expected, f"{found:,g}"), (hint, arithmetic)


def _layer_rule(kind: str) -> str:
    rules = {
        "Conv2D": 'padding="same" keeps height and width; "valid" takes k − 1 pixels from each.',
        "MaxPooling2D": "A pool of 2 halves height and width, rounded down; the channels stay.",
        "Dropout": "Dropout sets numbers to zero; it changes no shape.",
        "Flatten": "Flatten writes all numbers in one row: height times width times channels.",
        "Dense": "A dense layer gives one number for each of its units.",
    }
    return rules.get(kind, SHAPE_RULE)


def judge_kernel_layout(model: Any, torch_kernel: Any, layer_name: str = "conv2d_3") -> str:
    """Judge a kernel that was brought from Keras's layout into torch's."""
    keras_kernel = as_array(model.get_layer(layer_name).get_weights()[0], "the kernel")
    found = as_array(torch_kernel, "torch_kernel")
    expected = keras_kernel.transpose(3, 2, 0, 1)  # (h, w, in, out) → (out, in, h, w)
    order = "torch wants (filters, input channels, height, width); Keras has (height, width, in, filters)."
    answer = "keras_kernel.transpose(3, 2, 0, 1)"
    require(
        found.shape == expected.shape,
        expected_got(f"a kernel of shape {expected.shape}", found.shape),
        order,
        answer,
    )
    require(
        not _same(found, keras_kernel.T) or _same(keras_kernel.T, expected),
        expected_got("each 3×3 kernel as it was", "kernels with rows and columns exchanged"),
        "Reversing all four axes also exchanges height and width.",
        answer,
    )
    require(
        not _same(found, keras_kernel.reshape(expected.shape)),
        expected_got("the axes in another order", "the numbers in their old order under a new shape"),
        "reshape moves no number; it only counts them off anew. The axes themselves must move.",
        answer,
    )
    require(_same(found, expected), expected_got("the same weights", "other numbers"), order, answer)
    return f"{keras_kernel.shape} in Keras, {expected.shape} in torch: the same weights."


def _same(first: Any, second: Any) -> bool:
    return bool(first.shape == second.shape and abs(first - second).max() < 1e-6)


def judge_dropout(ones: Array, rate: float, dropped: Any, share_of_zeros: Any, kept_value: Any) -> str:
    """Judge an experiment with dropout: what it does in training, and to the numbers that stay."""
    after = as_array(dropped, "dropped")
    require(
        after.shape == ones.shape,
        expected_got(f"`dropped` of shape {ones.shape}", after.shape),
        "dropout(ones, training=True)",
    )
    require(
        not np.array_equal(after, ones),
        expected_got(f"about {rate:.0%} zeros in `dropped`", "none"),
        "Dropout works in training only; when a network predicts, it lets everything through.",
        "dropout(ones, training=True)",
    )
    zeros, kept = float(np.mean(after == 0)), float(after.max())
    require(
        abs(zeros - rate) < SHARE_TOLERANCE,
        expected_got(f"about {rate:.0%} zeros in `dropped`", f"{zeros:.1%}"),
        "The argument of Dropout is the share that goes, not the share that stays.",
    )
    share = as_number(share_of_zeros, "share_of_zeros")
    counted = "count, not a share: divide by the number of values" if share > 1 else "share of what was kept"
    require(
        close(share, zeros, 1e-3),
        expected_got("`share_of_zeros` as the share of zeros in `dropped`", f"{share:g}"),
        f"That is the {counted}." if share > 1 or close(share, 1 - zeros, 1e-3) else "Compare with 0.",
        "np.mean(dropped == 0)",
    )
    value = as_number(kept_value, "kept_value")
    mean = close(value, float(after.mean()), 1e-3)
    require(
        close(value, kept, 1e-3),
        expected_got("`kept_value` as the value that the ones left over have now", f"{value:g}"),
        "That is the mean of all values: it stays 1, and that is what the new value is for."
        if mean
        else "The values that stay are divided by the share that stays: look at dropped.max().",
        "1 / (1 − rate)",
    )
    return f"{zeros:.1%} zeros; the others became {kept:.4f} = 1/(1 − {rate:g}), so that the mean stays 1."


def judge_max_pool(max_pool: Callable[..., Any]) -> str:
    """Judge a function that pools an image by maxima, on images of several sizes."""
    require(
        callable(max_pool),
        expected_got("`max_pool` as a function", type(max_pool).__name__),
        "def max_pool(image, size): …",
    )
    generator = np.random.default_rng(1338)
    for height, width, channels, size in ((6, 6, 1, 2), (4, 8, 3, 2), (9, 6, 2, 3), (7, 5, 2, 2)):
        image = generator.normal(size=(height, width, channels)).astype(np.float32)
        _require_pooled(max_pool, image, size)
    return "Right for four images, even and odd."


def _require_pooled(max_pool: Callable[..., Any], image: Array, size: int) -> None:
    height, width, channels = image.shape
    called = f"max_pool of a {height}×{width}×{channels} image with size {size}"
    result = call_answer(max_pool, f"a value for {called}", TRY_IT, image.copy(), size)
    right = _pool(image, size, np.max)
    found = as_array(result, called)
    odd = height % size or width % size
    require(
        found.shape == right.shape,
        expected_got(f"{called} to have shape {right.shape}", found.shape),
        _pool_shape_hint(found.shape, image.shape, size, bool(odd)),
        "height // size rows, width // size columns, all channels",
    )
    averaged = np.allclose(found, _pool(image, size, np.mean), atol=1e-5)
    require(
        np.allclose(found, right, atol=1e-6),
        expected_got(
            f"the largest value of each window in {called}", "the mean" if averaged else "other values"
        ),
        "Each channel is pooled alone, and each window starts where the last one ended.",
        "image[size * i : size * (i + 1), size * j : size * (j + 1)].max(axis=(0, 1))",
    )


def _pool_shape_hint(found: tuple[int, ...], image: tuple[int, ...], size: int, odd: bool) -> str:
    if len(found) != 3:
        return "The result is an image again: rows, columns, channels. Each channel is pooled alone."
    if found[0] == image[0] - size + 1:
        return "The window moves by its own size, not by one pixel."
    if odd:
        return "What is left over at the edge and fills no window is dropped."
    return "A window of size×size pixels becomes one."


def _pool(image: Array, size: int, function: Callable[..., Any]) -> Array:
    height, width, channels = image.shape
    rows, columns = height // size, width // size
    windows = image[: rows * size, : columns * size].reshape(rows, size, columns, size, channels)
    pooled: Array = function(windows, axis=(1, 3))  # (rows, size, columns, size, c) → (rows, columns, c)
    return pooled


def judge_activation(
    model: Any, image: Array, activation: Callable[..., Any], layer_name: str = "conv2d_1"
) -> str:
    """Judge a function that recomputes one number of a convolution's output with padding ``same``.

    It is tried at the corners, the edges and in the middle, with the network's weights and with others.
    """
    require(
        callable(activation),
        expected_got("`activation` as a function", type(activation).__name__),
        "def activation(image, kernel, bias, row, column, filter): …",
    )
    kernel, bias = (np.asarray(weight) for weight in model.get_layer(layer_name).get_weights())
    picture = np.asarray(image)
    require(
        picture.ndim == 3,
        expected_got("`image` of shape (height, width, channels)", picture.shape),
        "image = x_test[0]",
    )
    # A bias far from 0 tells whether it is added, and makes some sums negative and others positive.
    shifted = (bias + np.linspace(-1, 1, len(bias))).astype(np.float32)
    for weights in ((kernel, shifted), (kernel, bias)):
        for row, column in _places(picture):
            for number in (0, len(bias) - 1):
                _require_activation(activation, picture, weights, row, column, number)
    return f"Equal to {layer_name}'s own numbers at {len(_places(picture))} places, corners and edges too."


def _places(image: Array) -> list[tuple[int, int]]:
    """Choose the middle first: an edge is a difficulty of its own."""
    height, width = image.shape[:2]
    strongest = divmod(int(image.sum(axis=2)[1:-1, 1:-1].argmax()), width - 2)
    middle = [(strongest[0] + 1, strongest[1] + 1), (height // 2, width // 2)]
    return [*middle, (0, width // 2), (height // 2, width - 1), (0, 0), (height - 1, width - 1)]


def _require_activation(
    activation: Callable[..., Any],
    image: Array,
    weights: tuple[Array, Array],
    row: int,
    column: int,
    number: int,
) -> None:
    kernel, bias = weights
    called = f"activation at row {row}, column {column}, filter {number}"
    found = as_number(
        call_answer(activation, f"a value for {called}", TRY_IT, image, kernel, bias, row, column, number),
        called,
    )
    total = _weighted_sum(image, kernel, row, column, number)
    own = float(bias[number])
    right = max(total + own, 0.0)
    if abs(found - right) < ACTIVATION_TOLERANCE:
        return
    flipped = _weighted_sum(image, kernel[::-1, ::-1], row, column, number) + own
    mistakes = {
        "A negative result becomes 0: the ReLU comes last, after the bias.": total + own,
        "The bias of the filter is added before the ReLU.": max(total, 0.0),
        "Neither bias nor ReLU: add the one, then cut at 0.": total,
        "The bias goes inside the ReLU: first add, then cut at 0.": max(total, 0.0) + own,
        "Keras does not turn the kernel: multiply it with the patch as it is.": max(flipped, 0.0),
    }
    near = [hint for hint, value in mistakes.items() if abs(found - value) < ACTIVATION_TOLERANCE]
    height, width = image.shape[:2]
    edge = row in (0, height - 1) or column in (0, width - 1)
    first = (
        near[0] if near else "At the edge the patch reaches outside the image: there it is 0." if edge else ""
    )
    first = first or "The patch's middle is at (row, column): it begins one pixel before, in both directions."
    answer = (
        "padded = np.pad(image, ((1, 1), (1, 1), (0, 0))); patch = padded[row : row + 3, column : column + 3]"
    )
    raise CheckFailed(expected_got(f"{right:.5f} for the {called}", f"{found:.5f}"), (first, answer))


def _weighted_sum(image: Array, kernel: Array, row: int, column: int, number: int) -> float:
    """Multiply one patch with one kernel and add it up, in float64, zeros around the image."""
    height, width = kernel.shape[:2]
    before = ((height - 1) // 2, (width - 1) // 2)
    padding = ((before[0], height - 1 - before[0]), (before[1], width - 1 - before[1]), (0, 0))
    padded = np.pad(image.astype(np.float64), padding)
    return float((padded[row : row + height, column : column + width] * kernel[..., number]).sum())
