"""A bundle as one graph, from raw uint8 pixels to calibrated probabilities, in formats that others run."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from convscope.environment import own_warning_filters
from convscope.errors import ExportError, UsageError, sentence
from convscope.evaluation.calibration import SMALLEST
from convscope.export.bundle import Bundle
from convscope.export.onnx_session import INPUT, OUTPUT, require_packages
from convscope.lowering.devices import computing_on, device_of
from convscope.model_files.archive import reason

if TYPE_CHECKING:
    import keras

# The exporter's own operators are of this version: no conversion, and every runtime since 2023 knows it.
OPSET = 18
# Where arithmetic in 8 bits is fast; preprocessing and softmax stay in float32.
INT8_OPERATORS = ["Conv", "Gemm", "MatMul"]
# Tracing with one image would fix the batch at one.
TRACED_BATCH = 2


class RawNetwork(torch.nn.Module):
    """Preprocessing, network and calibration in one module.

    The preprocessing is ``Preprocess.apply_tensor`` itself: what is traced is the one implementation.

    Parameters
    ----------
    bundle : Bundle
        Of a Keras model on the torch back end.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self._preprocess = bundle.preprocess
        self._temperature = bundle.temperature
        # In a closure, so that torch finds each weight once: as a constant of the graph.
        model = _on_cpu(bundle.model)
        self._network: Callable[[torch.Tensor], torch.Tensor] = lambda values: model(values, training=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute calibrated probabilities, uint8 (n, h, w, c) → float32 (n, classes)."""
        probabilities = self._network(self._preprocess.apply_tensor(pixels))
        if self._temperature == 1:
            return probabilities
        return torch.softmax(probabilities.clamp_min(SMALLEST).log() / self._temperature, dim=1)


def trace(bundle: Bundle) -> torch.export.ExportedProgram:
    """Trace a bundle for batches of any size.

    Parameters
    ----------
    bundle : Bundle
        Of a Keras model.

    Returns
    -------
    torch.export.ExportedProgram
        Takes raw uint8 pixels ``(n, height, width, channels)``.

    Raises
    ------
    UsageError
        If Keras runs on another back end than torch.
    ExportError
        If the network holds something that torch cannot trace.
    """
    import keras

    if keras.backend.backend() != "torch":
        hint = "Set KERAS_BACKEND=torch; the run stays the same."
        raise UsageError(sentence("Keras on torch for this export", keras.backend.backend(), hint))
    settings = bundle.preprocess
    shape = (TRACED_BATCH, settings.height, settings.width, settings.channels)
    pixels = torch.zeros(shape, dtype=torch.uint8)
    batch = torch.export.Dim("n", min=1)
    # A file belongs to no device: it is traced on the one that every machine has.
    with _quiet(), torch.no_grad(), computing_on(torch.device("cpu")):
        try:
            program = torch.export.export(
                RawNetwork(bundle).eval(), (pixels,), dynamic_shapes=({0: batch},), strict=False
            )
        except Exception as error:  # torch's tracer has many errors of its own
            raise ExportError(sentence("a network that torch can trace", reason(error))) from error
    program.example_inputs = None  # they would be pickled into the file
    return program


def _on_cpu(model: keras.Model) -> keras.Model:
    """Give a model whose weights lie on the CPU: the model itself, or a copy."""
    import keras

    cpu = torch.device("cpu")
    if device_of(model) in (None, cpu):
        return model
    with computing_on(cpu):
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
    return copy


def write_torch(program: torch.export.ExportedProgram, file: Path) -> None:
    """Write a traced bundle as a ``.pt2`` file: the graph as JSON, the weights as plain bytes, no pickle."""
    with _quiet():
        torch.export.save(program, file)


def read_torch(file: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Load a ``.pt2`` file that this process has just written, to check it.

    Others' files are never loaded so: torch evaluates expressions in them.
    """
    with _quiet():
        module = torch.export.load(file).module()

    def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            result: NDArray[np.float32] = module(torch.from_numpy(np.ascontiguousarray(pixels))).numpy()
        return result

    return forward


def write_onnx(program: torch.export.ExportedProgram, bundle: Bundle, file: Path) -> None:
    """Write a traced bundle as an ONNX file that carries class names and preprocessing in its metadata.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        See ``trace``.
    bundle : Bundle
        What was traced.
    file : Path
        To write.

    Raises
    ------
    UsageError
        If the packages of the ``onnx`` extra are missing.
    ExportError
        If the network holds an operator that ONNX has not.
    """
    require_packages("onnx", "onnxscript", "onnxruntime")
    shape = (TRACED_BATCH, bundle.preprocess.height, bundle.preprocess.width, bundle.preprocess.channels)
    with _quiet():
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
            raise ExportError(sentence("a network that ONNX can express", reason(error))) from error
        if exported is None:
            raise ExportError(sentence("a network that ONNX can express", "nothing"))
        exported.model.metadata_props.update(_metadata(bundle))
        exported.save(file)


def write_int8(source: Path, target: Path, pixels: NDArray[np.uint8] | None, scratch: Path) -> str:
    """Quantise an ONNX file to 8-bit integers with ONNX Runtime.

    Parameters
    ----------
    source, target : Path
        The float32 file, and the one to write.
    pixels : ndarray of shape (n, h, w, c), uint8, or None
        Training images, to measure the range of each activation with (static quantisation). None leaves
        that to the moment of prediction (dynamic quantisation), which is slower.
    scratch : Path
        A file that may be written on the way.

    Returns
    -------
    str
        Which of the two it is.
    """
    require_packages("onnx", "onnxruntime")
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    fusing: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    with _quiet():
        # Biases become part of their convolutions, and neighbouring transpositions cancel.
        fusing.quant_pre_process(source, scratch, skip_symbolic_shape=True)
        if pixels is None:
            quantization.quantize_dynamic(
                scratch, target, op_types_to_quantize=INT8_OPERATORS, per_channel=True
            )
            return "dynamic"
        quantization.quantize_static(
            scratch,
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters tell their own developers from the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "root")]
    levels = [logger.level for logger in loggers]
    bars = importlib.import_module("tqdm").tqdm  # the exporter's; they would start a thread that stays
    interval = bars.monitor_interval
    with own_warning_filters():
        # Deprecations inside torch and Keras, which their callers can do nothing about.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            bars.monitor_interval = 0
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            bars.monitor_interval = interval
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
