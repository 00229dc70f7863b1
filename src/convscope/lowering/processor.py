"""What this machine can do: the one place that asks.

A processor belongs to a class by its instruction sets. The class says whether torch (that is, oneDNN) takes a
bfloat16 convolution forward and backward; whether that is fast is measured once and kept in the cache. What
the class rules out is never tried. ``CONVSCOPE_PROCESSOR`` names another class, so that one machine can stand
in for another; ``docs/machines.md`` has the table.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convscope import _torch_internals as torch_internals
from convscope.environment import cache_folder
from convscope.errors import UsageError, expected_got, unknown_name

OVERRIDE = "CONVSCOPE_PROCESSOR"
_ROUNDS = 5
# Of all that torch reports, what its kernels or the compiled loops make use of.
_THAT_MATTER = re.compile(r"(sse4_2|avx|amx|fma3|f16c|neon|sve|bf16|i8mm|dot|sme)")


@dataclass(frozen=True)
class ProcessorClass:
    """What processors with the same instruction sets have in common.

    ``forward`` and ``backward`` say whether oneDNN takes bfloat16 convolutions, None where only trying tells;
    ``hardware`` whether bfloat16 is multiplied in hardware; ``missing`` what it would take, for messages.
    """

    name: str
    forward: bool | None
    backward: bool | None
    hardware: bool = False
    missing: str = ""


_AVX512 = "AVX-512 (avx512bw, avx512vl, avx512dq)"
# oneDNN's own conditions: avx512bw with avx512vl and avx512dq; forward only, avx_ne_convert is enough.
CLASSES: Mapping[str, ProcessorClass] = {
    kind.name: kind
    for kind in (
        ProcessorClass("sse", forward=False, backward=False, missing=_AVX512),
        ProcessorClass("avx2", forward=False, backward=False, missing=_AVX512),
        ProcessorClass("avx2_vnni_2", forward=True, backward=False, missing=_AVX512),
        ProcessorClass("avx512", forward=True, backward=True),
        ProcessorClass("avx512_bf16", forward=True, backward=True, hardware=True),
        ProcessorClass("amx", forward=True, backward=True, hardware=True),
        ProcessorClass("neon", forward=None, backward=None),
        ProcessorClass("other", forward=None, backward=None),
    )
}


@dataclass(frozen=True)
class Processor:
    """The processor at hand, or the one that ``CONVSCOPE_PROCESSOR`` names (``simulated``).

    ``instruction_sets`` are those that matter to torch's kernels, as torch names them.
    """

    name: str
    architecture: str
    kind: ProcessorClass
    instruction_sets: tuple[str, ...]
    physical_cores: int
    logical_cores: int
    simulated: bool = False

    @property
    def key(self) -> str:
        """Return what a measurement on this machine is valid for, in one word."""
        described = (self.name, self.kind.name, self.instruction_sets, self.physical_cores, torch.__version__)
        return hashlib.sha256(repr(described).encode()).hexdigest()[:16]


def this_processor() -> Processor:
    """Describe the processor at hand, or the one whose class ``CONVSCOPE_PROCESSOR`` names.

    Raises UnknownNameError when the variable names no class.
    """
    return _described(os.environ.get(OVERRIDE, ""))


@functools.cache
def _described(override: str) -> Processor:
    if override and override not in CLASSES:
        raise unknown_name("processor class", override, CLASSES)
    capabilities = _capabilities()
    found = tuple(sorted(n for n, value in capabilities.items() if value is True and _THAT_MATTER.match(n)))
    machine = platform.machine().lower()
    architecture = {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)
    logical = os.cpu_count() or 1
    return Processor(
        name=_name(),
        architecture=architecture,
        kind=CLASSES[override or _class_of(architecture, found)],
        instruction_sets=found,
        physical_cores=int(capabilities.get("num_physical_cores") or logical),
        logical_cores=logical,
        simulated=bool(override),
    )


def _capabilities() -> dict[str, Any]:
    """Ask torch for the instruction sets; versions before 2.11 have no public function for it."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())

    avx512 = torch_internals.cpu_supports("avx512")
    return {
        "avx2": torch_internals.cpu_supports("avx2"),
        **dict.fromkeys(("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq"), avx512),
        "avx512_bf16": torch_internals.cpu_supports("avx512_bf16"),
        "amx_bf16": torch_internals.cpu_supports("amx_tile"),
        # What oneDNN accepts without AVX-512 it accepts for this.
        "avx_ne_convert": not avx512 and torch_internals.onednn_accepts_bfloat16(),
    }


