"""Predicted shapes and parameter counts of layers, judged by the arithmetic that gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from convscope.arithmetic import LayerArithmetic, Shape, analyse
from convscope.errors import expected_got
from convscope.teaching.grading.verdict import CheckFailed, as_array, as_number, as_shape, as_table, require

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
