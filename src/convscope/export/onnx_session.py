"""ONNX Runtime, an optional extra: a checked file in, a function from pixels to probabilities out."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convscope.errors import DataError, UsageError, sentence
from convscope.model_files.archive import reason

INPUT, OUTPUT = "pixels", "probabilities"
# ONNX Runtime's arena keeps what the largest batch took; prediction goes through in pieces of this size.
BATCH = 256
# Errors only: the runtime's warnings are about its own devices.
LOG_ERRORS = 3
# No file can be below a device.
NOWHERE = os.path.join(os.devnull, "nowhere")  # noqa: PTH118  a string for the runtime


def require_packages(*names: str) -> None:
    """Make sure that packages of the ``onnx`` extra are installed.

    Raises
    ------
    UsageError
        If one is missing; the message says what to install.

    Examples
    --------
    >>> require_packages("no_such_package")
    Traceback (most recent call last):
        ...
    convscope.errors.UsageError: Expected the package no_such_package, got none. Install it with: \
pip install 'convscope[onnx]'
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            hint = "Install it with: pip install 'convscope[onnx]'"
            raise UsageError(sentence(f"the package {name}", "none", hint))


def open_session(
    file: Path, shape: tuple[int, int, int], classes: int
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Open an exported network.

    Parameters
    ----------
    file : Path
        An ONNX file that takes raw pixels.
    shape : tuple of int
        Height, width and channels that it must take.
    classes : int
        How many probabilities it must give.

    Returns
    -------
    callable
        uint8 images ``(n, height, width, channels)`` → float32 probabilities ``(n, classes)``.

    Raises
    ------
    UsageError
        If ONNX Runtime is not installed.
    DataError
        If the file is damaged, or takes or gives something else.
    """
    require_packages("onnxruntime")
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
        raise DataError(sentence(f"{file} to be an ONNX network", reason(error))) from error
    expected = ([(INPUT, "tensor(uint8)", list(shape))], [(OUTPUT, "tensor(float)", [classes])])
    if (given, made) != expected:
        raise DataError(sentence(f"{file} with input and output {expected}", (given, made)))

    def forward(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
        try:
            return np.concatenate([session.run([OUTPUT], {INPUT: np.ascontiguousarray(p)})[0] for p in parts])
        except Exception as error:  # as above
            raise DataError(sentence(f"{file} to compute probabilities", reason(error))) from error

    return forward