def _class_of(architecture: str, found: tuple[str, ...]) -> str:
    if architecture == "arm64":
        return "neon"
    if architecture != "x86_64":
        return "other"
    wide = {"avx512_bw", "avx512_vl", "avx512_dq"}.issubset(found)
    if wide and "amx_bf16" in found:
        return "amx"
    if wide:
        return "avx512_bf16" if "avx512_bf16" in found else "avx512"
    if "avx2" not in found:
        return "sse"
    return "avx2_vnni_2" if "avx_ne_convert" in found else "avx2"


def _name() -> str:
    """Name the processor as well as torch and the operating system can."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def takes_bfloat16(training: bool, device: str = "cpu") -> bool:
    """Say whether a device computes convolutions and matrix products in bfloat16, if training backward too.

    Known from the processor's class, or tried once where the class does not say.
    """
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not device.startswith("cpu"):
        return False
    kind = this_processor().kind
    known = kind.backward if training else kind.forward
    return _tried(training) if known is None else known


@functools.cache
def _tried(training: bool) -> bool:
    try:
        _Trial(torch.bfloat16)(training)
    except RuntimeError:
        return False
    return True


def multiplies_bfloat16(device: str = "cpu") -> bool:
    """Say whether a device multiplies bfloat16 in hardware, as far as is known without measuring."""
    if device.startswith("cuda"):
        return takes_bfloat16(training=True, device=device)
    return device.startswith("cpu") and this_processor().kind.hardware


def bfloat16_speed(training: bool) -> float:
    """Return how fast a typical bfloat16 convolution is relative to float32: 2 for twice as fast, 0 for none.

    Measured once for a processor and a version of torch, on one thread, and kept in the cache.
    """
    if not takes_bfloat16(training):
        return 0.0
    return float(remembered("bfloat16-speed", f"training={training}", lambda: _measured_speed(training)))


def _measured_speed(training: bool) -> float:
    trials = {dtype: _Trial(dtype) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(trials, math.inf)
    with one_thread():
        for _ in range(1 + _ROUNDS):  # the first one only warms up; its time is no best one
            for dtype, trial in trials.items():
                start = clock()
                trial(training)
                best[dtype] = min(best[dtype], clock() - start)
    return best[torch.float32] / best[torch.bfloat16]


class _Trial:
    """A convolution as networks for small images have them: 3×3, 32 to 64 channels."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(16, 32, 14, 14, generator=generator).to(dtype)
        self._images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        self._kernel = torch.randn(64, 32, 3, 3, generator=generator).to(dtype).requires_grad_()

    def __call__(self, training: bool) -> None:
        with torch.set_grad_enabled(training):
            result = torch.conv2d(self._images, self._kernel)
        if training:
            torch.autograd.grad(result, (self._images, self._kernel), torch.ones_like(result))


# Other programs on the machine do not count: time on the processor, and no waiting of one thread for another.
clock = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-5 else time.perf_counter


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on the calling thread alone, for a measurement."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def remembered(subject: str, question: str, answer: Callable[[], Any]) -> Any:
    """Return what was found out on this machine before, or find it out now and keep it in the cache.

    The first answer to a question stays, whoever finds it: what depends on it then repeats from process to
    process. It is a value for JSON, in a file of the folder ``subject`` for this processor and version of
    torch.
    """
    name = hashlib.sha256(question.encode()).hexdigest()[:24]
    path = cache_folder() / "machine" / this_processor().key / subject / f"{name}.json"
    if path not in _REMEMBERED:
        _REMEMBERED[path] = _kept(path, question, answer)
    return _REMEMBERED[path]


