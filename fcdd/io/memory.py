"""Memory that a process keeps: what one batch frees the next one uses, and nothing is given back in between.

By default glibc maps every large tensor anew and gives it back, and a thread that is not the first does so whatever it
was told, unless all share one arena. The kernel then has to clear the pages again, which is half of the time that torch
takes for a picture of 2,048x2,048 (benchmarks/results/2026-11-27-training.md).
"""

import ctypes
import sys

# glibc's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX. The largest tensors, of 8 million pixels, are of 0.8 GB.
_TRIM, _MMAP, _ARENAS, _KEPT = -1, -3, -8, 2_000_000_000
# The same for a process that is to be started, in which threads come before any of our code.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(_KEPT),
    "MALLOC_TRIM_THRESHOLD_": str(_KEPT),
}


def keep() -> None:
    """For this process, on Linux. To be called before it has threads: one that has an arena of its own keeps it."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # not with musl
            for parameter, value in ((_TRIM, _KEPT), (_MMAP, _KEPT), (_ARENAS, 1)):
                libc.mallopt(parameter, value)
