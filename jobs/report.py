"""`fcdd report`: what a night brought, as one HTML file to open, mail or print."""

import logging
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from fcdd.io import storage
from jobs import results
from jobs.shell import process
from jobs.shell.settings import LookingSettings, Night
from jobs.sources.locations import Locations
from jobs.sources.moves import Moves
from jobs.viewing import html_report

log = logging.getLogger(__name__)


class ReportSettings(LookingSettings):
    """Write the report of a run: counts, verdict, the worst images with heatmaps, quarantine, drift, model card.

    One file that needs no server and no network. Images that are no longer where they were scored are missing from it.
    """

    verb: ClassVar[str] = "report"

    results: str = Field(description="location of the results")
    collection: str | None = Field(None, description="image collection; needed where there are several")
    date: Night | None = Field(None, description="night, YYYY-MM-DD; default: the latest with images")
    run: str | None = Field(None, description="id of a run instead, as `fcdd runs` lists them, superseded ones too")
    images: int = Field(50, ge=0, le=1000, description="how many of the most anomalous images")
    locations: list[str] = Field(
        default_factory=list, description="further location whose images may be opened; the run's own always may"
    )
    output: str = Field("report.html", description="file or object to write")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: report(ReportSettings.parse(argv)))


def report(settings: ReportSettings) -> None:
    """Write the report, and print where it is."""
    if settings.run:
        found = results.open_run(settings.results, settings.run)
    else:
        found = results.open(settings.results, collection=settings.collection, since=settings.date, until=settings.date)
    records = found.only_collection().records
    # A night without images, or a mistyped date, would hide the last one that has some.
    record = next((each for each in reversed(records) if each.num_listed), records[-1])
    if record is not records[-1]:
        log.info("the nights after %s are empty; --date shows them", record.day)
    moves = Moves.parse(settings.moved)
    record = moves.record(record)
    locations = Locations.of_records(found.location, (record,), settings.locations, moves)
    page = html_report.build(found.location, record, images=settings.images, locations=locations)
    storage.write(storage.normalize(settings.output), page)
    print(f"report      {settings.output}  ({record.collection}, {record.day}; {len(page) / 1e6:.2f} MB)")


if __name__ == "__main__":
    process.exit_with(main())
