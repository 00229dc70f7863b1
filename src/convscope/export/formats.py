"""The formats of an export: one record each, from which writing, checking, loading and the page take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from convscope.export.bundle import Bundle, Forward
from convscope.export.onnx_files import Session, open_session, write_int8, write_onnx
from convscope.model_files.models import MODEL_FILE, load_model

if TYPE_CHECKING:  # it brings all that reads data, which a prediction needs not
    from convscope.export.exporting import CheckImages


@dataclass(frozen=True, eq=False)
class ExportFormat:
    """One way to write a trained network for use elsewhere.

    ``write(bundle, *files)`` writes them and returns what they compute when they are read back.
    ``open(file, image shape, classes)`` is for formats that predict without Keras; beside a network of the
    others convscope keeps what it loads itself. The page of an export is made of ``holds`` and ``example``,
    where {height}, {width}, {channels} and {classes} stand for numbers.
    """

    files: tuple[str, ...]
    holds: str
    example: str
    write: Callable[..., Forward]
    without_convscope: Callable[[Bundle], str] | None = None  # code that does the same with Keras alone
    open: Callable[[Path, tuple[int, int, int], int], Session] | None = None
    packages: tuple[str, ...] = ()
    resizes: bool = False  # whether the network in the file takes images of any size
    # Writes its file from the one that ``write`` has written, which is left out of the export then.
    quantize: Callable[[Path, Path, Bundle, CheckImages], tuple[Forward, str]] | None = None


def _write_keras(bundle: Bundle, file: Path) -> Forward:
    bundle.model.save(file)
    model = load_model(file)
    return Bundle.from_model(model, bundle.preprocess, bundle.class_names, bundle.temperature).forward


def _with_keras_alone(bundle: Bundle) -> str:
    """Write the code that predicts one image file with Keras, NumPy and Pillow."""
    settings = bundle.preprocess
    mode = "L" if settings.channels == 1 else "RGB"
    lines = [
        "import keras, numpy as np",
        "from PIL import Image, ImageOps",
        "",
        f'model = keras.saving.load_model("{MODEL_FILE}", compile=False)',
        f'picture = ImageOps.exif_transpose(Image.open("IMAGE.png")).convert("{mode}")',
        f"size = ({settings.width}, {settings.height})",
    ]
    if settings.resize == "stretch":
        lines += ["picture = picture.resize(size, Image.Resampling.BILINEAR)"]
    else:
        pick = "min" if settings.resize == "letterbox" else "max"
        lines += [
            f"factor = {pick}(size[0] / picture.width, size[1] / picture.height)  # {settings.resize}",
            "inner = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))",
            "canvas = Image.new(picture.mode, size)",
            "corner = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2",
            "canvas.paste(picture.resize(inner, Image.Resampling.BILINEAR), corner)",
            "picture = canvas",
        ]
    lines += [f"values = np.asarray(picture, np.float32).reshape{(1, *settings.image_shape)}"]
    if settings.scaling == "unit":
        lines += ["values = values / 255"]
    elif settings.scaling != "raw":
        lines += [
            'scaling = np.load("preprocess.npz")',
            'values = values * scaling["scale"] + scaling["offset"]',
        ]
    if settings.limits is not None:
        lines += ["values = values.clip({:g}, {:g})".format(*settings.limits)]
    if settings.data_format == "channels_first":
        lines += ["values = values.transpose(0, 3, 1, 2)"]
    lines += [f"probabilities = model.predict(values)  # (1, {len(bundle.class_names)})"]
    if bundle.temperature != 1:
        lines += [
            f"probabilities = probabilities ** (1 / {bundle.temperature!r})  # the temperature",
            "probabilities = probabilities / probabilities.sum()",
        ]
    return "\n".join([*lines, ""])


# These two load torch, which a prediction with ONNX does without.
def _write_torch(bundle: Bundle, file: Path) -> Forward:
    from convscope.export.torch_files import write_program

    return write_program(bundle, file)


def _write_module(bundle: Bundle, weights: Path, source: Path) -> Forward:
    from convscope.export.torch_files import write_module

    return write_module(bundle, weights, source)


_ONNX_EXAMPLE = """\
import numpy as np, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("FILE")
image = Image.new("RGB", (640, 480))  # yours: Image.open("photo.jpg"), of any size
pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[np.newaxis]  # (1, h, w, 3), uint8
probabilities = session.run(["probabilities"], {{"pixels": pixels}})[0]  # (n, {classes}), float32
"""
ONNX = ExportFormat(
    files=("model.onnx",),
    holds="`model.onnx` holds everything: resizing, scaling, network and calibration.",
    example=_ONNX_EXAMPLE.replace("FILE", "model.onnx"),
    write=write_onnx,
    open=open_session,
    packages=("onnx", "onnxscript", "onnxruntime"),
    resizes=True,
)
INT8 = replace(
    ONNX,
    files=("model-int8.onnx",),
    holds="`model-int8.onnx` holds everything: resizing, scaling, network (in 8 bits) and calibration.",
    example=_ONNX_EXAMPLE.replace("FILE", "model-int8.onnx"),
    quantize=write_int8,
)
KERAS = ExportFormat(
    files=(MODEL_FILE,),
    holds="`model.keras` holds the network alone; scaling and calibration stand beside it.",
    example="""\
import convscope, numpy as np

bundle = convscope.load_bundle(".")
pixels = np.zeros((1, {height}, {width}, {channels}), np.uint8)  # your images, 0 to 255, of any size
probabilities = bundle.predict(pixels)  # (n, {classes}), float32
""",
    write=_write_keras,
    without_convscope=_with_keras_alone,
)
TORCH = ExportFormat(
    files=("model.pt2",),
    holds="`model.pt2` holds everything: scaling, network and calibration.",
    example="""\
import torch

program = torch.export.load("model.pt2").module()
pixels = torch.zeros((1, {height}, {width}, {channels}), dtype=torch.uint8)  # your images, 0 to 255
probabilities = program(pixels)  # (n, {classes}), float32
""",
    write=_write_torch,
)
MODULE = ExportFormat(
    files=("network.safetensors", "network.py"),
    holds="`network.py` is a PyTorch module to read, change and train further: scaling, network and "
    "calibration; `network.safetensors` holds its weights. It needs torch and safetensors, and no convscope.",
    example="""\
import torch
from network import load  # in this folder, or with it on Python's path

network = load("network.safetensors")
pixels = torch.zeros((1, {height}, {width}, {channels}), dtype=torch.uint8)  # your images, 0 to 255
with torch.no_grad():
    probabilities = network(pixels)  # (n, {classes}), float32
""",
    write=_write_module,
)

FORMATS = {"onnx": ONNX, "int8": INT8, "keras": KERAS, "torch": TORCH, "module": MODULE}
