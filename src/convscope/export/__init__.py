"""A trained network as something to be used elsewhere, checked against its source.

bundle        a network with all that it needs to predict
bundle_files  a run or an export → a bundle
formats       the formats, one record each
onnx_files    what they write and read: ONNX, in 8 bits too
torch_files   a torch graph, and PyTorch source
exporting     a run → a folder in one of the formats, held against the run
"""

from convscope.export.bundle import Bundle
from convscope.export.bundle_files import (
    CALIBRATION_FILE,
    NOVELTY_FILE,
    STATISTICS_FILE,
    load_bundle,
    load_calibration,
    load_statistics,
)

__all__ = [
    "CALIBRATION_FILE",
    "NOVELTY_FILE",
    "STATISTICS_FILE",
    "Bundle",
    "load_bundle",
    "load_calibration",
    "load_statistics",
]
