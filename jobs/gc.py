"""`fcdd gc`: what dead runs left behind is removed; what a record names, or a live run needs, never is."""

from collections.abc import Sequence
from datetime import timedelta
from typing import ClassVar

from pydantic import Field

from fcdd.io import storage
from jobs.shell import process
from jobs.shell.settings import JobSettings
from jobs.upkeep import garbage
from schemas import Layout


class GcSettings(JobSettings):
    """Remove the staging of runs that nobody finished, parts that no commit record names, masks that no label names."""

    verb: ClassVar[str] = "gc"

    results: str = Field(description="location of the results")
    older_than_days: float = Field(7, ge=0, le=36_500, description="leave alone what was written within so many days")
    dry_run: bool = Field(False, description="say what would be removed; remove nothing")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: collect(GcSettings.parse(argv)))


def collect(settings: GcSettings) -> None:
    """Remove what is garbage, and print it."""
    layout = Layout(storage.normalize(settings.results))
    garbage.collect(layout, timedelta(days=settings.older_than_days), dry_run=settings.dry_run)


if __name__ == "__main__":
    process.exit_with(main())
