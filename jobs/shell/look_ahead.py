"""Work that is begun ahead of whoever takes its results: bounded, and in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
P = TypeVar("P")


def ahead(
    begin: Callable[[T], P],
    items: Iterable[T],
    at_most: int,
    *,
    weigh: Callable[[T], int] = lambda _: 0,
    max_weight: int = 0,
    discard: Callable[[P], object] = lambda _: None,
) -> Generator[tuple[T, P]]:
    """Each item and what `begin` returned for it (a future, say), in order.

    `at_most` items are begun and not taken yet, fewer where they would weigh more than `max_weight` together; one item
    may weigh more. What was begun and is never taken is given to `discard`.
    """
    waiting: deque[tuple[T, P, int]] = deque()
    held = 0
    try:
        for item in items:
            weight = weigh(item)
            while waiting and (len(waiting) >= at_most or held + weight > max_weight):
                held -= waiting[0][2]
                yield waiting.popleft()[:2]
            waiting.append((item, begin(item), weight))
            held += weight
        while waiting:
            yield waiting.popleft()[:2]
    finally:
        for _, begun, _ in waiting:
            discard(begun)
