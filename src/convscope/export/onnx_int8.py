"""An ONNX network in 8 bits: smaller, faster, and not worse on the validation images, or it is refused."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import DataError, ExportError, expected_got
from convscope.export.bundle import Bundle, Forward
from convscope.export.onnx_graph import INPUT, open_session

if TYPE_CHECKING:
    from convscope.export.checking import CheckImages

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
    from convscope.export.torch_graph import quiet

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
    from convscope.export.torch_graph import quiet

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
