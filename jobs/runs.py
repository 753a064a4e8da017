"""`fcdd runs`: every run of a results location, with state, counts and rate."""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field
from rich import box
from rich.console import Console
from rich.table import Table

from fcdd.errors import ConfigError
from fcdd.io import storage
from jobs.catalog import commit_records, intents, leases
from jobs.catalog.staging import Coverage
from jobs.shell import formatting, process
from jobs.shell.settings import JobSettings
from schemas import Layout

log = logging.getLogger(__name__)


class RunsSettings(JobSettings):
    """List the runs of a results location: committed, superseded, running, and interrupted ones."""

    verb: ClassVar[str] = "runs"

    results: str = Field(description="location of the results")
    collection: str | None = Field(None, description="only this collection")
    output: Literal["table", "json"] = Field("table", description="table or json")


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


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: show(RunsSettings.parse(argv)))


def show(settings: RunsSettings) -> None:
    """Print the runs, oldest night first."""
    layout = Layout(storage.normalize(settings.results))
    commit_records.check_there(layout)
    found = sorted(
        (run for run in (*committed(layout), *uncommitted(layout)) if settings.collection in (None, run.collection)),
        key=lambda run: (run.collection, run.date, run.started_at),
    )
    if settings.output == "json":
        print(json.dumps([run._asdict() for run in found], indent=1, default=str))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("run", "collection", "date", "state"):
        table.add_column(name, overflow="fold")
    for name in ("listed", "scored", "quarantined", "alarms", "drift", "images/s"):
        table.add_column(name, justify="right")
    for run in found:
        alarms = "" if run.anomalous is None else run.anomalous
        counts = (run.listed, run.scored, run.quarantined, alarms, run.drift or "")
        rate = "" if run.images_per_second is None else f"{run.images_per_second:.1f}"
        names = map(formatting.printable, (run.run_id, run.collection))
        table.add_row(*names, str(run.date), run.state, *map(str, counts), rate)
    Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False).print(table)


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
            drift=record.drift.verdict,
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


if __name__ == "__main__":
    process.leave(main())
