"""What a question may take: time, and memory of the whole process, of which DuckDB counts its own part only."""

import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from fcdd.errors import ConfigError

# Stacks of as many threads as there are cores count as memory, too.
_STACK_BYTES = 16 * 1024**2
_AGAIN_S = 0.1


@contextmanager
def seconds(limit: float, interrupt: Callable[[], None]) -> Iterator[None]:
    """Call `interrupt` from another thread when time is up, until that helps: it is then a ConfigError.

    Between two queries there is nothing to interrupt, and a query forgets what came before it began.
    """
    expired, done = threading.Event(), threading.Event()

    def stop() -> None:
        if done.wait(limit):
            return
        expired.set()
        while not done.wait(_AGAIN_S):
            interrupt()

    threading.Thread(target=stop, name="deadline", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt as error:
        if not expired.is_set():
            raise
        raise ConfigError(f"no answer within {limit:g} s; ask for less, or give it more time (--timeout-s)") from error
    finally:
        done.set()


@contextmanager
def signals(interrupt: Callable[[], None]) -> Iterator[None]:
    """Within it SIGINT and SIGTERM call `interrupt` from another thread, until that helps.

    Python handles signals between the instructions of its main thread; while that one waits in native code for a query
    of other threads, Ctrl-C would be without an effect.
    """
    received, sender = socket.socketpair()
    sender.setblocking(False)
    done = threading.Event()

    def watch() -> None:
        while data := received.recv(1):
            if data[0] in (signal.SIGINT, signal.SIGTERM):
                while not done.wait(_AGAIN_S):
                    interrupt()

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    before: int | None = None
    try:
        with suppress(ValueError):  # not in the main thread, which alone is interrupted
            before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        yield
    finally:
        done.set()
        if before is not None:
            signal.set_wakeup_fd(before)
        sender.close()
        thread.join()
        received.close()


@contextmanager
def memory(limit_gb: float) -> Iterator[None]:
    """Within it, what this process takes beyond what it has, and `limit_gb`, is a MemoryError."""
    if sys.platform != "linux":
        yield
        return
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[5]) * resource.getpagesize()
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = taken + round(limit_gb * 1e9) + _STACK_BYTES * (os.cpu_count() or 1)
    if before != resource.RLIM_INFINITY:
        wanted = min(wanted, before)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))
