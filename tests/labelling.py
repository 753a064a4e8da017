"""Labels as a page gives them."""

import datetime as dt
import itertools
from typing import Any

from jobs.labels.label_store import Labels, Verdict

NOW = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
CLOCK = (NOW + dt.timedelta(seconds=n) for n in itertools.count())


def say(labels: Labels, row: dict[str, Any], verdict: Verdict, reviewer: str = "") -> dict[str, Any] | None:
    """As a page does that has seen the latest label."""
    seen = verdict.model_copy(update={"seen": labels.label_time(row["image_uri"])})
    labels.set(row, seen, reviewer=reviewer, now=next(CLOCK))
    return labels.get(row)
