"""`fcdd runs`: every run of a results location, with state, counts and rate."""

import json
import logging
import sys
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from rich import box
from rich.console import Console
from rich.table import Table

from fcdd.io import storage
from jobs.catalog import commit_records
from jobs.shell import formatting, process
from jobs.shell.settings import JobSettings
from jobs.upkeep import run_states
from schemas import Layout

log = logging.getLogger(__name__)


class RunsSettings(JobSettings):
    """List the runs of a results location: committed, superseded, running, and interrupted ones."""

    verb: ClassVar[str] = "runs"

    results: str = Field(description="location of the results")
    collection: str | None = Field(None, description="only this collection")
    format: Literal["table", "json"] = Field("table", description="table for people, json for programs")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: show(RunsSettings.parse(argv)))


def show(settings: RunsSettings) -> None:
    """Print the runs, oldest night first."""
    layout = Layout(storage.normalize(settings.results))
    commit_records.check_there(layout)
    runs = (*run_states.committed(layout), *run_states.uncommitted(layout))
    chosen = (run for run in runs if settings.collection in (None, run.collection))
    found = sorted(chosen, key=lambda run: (run.collection, run.date, run.started_at))
    if settings.format == "json":
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


if __name__ == "__main__":
    process.exit_with(main())
