"""`fcdd gc`: what dead runs left behind is removed; what a record names, or a live run needs, never is.

Parts are listed before the records are read, so a run that is committed meanwhile is seen as committed; a run that
still has staging keeps its parts.
"""

import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from pydantic import Field

from fcdd import storage
from fcdd.storage import ObjectInfo
from jobs import _console, _lease, _manifest, _runs
from jobs._settings import JobSettings
from schemas import Layout

TABLES = ("scores", "quarantine", "deleted")

log = logging.getLogger(__name__)


class GcSettings(JobSettings):
    """Remove the staging of runs that nobody finished, and published parts that no commit record names."""

    verb: ClassVar[str] = "gc"

    results: str = Field(description="location of the results")
    older_than_days: float = Field(7, ge=0, description="leave alone what was written within so many days")
    dry_run: bool = Field(False, description="say what would be removed; remove nothing")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _console.run(lambda: collect(GcSettings.parse(argv)))


def collect(settings: GcSettings) -> None:
    """Remove, and say what."""
    layout = Layout(storage.normalize(settings.results))
    before = datetime.now(UTC) - timedelta(days=settings.older_than_days)
    parts = [info for table in TABLES for page in storage.pages(f"{layout.results}/{table}") for info in page]
    staged = {run_id: _objects(layout.staging(run_id)) for run_id in _runs.staged(layout)}
    records = _runs.records(layout)
    committed = {record.run_id for record in records}
    named = {part.path for r in records for part in (*r.scores, *r.quarantine, *r.deleted)}
    garbage: list[ObjectInfo] = []
    for run_id, objects in staged.items():
        if run_id in committed or (_is_old(objects, before) and not _is_live(layout, run_id)):
            garbage += objects
            print(f"staging of {run_id}: {_size(objects)}")
            if run_id not in committed:
                parts_of_run = [info for info in parts if f"/run={run_id}/" in info.uri]
                garbage += parts_of_run
    for info in parts:
        path = info.uri.removeprefix(f"{layout.results}/")
        run_id = path.split("/run=")[-1].split("/")[0]
        if path not in named and run_id not in staged and info.last_modified < before:
            garbage.append(info)
            print(f"part that no record names: {path}")
    garbage += [info for info in _objects(layout.leases()) if info.last_modified < before]
    unique = {info.uri: info for info in garbage if info.uri.removeprefix(f"{layout.results}/") not in named}
    if not settings.dry_run:
        for uri in unique:
            storage.delete(uri)
    print(f"{'would remove' if settings.dry_run else 'removed'} {_size(list(unique.values()))}")


def _objects(prefix: str) -> list[ObjectInfo]:
    return [info for page in storage.pages(prefix) for info in page]


def _is_old(objects: list[ObjectInfo], before: datetime) -> bool:
    return all(info.last_modified < before for info in objects)


def _is_live(layout: Layout, run_id: str) -> bool:
    intent = _manifest.read_intent(layout, run_id)
    lease = _lease.state(layout.lease(intent.collection, intent.day)) if intent else None
    return lease is not None and lease[0].run_id == run_id


def _size(objects: list[ObjectInfo]) -> str:
    return f"{len(objects)} objects, {sum(info.size for info in objects) / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
