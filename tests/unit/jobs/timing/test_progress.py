import logging

import pytest

from jobs.timing import progress


def test_long_work_says_how_far_it_is_how_fast_and_how_long_still(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 4))  # every look at the clock is four seconds later
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(clock)))
    log = logging.getLogger("jobs.test")
    with caplog.at_level(logging.INFO):
        assert list(progress.told(range(8), 8, "statistics", log, each=16)) == list(range(8))
    # The items come 4, 8, ... seconds after the start: a line from ten seconds on, and then every ten.
    assert [record.getMessage() for record in caplog.records] == [
        "statistics: 32 of 128, 2.7/s, 36 s to go",
        "statistics: 80 of 128, 3.3/s, 14 s to go",
    ]


def test_short_work_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert sum(progress.told(range(100), 100, "statistics", logging.getLogger("jobs.test"))) == 4950
    assert not caplog.records
