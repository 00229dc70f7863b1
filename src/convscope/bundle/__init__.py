"""A trained network as something to be used elsewhere: loaded safely, exported, checked against its source.

archive       a .keras file: three known members, within limits, never unpacked
allowed       which objects a network's configuration may name
hdf5          weights out of a foreign HDF5 file, in a process of its own
models        configuration and weights → keras.Model
onnx_session  an ONNX file → a function
loading       a run or an export → Bundle
"""

from convscope.bundle.loading import CALIBRATION_FILE, STATISTICS_FILE, Bundle, load_bundle, load_calibration
from convscope.bundle.models import WEIGHTS_FILE, load_model, open_model, run_of, write_weights

__all__ = [
    "CALIBRATION_FILE",
    "STATISTICS_FILE",
    "WEIGHTS_FILE",
    "Bundle",
    "load_bundle",
    "load_calibration",
    "load_model",
    "open_model",
    "run_of",
    "write_weights",
]
