"""A bundle as one torch graph, and as a PyTorch module that a person can read."""

from __future__ import annotations

import importlib
import logging
import re
import runpy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from convscope.environment import own_warning_filters
from convscope.errors import ExportError, UsageError, expected_got, reason
from convscope.evaluation.calibration import SMALLEST
from convscope.export.bundle import Bundle, Forward
from convscope.lowering.devices import computing_on, device_of

if TYPE_CHECKING:
    import keras


# Tracing with one image would fix the batch at one.
TRACED_BATCH = 2


class RawNetwork(torch.nn.Module):
    """Preprocessing, network and calibration: ``Preprocess.apply_tensor`` itself is what is traced."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self._preprocess = bundle.preprocess
        self._temperature = bundle.temperature
        # In a closure, so that torch finds each weight once: as a constant of the graph.
        model = on_cpu(bundle.model)
        self._network: Callable[[torch.Tensor], torch.Tensor] = lambda values: model(values, training=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute calibrated probabilities, uint8 (n, h, w, c) → float32 (n, classes)."""
        probabilities = self._network(self._preprocess.apply_tensor(pixels))
        if self._temperature == 1:
            return probabilities
        return torch.softmax(probabilities.clamp_min(SMALLEST).log() / self._temperature, dim=1)


def trace(bundle: Bundle) -> torch.export.ExportedProgram:
    """Trace a bundle for batches of any size: raw uint8 pixels (n, h, w, c) → probabilities (n, classes)."""
    import keras

    if keras.backend.backend() != "torch":
        hint = "Set KERAS_BACKEND=torch; the run stays the same."
        raise UsageError(expected_got("Keras on torch for this export", keras.backend.backend(), hint))
    pixels = torch.zeros((TRACED_BATCH, *bundle.preprocess.image_shape), dtype=torch.uint8)
    batch = torch.export.Dim("n", min=1)
    # A file belongs to no device: it is traced on the one that every machine has.
    with quiet(), torch.no_grad(), computing_on(torch.device("cpu")):
        try:
            program = torch.export.export(
                RawNetwork(bundle).eval(), (pixels,), dynamic_shapes=({0: batch},), strict=False
            )
        except Exception as error:  # torch's tracer has many errors of its own
            raise ExportError(expected_got("a network that torch can trace", reason(error))) from error
    program.example_inputs = None  # they would be pickled into the file
    return program


def on_cpu(model: keras.Model) -> keras.Model:
    """Give a model whose weights lie on the CPU: the model itself, or a copy."""
    import keras

    cpu = torch.device("cpu")
    if device_of(model) in (None, cpu):
        return model
    with computing_on(cpu):
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
    return copy


def write_program(bundle: Bundle, file: Path) -> Forward:
    """Write a ``.pt2`` file (the graph as JSON, the weights as plain bytes, no pickle) and read it back.

    Others' files are never loaded so: torch evaluates expressions in them.
    """
    program = trace(bundle)
    with quiet():
        torch.export.save(program, file)
        module = torch.export.load(file).module()
    return _forward_of(module)


def _forward_of(module: Callable[[torch.Tensor], torch.Tensor]) -> Forward:
    """Make of a torch function one of arrays."""

    def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            return module(torch.from_numpy(np.ascontiguousarray(pixels))).numpy()

    return forward


@contextmanager
def quiet() -> Iterator[None]:
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


_SOURCE = '''\
"""An image classifier: pixels (n, {height}, {width}, {channels}), uint8 -> probabilities (n, {classes}).

{steps}

Written by convscope; needs torch and safetensors. The weights are parameters, so that it can be trained on.
"""

import torch
from safetensors.torch import load_file

aten = torch.ops.aten


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
{tensors}

{forward}


def load(file="network.safetensors"):
    network = Network()
    network.load_state_dict(load_file(file))
    return network.eval()
'''
# Checks that the tracer adds for its own users.
_CHECKS = ("_assert_tensor_metadata", "_guards_fn", "sym_constrain", "_assert_scalar", "_assert_async")


