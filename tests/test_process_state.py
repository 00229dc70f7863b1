"""The check that every test is held to sees what it is there for, and convscope's own code passes it."""

import ctypes
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import keras
import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from process_state import changes, process_state, settled_changes

import convscope
from convscope.environment import own_warning_filters
from convscope.experiment.config import ExperimentConfig, TrainingConfig
from convscope.experiment.running import run_experiment
from convscope.training.feeds import as_tensor

# What somebody may change, how, and how to put it back.
CULPRITS = {
    "current directory": (lambda: os.chdir("/"), lambda old: os.chdir(old["current directory"])),
    "environment variable CONVSCOPE_LEFT": (
        lambda: os.environ.update(CONVSCOPE_LEFT="1"),
        lambda _: os.environ.pop("CONVSCOPE_LEFT"),
    ),
    "import path": (lambda: sys.path.append("nowhere"), lambda _: sys.path.pop()),
    "warning filter": (lambda: warnings.simplefilter("ignore"), lambda _: warnings.filters.pop(0)),
    "signal handler SIGTERM": (
        lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        lambda old: signal.signal(signal.SIGTERM, old["signal handler"]["SIGTERM"]),
    ),
    "logging level root": (
        lambda: logging.getLogger().setLevel("DEBUG"),
        lambda old: logging.getLogger().setLevel(old["logging level"]["root"][0]),
    ),
    "numpy.geterr divide": (
        lambda: np.seterr(divide="raise"),
        lambda old: np.seterr(**old["numpy.geterr"]),
    ),
    "pyplot figure 1": (pyplot.figure, lambda _: pyplot.close()),
    "matplotlib.rcParams lines.linewidth": (
        lambda: mpl.rcParams.update({"lines.linewidth": 7}),
        lambda old: mpl.rcParams.update({"lines.linewidth": old["matplotlib.rcParams"]["lines.linewidth"]}),
    ),
    "torch.get_num_threads": (
        lambda: torch.set_num_threads(torch.get_num_threads() + 1),
        lambda old: torch.set_num_threads(old["torch.get_num_threads"]),
    ),
    "torch.get_default_dtype": (
        lambda: torch.set_default_dtype(torch.float64),
        lambda old: torch.set_default_dtype(old["torch.get_default_dtype"]),
    ),
    "torch.are_deterministic_algorithms_enabled": (
        lambda: torch.use_deterministic_algorithms(True),
        lambda _: torch.use_deterministic_algorithms(False),
    ),
    "keras.config.floatx": (
        lambda: keras.config.set_floatx("float16"),
        lambda old: keras.config.set_floatx(old["keras.config.floatx"]),
    ),
    "keras.config.dtype_policy": (
        lambda: keras.config.set_dtype_policy("mixed_bfloat16"),
        lambda old: keras.config.set_dtype_policy(old["keras.config.dtype_policy"]),
    ),
    "keras.config.image_data_format": (
        lambda: keras.config.set_image_data_format("channels_first"),
        lambda old: keras.config.set_image_data_format(old["keras.config.image_data_format"]),
    ),
}


@pytest.mark.parametrize(("change", "put_back"), CULPRITS.values(), ids=CULPRITS)
def test_the_check_names_what_changed(request, change, put_back):
    before = process_state()
    change()
    try:
        found = changes(before, process_state())
    finally:
        put_back(before)
    assert any(line.startswith(request.node.callspec.id) for line in found), found
    assert changes(before, process_state()) == []


def test_a_thread_is_given_time_to_end_and_named_if_it_does_not():
    before = process_state()
    end = threading.Event()
    lasting = threading.Thread(target=end.wait, name="lasting", daemon=True)
    lasting.start()
    assert "lasting" in settled_changes(before)[0]
    threading.Timer(0.05, end.set).start()
    assert settled_changes(before) == []


