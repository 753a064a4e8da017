"""What one thread at a time may use: as many as are used at once, kept for the next."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Spares(Generic[T]):
    """Things of one kind, made by `make` when there is no spare one. For several threads at once."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._spare = make, deque[T]()

    @contextmanager
    def one(self) -> Iterator[T]:
        """A thing that nobody else has meanwhile."""
        try:
            thing = self._spare.pop()  # at once, whatever other threads do
        except IndexError:
            thing = self._make()
        try:
            yield thing
        finally:
            self._spare.append(thing)
