"""Every run of a results location, with its state: committed, superseded, running, interrupted."""

import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Literal, NamedTuple

from fcdd.errors import ConfigError
from fcdd.io import storage
from jobs.catalog import commit_records, intents, leases
from jobs.catalog.staging import Coverage
from schemas import Layout

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """One run. `listed` of a run that is not committed is what its manifest holds by now."""

    run_id: str
    collection: str
    date: date
    state: Literal["committed", "superseded", "running", "interrupted"]
    listed: int
    scored: int
    quarantined: int
    anomalous: int | None
    drift: str | None
    images_per_second: float | None
    started_at: datetime
    committed_at: datetime | None


def committed(layout: Layout) -> Iterator[Run]:
    """Runs that readers see, and those whose place another one took."""
    records = commit_records.history(layout)
    newest = {record.run_id for record in commit_records.current(records)}
    for record in records:
        current = record.run_id in newest
        yield Run(
            run_id=record.run_id,
            collection=record.collection,
            date=record.day,
            state="committed" if current else "superseded",
            listed=record.num_listed,
            scored=record.num_scored,
            quarantined=record.num_quarantined,
            anomalous=record.num_anomalous,
            drift=record.drift.in_words,
            images_per_second=record.images_per_second,
            started_at=record.started_at,
            committed_at=record.committed_at,
        )


def uncommitted(layout: Layout) -> Iterator[Run]:
    """Runs that are being made, and those that died."""
    for run_id in intents.staged(layout):
        if storage.exists(layout.record(run_id)):
            continue
        try:
            intent = intents.read_intent(layout, run_id)
        except ConfigError as error:
            log.warning("left out: %s", error)
            continue
        if intent is None:
            continue
        lease = leases.state(layout.lease(intent.collection, intent.day), now=datetime.now(UTC))
        plan = intents.read_plan(layout, run_id)
        done = Coverage.read(layout, run_id)
        failed = min(done.most_failed(), done.count())
        yield Run(
            run_id=run_id,
            collection=intent.collection,
            date=intent.day,
            state="running" if lease and lease[0].run_id == run_id else "interrupted",
            listed=plan.num_images if plan else done.count(),
            scored=done.count() - failed,
            quarantined=failed,
            anomalous=None,
            drift=None,
            images_per_second=None,
            started_at=intent.started_at,
            committed_at=None,
        )
