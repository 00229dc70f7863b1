"""What a test, and so the code under test, may change in its process only for as long as it runs."""

import itertools
import locale
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import warnings

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
]
# What a library may add as it is loaded; whoever needs it cannot help that.
ADDED_BY_LOADING = ("environment variable ", "warning filter ", "logging level ", "temporary folder")
OURS = {"convscope", *sys.stdlib_module_names}
# Jupyter's client makes it once, for a thread in which an event loop runs already, and keeps it.
LASTING_THREADS = ("MainThread - runner",)
# pytest sets it before and after each phase of a test.
PYTESTS_OWN = "PYTEST_CURRENT_TEST"
# Seconds that a thread which was told to end may take.
GRACE = 2.0


def process_state():
    """Read everything that is compared, in some 100 microseconds; of a library, once it is loaded."""
    state = {
        "youngest module": next(reversed(sys.modules)),
        "current directory": os.getcwd(),  # noqa: PTH109  a Path costs more
        "environment variable": {name: text for name, text in os.environ.items() if name != PYTESTS_OWN},
        "import path": list(sys.path),
        "warning filter": _warning_filters(),
        "warnings.showwarning": warnings.showwarning,
        "signal handler": {number.name: signal.getsignal(number) for number in SIGNALS},
        "logging level": _logging_levels(),
        "logging.disable": logging.root.manager.disable,
        "locale": locale.setlocale(locale.LC_ALL),
        "recursion limit": sys.getrecursionlimit(),
        "temporary folder": tempfile.tempdir,
        "thread": {
            thread.ident: thread.name
            for thread in threading.enumerate()
            if thread.name not in LASTING_THREADS
        },
    }
    for module, read in _READERS.items():
        if module in sys.modules:
            state |= read(sys.modules[module])
    return state


def changes(before, after):
    """List what differs, one sentence each, but for what a library brought along that was loaded since."""
    found = []
    for name, old in before.items():
        new = after[name]
        if new == old or name == "youngest module":
            continue
        if not isinstance(old, dict):
            found.append(f"{name}: {old!r} became {new!r}")
            continue
        for key in dict.fromkeys((*old, *new)):
            was, now = old.get(key, "nothing"), new.get(key, "nothing")
            if was != now:
                found.append(f"{name} {key}: {was!r} became {now!r}")
    if _loaded_since(before["youngest module"]):
        added = (": 'nothing' became", ": None became")
        found = [
            line for line in found if not (line.startswith(ADDED_BY_LOADING) and any(map(line.count, added)))
        ]
    return found


def _loaded_since(module):
    """Say whether a library was loaded after `module`."""
    younger = itertools.takewhile(lambda name: name != module, reversed(sys.modules))
    return any(name.partition(".")[0] not in OURS for name in younger)


def settled_changes(before):
    """List what differs from `before`, after threads that are about to end have had their time."""
    found = changes(before, process_state())
    deadline = time.monotonic() + GRACE
    while found and all(line.startswith("thread ") for line in found) and time.monotonic() < deadline:
        time.sleep(0.01)
        found = changes(before, process_state())
    return found


def _warning_filters():
    filters = [
        (action, getattr(message, "pattern", message), category.__name__, getattr(module, "pattern", module))
        for action, message, category, module, _ in warnings.filters
    ]
    return dict.fromkeys(filters, "set")


def _logging_levels():
    loggers = logging.root.manager.loggerDict
    levels = {
        name: (logger.level, logger.disabled)
        for name, logger in loggers.items()
        if isinstance(logger, logging.Logger) and (logger.level or logger.disabled)
    }
    return {**levels, "root": (logging.root.level, logging.root.disabled)}


def _numpy_state(numpy):
    return {"numpy.geterr": numpy.geterr(), "numpy.get_printoptions": numpy.get_printoptions()}


def _torch_state(torch):
    return {
        "torch.get_num_threads": torch.get_num_threads(),
        "torch.get_default_dtype": torch.get_default_dtype(),
        "torch.get_default_device": torch.get_default_device(),
        "torch.are_deterministic_algorithms_enabled": torch.are_deterministic_algorithms_enabled(),
        "torch.get_float32_matmul_precision": torch.get_float32_matmul_precision(),
        "torch.is_grad_enabled": torch.is_grad_enabled(),
        "torch.is_anomaly_enabled": torch.is_anomaly_enabled(),
        "torch.backends.mkldnn.enabled": torch._C._get_mkldnn_enabled(),
        "torch.backends.cudnn": (
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
        ),
    }


def _keras_state(keras):
    return {
        "keras.config.dtype_policy": keras.config.dtype_policy().name,
        "keras.config.floatx": keras.config.floatx(),
        "keras.config.epsilon": keras.config.epsilon(),
        "keras.config.image_data_format": keras.config.image_data_format(),
        "keras.config.is_interactive_logging_enabled": keras.config.is_interactive_logging_enabled(),
        "keras.config.is_traceback_filtering_enabled": keras.config.is_traceback_filtering_enabled(),
        "keras.config.is_unsafe_deserialization_enabled": keras.src.saving.serialization_lib.in_safe_mode(),
        "keras.saving.get_custom_objects": dict.fromkeys(keras.saving.get_custom_objects(), "registered"),
    }


def _matplotlib_state(matplotlib):
    # Read past RcParams, whose own reading of "backend" would choose one.
    return {"matplotlib.rcParams": dict(dict.items(matplotlib.rcParams))}


def _pyplot_state(pyplot):
    return {
        "pyplot figure": dict.fromkeys(pyplot.get_fignums(), "open"),
        "pyplot.isinteractive": pyplot.isinteractive(),
    }


def _pillow_state(image):
    return {
        "PIL.Image.MAX_IMAGE_PIXELS": image.MAX_IMAGE_PIXELS,
        "PIL.ImageFile.LOAD_TRUNCATED_IMAGES": sys.modules["PIL.ImageFile"].LOAD_TRUNCATED_IMAGES,
    }


_READERS = {
    "numpy": _numpy_state,
    "torch": _torch_state,
    "keras": _keras_state,
    "matplotlib": _matplotlib_state,
    "matplotlib.pyplot": _pyplot_state,
    "PIL.ImageFile": lambda _: _pillow_state(sys.modules["PIL.Image"]),
    "multiprocessing": lambda module: {
        "child process": {child.pid: child.name for child in module.active_children()}
    },
}