def test_threads_that_set_filters_by_turns_leave_none_behind():
    def work(start, length):
        time.sleep(start)
        with own_warning_filters():
            warnings.simplefilter("ignore")
            time.sleep(length)

    before = process_state()
    with ThreadPoolExecutor(2) as pool:  # the first would leave while the second is still there
        list(pool.map(work, (0, 0.05), (0.1, 0.15)))
    assert settled_changes(before) == []


def test_a_read_only_array_becomes_a_tensor_without_a_warning_or_a_filter(monkeypatch):
    array = np.arange(12.0).reshape(3, 4)[:, 1:]
    array.flags.writeable = False
    torch.set_warn_always(True)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(warnings, "catch_warnings", None)
            tensor = as_tensor(array)  # a warning would be an error here
    finally:
        torch.set_warn_always(False)
    assert np.array_equal(tensor.numpy(), array)
    assert tensor.data_ptr() == array.__array_interface__["data"][0]
    assert not array.flags.writeable


def generator_states():
    """NumPy's and torch's; from Python's, Keras itself draws a seed for each layer that it makes."""
    numpy = np.random.get_state()  # noqa: NPY002  the global one is the subject
    return numpy[1].tobytes(), numpy[2:], torch.get_rng_state().tolist()


def test_fit_predict_and_evaluate_leave_the_process_as_it_was():
    """The fixture watches each test; here a user's unusual settings have to survive as well."""
    digits = convscope.load("digits")
    preprocess = convscope.Preprocess.fit(digits.train.images)
    x, y = preprocess.apply(digits.train.images)[:200], digits.train.labels[:200]
    model = convscope.build("simple", digits.input_shape, 10)
    model.compile("adam", "sparse_categorical_crossentropy")
    threads, generators = torch.get_num_threads(), generator_states()
    torch.set_num_threads(2)
    try:
        with warnings.catch_warnings(), np.errstate(divide="raise"), mpl.rc_context({"lines.linewidth": 7}):
            warnings.simplefilter("error")
            before = process_state()
            convscope.fit(model, x, y, epochs=1, batch_size=50, seed=0, verbose=0)
            convscope.predict(model, x)
            convscope.evaluate(model, digits.test.images, digits.test.labels, preprocess=preprocess)
            assert settled_changes(before) == []
            assert generator_states() == generators
    finally:
        torch.set_num_threads(threads)


# In a new process, since other tests have trained in this one. Glibc takes large blocks from the system,
# unless somebody has told it to keep what is freed.
LARGE_BLOCKS = """
import ctypes
import numpy as np
import convscope

class Info(ctypes.Structure):
    _fields_ = [(str(place), ctypes.c_size_t) for place in range(10)]

library = ctypes.CDLL(None)
library.mallinfo2.restype, library.malloc.restype = Info, ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]

def is_from_the_system():
    before = getattr(library.mallinfo2(), "3")
    library.malloc(31 << 20)
    return getattr(library.mallinfo2(), "3") > before

x = np.zeros((8, 8, 8, 1), np.float32)
model = convscope.build("simple", (8, 8, 1), classes=2)
model.compile("adam", "sparse_categorical_crossentropy")
found = [is_from_the_system()]
convscope.predict(model, x)
convscope.evaluate(model, x, np.arange(8) % 2)
found.append(is_from_the_system())
convscope.fit(model, x, np.arange(8) % 2, verbose=0)
found.append(is_from_the_system())
print(found)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="only glibc is told to keep memory, and only newer ones say where it is",
)
def test_training_alone_lets_the_c_library_keep_memory():
    done = subprocess.run([sys.executable, "-c", LARGE_BLOCKS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[True, True, False]"


def test_an_experiment_seeds_no_global_generator(tmp_path):
    digits, generators = convscope.load("digits"), generator_states()
    settings = ExperimentConfig("simple", data="digits", training=TrainingConfig(epochs=1, seed=3))
    run_experiment(settings, digits, tmp_path / "run")
    assert generator_states() == generators
