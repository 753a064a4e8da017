"""Work that takes its time says how far it is: a line of the log every ten seconds, with its rate and time to go."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

EVERY_SECONDS = 10.0


def told(items: Iterable[T], total: int, what: str, log: logging.Logger, *, each: int = 1) -> Iterator[T]:
    """The items; `what` is being done with them, and each of them stands for `each` things of `total * each`."""
    began = shown = time.perf_counter()
    for done, item in enumerate(items):
        now = time.perf_counter()
        if done and now - shown >= EVERY_SECONDS:
            shown = now
            rate = done / (now - began)
            log.info(
                "%s: %d of %d, %s/s, %.0f s to go",
                *(what, done * each, total * each, rate_text(rate * each), (total - done) / rate),
            )
        yield item


def rate_text(rate: float) -> str:
    """A rate with as many digits as say something."""
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


def watch(what: str, log: logging.Logger) -> Callable[[Iterable[T], int], Iterator[T]]:
    """`told`, for library functions that hand out what they work through and how much it is."""
    return lambda items, total: told(items, total, what, log)
