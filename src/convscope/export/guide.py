"""The page that an export carries: what its files are, and the few lines of code that use it."""

from __future__ import annotations

from convscope.export.bundle import Bundle

_ONNX = """\
import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
pixels = np.zeros((1, {height}, {width}, {channels}), np.uint8)  # your images, 0 to 255
probabilities = session.run(["probabilities"], {{"pixels": pixels}})[0]  # (n, {classes}), float32
"""
_TORCH = """\
import torch

program = torch.export.load("model.pt2").module()
pixels = torch.zeros((1, {height}, {width}, {channels}), dtype=torch.uint8)  # your images, 0 to 255
probabilities = program(pixels)  # (n, {classes}), float32
"""
_KERAS = """\
import convscope, numpy as np

bundle = convscope.load_bundle(".")
pixels = np.zeros((1, {height}, {width}, {channels}), np.uint8)  # your images, 0 to 255, of any size
probabilities = bundle.predict(pixels)  # (n, {classes}), float32
"""
_CODE = {"onnx": _ONNX, "torch": _TORCH, "keras": _KERAS}
_WHAT = {
    "onnx": "`model.onnx` holds everything: scaling, network and calibration.",
    "torch": "`model.pt2` holds everything: scaling, network and calibration.",
    "keras": "`model.keras` holds the network alone; scaling and calibration stand beside it.",
}


def guide(bundle: Bundle, format: str) -> str:
    """Write the page for an export.

    Parameters
    ----------
    bundle : Bundle
        What was exported.
    format : {"onnx", "keras", "torch"}
        How.

    Returns
    -------
    str
        Markdown.
    """
    settings = bundle.preprocess
    numbers = {
        "height": settings.height,
        "width": settings.width,
        "channels": settings.channels,
        "classes": len(bundle.class_names),
    }
    steps = "\n".join(f"- {step}" for step in settings.describe())
    return (
        f"# An image classifier with {len(bundle.class_names)} classes\n\n"
        f"{_WHAT[format]} The names of the classes, in the order of the probabilities, stand in\n"
        f"`bundle.json`; so do the temperature ({bundle.temperature:g}) and the hash of every file.\n\n"
        f"```python\n{_CODE[format].format(**numbers)}```\n\n"
        f"What is done to an image:\n\n{steps}\n"
    )
