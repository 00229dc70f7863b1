"""What every test needs."""

import convscope  # noqa: F401  (it chooses Keras's back end, before a test imports Keras)
