"""Networks in files that anybody may have written, read without running anything in them.

models    a .keras file or a run → keras.Model; begin here
allowed   which objects a network's configuration may name
hdf5      weights out of a foreign HDF5 file, in a process of its own
"""

from convscope.model_files.models import WEIGHTS_FILE, load_model, open_model, run_of, write_weights

__all__ = ["WEIGHTS_FILE", "load_model", "open_model", "run_of", "write_weights"]
