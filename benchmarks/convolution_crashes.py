"""Which convolutions crash torch, or give wrong gradients, on a processor like this one or a lesser one.

    python benchmarks/convolution_crashes.py [--isa AVX2] [--through torch] [--groups] [--pointwise]

Each convolution runs forward and backward in a process of its own, which checks the heap (MALLOC_CHECK_ of
glibc, so on Linux only) and holds the gradients against float64: through a lowered network or, with
``--through torch``, as torch computes it on channels_last images. The exit code is 1 if anything fails.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import convscope  # noqa: F401  it chooses Keras's back end  # isort: skip
import keras
import torch

from convscope.lowering import emit, lower, optimise

_CHECKER = "libc_malloc_debug.so.0"
_ROUNDS, _TOGETHER = 3, 20
_WRONG, _REFUSED = 77, 78


@dataclass(frozen=True)
class Case:
    """A convolution and its images."""

    kernel: tuple[int, int]
    stride: int
    channels: int
    filters: int
    size: int
    groups: int = 1
    padding: str = "valid"

    def run(self, compute: Callable[[Case, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        """Compute forward and backward; raise ArithmeticError where float64 gives something else."""
        generator = torch.Generator().manual_seed(0)
        shape = (*self.kernel, self.channels // self.groups, self.filters)
        for _ in range(_ROUNDS):
            x = torch.rand(4, self.size, self.size, self.channels, generator=generator).requires_grad_()
            w = (torch.rand(shape, generator=generator) - 0.5).requires_grad_()
            found = _gradients(compute(self, x, w), x, w)
        with torch.backends.mkldnn.flags(enabled=False):
            x, w = (part.detach().double().requires_grad_() for part in (x, w))
            expected = _gradients(by_torch(self, x, w), x, w)
        for one, other in zip(found, expected, strict=True):
            if (one.double() - other).abs().max() > 1e-4 * other.abs().max():
                raise ArithmeticError


def _gradients(y: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    weights = torch.linspace(0, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return y.detach(), *torch.autograd.grad((y * weights).sum(), (x, w))


def by_torch(case: Case, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Convolve as Keras's torch back end does: channels_last images seen in torch's order."""
    edge = tuple(size // 2 for size in case.kernel) if case.padding == "same" else 0
    image, kernel = x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1)
    if x.dtype is torch.float64:  # torch's slow convolution wants it so
        image, kernel = image.contiguous(), kernel.contiguous()
    y = torch.conv2d(image, kernel, None, case.stride, edge, groups=case.groups)
    return y.permute(0, 2, 3, 1)  # (n, h, w, c)


def by_network(case: Case, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Convolve through a lowered network."""
    layer = keras.layers.Conv2D(
        case.filters, case.kernel, case.stride, padding="valid", groups=case.groups, use_bias=False
    )
    edge = tuple(size // 2 for size in case.kernel) if case.padding == "same" else (0, 0)
    model = keras.Sequential([keras.Input(tuple(x.shape[1:])), keras.layers.ZeroPadding2D(edge), layer])
    program, _ = optimise(lower(model), deterministic=True, precision="float32")
    network = emit(program, model)
    (path,) = network.weights
    network._tensors[path] = w
    result: torch.Tensor = network(x, training=True)
    return result


def cases(grouped: bool) -> Iterator[Case]:
    """List the convolutions to try."""
    sizes = (8, 9, 32, 33)
    kernels = ((1, 1), (1, 2), (2, 2), (1, 3), (3, 3), (5, 5))
    if not grouped:
        channels, filters = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17), (1, 8, 17)
        for kernel, stride, c, f, size in itertools.product(kernels, (1, 2, 3), channels, filters, sizes):
            yield Case(kernel, stride, c, f, size)
        return
    for kernel, stride, c, times, size in itertools.product(
        ((1, 1), (3, 3)), (1, 2, 3), (2, 3, 4, 6, 8, 12, 16), (1, 2, 3), sizes
    ):
        for groups in {c, 2} if c % 2 == 0 else {c}:
            for padding in ("valid", "same") if kernel == (3, 3) else ("valid",):
                yield Case(kernel, stride, c, c * times, size, groups, padding)


def outcome(chosen: Sequence[Case], compute: Callable[..., torch.Tensor]) -> str | None:
    """Run some cases in a forked process; say how it died, None where all is well."""
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            for case in chosen:
                case.run(compute)
        except ArithmeticError:
            os._exit(_WRONG)
        except BaseException:
            os._exit(_REFUSED)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return {0: None, _WRONG: "wrong numbers", _REFUSED: "an exception"}[os.WEXITSTATUS(status)]


def main() -> int:
    """Try every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--isa", help="what oneDNN may use, such as AVX2")
    parser.add_argument("--through", choices=("torch", "convscope"), default="convscope")
    parser.add_argument("--groups", action="store_true", help="grouped and depthwise convolutions")
    parser.add_argument("--pointwise", action="store_true", help="1×1 kernels only, those known to crash")
    arguments = parser.parse_args()
    if "MALLOC_CHECK_" not in os.environ:
        settings = {"MALLOC_CHECK_": "3", "LD_PRELOAD": _CHECKER, "OMP_NUM_THREADS": "1"}
        if arguments.isa:
            settings |= {"ONEDNN_MAX_CPU_ISA": arguments.isa, "ATEN_CPU_CAPABILITY": "avx2"}
        command = [sys.executable, str(Path(__file__)), *sys.argv[1:]]
        return subprocess.run(command, env=os.environ | settings, check=False).returncode
    torch.set_num_threads(1)
    compute = by_torch if arguments.through == "torch" else by_network
    every = [case for case in cases(arguments.groups) if case.kernel == (1, 1) or not arguments.pointwise]
    failed = 0
    for first in range(0, len(every), _TOGETHER):
        together = every[first : first + _TOGETHER]
        if outcome(together, compute) is None:
            continue
        for case in together:
            how = outcome([case], compute)
            if how is not None:
                failed += 1
                print(f"{case}: {how}", flush=True)
    print(
        f"{failed} of {len(every)} convolutions fail through {arguments.through}, torch {torch.__version__}"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