_REMEMBERED: dict[Path, Any] = {}


def _kept(path: Path, question: str, answer: Callable[[], Any]) -> Any:
    known = _read_answer(path)
    if known is not None:
        return known[0]
    found = answer()
    text = json.dumps({"question": question, "answer": found}, indent=2)
    with suppress(OSError):  # a cache that cannot be written only costs time
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.stem}-{os.getpid()}-{time.monotonic_ns()}.part")
        scratch.write_text(text, encoding="utf-8")
        try:
            os.link(scratch, path)  # fails where another process was first; its answer counts
        except OSError:
            known = _read_answer(path)
            if known is not None:
                found = known[0]
            else:  # a damaged file, or a file system without hard links
                scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    return found


def _read_answer(path: Path) -> list[Any] | None:
    """Return a kept answer as a list of one; None where there is none that can be read."""
    try:
        return [json.loads(path.read_text(encoding="utf-8"))["answer"]]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def require_precision(precision: str, training: bool, device: str = "cpu") -> None:
    """Refuse bfloat16 where it cannot be computed, by a UsageError that says what the processor lacks."""
    if precision == "bfloat16" and not takes_bfloat16(training, device):
        raise refused_bfloat16(training, device)


def refused_bfloat16(training: bool, device: str = "cpu") -> UsageError:
    """Make the error for bfloat16 where it cannot be computed."""
    processor = this_processor()
    if not device.startswith("cpu"):
        found = f"the device {device}, which has none"
    elif training and processor.kind.forward:
        found = f"{processor.name}, which computes it forward only; training needs {processor.kind.missing}"
    else:
        found = f"{processor.name}, which lacks {processor.kind.missing or 'them in this build of torch'}"
    hint = "Use precision 'auto' or 'float32'."
    return UsageError(expected_got("a processor with bfloat16 convolutions", found, hint))


def describe_bfloat16(training: bool, device: str = "cpu") -> str:
    """Say what a device makes of bfloat16, as half a sentence."""
    if not device.startswith("cpu"):
        return f"{device} {'multiplies' if multiplies_bfloat16(device) else 'does not multiply'} bfloat16"
    kind = this_processor().kind
    if kind.hardware:
        return f"this processor multiplies it in hardware ({kind.name})"
    if not takes_bfloat16(training):
        if training and kind.forward:
            return f"this processor ({kind.name}) takes bfloat16 convolutions forward only"
        return f"this processor ({kind.name}) has no bfloat16 convolutions"
    return f"this processor ({kind.name}) has no instructions for bfloat16"


@functools.cache
def fused_convolution(device: str = "cpu") -> Any | None:
    """Return oneDNN's convolution with an activation fused behind it; None where there is none."""
    on_cpu = device.startswith("cpu")
    return torch_internals.onednn_operation("_convolution_pointwise") if on_cpu else None


@dataclass(frozen=True)
class ThreadTeam:
    """Functions of torch's OpenMP library: one to start a team, two by address to number its threads."""

    library: str
    parallel: Any
    number: int
    size: int


@functools.cache
def openmp() -> ThreadTeam | None:
    """Look up the OpenMP library that torch has loaded; None where it has no ``GOMP_parallel``.

    The functions are looked up as torch itself does: in its own library and in those that this one needs.
    """
    for path in torch_internals.cpu_libraries():
        with suppress(OSError, AttributeError):
            loaded = ctypes.CDLL(str(path))
            parallel = loaded.GOMP_parallel
            parallel.restype = None
            parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            number, size = loaded.omp_get_thread_num, loaded.omp_get_num_threads
            return ThreadTeam(_openmp_library(), parallel, _address(number), _address(size))
    return None


def _openmp_library() -> str:
    """Name the library as far as torch says which it was built with."""
    found = re.search(r"OpenMP \d+.*", torch.__config__.parallel_info())
    return f"{found.group()}, called by GOMP_parallel" if found else "called by GOMP_parallel"


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
