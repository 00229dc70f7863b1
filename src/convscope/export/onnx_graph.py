"""ONNX, an optional extra: a traced bundle → a file, also in 8 bits; a checked file → a function."""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope.environment import require_package
from convscope.errors import DataError, ExportError, expected_got, reason
from convscope.export.bundle import Bundle, Forward

if TYPE_CHECKING:
    import torch

# The exporter's own operators are of this version: no conversion, and every runtime since 2023 knows it.
OPSET = 18
# Where arithmetic in 8 bits is fast; preprocessing and softmax stay in float32.
INT8_OPERATORS = ["Conv", "Gemm", "MatMul"]
INPUT, OUTPUT = "pixels", "probabilities"
# ONNX Runtime's arena keeps what the largest batch took; prediction goes through in pieces of this size.
BATCH = 256
# Errors only: the runtime's warnings are about its own devices.
LOG_ERRORS = 3
# No file can be below a device.
NOWHERE = os.path.join(os.devnull, "nowhere")  # noqa: PTH118  a string for the runtime


def write_onnx(program: torch.export.ExportedProgram, bundle: Bundle, file: Path) -> None:
    """Write a traced bundle as an ONNX file that carries class names and preprocessing in its metadata."""
    import torch

    from convscope.export.torch_graph import TRACED_BATCH, quiet

    settings = bundle.preprocess
    shape = (TRACED_BATCH, settings.height, settings.width, settings.channels)
    with quiet():
        try:
            exported = torch.onnx.export(
                program,
                (torch.zeros(shape, dtype=torch.uint8),),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # as above
            raise ExportError(expected_got("a network that ONNX can express", reason(error))) from error
        if exported is None:
            raise ExportError(expected_got("a network that ONNX can express", "nothing"))
        exported.model.metadata_props.update(_metadata(bundle))
        exported.save(file)


def quantise(source: Path, target: Path, pixels: NDArray[np.uint8] | None) -> str:
    """Write the 8-bit version of an ONNX file; say how it was quantised.

    Training images (n, h, w, c) give the range of each activation (static quantisation); None leaves it to
    the moment of prediction (dynamic quantisation), which is slower.
    """
    from convscope.export.torch_graph import quiet

    quantization: Any = importlib.import_module("onnxruntime.quantization")
    fusing: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    with quiet(), tempfile.TemporaryDirectory() as folder:
        fused = Path(folder) / source.name
        # Biases become part of their convolutions, and neighbouring transpositions cancel.
        fusing.quant_pre_process(source, fused, skip_symbolic_shape=True)
        if pixels is None:
            quantization.quantize_dynamic(
                fused, target, op_types_to_quantize=INT8_OPERATORS, per_channel=True
            )
            return "dynamic"
        quantization.quantize_static(
            fused,
            target,
            _reader(quantization, pixels),
            op_types_to_quantize=INT8_OPERATORS,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
        )
    return "static"


def _reader(quantization: Any, pixels: NDArray[np.uint8]) -> Any:
    """Hand out batches of pixels in the way that ONNX Runtime asks for them."""

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self._batches: Iterator[NDArray[np.uint8]] = (
                pixels[start : start + 64] for start in range(0, len(pixels), 64)
            )

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: np.ascontiguousarray(batch)}

    return Reader()


def _metadata(bundle: Bundle) -> dict[str, str]:
    """Describe a bundle in the strings that an ONNX file can carry."""
    settings = bundle.preprocess
    return {
        "class_names": json.dumps(list(bundle.class_names), ensure_ascii=False),
        "temperature": repr(bundle.temperature),
        "input": f"uint8 pixels 0 to 255 (n, {settings.height}, {settings.width}, {settings.channels}), "
        f"other sizes brought to it by {settings.resize}; scaling is part of the graph",
        "preprocessing": json.dumps(settings.describe(), ensure_ascii=False),
    }


def open_session(file: Path, shape: tuple[int, int, int], classes: int) -> Forward:
    """Open a file that takes images of a shape (h, w, c) and gives so many probabilities; refuse others."""
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
    except Exception as error:  # the runtime has an exception for each of its status codes
        raise DataError(expected_got(f"{file} to be an ONNX network", reason(error))) from error
    expected = ([(INPUT, "tensor(uint8)", list(shape))], [(OUTPUT, "tensor(float)", [classes])])
    if (given, made) != expected:
        raise DataError(expected_got(f"{file} with input and output {expected}", (given, made)))

    def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
        try:
            return np.concatenate([session.run([OUTPUT], {INPUT: np.ascontiguousarray(p)})[0] for p in parts])
        except Exception as error:  # as above
            raise DataError(expected_got(f"{file} to compute probabilities", reason(error))) from error

    return forward
