"""ONNX, an optional extra: a traced bundle → a file that takes images of any size; a file → a function."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convscope.environment import require_package
from convscope.errors import DataError, ExportError, expected_got, reason
from convscope.export.bundle import Bundle
from convscope.export.onnx_resizing import SIZED, to_resizing

if TYPE_CHECKING:
    import torch

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


def write_onnx(program: torch.export.ExportedProgram, bundle: Bundle, file: Path) -> None:
    """Write a traced bundle as an ONNX file for pixels of any size, (n, h, w, 1 or 3).

    Its metadata carry class names and preprocessing.
    """
    onnx: Any = importlib.import_module("onnx")
    compose: Any = importlib.import_module("onnx.compose")
    network = _to_network(program, bundle)
    resizing = to_resizing(bundle.preprocess)
    resizing.ir_version = network.ir_version
    resizing = compose.add_prefix(resizing, "resize_", rename_inputs=False, rename_outputs=False)
    model = compose.merge_models(resizing, network, io_map=[(SIZED, SIZED)], name="classifier")
    del model.opset_import[1:]  # merging lists both models' own
    if bundle.novelty is not None:
        _give_features(model.graph, bundle.novelty.features)
    onnx.helper.set_model_props(model, _metadata(bundle))
    file.write_bytes(model.SerializeToString())


def _give_features(graph: Any, length: int) -> None:
    """Make the features, which enter the last matrix product, a second output of a graph."""
    onnx: Any = importlib.import_module("onnx")
    deciding = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    if deciding and deciding[-1].op_type != "Conv":
        graph.node.append(onnx.helper.make_node("Identity", [deciding[-1].input[0]], [FEATURES]))
        value = onnx.helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, ["n", length])
        graph.output.append(value)


def _to_network(program: torch.export.ExportedProgram, bundle: Bundle) -> Any:
    """Convert a traced bundle to an ONNX model, as yet for images of the network's size."""
    import torch

    from convscope.export.torch_graph import TRACED_BATCH, quiet

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
