"""What makes a command answer soon and its process end soon. Only where the process is the program's own."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_LOG = logging.getLogger(__name__)

# Keras imports these where it finds them, for data frames, scikit-learn's wrappers and notebooks. No command
# uses that, and together they take more than a second.
_OPTIONAL = ("IPython", "matplotlib", "matplotlib.pyplot", "pandas", "sklearn")
# Torch's compiler takes two seconds. Keras only marks two functions that it shall leave alone.
_COMPILER = "torch._dynamo"
_ended: list[int] = []


def own_this_process() -> None:
    """Let Keras be imported without what no command uses, and let the process end at once."""
    if "keras" not in sys.modules:
        sys.meta_path.insert(0, _LeanKeras())
    # What watches a program (a debugger, a profiler, a measurement of coverage) writes at its very end.
    if sys.gettrace() is None and sys.getprofile() is None and "coverage" not in sys.modules:
        atexit.register(_leave)  # the first one registered runs last


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


class _LeanKeras(MetaPathFinder):
    """Finds Keras once, and hides from it what it does not need while it is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Wrap the loader of the first import of Keras."""
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load: Any = spec.loader.exec_module

            def load_lean(module: ModuleType) -> None:
                try:
                    with _hidden():
                        load(module)
                except Exception:  # another version may need what is hidden here
                    _LOG.warning("Keras could not be imported without optional packages.", exc_info=True)
                    for loaded in [one for one in sys.modules if one.startswith("keras.")]:
                        del sys.modules[loaded]
                    load(module)

            spec.loader.exec_module = load_lean  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def _hidden() -> Iterator[None]:
    """Hide the optional packages, and show a compiler that never compiles."""
    compiler: Any = ModuleType(_COMPILER)
    compiler.disable = lambda function=None, **_: function or (lambda decorated: decorated)
    shown: dict[str, Any] = {**dict.fromkeys(_OPTIONAL), _COMPILER: compiler}
    added = {name: module for name, module in shown.items() if name not in sys.modules}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]
