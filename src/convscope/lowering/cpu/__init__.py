"""What a CPU runs besides torch's own operations: loops that numba compiles, and how memory is kept.

A training step allocates the same tensors again and again. By default glibc gives large blocks back to the
system when they are freed, and each step takes them anew, page by page; with pages of 4 KiB, each pass over a
tensor of some megabytes also misses the address cache hundreds of times. On the exercise's third network both
together cost 10 to 15 % of a step: `keep_memory` lets the C library keep the memory, in huge pages.
"""

from __future__ import annotations

import ctypes
import functools
import platform

# Float32 elements in a vector of the compiled loops; the filters of a few-channel convolution are a
# multiple of it. LLVM puts a vector into registers as wide as the processor's: one of sixteen elements, two
# of eight (AVX2), four of four (SSE, NEON). With four pixels at a time that keeps AVX2's two units busy;
# blocks of eight take 1.5 times as long there.
LANES = 16

# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD = -1
_TOP_PAD = -2
_MMAP_THRESHOLD = -3
# Advice for madvise, from Linux's mman.h.
_HUGE_PAGES = 14

_HUGE_PAGE = 2 << 20
_BLOCK = 16 << 20
_RESERVE = 512 << 20
_LARGEST_KEPT = 32 << 20  # the most that glibc accepts


@functools.cache
def keep_memory() -> bool:
    """Prepare the C library's heap for large tensors that come and go; once in a process.

    Sets address space aside for huge pages, none used before it is needed. Returns
    whether it was done: on other systems than Linux with glibc nothing is changed.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    settings = ((_MMAP_THRESHOLD, _LARGEST_KEPT), (_TRIM_THRESHOLD, 2 * _RESERVE), (_TOP_PAD, 64 << 20))
    if not all(library.mallopt(parameter, value) for parameter, value in settings):
        return False
    _advise_huge_pages(library)
    return True


def _advise_huge_pages(library: ctypes.CDLL) -> None:
    """Grow the heap by some blocks, ask for huge pages where they lie, and free them for tensors to come."""
    blocks = [block for block in (library.malloc(_BLOCK) for _ in range(_RESERVE // _BLOCK)) if block]
    if blocks:
        # One range over all of them: what lies between two blocks gets the advice too, and comes to no harm.
        first = -(-min(blocks) // _HUGE_PAGE) * _HUGE_PAGE
        library.madvise(first, max(blocks) + _BLOCK - first, _HUGE_PAGES)
    for block in blocks:
        library.free(block)
