"""ONNX, an optional extra: a traced bundle → a file that takes images of any size, in 8 bits too."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope.environment import require_package
from convscope.errors import DataError, ExportError, expected_got, reason
from convscope.export.bundle import Bundle, Forward
from convscope.preprocessing import Preprocess

if TYPE_CHECKING:
    from convscope.export.exporting import CheckImages


SIZED = "sized"

# Luminance in weights of 16 bits, then Pillow's triangle filter along one axis and then the other, each
# rounded to uint8, in the order of `preprocessing._resample`. Here `resample` brings axis 1 of (n, length, …)
# to another length, eight places at a time, which share their inputs. The filter's weights have 22 bits and
# are applied as three digits of 8, in products that every runtime gets exactly right.
_RESIZE = Template("""
<ir_version: 10, opset_import: ["" : 18, "convscope" : 1]>
resize (uint8[n, height, width, channels] pixels) => (uint8[n, $height, $width, $channels] sized)
<int64[3] input = {$height, $width, $channels}> {
    given = Shape <start = 1> (pixels)
    equal = Equal (given, input)
    equal_as_int = Cast <to = 6> (equal)
    all_equal = ReduceMin <keepdims = 0> (equal_as_int)
    fits = Cast <to = 9> (all_equal)
    sized = If (fits) <
        then_branch = keep () => (uint8[n, $height, $width, $channels] kept) {
            kept = Identity (pixels)
        },
        else_branch = fit () => (uint8[n, $height, $width, $channels] fitted)
        <int64[4] as_rgb = {1, 1, 1, 3}, int64[2] wanted = {$height, $width}, int64[2] axes = {1, 2},
         int64[1] none = {0}, int64[1] two = {2}, uint8 black = {0}> {
            rgb = Expand (pixels, as_rgb)
            $colours
            size = Shape <start = 1, end = 3> (pixels)
            $inner
            inner_height, inner_width = Split <num_outputs = 2> (inner)
            less = Sub (size, inner)
            less_height, less_width = Split <num_outputs = 2> (less)
            less_width_twice = Mul (less_width, two)
            at_least = Max (less_width_twice, none)
            down_first_listed = Greater (less_height, at_least)
            down_first = Squeeze (down_first_listed)
            turned = If (down_first) <
                then_branch = as_it_is () => (rows) { rows = Identity (colours) },
                else_branch = aside () => (columns) { columns = Transpose <perm = [0, 2, 1, 3]> (colours) }
            >
            first_length = Where (down_first, inner_height, inner_width)
            second_length = Where (down_first, inner_width, inner_height)
            half_resized = convscope.resample (turned, first_length)
            other_way = Transpose <perm = [0, 2, 1, 3]> (half_resized)
            both_resized = convscope.resample (other_way, second_length)
            resized = If (down_first) <
                then_branch = back () => (low) { low = Transpose <perm = [0, 2, 1, 3]> (both_resized) },
                else_branch = stay () => (high) { high = Identity (both_resized) }
            >
            space = Sub (wanted, inner)
            odd = Mod (space, two)
            even = Sub (space, odd)
            before = Div (even, two)
            after = Sub (space, before)
            border = Concat <axis = 0> (before, after)
            fitted = Pad (resized, border, black, axes)
        }
    >
}
<domain: "convscope", opset_import: ["" : 18]>
resample (lines, wanted) => (resampled) {
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    seven = Constant <value = int64 {7}> ()
    eight = Constant <value = int64 {8}> ()
    nothing = Constant <value = double {0.0}> ()
    half = Constant <value = double {0.5}> ()
    all = Constant <value = double {1.0}> ()
    gaps = Constant <value = double {7.0}> ()
    unit = Constant <value = double {4194304.0}> ()
    base = Constant <value = int32 {256}> ()
    base_squared = Constant <value = int32 {65536}> ()
    half_unit = Constant <value = int32 {2097152}> ()
    whole_unit = Constant <value = int32 {4194304}> ()
    start = Constant <value = int64[1] {0}> ()
    axis = Constant <value = int64[1] {1}> ()
    last_axis = Constant <value = int64[1] {2}> ()
    in_eights = Constant <value = int64[3] {-1, 8, 1}> ()
    flat = Constant <value = int64[4] {0, 0, 0, -1}> ()

    length_listed = Shape <start = 1, end = 2> (lines)
    length = Squeeze (length_listed)
    new_length = Squeeze (wanted)
    double_length = Cast <to = 11> (length)
    double_new_length = Cast <to = 11> (new_length)
    factor = Div (double_length, double_new_length)
    support = Max (factor, all)
    twice_support = Add (support, support)

    up_to_seven_more = Add (new_length, seven)
    blocks = Div (up_to_seven_more, eight)
    padded = Mul (blocks, eight)
    places = Range (zero, padded, one)
    last = Sub (new_length, one)
    clipped = Min (places, last)
    blocked = Reshape (clipped, in_eights)
    double_places = Cast <to = 11> (blocked)
    new_middles = Add (double_places, half)
    centres = Mul (new_middles, factor)

    across_gaps = Mul (gaps, factor)
    width = Add (across_gaps, twice_support)
    upper_width = Ceil (width)
    whole_width = Cast <to = 7> (upper_width)
    wide_enough = Add (whole_width, one)
    taps = Min (wide_enough, length)
    first_centres = ReduceMin (centres, axis)
    borders = Sub (first_centres, support)
    lower_borders = Floor (borders)
    first_taps = Cast <to = 7> (lower_borders)
    inside = Max (first_taps, zero)
    last_start = Sub (length, taps)
    starts = Min (inside, last_start)
    counted = Range (zero, taps, one)
    sources = Add (starts, counted)

    double_sources = Cast <to = 11> (sources)
    to_centres = Sub (double_sources, centres)
    to_middles = Add (to_centres, half)
    distances = Abs (to_middles)
    narrow = Div (all, support)
    parts = Mul (distances, narrow)
    signed = Sub (all, parts)
    triangles = Max (signed, nothing)
    sums = ReduceSum (triangles, last_axis)
    shares = Div (triangles, sums)
    units = Mul (shares, unit)
    rounded_up = Add (units, half)
    weights = Cast <to = 6> (rounded_up)

    upper = Div (weights, base)
    digit0 = Mod (weights, base)
    digit1 = Mod (upper, base)
    digit2 = Div (upper, base)
    digits = Concat <axis = 1> (digit0, digit1, digit2)
    bytes = Cast <to = 2> (digits)
    gathered_at = Squeeze (sources, axis)
    gathered = Gather <axis = 1> (lines, gathered_at)
    taken = Reshape (gathered, flat)
    products = MatMulInteger (bytes, taken)
    low, middle, high = Split <axis = 2, num_outputs = 3> (products)
    middle_in_units = Mul (middle, base)
    high_in_units = Mul (high, base_squared)
    low_and_half = Add (low, half_unit)
    middle_and_high = Add (middle_in_units, high_in_units)
    sum = Add (low_and_half, middle_and_high)
    level = Div (sum, whole_unit)
    byte = Cast <to = 2> (level)
    padded_listed = Unsqueeze (padded, start)
    others = Shape <start = 2> (lines)
    shape = Concat <axis = 0> (start, padded_listed, others)
    joined = Reshape (byte, shape)
    resampled = Slice (joined, start, wanted, axis)
}
""")
_COLOURS = {
    3: "colours = Identity (rgb)",
    1: """
            in_65536 = Constant <value = float[3, 1] {19595, 38470, 7471}> ()
            whole = Constant <value_float = 65536.0> ()
            weights = Div (in_65536, whole)
            half = Constant <value_float = 0.5> ()
            rgb_as_float = Cast <to = 1> (rgb)
            luminance = MatMul (rgb_as_float, weights)
            rounded_up = Add (luminance, half)
            colours = Cast <to = 2> (rounded_up)""",
}
_SCALED = Template("""
            size_as_double = Cast <to = 11> (size)
            wanted_as_double = Cast <to = 11> (wanted)
            factors = Div (wanted_as_double, size_as_double)
            factor = $pick <keepdims = 0> (factors)
            scaled = Mul (size_as_double, factor)
            rounded = Round (scaled)
            rounded_as_int = Cast <to = 7> (rounded)
            one = Constant <value_int = 1> ()
            inner = Max (rounded_as_int, one)""")
_INNER = {
    "letterbox": _SCALED.substitute(pick="ReduceMin"),
    "crop": _SCALED.substitute(pick="ReduceMax"),
    "stretch": "inner = Identity (wanted)",
}


def to_resizing(settings: Preprocess) -> Any:
    """Give an ONNX model of uint8 pixels (n, h, w, 1 or 3) → (n, height, width, channels)."""
    parser: Any = importlib.import_module("onnx.parser")
    inliner: Any = importlib.import_module("onnx.inliner")
    text = _RESIZE.substitute(
        height=settings.height,
        width=settings.width,
        channels=settings.channels,
        colours=_COLOURS[settings.channels],
        inner=_INNER[settings.resize],
    )
    return inliner.inline_local_functions(parser.parse_model(text))


# The exporter's own operators are of this version: no conversion, and every runtime since 2023 knows it.
OPSET = 18
# Bytes of a constant that is computed at export.
LARGEST = 2**28
# The sizes of the input, as names.
ANY_SIZE = ["height", "width", "channels"]
INPUT, OUTPUT, FEATURES = "pixels", "probabilities", "features"
# ONNX Runtime's arena keeps what the largest batch took; prediction goes through in pieces of this size.
BATCH = 256
# Errors only: the runtime's warnings are about its own devices.
LOG_ERRORS = 3
# No file can be below a device.
NOWHERE = os.path.join(os.devnull, "nowhere")  # noqa: PTH118  a string for the runtime


def write_onnx(bundle: Bundle, file: Path) -> Session:
    """Write a bundle as an ONNX file for pixels of any size, (n, h, w, 1 or 3), and open it.

    Its metadata carry class names and preprocessing.
    """
    onnx: Any = importlib.import_module("onnx")
    compose: Any = importlib.import_module("onnx.compose")
    network = _to_network(bundle)
    resizing = to_resizing(bundle.preprocess)
    resizing.ir_version = network.ir_version
    resizing = compose.add_prefix(resizing, "resize_", rename_inputs=False, rename_outputs=False)
    model = compose.merge_models(resizing, network, io_map=[(SIZED, SIZED)], name="classifier")
    del model.opset_import[1:]  # merging lists both models' own
    if bundle.novelty is not None:
        _give_features(model.graph, bundle.novelty.features)
    onnx.helper.set_model_props(model, _metadata(bundle))
    file.write_bytes(model.SerializeToString())
    return open_session(file, bundle.preprocess.image_shape, len(bundle.class_names))


def _give_features(graph: Any, length: int) -> None:
    """Make the features, which enter the last matrix product, a second output of a graph."""
    onnx: Any = importlib.import_module("onnx")
    deciding = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    if deciding and deciding[-1].op_type != "Conv":
        graph.node.append(onnx.helper.make_node("Identity", [deciding[-1].input[0]], [FEATURES]))
        value = onnx.helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, ["n", length])
        graph.output.append(value)


def _to_network(bundle: Bundle) -> Any:
    """Convert a bundle to an ONNX model, as yet for images of the network's size."""
    import torch

    from convscope.export.torch_files import TRACED_BATCH, quiet, trace

    program = trace(bundle)
    shape = (TRACED_BATCH, *bundle.preprocess.image_shape)
    with quiet():
        try:
            exported = torch.onnx.export(
                program,
                (torch.zeros(shape, dtype=torch.uint8),),
                input_names=[SIZED],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # as above
            raise ExportError(expected_got("a network that ONNX can express", reason(error))) from error
    if exported is None:
        raise ExportError(expected_got("a network that ONNX can express", "nothing"))
    optimizer: Any = importlib.import_module("onnxscript.optimizer")
    # The exporter leaves large constants alone: weights of wide depthwise layers, reshaped at each call.
    optimizer.fold_constants(exported.model, input_size_limit=LARGEST, output_size_limit=LARGEST)
    _fold_normalizations(exported.model)
    unused: Any = importlib.import_module("onnx_ir.passes.common")
    unused.RemoveUnusedNodesPass()(exported.model)
    return exported.model_proto


def _fold_normalizations(model: Any) -> None:
    """Make what only shifts and scales the channels of a convolution part of its weights and bias.

    Normalizations come out of the tracer as a subtraction, a product and a sum, which runtimes do not fuse.
    """
    ir: Any = importlib.import_module("onnx_ir")
    for convolution in [node for node in model.graph if node.op_type == "Conv"]:
        weights = convolution.inputs[1]
        if weights.const_value is None or len(weights.uses()) != 1:
            continue
        kernel = weights.const_value.numpy().astype(np.float64)  # (filters, channels, h, w)
        scale, shift = np.ones(len(kernel)), np.zeros(len(kernel))
        value, axis = convolution.outputs[0], 1
        while len(value.uses()) == 1 and not value.is_graph_output():
            node = value.uses()[0].node
            made = node.outputs[0]
            if node.op_type == "Transpose":
                axis = list(node.attributes["perm"].as_ints()).index(axis)
                value = made
                continue
            factor = _for_each_channel(node, value, axis, len(kernel))
            if factor is None or made.is_graph_output():
                break
            scale, shift = _ARITHMETIC[node.op_type](scale, shift, factor)
            ir.convenience.replace_all_uses_with(made, value)
            model.graph.remove(node, safe=True)
        before = convolution.inputs[2].const_value.numpy() if len(convolution.inputs) > 2 else 0.0
        weights.const_value = ir.tensor((kernel * scale[:, None, None, None]).astype(np.float32))
        bias = (before * scale + shift).astype(np.float32)
        named = ir.Value(name=f"{weights.name}_bias", const_value=ir.tensor(bias))
        model.graph.register_initializer(named)
        convolution.resize_inputs(3)
        convolution.replace_input_with(2, named)


_ARITHMETIC: dict[str, Callable[..., tuple[Any, Any]]] = {
    "Sub": lambda scale, shift, value: (scale, shift - value),
    "Add": lambda scale, shift, value: (scale, shift + value),
    "Mul": lambda scale, shift, value: (scale * value, shift * value),
}


def _for_each_channel(node: Any, value: Any, axis: int, channels: int) -> NDArray[np.float64] | None:
    """Give the constant (channels,) that a node applies to the channels of a value, if it does."""
    if node.op_type not in _ARITHMETIC or (node.op_type == "Sub" and node.inputs[0] is not value):
        return None
    [other] = [one for one in node.inputs if one is not value] or [value]
    if other.const_value is None:
        return None
    constant = other.const_value.numpy().astype(np.float64)
    shape = [1] * 4
    shape[axis] = channels
    try:
        return np.broadcast_to(constant, shape).reshape(channels)
    except ValueError:
        return None


def _metadata(bundle: Bundle) -> dict[str, str]:
    """Describe a bundle in the strings that an ONNX file can carry."""
    settings = bundle.preprocess
    return {
        "class_names": json.dumps(list(bundle.class_names), ensure_ascii=False),
        "temperature": repr(bundle.temperature),
        "input": f"uint8 pixels 0 to 255 (n, height, width, 1 or 3) of any size; the graph brings them to "
        f"{settings.height}×{settings.width}×{settings.channels} by {settings.resize}, and scales them",
        "preprocessing": json.dumps(settings.describe(), ensure_ascii=False),
    }


class Session:
    """An open ONNX file: uint8 images (n, h, w, c) → probabilities, and features where it gives them."""

    def __init__(self, file: Path, session: Any, gives_features: bool) -> None:
        self._file, self._session, self.gives_features = file, session, gives_features

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute probabilities (n, classes)."""
        return self._run(pixels, OUTPUT)[0]

    def examine(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Compute probabilities (n, classes) and features (n, d)."""
        probabilities, features = self._run(pixels, OUTPUT, FEATURES)
        return probabilities, features

    def _run(self, pixels: NDArray[np.uint8], *outputs: str) -> list[NDArray[np.float32]]:
        parts = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
        try:
            found = [self._session.run(outputs, {INPUT: np.ascontiguousarray(part)}) for part in parts]
            return [np.concatenate(arrays) for arrays in zip(*found, strict=True)]
        except Exception as error:  # the runtime has an exception for each of its status codes
            raise DataError(expected_got(f"{self._file} to compute probabilities", reason(error))) from error


def open_session(file: Path, shape: tuple[int, int, int], classes: int) -> Session:
    """Open a file that takes images of a shape (h, w, c), or any, and gives so many probabilities."""
    require_package("onnxruntime", "onnx")
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = LOG_ERRORS
    # A graph can say that its weights are in other files; for those, the runtime looks nowhere.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", NOWHERE)
    try:
        session = runtime.InferenceSession(
            file.read_bytes(), sess_options=options, providers=["CPUExecutionProvider"]
        )
        given = [(one.name, one.type, list(one.shape[1:])) for one in session.get_inputs()]
        made = [(one.name, one.type, list(one.shape[1:])) for one in session.get_outputs()]
    except Exception as error:  # as above
        raise DataError(expected_got(f"{file} to be an ONNX network", reason(error))) from error
    *more, features = [*made, None] if len(made) < 2 else made
    gives_features = features is not None and features[:2] == (FEATURES, "tensor(float)")
    expected = ([(INPUT, "tensor(uint8)", list(shape))], [(OUTPUT, "tensor(float)", [classes])])
    any_size = ([(INPUT, "tensor(uint8)", ANY_SIZE)], expected[1])
    if (given, more if gives_features else made) not in (expected, any_size):
        raise DataError(expected_got(f"{file} with input and output {expected}", (given, made)))
    return Session(file, session, gives_features)


# How much of the accuracy on the images held back it may cost; where they are few, one image.
LARGEST_LOSS = 0.01
# Convolutions and products, and what may stand between them: a network stays in 8 bits from the first of the
# former to the last. Before and behind, which is preprocessing and softmax, it stays in float32.
_HEAVY = ("Conv", "Gemm", "MatMul")
_BETWEEN = (
    "Relu", "Clip", "Add", "Mul", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Reshape",
    "Flatten", "Transpose", "Pad",
)  # fmt: skip


def write_int8(source: Path, target: Path, bundle: Bundle, images: CheckImages) -> tuple[Forward, str]:
    """Write the 8-bit version of an ONNX file; return what it computes, and what it costs in words.

    Static quantization of weights, for each channel, and of activations, whose ranges come from training
    images. Weights have 7 bits: with 8, processors without VNNI add products up beyond 16 bits, cut them off,
    and give other answers than this one. Where that costs too much, sensitive layers stay in float32.
    """
    if images.training is None or images.judging is None:
        hint = "Name them with --data."
        raise DataError(expected_got("the run's training images to quantize with", images.origin, hint))
    pixels, labels = images.judging
    reference = bundle.predict(pixels).argmax(axis=1)
    before = float(np.mean(reference == labels))
    allowed = max(LARGEST_LOSS, 1 / len(labels))
    with tempfile.TemporaryDirectory() as folder:
        fused = Path(folder) / source.name
        graph = _fuse(source, fused)
        for words, kept in _choices(graph):
            _quantize(fused, target, graph, images.training, kept)
            forward = open_session(target, bundle.preprocess.image_shape, len(bundle.class_names))
            predicted = forward(pixels).argmax(axis=1)
            after = float(np.mean(predicted == labels))
            if before - after <= allowed + 1e-9:
                differ = float(np.mean(predicted != reference))
                return forward, (
                    f"{target.name}: ranges from {len(images.training):,} training images; {after:.2%} of "
                    f"{len(labels):,} {images.judged_on} right (the run: {before:.2%}), {differ:.2%} other "
                    f"labels than the run's; in float32 stay {words}"
                )
    expected = f"8 bits to cost at most {allowed:.1%} accuracy on {len(labels):,} {images.judged_on}"
    hint = "Export it in float32: --format onnx."
    raise ExportError(expected_got(expected, f"{before:.2%} and then {after:.2%}", hint))


def _fuse(source: Path, target: Path) -> Any:
    """Write a file whose neighbouring transpositions cancel and whose layers have names; give its graph."""
    from convscope.export.torch_files import quiet

    onnx: Any = importlib.import_module("onnx")
    path = list(sys.path)
    tools: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    sys.path[:] = path  # a folder of its own, which it adds
    with quiet():
        tools.quant_pre_process(source, target, skip_symbolic_shape=True)
    model = onnx.load(target)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    onnx.save(model, target)
    return model.graph


def _choices(graph: Any) -> Iterator[tuple[str, list[str]]]:
    """Name the layers that may stay in float32: none, then those that most often cost accuracy."""
    heavy = [node for node in graph.node if node.op_type in _HEAVY]
    ends = [heavy[0].name, heavy[-1].name] if heavy else []
    depthwise = [
        node.name
        for node in heavy
        if any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
    ]
    yield "preprocessing and softmax", []
    yield "the first and the last layer", ends
    if depthwise:
        yield "the first, the last and the depthwise layers", ends + depthwise


def _quantize(
    source: Path, target: Path, graph: Any, pixels: NDArray[np.uint8], in_float32: list[str]
) -> None:
    """Write a network in 8 bits but for some layers; pixels (n, h, w, c) give its activations' ranges."""
    from convscope.export.torch_files import quiet

    quantization: Any = importlib.import_module("onnxruntime.quantization")
    places = [number for number, node in enumerate(graph.node) if node.op_type in _HEAVY]
    first, last = places[0], places[-1]
    outside = [node.name for number, node in enumerate(graph.node) if not first <= number <= last]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self._batches = (pixels[start : start + 64] for start in range(0, len(pixels), 64))

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: np.ascontiguousarray(batch)}

    with quiet():
        quantization.quantize_static(
            source,
            target,
            Reader(),
            op_types_to_quantize=[*_HEAVY, *_BETWEEN],
            nodes_to_exclude=[*outside, *in_float32],
            per_channel=True,
            reduce_range=True,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
            # Logits in 8 bits would make steps of the probabilities.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
