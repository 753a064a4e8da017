"""The line that says how far a run is, and what it waits for."""

import time

import pytest

from jobs.catalog.shards import GROWING_SHARDS
from jobs.engines.stages import Receipt
from jobs.scoring.progress import Progress


def receipt(**seconds: float) -> Receipt:
    counts = {"rows": 10, "failed": 1, "transient": 0, "alarms": 0, "bytes": 1, "reasons": ["corrupt"]} | dict.fromkeys(
        ("by_gpu", "checked", "difference", "refused"), 0
    )
    zero = dict.fromkeys(("fetch", "decode", "score", "gpu", "gpu_wait", "write"), 0.0)
    return Receipt(**counts, **{f"{stage}_seconds": value for stage, value in (zero | seconds).items()})  # type: ignore[typeddict-item]


def test_the_line_names_the_busiest_stage_and_how_long_the_gpus_waited() -> None:
    progress = Progress()
    progress.set_totals(done=0, failed=0, total=40, listed=True)
    progress.add(receipt(fetch=1, decode=6, score=1, gpu=4, gpu_wait=3))
    progress.add(receipt(decode=2, gpu=4, gpu_wait=3.8))
    assert progress.bottleneck() == "decode"
    assert "18 scored, 2 quarantined of 40" in progress.line()
    assert progress.line().endswith("mostly decode (80%), the GPUs waited 85%")


def test_without_gpus_nothing_is_said_of_them() -> None:
    progress = Progress()
    progress.add(receipt(decode=1, score=3))
    assert progress.line().endswith("mostly score (75%)")


def test_the_rate_counts_from_when_all_workers_have_staged_their_small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    progress = Progress()
    progress.workers = 2
    progress.set_totals(done=0, failed=0, total=1000, listed=True)
    progress.add(receipt())
    assert "; the first after 1 s; mostly" in progress.line()  # its rate would be that of the start
    progress.add(receipt())
    assert "; about 10 images/s, about 2 min to go; " in progress.line()
    for _ in range(2 * GROWING_SHARDS):
        progress.add(receipt())
    for _ in range(3):
        next(now)  # slower from here on
        progress.add(receipt())
    # Of few images most come before; so it counts from the first shard of each worker: 110 images in 14 seconds.
    assert progress.rate() == pytest.approx(110 / 14)
    for _ in range(3):
        next(now)
        progress.add(receipt())
    # Eight small ones, then two as fast as these and six of two seconds each.
    assert progress.rate() == pytest.approx(80 / 14)


def test_a_run_of_less_than_a_shard_for_each_worker_has_the_rate_of_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    progress = Progress()
    progress.workers = 2
    progress.add(receipt())
    assert progress.rate() == 10
