"""Freed memory is used again: no page is cleared anew for every batch, in whatever thread."""

import os
import platform
import subprocess
import sys

import pytest

from fcdd.io import memory

# What a forward pass does, in a thread: large tensors, one after the other, again and again.
FREES = """
import ctypes, resource, threading
{before}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
faults = []
def work():
    for turn in range(6):
        first = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for megabytes in (48, 96, 600):
            large = libc.malloc(megabytes * 10**6)
            ctypes.memset(large, 1, megabytes * 10**6)
            libc.free(large)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - first)
def another():
    libc.free(libc.malloc(10**6))
for target in (another, work):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
print(max(faults[1:]))
"""


def _faults(before: str, environment: dict[str, str]) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FREES.format(before=before)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries decide by themselves")
def test_what_a_thread_frees_it_uses_again() -> None:
    assert _faults("", {}) > 10_000
    assert _faults("from fcdd.io import memory; memory.keep()", {}) < 1_000
    assert _faults("", memory.ENVIRONMENT) < 1_000
