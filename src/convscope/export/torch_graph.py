"""A bundle as one torch graph, from raw uint8 pixels to calibrated probabilities."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

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


def write_program(program: torch.export.ExportedProgram, file: Path) -> Forward:
    """Write a ``.pt2`` file (the graph as JSON, the weights as plain bytes, no pickle) and read it back.

    Others' files are never loaded so: torch evaluates expressions in them.
    """
    with quiet():
        torch.export.save(program, file)
        module = torch.export.load(file).module()

    def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            result: NDArray[np.float32] = module(torch.from_numpy(np.ascontiguousarray(pixels))).numpy()
        return result

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
