"""The rights that a decoder process gives up before it reads its first image, for good.

What it holds open stays: its input, its output, its shared memory. After that no file, no socket, no other process:
neither the variables that its parent was started with, nor a file of credentials, nor the metadata service of a cloud.
"""

import ctypes
import platform
import resource
import struct
import sys

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_CAPABILITY_VERSION_3 = 0x20080522
# Numbers of the system calls that decoding needs on what we run on; linux/audit.h, asm/unistd.h.
_X86_64, _AARCH64 = 0xC000003E, 0xC00000B7
_CALLS = {  # name: number on x86_64, on aarch64
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "rseq": (334, 293),
}
_MACHINES = {"x86_64": (_X86_64, 0), "aarch64": (_AARCH64, 1)}
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # of the classic BPF: a word, a comparison, the end
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # refused with EPERM
_ARCHITECTURE, _NUMBER = 4, 0  # where seccomp_data has them


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def enter() -> bool:
    """Give them up; whether the system could enforce it all.

    Everywhere: no new file descriptor, so no file and no socket, for a process that may not raise the limit again. On
    Linux also no privileges and, by seccomp, no system call but those of a computation on what is open.
    """
    enforced = sys.platform == "linux" and _drop_privileges()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    return enforced and _filter_calls()


def _drop_privileges() -> bool:
    """No capabilities, and none by starting another program."""
    libc = ctypes.CDLL(None)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    header, nothing = struct.pack("=II", _CAPABILITY_VERSION_3, 0), bytes(24)
    return bool(libc.capset(header, nothing) == 0)


def _filter_calls() -> bool:
    """Refuse every system call that is not listed."""
    if platform.machine() not in _MACHINES:
        return False
    code = _code(*_MACHINES[platform.machine()])
    program = _Program(len(code) // 8, code)
    return not ctypes.CDLL(None).prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


def _code(architecture: int, column: int) -> bytes:
    """The filter: another architecture's calls have other numbers, and are all refused."""
    allowed = [numbers[column] for numbers in _CALLS.values()]
    steps = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _REFUSE)]
    steps.append((_LOAD, 0, 0, _NUMBER))
    for left, number in zip(range(len(allowed), 0, -1), allowed, strict=True):
        steps.append((_EQUAL, left, 0, number))  # to the last step
    return b"".join(struct.pack("=HBBI", *step) for step in [*steps, (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)])
