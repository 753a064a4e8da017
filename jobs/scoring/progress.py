"""What a person or a log sees while a run is scored: one line that says how far, how fast, how long still, and why."""

import logging
import sys
import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from jobs.catalog.shards import GROWING_SHARDS
from jobs.engines.stages import Receipt, seconds_of
from jobs.timing.progress import rate_text

LOG_EVERY_S, FIRST_LOG_S = 30.0, 5.0
# Of less time a rate says nothing: several threads are done at the same moment.
_SHORTEST_S = 1.0
STAGES = ("fetch", "decode", "score", "write")

log = logging.getLogger(__name__)


class Progress:
    """Counts receipts and shows them: on a terminal as a line that changes, else as a line of the log now and then."""

    def __init__(self) -> None:
        self.done = self.failed = self.total = self.final_failures = 0
        self.listed = False
        self.seconds: Counter[str] = Counter()
        # Images that GPUs decoded, those that were checked, and the largest difference.
        self.by_gpu = self.checked = 0
        self.largest_difference = 0.0
        self.workers = 1
        self._receipts = self._scored_here = 0
        self._last = self._started = time.perf_counter()
        # When one shard was staged, one for each worker, and all that are small; images until then.
        self._first_shard = self._one_each = self._small_ones = (self._started, 0)
        self._next_log = self._started + FIRST_LOG_S
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._live = Live(Text(""), console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def set_totals(self, *, done: int, failed: int, total: int, listed: bool) -> None:
        """What is staged and what is listed so far."""
        self.done, self.failed, self.total, self.listed = done, failed, total, listed

    def add(self, receipt: Receipt) -> None:
        """Count a staged shard."""
        now = time.perf_counter()
        self._last = now
        self._receipts += 1
        self._scored_here += receipt["rows"]
        if self._receipts == 1:
            self._first_shard = now, self._scored_here
        if self._receipts <= self.workers:
            self._one_each = now, self._scored_here
        if self._receipts <= self.workers * GROWING_SHARDS:
            self._small_ones = now, self._scored_here
        self.done += receipt["rows"]
        self.failed += receipt["failed"]
        self.final_failures += receipt["failed"] - receipt["transient"]
        self.seconds.update(seconds_of(receipt))
        self.by_gpu += receipt["by_gpu"]
        self.checked += receipt["checked"]
        self.largest_difference = max(self.largest_difference, receipt["difference"])
        if self._live:
            self._live.update(Text(self.line()), refresh=True)
        elif now >= self._next_log:
            log.info("%s", self.line())
            self._next_log = now + LOG_EVERY_S

    def rate(self) -> float:
        """Images per second after the start: from when every worker has staged its small shards, or its first one.

        Most of the images must come after that: what little is left of a small run comes in a burst.
        """
        return self._steady_rate() or self._scored_here / max(self._last - self._started, 1e-9)

    def _steady_rate(self) -> float | None:
        for when, images in (self._small_ones, self._one_each):
            if self._last > when and 2 * images <= self._scored_here:
                return (self._scored_here - images) / (self._last - when)
        return None

    def seconds_to_first(self) -> float:
        """From the start of this object to the first staged shard."""
        return self._first_shard[0] - self._started

    def bottleneck(self) -> str:
        """The stage that workers spend most of their time in."""
        return max(STAGES, key=lambda stage: self.seconds[stage])

    def line(self) -> str:
        """Counts, rate, time to go, the slowest stage and how idle the GPUs are, in one line."""
        total = f"{self.total}" if self.listed else f"{self.total} listed so far"
        busiest = self.bottleneck()
        share = self.seconds[busiest] / max(sum(self.seconds[stage] for stage in STAGES), 1e-9)
        waited = f", the GPUs waited {self.seconds['gpu_wait'] / gpu:.0%}" if (gpu := self.seconds["gpu"]) else ""
        return (
            f"{self.done - self.failed} scored, {self.failed} quarantined of {total}; "
            f"{self._pace()}; mostly {busiest} ({share:.0%}){waited}"
        )

    def _pace(self) -> str:
        """How fast, and how long still. The start of the workers says nothing of that."""
        first, images = self._first_shard
        about = "" if (rate := self._steady_rate()) else "about "
        if not rate and self._last - first >= _SHORTEST_S:
            rate = (self._scored_here - images) / (self._last - first)
        if not rate:
            return f"the first after {duration(self.seconds_to_first())}" + ("" if self.listed else ", still listing")
        left = f"{about}{duration((self.total - self.done) / rate)} to go" if self.listed else "still listing"
        return f"{about}{rate_text(rate)} images/s, {left}"


def duration(seconds: float) -> str:
    """Seconds as text: 12 s, 5 min, 1.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
