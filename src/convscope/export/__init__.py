"""A trained network as something to be used elsewhere, checked against its source.

bundle        a run or an export → a network with all that it needs to predict
exporting     a run → a folder in one of the formats
checking      whether an export does what its source does, and how fast
graph         a bundle as one graph, from raw pixels to calibrated probabilities
onnx_session  an ONNX file → a function
guide         the page that an export carries
"""

from convscope.export.bundle import CALIBRATION_FILE, STATISTICS_FILE, Bundle, load_bundle, load_calibration

__all__ = ["CALIBRATION_FILE", "STATISTICS_FILE", "Bundle", "load_bundle", "load_calibration"]
