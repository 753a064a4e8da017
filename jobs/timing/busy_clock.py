"""A clock of work that several threads do: how long at least one of them was at it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class BusyClock:
    """Counts the seconds in which at least one thread is at something."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside, self._since, self._seconds = 0, 0.0, 0.0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """This thread is at it."""
        with self._lock:
            if not self._inside:
                self._since = time.perf_counter()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._seconds += time.perf_counter() - self._since

    def seconds(self) -> float:
        """Until now."""
        with self._lock:
            running = time.perf_counter() - self._since if self._inside else 0.0
            return self._seconds + running
