"""Networks in files that anybody may have written, read without running anything in them.

models    configuration and weights → keras.Model; begin here
archive   a .keras file: three known members, within limits, never unpacked
allowed   which objects a network's configuration may name
hdf5      weights out of a foreign HDF5 file, in a process of its own
"""

from convscope.model_files.models import WEIGHTS_FILE, load_model, open_model, run_of, write_weights

__all__ = ["WEIGHTS_FILE", "load_model", "open_model", "run_of", "write_weights"]
