"""The surroundings of a run: versions, source commit, the cache; and how to leave the process as it was."""

from __future__ import annotations

import atexit
import importlib.util
import multiprocessing
import os
import platform
import random
import signal
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import platformdirs

from convscope import __version__
from convscope.errors import UsageError, expected_got

if TYPE_CHECKING:
    from concurrent.futures import Executor

# Every library that has threads of its own reads one of these when it is loaded.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
PACKAGES = ("keras", "torch", "numpy", "scipy", "scikit-learn", "matplotlib")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, from glibc's malloc.h

_filters_in_use = threading.RLock()
_T = TypeVar("_T")
_helper: Executor | None = None
_MOST_SENT = 64 * 2**20


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that decides a result."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "convscope": __version__, **packages}


def is_one_of_several() -> bool:
    """Say whether ``torchrun``, or whoever sets the same variables, has started several processes."""
    size = os.environ.get("WORLD_SIZE", "1")
    return size.isdigit() and int(size) > 1 and "RANK" in os.environ


def leads() -> bool:
    """Say whether this process is the one that writes and speaks: the first of several, or the only one."""
    return not is_one_of_several() or os.environ["RANK"] == "0"


def missing(package: str, extra: str) -> str:
    """Say what to install where an optional package is missing; nothing where it is there."""
    if importlib.util.find_spec(package) is not None:
        return ""
    return expected_got(f"the package {package}", "none", f"Install it: pip install 'convscope[{extra}]'.")


def require_package(package: str, extra: str) -> None:
    """Refuse to go on without a package, and say what to install."""
    if text := missing(package, extra):
        raise UsageError(text)


def share_of_threads(workers: int) -> int:
    """Divide this process's processors, or the threads that it was given, among so many workers."""
    get = getattr(os, "sched_getaffinity", None)
    cores = len(get(0)) if get else os.cpu_count() or 1
    given = os.environ.get(THREADS[0], "")
    return max(1, (min(cores, int(given)) if given.isdecimal() and int(given) else cores) // workers)


def begin_worker(threads: int) -> None:
    """Prepare a process of a pool before it loads anything; it ends with the one that began it."""
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that began it
    keep_freed_memory()
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def keep_freed_memory() -> None:
    """Let the C library keep what a large image has taken for the next one; only in processes of our own.

    glibc gives it back otherwise, and to take it anew, page by page, takes longer than decoding.
    """
    import ctypes

    with suppress(AttributeError, OSError, TypeError):  # of another system
        set_option = ctypes.CDLL(None).mallopt
        set_option(_MMAP_THRESHOLD, 32 << 20)
        set_option(_TRIM_THRESHOLD, 512 << 20)


def begin_helper(load: Callable[[], None]) -> None:
    """Begin a second process that loads what it will need and then computes what `beside` gives it.

    Only for a process that is the program's own and may use two cores or more.
    """
    global _helper  # noqa: PLW0603  one of a process
    if _helper is None and share_of_threads(1) > 1:
        # The command line asks this module before it shows its help.
        from concurrent.futures import ProcessPoolExecutor

        with suppress(OSError, ImportError, NotImplementedError):  # no shared memory or semaphores here
            helper = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin_worker, (1,))
            helper.submit(_load, load)
            _helper = helper


def _load(load: Callable[[], None]) -> None:
    atexit.register(os._exit, 0)  # to take modules apart takes longer than to end
    load()


def beside(function: Callable[..., _T], *arguments: Any, size: int = 0) -> Callable[[], _T]:
    """Compute in the helper while this process does something else; the result is waited for when asked for.

    Without a helper, with arguments of too large a ``size`` in bytes to be sent there, or where it has died,
    all is computed here when it is asked for.
    """
    if _helper is None or size > _MOST_SENT:
        return partial(function, *arguments)
    from concurrent.futures import BrokenExecutor

    try:
        future = _helper.submit(function, *arguments)
    except BrokenExecutor:
        return partial(function, *arguments)

    def result() -> _T:
        try:
            return future.result()
        except BrokenExecutor:  # it may have been killed for its memory
            return function(*arguments)

    return result


def source_commit() -> str | None:
    """Return the commit of the checkout that convscope runs from; None for an installed package.

    A ``+`` at its end says that files were changed since.
    """
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        # The program is fixed and no argument comes from outside.
        process = subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            timeout=10,
            check=True,
        )
        return process.stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):  # inside somebody else's checkout
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def describe() -> dict[str, Any]:
    """Return both, as a run records them."""
    return {"versions": versions(), "source_commit": source_commit()}


def cache_folder() -> Path:
    """Return the user's cache folder of convscope; it need not exist yet.

    ``CONVSCOPE_CACHE`` names another one.
    """
    return Path(os.environ.get("CONVSCOPE_CACHE") or platformdirs.user_cache_dir("convscope"))


@contextmanager
def own_warning_filters() -> Iterator[None]:
    """Let a block set filters for warnings, which are gone at its end; one thread at a time.

    Filters belong to the whole process: of two threads that come and go by turns, the one would leave the
    other's behind for good.
    """
    with _filters_in_use, warnings.catch_warnings():
        yield


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Let a block seed and use the global generators, which are at its end as they were."""
    import numpy as np  # the command line asks this module before it shows its help
    import torch

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  others may draw from it
    try:
        gpus = torch.accelerator
        with torch.random.fork_rng([gpus.current_device_index()] if gpus.is_available() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