def write_module(bundle: Bundle, weights: Path, source: Path) -> Forward:
    """Write weights and source of a bundle; return what the two compute."""
    bundle = replace(bundle, network=on_cpu(bundle.model))
    module: Any = trace(bundle).module()
    _simplify(module)
    tensors = _name_tensors(module, bundle)
    learned = {weight.value.data_ptr() for weight in bundle.model.trainable_weights}
    lines = [
        f"        self.{name} = torch.nn.Parameter(torch.empty({list(value.shape)}))"
        if value.data_ptr() in learned
        else f'        self.register_buffer("{name}", torch.empty({list(value.shape)}, dtype={value.dtype}))'
        for name, value in tensors.items()
    ]
    settings = bundle.preprocess
    text = _SOURCE.format(
        height=settings.height,
        width=settings.width,
        channels=settings.channels,
        classes=len(bundle.class_names),
        steps="\n".join(settings.describe()),
        tensors="\n".join(lines),
        forward=_source_of(module),
    )
    source.write_text(text, encoding="utf-8")
    save_file({name: value.detach().contiguous().clone() for name, value in tensors.items()}, weights)
    try:
        network = runpy.run_path(str(source))["load"](str(weights))  # what was just written, to check it
    except Exception as error:  # an operator whose printed form is no Python
        expected = "a network that can be written as PyTorch source"
        raise ExportError(expected_got(expected, reason(error))) from error
    return _forward_of(network)


def _name_tensors(module: GraphModule, bundle: Bundle) -> dict[str, torch.Tensor]:
    """Call each tensor of a graph as Keras calls its weight; others, of the preprocessing, constants."""
    known: dict[int, str] = {}
    for weight in bundle.model.weights:
        # A network that was loaded does not begin its weights' paths with its own name.
        path = weight.path.removeprefix(f"{bundle.model.name}/")
        name = re.sub(r"\W+|^(?=\d)", "_", path)  # conv2d_1/kernel as a name that Python knows
        while name in known.values():  # nested networks may have layers of the same name
            name += "_"
        known[weight.value.data_ptr()] = name
    named: dict[str, torch.Tensor] = {}
    names: dict[str, str] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            if node.target not in names:
                value = attrgetter(node.target)(module)
                names[node.target] = name = known.get(value.data_ptr(), f"constant_{len(names)}")
                named[name] = value
            node.target = names[node.target]
    return named


def _simplify(module: GraphModule) -> None:
    """Take out what the tracer checks for itself, and conversions that convert nothing."""
    for node in list(module.graph.nodes):
        if any(check in str(node.target) for check in _CHECKS):
            node.replace_all_uses_with(None)
            module.graph.erase_node(node)
        elif str(node.target).startswith("aten.to."):
            _convert(module, node)
    module.graph.eliminate_dead_code()


def _convert(module: GraphModule, node: Node) -> None:
    """Write a conversion as ``x.to(dtype)`` on whatever device x is; leave it out where the type stays."""
    source: Any = node.args[0]
    before, after = source.meta["val"], node.meta["val"]
    if before.dtype != after.dtype:
        with module.graph.inserting_before(node):
            made = module.graph.call_method("to", (source, after.dtype))
        made.meta["val"] = after
        source = made
    node.replace_all_uses_with(source)
    module.graph.erase_node(node)


def _source_of(module: GraphModule) -> str:
    """Print the graph as a method, in the words of ``torch.ops.aten``."""
    [output] = [node for node in module.graph.nodes if node.op == "output"]
    [[result]] = output.args
    output.args = (result,)
    module.graph.set_codegen(CodeGen())
    code = module.graph.python_code("self").src
    code = re.sub(r";(  \w+ =)+ None", "", re.sub(r";[\w =]+ = None", "", code))
    code = code.replace("torch.ops.aten.", "aten.").replace("device(type='cpu')", "pixels.device")
    code = re.sub(r"(aten\.\w+)\.(?:default|Tensor)\(", r"\1(", code)
    for name, tensor in re.findall(r"^    (\w+) = (self\.\w+)$", code, re.MULTILINE):
        code = re.sub(rf"\b{name}\b", tensor, code.replace(f"    {name} = {tensor}\n", ""))
    return "\n".join(f"    {line}" if line.strip() else "" for line in code.strip().splitlines())
