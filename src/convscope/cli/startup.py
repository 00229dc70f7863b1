"""What makes a command answer soon and its process end soon. Only where the process is the program's own."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from convscope.environment import begin_helper, keep_freed_memory

_LOG = logging.getLogger(__name__)

# A module → what it imports where it finds it, and no command needs: together four seconds and 250 MB.
_NOT_NEEDED = {
    # For data frames, scikit-learn's wrappers, notebooks, a callback that reports over the network; and
    # torch's compiler, which Keras imports only to keep two of its functions from being compiled.
    "keras": (
        *("IPython", "matplotlib", "matplotlib.pyplot", "pandas", "requests", "sklearn"),
        "torch._dynamo",
    ),
    # To know data frames where it is given some.
    "sklearn": ("pandas",),
    # For linear algebra and calls of C in loops that numba compiles; ours have neither.
    "convscope.lowering.cpu.loops": ("cffi", "scipy", "scipy.linalg"),
}
# What the helper loads: it splits data, draws figures and looks for wrong labels, in this order.
_HELPER = (
    "sklearn.model_selection",
    "convscope.report.evaluated",
    "convscope.plotting.exercise",
    "cleanlab.filter",
)
# Modules and networks are a million objects that stay: to look for garbage after every 700 of them, as Python
# does, takes a fifth of the time of a prediction.
_OBJECTS_BEFORE_A_COLLECTION = 10_000
_ended: list[int] = []


def own_this_process() -> None:
    """Let large modules be imported without what no command needs, and let the process end at once."""
    _load_lean()
    keep_freed_memory()
    # What watches a program (a debugger, a profiler, a measurement of coverage) writes at its very end.
    if sys.gettrace() is None and sys.getprofile() is None and "coverage" not in sys.modules:
        atexit.register(_leave)  # the first one registered runs last


def _load_lean() -> None:
    sys.meta_path.insert(0, _LeanImports())
    gc.set_threshold(_OBJECTS_BEFORE_A_COLLECTION)


def draw_beside() -> None:
    """Begin a process that splits data, draws figures and makes parts of a report beside this one.

    It loads no torch, and this one no scikit-learn, which takes most of a second.
    """
    if any(isinstance(finder, _LeanImports) for finder in sys.meta_path):  # else somebody else's process
        begin_helper(_load_helper)


def _load_helper() -> None:
    """Load in the helper what it is for."""
    _load_lean()
    for name in _HELPER:
        importlib.import_module(name)


def ends_with(code: int) -> None:
    """Note the exit code of the command that has finished."""
    _ended[:] = [code]


def _leave() -> None:
    """End the process: taking a few thousand modules apart takes a second or more, and frees nothing else."""
    if not _ended:
        return
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            return  # Python has its own words for this
    os._exit(_ended[0])


class _LeanImports(MetaPathFinder):
    """Hides from some modules what they need not find while they are imported."""

    def __init__(self) -> None:
        self._waiting = dict(_NOT_NEEDED)

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Wrap the loader of such a module, once."""
        if name == "torch":
            logging.getLogger("convscope.progress").info("Loading torch and Keras")
        hidden = self._waiting.pop(name, None)
        spec = importlib.util.find_spec(name) if hidden else None
        if hidden and spec and spec.loader:
            load: Any = spec.loader.exec_module

            def load_lean(module: ModuleType) -> None:
                try:
                    with _hiding(hidden):
                        load(module)
                except Exception:  # another version may need what is hidden here
                    _LOG.warning("%s could not be imported without optional packages.", name, exc_info=True)
                    for loaded in [one for one in sys.modules if one.startswith(f"{name}.")]:
                        del sys.modules[loaded]
                    load(module)

            spec.loader.exec_module = load_lean  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def _hiding(names: Sequence[str]) -> Iterator[None]:
    """Let an import of some modules fail, and let torch's compiler be one that never compiles."""
    compiler: Any = ModuleType("torch._dynamo")
    compiler.disable = lambda function=None, **_: function or (lambda decorated: decorated)
    added = {
        name: compiler if name == compiler.__name__ else None for name in names if name not in sys.modules
    }
    sys.modules.update(added)  # type: ignore[arg-type]  # None is how Python marks what is not there
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]
